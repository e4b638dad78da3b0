"""Run a recipe: from audio files to a compared report, one folder a step."""

from .engine import RunSummary, check_recipe, check_splits, run_recipe
from .steps import Step, plan_steps

__all__ = ["RunSummary", "Step", "check_recipe", "check_splits", "plan_steps", "run_recipe"]
