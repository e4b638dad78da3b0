"""What goes into which slot, counted by hand, and a connector that learns to hear three tokens."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from stapes.model.configuration import ConnectorConfig, num_audio_tokens
from stapes.model.connectors import build_connector
from stapes.model.ctc_compressor import CTCCompressor, sound_slots, speech_slots

D, D_LLM, C = 24, 40, 5


def config(**changes: object) -> ConnectorConfig:
    settings = {
        "frames_per_window": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_ctc_tokens": C,
    }
    return ConnectorConfig(kind="ctc_compressor", **{**settings, **changes})  # type: ignore[arg-type]


def random_connector(seed: int = 0, **changes: object) -> CTCCompressor:
    torch.manual_seed(seed)
    connector = build_connector(config(**changes), D, D_LLM).eval()
    assert isinstance(connector, CTCCompressor)
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return connector


def logits_of(*best: int, height: float = 30.0) -> Tensor:
    """Logits (1, S, 1 + C) that are sure of these tokens; 0 is the blank."""
    return height * torch.nn.functional.one_hot(torch.tensor([best]), 1 + C).float()


def all_real(num: int) -> Tensor:
    return torch.ones(1, num, dtype=torch.bool)


def test_each_run_of_one_token_is_a_slot() -> None:
    logits = logits_of(0, 3, 3, 0, 3, 2, 0, 0)
    weights, num_speech = speech_slots(logits, all_real(8), torch.tensor([6]))
    assert num_speech.tolist() == [4 - 1]
    expected = torch.zeros(6, 8)
    expected[0, 1:3] = 0.5
    expected[1, 4] = expected[2, 5] = 1
    torch.testing.assert_close(weights[0], expected)


def test_a_step_that_is_half_sure_counts_half() -> None:
    logits = logits_of(3, 3)
    logits[0, 1] = torch.tensor([0.0, -90, -90, 1e-3, -90, -90])  # blank and token 3 are alike, the token a hair ahead
    weights, _ = speech_slots(logits, all_real(2), torch.tensor([2]))
    torch.testing.assert_close(weights[0, 0], torch.tensor([2 / 3, 1 / 3]), atol=1e-3, rtol=0)


def test_more_pieces_than_slots_share_them_and_one_slot_is_left_for_sound() -> None:
    weights, num_speech = speech_slots(logits_of(1, 2, 1, 2, 1, 2), all_real(6), torch.tensor([4]))
    assert num_speech.tolist() == [3]
    expected = torch.zeros(4, 6)
    for slot in range(3):
        expected[slot, 2 * slot : 2 * slot + 2] = 0.5
    torch.testing.assert_close(weights[0], expected)


def test_a_clip_of_one_slot_holds_speech_if_there_is_any() -> None:
    for best, count in ((3, 1), (0, 0)):
        _, num_speech = speech_slots(logits_of(best), all_real(1), torch.tensor([1]))
        assert num_speech.tolist() == [count]


def test_padding_is_no_speech() -> None:
    mask = torch.tensor([[True, True, False]])
    weights, num_speech = speech_slots(logits_of(0, 2, 2), mask, torch.tensor([2]))
    assert num_speech.tolist() == [1]
    assert weights[0, 0].tolist() == [0, 1, 0]


def test_sound_is_shared_out_evenly_to_the_slots_that_are_left() -> None:
    mask = torch.tensor([[True] * 10 + [False] * 6, [True] * 16])
    weights = sound_slots(mask, torch.tensor([2, 2]), torch.tensor([0, 1]), size=2)
    assert torch.allclose(weights[0, 0], torch.tensor([0.2] * 5 + [0.0] * 11))
    assert torch.allclose(weights[0, 1], torch.tensor([0.0] * 5 + [0.2] * 5 + [0.0] * 6))
    assert weights[1, 0].tolist() == [0.0] * 16
    assert torch.allclose(weights[1, 1], torch.full((16,), 1 / 16))


@torch.no_grad()
def test_a_slot_of_speech_is_the_embedding_of_what_was_heard() -> None:
    connector = random_connector()
    torch.nn.init.zeros_(connector.detail.weight)
    for parameter in (connector.norm_llm.weight, connector.blank.weight):
        torch.nn.init.zeros_(parameter)
    connector.norm_llm.bias.copy_(1000 * connector.token_embeddings.weight[3])  # the fourth token, without a doubt
    tokens, mask = connector(torch.randn(1, 40, D), all_real(40))
    assert mask.shape == (1, 5)
    torch.testing.assert_close(tokens[0, 0], connector.token_embeddings.weight[3], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_sharpness_decides_how_much_of_the_second_best_is_read() -> None:
    connector = random_connector()
    torch.nn.init.zeros_(connector.detail.weight)
    for parameter in (connector.norm_llm.weight, connector.blank.weight):
        torch.nn.init.zeros_(parameter)
    rows = connector.token_embeddings.weight
    hidden = rows[3] + 0.9 * rows[1]
    connector.norm_llm.bias.copy_(hidden)
    logits = rows @ hidden
    for sharpness in (0.5, 1.0, 6.0):
        connector.sharpness = sharpness
        tokens, _ = connector(torch.randn(1, 40, D), all_real(40))
        torch.testing.assert_close(tokens[0, 0], (sharpness * logits).softmax(dim=0) @ rows, atol=1e-4, rtol=1e-4)
    assert build_connector(config(ctc_sharpness=6.0), D, D_LLM).sharpness == 6.0


@torch.no_grad()
def test_a_slot_of_sound_is_the_embedding_of_its_name() -> None:
    connector = random_connector(sound_layer=2)
    assert connector.namer is not None
    for parameter in (connector.norm_llm.weight, connector.norm_llm.bias, *connector.sound_out.parameters()):
        torch.nn.init.zeros_(parameter)
    connector.blank.bias.fill_(9)  # nothing is said
    torch.nn.init.zeros_(connector.namer.norm_llm.weight)
    connector.namer.norm_llm.bias.copy_(1000 * connector.token_embeddings.weight[3])
    tokens, mask = connector(torch.randn(1, 40, 2 * D), all_real(40))
    assert mask.shape == (1, 5)
    torch.testing.assert_close(tokens[0], connector.token_embeddings.weight[3].expand(5, -1), atol=1e-4, rtol=1e-4)


def test_sounds_are_named_from_the_sound_layer_alone() -> None:
    connector = random_connector(sound_layer=2)
    frames, labels = torch.randn(1, 40, 2 * D), torch.tensor([[2, 5]])
    loss = connector.sound_loss(frames, all_real(40), labels)
    other = frames.clone()
    other[..., D:] += torch.randn(1, 40, D)
    assert connector.sound_loss(other, all_real(40), labels) != loss
    with torch.no_grad():
        connector.blank.bias.fill_(1000)  # which slots hold sound is CTC's to say: all of them now
    loss = connector.sound_loss(frames, all_real(40), labels)
    other = frames.clone()
    other[..., :D] += torch.randn(1, 40, D)
    assert connector.sound_loss(other, all_real(40), labels) == loss
    loss.backward()
    learnt = {name.split(".")[0] for name, parameter in connector.named_parameters() if parameter.grad is not None}
    assert learnt == {"namer", "token_embeddings"}


@torch.no_grad()
def test_the_loss_of_sounds_is_a_sum_over_words_of_means_over_slots() -> None:
    connector = random_connector(sound_layer=2)
    connector.blank.bias.fill_(1000)
    frames, mask = torch.randn(2, 20, 2 * D), torch.ones(2, 20, dtype=torch.bool)
    mask[1, 9:] = False  # three slots, and two
    frames[1, 9:] = 9.0
    loss = connector.sound_loss(frames, mask, torch.tensor([[2, 5, -100], [1, -100, -100]]))
    expected = []
    for row, words, slots in ((0, (1, 4), 3), (1, (0,), 2)):
        length = int(mask[row].sum())
        to_sound = sound_slots(mask[row : row + 1, :length], torch.tensor([slots]), torch.tensor([0]), slots)
        _, logits = connector._name(frames[row : row + 1, :length], mask[row : row + 1, :length], to_sound)
        mean = logits[0].log_softmax(dim=-1).mean(dim=0)
        expected += [-mean[word] for word in words]
    torch.testing.assert_close(loss, torch.stack(expected).sum())


def test_what_an_objective_teaches() -> None:
    llm_side = {"detail", "sound_out"}
    hears = {"norm_in", "conv", "layers", "norm_out", "to_llm", "norm_llm", "blank"}
    for changes, objective, expected in (
        ({}, "ctc", hears),
        ({}, "answer", {*llm_side, "sound_in", "norm_sound"}),
        ({"sound_layer": 2}, "ctc", hears),
        ({"sound_layer": 2}, "sound", {"namer"}),
        ({"sound_layer": 2}, "answer", llm_side),
        ({"ctc_letters": 64}, "ctc", {*hears, "letters"}),
        ({"ctc_letters": 64}, "letters", {"letters"}),
        ({"ctc_letters": 64}, "answer", {*llm_side, "sound_in", "norm_sound"}),
    ):
        connector = random_connector(**changes)
        connector.let_learn(objective)  # type: ignore[arg-type]
        assert {name.split(".")[0] for name, p in connector.named_parameters() if p.requires_grad} == expected
    with pytest.raises(ValueError, match="the connector names no sounds; `objective: sound` teaches one"):
        random_connector().let_learn("sound")
    for symbols in ("letters", "phones"):
        with pytest.raises(ValueError, match=f"the connector hears no {symbols}; `objective: {symbols}` teaches one"):
            random_connector().let_learn(symbols)


@pytest.mark.parametrize(("symbols", "number"), [("letters", 28), ("phones", 40)])
@torch.no_grad()
def test_letters_and_phones_do_not_depend_on_the_batch_and_see_no_sound_layer(symbols: str, number: int) -> None:
    connector = random_connector(**{f"ctc_{symbols}": 64}, sound_layer=2)
    lengths = [1, 2, 9, 51]
    frames, mask = torch.full((4, 51, 2 * D), 9.0), torch.zeros(4, 51, dtype=torch.bool)
    for row, length in enumerate(lengths):
        frames[row, :length] = torch.randn(length, 2 * D, generator=torch.Generator().manual_seed(row))
        mask[row, :length] = True
    heard = connector.hear(frames, mask)
    together = getattr(heard, symbols)
    assert together.shape == (4, 51, 1 + number)
    assert torch.equal(heard.frames_mask, mask)
    frames[..., D:] = 0.0
    for row, length in enumerate(lengths):
        alone = getattr(connector.hear(frames[row : row + 1, :length], mask[row : row + 1, :length]), symbols)
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("symbols", ["letters", "phones"])
@torch.no_grad()
def test_letters_and_phones_are_taught_each_by_what_it_hears_itself(symbols: Literal["letters", "phones"]) -> None:
    connector = random_connector(ctc_letters=64, ctc_phones=64)
    frames, mask, labels = torch.randn(1, 20, D), all_real(20), torch.tensor([[3, 5, 1, 7]])
    heard = getattr(connector.hear(frames, mask), symbols)
    expected = torch.nn.functional.ctc_loss(
        heard[0].log_softmax(dim=-1), labels[0], torch.tensor(20), torch.tensor(4), reduction="sum"
    )
    torch.testing.assert_close(connector.loss(symbols, frames, mask, labels), expected)


@pytest.mark.parametrize(("letters", "phones"), [(0, 0), (64, 0), (0, 64), (64, 128)])
@torch.no_grad()
def test_what_is_heard_goes_with_what_the_llm_reads(letters: int, phones: int) -> None:
    connector = random_connector(ctc_letters=letters, ctc_phones=phones)
    frames, mask = torch.randn(2, 40, D), all_real(40).repeat(2, 1)
    mask[1, 30:] = False
    heard, (slots, slots_mask) = connector.hear(frames, mask), connector(frames, mask)
    assert torch.equal(heard.slots_mask, slots_mask)
    torch.testing.assert_close(heard.slots, slots)
    torch.testing.assert_close(heard.pieces, connector.read(frames, mask).logits)
    assert heard.pieces_mask.sum(dim=1).tolist() == [10, 8]
    assert (heard.letters is None, heard.phones is None) == (letters == 0, phones == 0)


@pytest.mark.parametrize("sound_layer", [None, 2])
@torch.no_grad()
def test_tokens_do_not_depend_on_the_batch(sound_layer: int | None) -> None:
    connector = random_connector(sound_layer=sound_layer)
    width = D if sound_layer is None else 2 * D
    lengths = [1, 4, 5, 8, 9, 51, 365]
    frames = torch.full((len(lengths), 365, width), 9.0)  # padding that must not be heard
    mask = torch.zeros(len(lengths), 365, dtype=torch.bool)
    for row, length in enumerate(lengths):
        frames[row, :length] = torch.randn(length, width, generator=torch.Generator().manual_seed(row))
        mask[row, :length] = True
    tokens, tokens_mask = connector(frames, mask)
    counts = [num_audio_tokens(2 * length, 8, 1, "pad") for length in lengths]
    assert tokens_mask.sum(dim=1).tolist() == counts == [1, 1, 1, 1, 2, 7, 46]
    for row, length in enumerate(lengths):
        alone, _ = connector(frames[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(tokens[row, : counts[row]], alone[0], atol=1e-4, rtol=1e-4)


def test_it_learns_what_is_said_and_keeps_a_slot_for_sound() -> None:
    """Three syllables of eight frames each with quiet between; the order is what CTC has to find out."""
    torch.manual_seed(0)
    connector = build_connector(config(dropout=0.0), D, D_LLM)
    assert isinstance(connector, CTCCompressor)
    sounds, quiet = torch.randn(3, D), torch.randn(D)
    order = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 1, 0], [2, 0, 2]])
    clips = [torch.cat([piece for index in row for piece in (sounds[index], quiet)]) for row in order.tolist()]
    frames = torch.stack(clips).unflatten(1, (6, D)).repeat_interleave(8, dim=1)
    mask, labels = torch.ones(frames.shape[:2], dtype=torch.bool), order + 1
    optimizer = torch.optim.AdamW(connector.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = connector.ctc_loss(frames, mask, labels)
        loss.backward()
        optimizer.step()
    connector.eval()
    assert connector.ctc_loss(frames, mask, labels).item() < 0.1
    steps = connector.read(frames, mask)
    _, num_speech = speech_slots(steps.logits, steps.mask, torch.full((4,), 6))
    assert num_speech.tolist() == [3, 3, 3, 3]


def test_gradients_reach_every_weight() -> None:
    connector = random_connector().train()
    with torch.no_grad():
        connector.blank.bias.fill_(-50.0)  # something is heard
    frames = torch.randn(1, 40, D, requires_grad=True)
    tokens, _ = connector(frames, all_real(40))
    (tokens.pow(2).sum() + connector.ctc_loss(frames, all_real(40), torch.tensor([[1, 2]]))).backward()
    assert frames.grad is not None
    assert [name for name, parameter in connector.named_parameters() if parameter.grad is None] == []


def test_a_text_that_is_longer_than_its_clip_teaches_nothing() -> None:
    connector = random_connector()
    loss = connector.ctc_loss(torch.randn(1, 8, D), all_real(8), torch.tensor([[1, 2, 3]]))
    assert loss.item() == 0.0


def test_frames_of_another_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^encoder frames are 25 wide, the connector was built for 24$"):
        random_connector()(torch.zeros(1, 20, D + 1), all_real(20))
