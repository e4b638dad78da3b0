"""Predict what a recipe's models take before anything is loaded: memory, time, runtimes. Imports no torch."""

from .budget import Budget, Verdict, parse_budget, rank
from .calibrating import calibrate
from .devices import GPUS, Device, find_device
from .folders import parts_of
from .model_plan import ModelPlan, plan_models
from .own import Workload
from .predicting import Prediction, default_workload, predict
from .rates import Calibration, calibration_path, read_calibration
from .search import compose_recipes

__all__ = [
    "GPUS",
    "Budget",
    "Calibration",
    "Device",
    "ModelPlan",
    "Prediction",
    "Verdict",
    "Workload",
    "calibrate",
    "calibration_path",
    "compose_recipes",
    "default_workload",
    "find_device",
    "parse_budget",
    "parts_of",
    "plan_models",
    "predict",
    "rank",
    "read_calibration",
]
