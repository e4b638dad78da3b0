import math

import pytest

from stapes.evaluate.cider import cider_d, tokenize_caption

# pip install pycocoevalcap==1.2 numpy, then with `gts` {i: references}, `res` {i: [candidate]}:
#   from pycocoevalcap.cider.cider import Cider; print(Cider().compute_score(gts, res))
SINGLE = (
    ["a dog barks twice", "rain falls on a roof", "a man is talking", "", "bell"],
    [
        ["a dog barks twice"],
        ["rain is falling on a tin roof"],
        ["a woman speaks while music plays"],
        ["a car passes by"],
        ["a bell rings"],
    ],
    [10.0, 1.9309316801464538, 0.0, 0.0, 1.6722358879789971],
)
MULTIPLE = (
    [
        "a dog dog dog barks",
        "water drips into a bucket",
        "a crowd cheers and claps loudly in a large hall for a long time",
    ],
    [
        ["a dog barks", "a small dog is barking", "a dog barks at the door"],
        ["water is dripping into a metal bucket", "water drips"],
        ["a crowd cheers", "people clap and cheer in a hall", "a crowd cheers and claps loudly"],
    ],
    [1.4890122307891347, 2.3555738912456574, 1.195626683111834],
)


@pytest.mark.parametrize(("candidates", "references", "expected"), [SINGLE, MULTIPLE])
def test_agrees_with_coco_caption(candidates: list[str], references: list[list[str]], expected: list[float]) -> None:
    assert cider_d(candidates, references, tokenize=str.split) == pytest.approx(expected, abs=1e-12)


def test_by_hand() -> None:
    # Two samples: every n-gram of one reference alone weighs log 2, so the weights cancel out of the cosines.
    # "x y" against "x z": unigram cosine 1/2, no shared bigram, same length: 10 · (1/2) / 4.
    # "p p p" against "p": min(3, 1) · 1 / (3 · 1) = 1/3, damped for two words more.
    scores = cider_d(["x y", "p p p"], [["x z"], ["p"]])
    assert scores == pytest.approx([10 / 8, 10 / 12 * math.exp(-4 / 72)])


def test_one_sample_alone_scores_nothing() -> None:
    assert cider_d(["a dog barks"], [["a dog barks"]]).tolist() == [0.0]


def test_every_candidate_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="no reference"):
        cider_d(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="1 candidates but 2 lists"):
        cider_d(["a"], [["a"], ["b"]])


# What the tokeniser of coco-caption gives (pycocoevalcap 1.2, PTBTokenizer).
@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog barks, and birds sing.", "a dog barks and birds sing"),
        ("A man's voice; don't stop!", "a man 's voice do n't stop"),
        ('Someone says "hello there" twice...', "someone says hello there twice"),
        ("They can't hear the 3.5 kHz tone -- it's gone", "they ca n't hear the 3.5 khz tone it 's gone"),
        ("The dogs' barking", "the dogs barking"),
        ("café noise: people talk", "café noise people talk"),
        ("I'm you've we'll he'd they're", "i 'm you 've we 'll he 'd they 're"),
        ("1,000 well-known bells, 50% louder & more", "1,000 well-known bells 50 % louder & more"),
    ],
)
def test_tokenizes_like_the_penn_treebank(caption: str, expected: str) -> None:
    assert tokenize_caption(caption) == expected.split()
