"""Two shallow traces stand for the whole model, to a tenth of a per cent: dense, experts, patterned, encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopeft.memory.trace import answer_to
from autopeft.memory.tracing.request import TraceRequest
from autopeft.profiling.model import resolve_target_modules, spec_from_config
from autopeft.specs import Candidate

SHAPE = {
    "vocab_size": 4000,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
MODELS = {
    "dense": {"model_type": "llama", "num_hidden_layers": 11} | SHAPE,
    "experts": {"model_type": "mixtral", "num_hidden_layers": 9, "num_local_experts": 4, "sliding_window": None}
    | SHAPE,
    "patterned": {"model_type": "gemma3_text", "num_hidden_layers": 20, "head_dim": 32, "sliding_window": 64} | SHAPE,
    "encoder": {
        "model_type": "bert",
        "num_hidden_layers": 9,
        "vocab_size": 4000,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
    },
}
TOKENS = 128
LARGE_SEGMENT_BYTES = (
    20 * 2**20
)  # of the caching allocator; the order of events within a phase may differ by one or two


def candidate(model, method: str, **changes) -> Candidate:
    trained = {"r": None, "lora_alpha": None, "adapter_dtype": None}
    adapter = {"r": 8, "lora_alpha": 8.0, "target_modules": resolve_target_modules(model, ("attention",))}
    return Candidate(
        method=method,
        per_device_batch_size=2,
        trainer="transformers",
        **(trained if method == "full" else adapter) | changes,
    )


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("kind", MODELS)
def test_shallow_traces_equal_the_whole_model_within_a_tenth_of_a_per_cent(kind, method):
    model = spec_from_config(MODELS[kind], id=kind)
    request = TraceRequest(
        candidate=candidate(model, method),
        model_type=model.model_type,
        config=model.config,
        encoder=model.kind == "encoder",
        kind="cuda",
        sequence_length=TOKENS,
    )
    shallow = answer_to(request)
    whole = answer_to(replace(request, full_depth=True))
    assert len(shallow.depths) == 2
    assert len(whole.depths) == 1
    assert phases(shallow) == pytest.approx(phases(whole), rel=0.001)
    assert shallow.peak_reserved_bytes == pytest.approx(
        whole.peak_reserved_bytes, rel=0.01, abs=2 * LARGE_SEGMENT_BYTES
    )
    assert shallow.trainable_parameters == whole.trainable_parameters
    launches = [sum(cost.launches for cost in answer.costs) for answer in (shallow, whole)]
    assert launches[0] == pytest.approx(launches[1], rel=0.01)


def phases(answer) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, part in answer.parts.items():
        phase = name.partition(" ")[0]
        found[phase] = max(found.get(phase, 0), sum(part.values()))
    return found
