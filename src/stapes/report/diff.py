"""Where an answer differs from its target, word by word."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import jiwer

_NOT_IN_WORDS = re.compile(r"[^\w']+")


@dataclass(frozen=True)
class Piece:
    """Some words of an answer, or of its target where the answer lacks them.

    Attributes:
        kind: `same`, `wrong` (another word than the target's), `extra` (the target has none) or `missing`.
        text: the words as they were written: of the target where they are missing, else of the answer.
        wanted: the target's words in place of wrong ones; else empty.
    """

    kind: Literal["same", "wrong", "extra", "missing"]
    text: str
    wanted: str = ""


def diff_words(target: str, answer: str) -> list[Piece]:
    """Align an answer with its target with the fewest word edits (Levenshtein).

    Case and punctuation do not count. Scores are stricter about what is one word and laxer about spelling: they know
    contractions, numbers and British spellings; so a word that is marked here may not be an error there.

    Returns:
        Pieces in the order of the answer, with what it lacks where it lacks it; neighbours of one kind are one piece.
    """
    targets, answers = target.split(), answer.split()
    target_at, answer_at = _words(targets), _words(answers)
    pieces: list[Piece] = []
    done = 0  # words of the answer that stand in pieces; marks alone, such as a dash, go with the words before

    def take(end: int) -> str:
        nonlocal done
        start, done = done, max(done, end)
        return " ".join(answers[start:done])

    for chunk in jiwer.process_words(_join(targets), _join(answers)).alignments[0]:
        wanted = " ".join(targets[at] for at in target_at[chunk.ref_start_idx : chunk.ref_end_idx])
        last = answer_at[chunk.hyp_end_idx - 1] + 1 if chunk.hyp_end_idx > chunk.hyp_start_idx else done
        match chunk.type:
            case "equal":
                _add(pieces, Piece("same", take(last)))
            case "substitute":
                _add(pieces, Piece("wrong", take(last), wanted))
            case "insert":
                _add(pieces, Piece("extra", take(last)))
            case "delete":
                _add(pieces, Piece("missing", wanted))
    if done < len(answers):
        _add(pieces, Piece("same", take(len(answers))))
    return pieces


def count_word_errors(target: str, answer: str) -> tuple[int, int]:
    """Count wrong, missing and extra words, and the words of the target; see `diff_words` for what counts."""
    bare = _join(target.split())
    edits = jiwer.process_words(bare, _join(answer.split()))
    return edits.substitutions + edits.deletions + edits.insertions, len(bare.split())


def is_same(target: str, answer: str) -> bool:
    """Tell whether two texts have the same words."""
    return count_word_errors(target, answer)[0] == 0


def word_overlap(target: str, answer: str) -> float:
    """Return F1 of the words of two texts, in any order: 1 for the same words, 0 for none in common."""
    ours, theirs = (Counter(_join(text.split()).split()) for text in (answer, target))
    common = (ours & theirs).total()
    return 2 * common / max(1, ours.total() + theirs.total())


def _words(tokens: list[str]) -> list[int]:
    """List the positions of the tokens that are words."""
    return [position for position, token in enumerate(tokens) if _bare(token)]


def _join(tokens: list[str]) -> str:
    return " ".join(word for word in map(_bare, tokens) if word)


def _bare(token: str) -> str:
    return _NOT_IN_WORDS.sub("", token.replace("’", "'").casefold())


def _add(pieces: list[Piece], piece: Piece) -> None:
    if piece.kind == "same" and pieces and pieces[-1].kind == "same":
        piece = Piece("same", f"{pieces.pop().text} {piece.text}")
    if piece.text:
        pieces.append(piece)
