"""autopeft chooses the fine-tuning method, rank and learning rate for your model, data and GPU.

``suggest`` recommends in seconds without GPU or weights, ``estimate`` prices one configuration, ``run`` searches,
trains the winner and says honestly whether the difference is real.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.api import (
        baseline,
        calibrate,
        convert,
        estimate,
        explain,
        explain_plan,
        export_recipe,
        merge,
        run,
        suggest,
    )
    from autopeft.errors import AutoPeftError
    from autopeft.specs import Candidate, MemoryEstimate, Recommendation, Report, Verdict

__version__ = "0.1.0"

__all__ = [
    "AutoPeftError",
    "Candidate",
    "MemoryEstimate",
    "Recommendation",
    "Report",
    "Verdict",
    "__version__",
    "baseline",
    "calibrate",
    "convert",
    "estimate",
    "explain",
    "explain_plan",
    "export_recipe",
    "merge",
    "run",
    "suggest",
]

_HOMES = {
    "baseline": "autopeft.api",
    "calibrate": "autopeft.api",
    "convert": "autopeft.api",
    "merge": "autopeft.api",
    "suggest": "autopeft.api",
    "run": "autopeft.api",
    "estimate": "autopeft.api",
    "explain": "autopeft.api",
    "explain_plan": "autopeft.api",
    "export_recipe": "autopeft.api",
    "AutoPeftError": "autopeft.errors",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that ``import autopeft`` stays light (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "autopeft.specs")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
