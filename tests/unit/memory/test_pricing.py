from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from autopeft.memory.closed_form import covers, estimate_memory
from autopeft.memory.pricing import WITHOUT_MEMORY, price_memory
from autopeft.profiling.model import resolve_target_modules, spec_from_config
from autopeft.specs import Candidate

DISTILBERT = {"model_type": "distilbert", "vocab_size": 128, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}


def test_a_known_model_is_priced_by_the_closed_form(llama, make_candidate):
    candidate = make_candidate()
    assert price_memory(candidate, llama, None, sequence_length=64) == estimate_memory(
        candidate, llama, None, sequence_length=64
    )


@pytest.mark.slow
def test_an_unknown_model_is_traced_once_for_candidates_that_differ_in_the_learning_rate_only():
    model = spec_from_config(DISTILBERT, id="tiny-distilbert")
    assert covers(model) is not None
    candidate = Candidate(
        method="lora",
        r=4,
        lora_alpha=4.0,
        trainer="transformers",
        target_modules=resolve_target_modules(model, ("all-linear",)),
    )
    found = price_memory(candidate, model, None, sequence_length=32)
    assert found.source == "traced"
    assert "distilbert" in found.assumptions[0]
    assert price_memory(replace(candidate, learning_rate=1e-3), model, None, sequence_length=32) == found
    assert "learning_rate" in WITHOUT_MEMORY


def test_without_the_training_stack_an_unknown_model_is_an_error_that_says_what_to_do():
    code = f"""
import sys
sys.modules["torch"] = None
from autopeft.errors import ModelError
from autopeft.memory.pricing import price_memory
from autopeft.profiling.model import spec_from_config
from autopeft.specs import Candidate
model = spec_from_config({DISTILBERT!r}, id="tiny-distilbert")
candidate = Candidate(method="lora", r=4, lora_alpha=4.0, target_modules=("q_lin",))
try:
    price_memory(candidate, model, None, sequence_length=32)
except ModelError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install 'autopeft[train]' to trace it, or choose a model of a known type: bert" in result.stdout
