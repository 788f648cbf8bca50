import pytest

from autopeft.profiling.model import resolve_target_modules, spec_from_config
from autopeft.specs import Candidate, ModelSpec

LLAMA = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


@pytest.fixture
def llama() -> ModelSpec:
    return spec_from_config(LLAMA, id="tiny-llama")


@pytest.fixture
def make_spec():
    def make(**changes):
        return spec_from_config(LLAMA | changes, id="tiny")

    return make


@pytest.fixture
def make_candidate(llama):
    """Builds a candidate on all linear layers of the model given, or of the tiny llama."""

    def make(method: str = "lora", model: ModelSpec = llama, **changes) -> Candidate:
        fields = {"method": method, "r": 8, "lora_alpha": 8.0, "per_device_batch_size": 2}
        fields["target_modules"] = resolve_target_modules(model, ("all-linear",))
        if method == "full":
            fields |= {"r": None, "lora_alpha": None, "target_modules": (), "adapter_dtype": None}
        return Candidate(**fields | changes)

    return make
