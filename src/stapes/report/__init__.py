"""Run folders in, one compared report out; reads files only, imports no torch."""

from .collect import Collected, Run, Variant, collect
from .pages import build_report
from .printing import print_table, summarize

__all__ = ["Collected", "Run", "Variant", "build_report", "collect", "print_table", "summarize"]
