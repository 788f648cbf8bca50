"""The Python API: what the command line calls, and what pipelines call.

Nothing here prints; progress goes to the callbacks, logs to ``logging``.
"""

from autopeft.api._advice import describe_methods, suggest
from autopeft.api._baseline import baseline, describe_data
from autopeft.api._calibrate import CalibrationResult, calibrate
from autopeft.api._estimate import estimate, explain
from autopeft.api._explain_plan import explain_plan
from autopeft.api._handover import convert, export_recipe, merge
from autopeft.api._plans import read_plan, write_plan
from autopeft.api._run import run

__all__ = [
    "CalibrationResult",
    "baseline",
    "calibrate",
    "convert",
    "describe_data",
    "describe_methods",
    "estimate",
    "explain",
    "explain_plan",
    "export_recipe",
    "merge",
    "read_plan",
    "run",
    "suggest",
    "write_plan",
]
