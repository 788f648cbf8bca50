"""What can be priced but is not trained by a run: a plan of it says so."""

from __future__ import annotations

from autopeft.profiling.dataset import why_not_trained
from autopeft.specs import DatasetProfile, ModelSpec


def why_no_run(model: ModelSpec, data: DatasetProfile) -> str | None:
    """Returns why no run trains this model on this data, in one sentence; None if one does."""
    return encoder_problem(model) or why_not_trained(data.format, data.source)


def encoder_problem(model: ModelSpec) -> str | None:
    """Returns why no run trains a model that is not a causal language model; None for those."""
    if model.kind == "causal_lm":
        return None
    return (
        f"autopeft run trains causal language models; {model.id} is an encoder ({model.model_type}), which "
        "`autopeft suggest` and `autopeft estimate` price but no run trains yet"
    )


def run_notes(model: ModelSpec, data: DatasetProfile) -> list[str]:
    """Returns what a plan must say where no run can follow it, and where model and data do not belong together."""
    notes = []
    if model.kind != "causal_lm" and data.format not in ("classification", "text_pair"):
        notes.append(
            f"{model.id} is an encoder, priced with a head for labels, and the data ({data.format}) has none; take a "
            "causal language model, or data of texts with labels"
        )
    problem = why_no_run(model, data)
    return notes if problem is None else [*notes, f"this plan cannot be run: {problem}"]
