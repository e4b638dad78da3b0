"""Pieces scored by their letters."""

from __future__ import annotations

import torch

from stapes.model.speller import MAX_GROUPS, Speller, letter_groups


def test_groups_are_all_runs_of_up_to_three_letters() -> None:
    groups, spelling = letter_groups(["Ġab", "b", "bab"])
    assert groups == sorted(["Ġab", "Ġa", "ab", "Ġ", "a", "b", "bab", "ba"])
    named = [[groups[number - 1] for number in row.tolist() if number] for row in spelling]
    assert named == [["Ġab", "Ġa", "ab", "Ġ", "a", "b"], ["b"], ["bab", "ba", "ab", "b", "a", "b"]]
    assert spelling.shape == (3, MAX_GROUPS)
    assert len(letter_groups(["Ġ" + 20 * "ab"])[1].nonzero()) == MAX_GROUPS


def test_pieces_of_the_same_letters_score_alike_and_what_was_learnt_counts_at_once() -> None:
    torch.manual_seed(0)
    groups, spelling = letter_groups(["Ġa", "Ġb", "aĠ"])
    speller = Speller(4, 8, 3, len(groups)).eval()
    speller.spelling.copy_(spelling)
    hidden = torch.randn(1, 2, 4)
    with torch.no_grad():
        before = speller(hidden)
        sums = torch.stack([speller.groups.weight[row[row > 0]].sum(dim=0) for row in spelling])
        expected = speller.to_letters(hidden) @ torch.nn.functional.normalize(sums, dim=-1).T
        torch.testing.assert_close(before, expected)
        speller.train()
        speller.groups.weight[1:].neg_()
        speller.eval()
        torch.testing.assert_close(speller(hidden), -before)


def test_what_is_kept_follows_the_weights() -> None:
    torch.manual_seed(0)
    groups, spelling = letter_groups(["Ġa", "Ġb"])
    speller = Speller(4, 8, 2, len(groups)).eval()
    speller.spelling.copy_(spelling)
    hidden = torch.randn(1, 2, 4)
    with torch.no_grad():
        before = speller(hidden)
        turned = {name: -value if name == "groups.weight" else value for name, value in speller.state_dict().items()}
        speller.load_state_dict(turned)
        torch.testing.assert_close(speller(hidden), -before)
        half = speller.bfloat16()(hidden.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), -before, atol=0.05, rtol=0.05)
