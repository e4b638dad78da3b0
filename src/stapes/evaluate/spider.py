"""SPIDEr of captions: the mean of CIDEr-D and SPICE, which parses captions with a Java program."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..errors import StapesError
from .cider import tokenize_caption

INSTALL = "pip install aac-metrics && aac-metrics-download"
_SPIDER = "aac_metrics.functional.spider"
_JARS = ("aac-metrics/spice/spice-1.0.jar", "aac-metrics/spice/lib/stanford-corenlp-3.6.0-models.jar")


def why_no_spider() -> str | None:
    """Tell what SPIDEr lacks on this machine, with the command that gets it; None if it can be had."""
    if find_spec("aac_metrics") is None:
        return f"the package aac-metrics is not installed; `{INSTALL}`, with Java 8 to 13"
    try:
        settings, checks = import_module("aac_metrics.utils.globals"), import_module("aac_metrics.utils.checks")
        import_module(_SPIDER)
    except ImportError as error:
        return f"the package aac-metrics cannot be imported ({error}); `pip install --force-reinstall aac-metrics`"
    java = shutil.which(settings.get_default_java_path())
    if java is None:
        return "there is no Java; install version 8 to 13, or name one in AAC_METRICS_JAVA_PATH"
    try:
        is_right = checks.check_java_path(java)
    except ValueError:  # what is called `java` says no version
        is_right = False
    if not is_right:
        return (
            f"SPICE does not run on this Java ({java}); install version 8 to 13, and name it in AAC_METRICS_JAVA_PATH"
        )
    cache = Path(settings.get_default_cache_path())
    absent = next((jar for jar in _JARS if not (cache / jar).is_file()), None)
    return f"{cache / absent} is not there; `aac-metrics-download` gets it" if absent else None


def spider(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: Callable[[str], list[str]] = tokenize_caption,
) -> np.ndarray:
    """Score captions by the mean of CIDEr-D and SPICE (Liu et al. 2017, arXiv 1612.00370), through `aac-metrics`.

    Args:
        candidates: N captions, N ≥ 2.
        references: N lists of at least one reference.
        tokenize: text to words; `str.split` for results on whitespace tokens, as NOTA's evaluator has them.

    Returns:
        (N,) scores from 0 to 5.5; their mean is the corpus score.

    Raises:
        StapesError: if what it needs is not on this machine, or its Java program fails.
    """
    if (reason := why_no_spider()) is not None:
        raise StapesError(f"SPIDEr cannot be computed: {reason}")
    compute = import_module(_SPIDER).spider

    def words(text: str) -> str:
        return " ".join(tokenize(text))

    try:
        _, scores = compute([words(text) for text in candidates], [[*map(words, texts)] for texts in references])
    except (RuntimeError, OSError, ValueError) as error:
        raise StapesError(f"SPIDEr: aac-metrics failed: {error}") from error
    return scores["spider"].numpy()
