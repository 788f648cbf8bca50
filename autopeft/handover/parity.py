"""Compares what two forms of an adapter compute: logits in float32, on random tokens, without a tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROWS, COLUMNS = 2, 32


@dataclass(frozen=True, kw_only=True)
class LogitsDifference:
    """How far the logits of the converted adapter are from the saved one's, as peft loads it.

    Attributes:
        largest: difference of a logit.
        relative: ``||converted - saved|| / ||saved||``.
        of_effect: ``||converted - saved|| / ||saved - base||``, the share of what the adapter changes; 0 for none.
        tokens: that were compared.
    """

    largest: float
    relative: float
    of_effect: float
    tokens: int


def compare_logits(base_folder: Path, saved: Path, converted: Path) -> LogitsDifference:
    """Returns the difference of two adapters, or of an adapter and a merged model, on a causal language model.

    Holds the base in memory in float32, one model at a time.
    """
    base = _logits(base_folder, None)
    reference = _logits(base_folder, saved)
    is_adapter = (converted / "adapter_config.json").is_file()
    found = _logits(base_folder, converted) if is_adapter else _logits(converted, None)
    difference = found - reference
    effect = float((reference - base).norm())
    return LogitsDifference(
        largest=float(difference.abs().max()),
        relative=float(difference.norm() / reference.norm()),
        of_effect=float(difference.norm()) / effect if effect else 0.0,
        tokens=ROWS * COLUMNS,
    )


def _logits(model_folder: Path, adapter: Path | None) -> torch.Tensor:
    import torch
    from peft import PeftModel

    from autopeft.engine.base import load_base

    with torch.random.fork_rng(devices=[]), torch.no_grad(), _quiet():
        model: Any = load_base(model_folder, _float32(), "cpu")
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, model.config.vocab_size, (ROWS, COLUMNS), generator=generator)
        logits: torch.Tensor = model.eval()(input_ids=tokens).logits
        return logits.double()


def _float32() -> Any:
    from autopeft.specs import Candidate

    return Candidate(method="full", r=None, lora_alpha=None, adapter_dtype=None, dtype="float32")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft takes AdaLoRA's saved rank pattern for LoRA's and says that it ignores it; the ranks are right.
        warnings.filterwarnings("ignore", "The following rank_pattern keys", RuntimeWarning)
        yield
