"""The structures of other model code, the orders of lengths, and what a row asks of the trace."""

from __future__ import annotations

import runpy
import statistics

import pytest
from accuracy.lengths import BATCHES, ORDERS, batch_orders
from accuracy.litgpt_rows import litgpt_candidate, litgpt_config
from accuracy.measure import adapter_of, request_of
from accuracy.records import ARCHITECTURES, LengthStatistics, load_models, load_rows

from autopeft.specs import Candidate

FUDAN = LengthStatistics(mean=3234.4, deviation=2547.5, least=91)
ROWS = {row.id: row for row in load_rows()}


def built(model_type: str, **settings):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    runpy.run_path(str(ARCHITECTURES / f"{model_type}.py"))
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **settings))


@pytest.mark.parametrize("name", [name for name in load_models() if name.startswith("Qwen/Qwen-")])
def test_the_first_qwen_has_its_published_parameters(name):
    record = load_models()[name]
    settings = {key: value for key, value in record.built_config.items() if key != "model_type"}
    assert sum(parameter.numel() for parameter in built("qwen", **settings).parameters()) == record.parameters


@pytest.mark.parametrize(
    "name", ["meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B", "mistralai/Mistral-7B-v0.1"]
)
def test_litgpt_has_the_published_parameters_and_its_own_adapters(name):
    """Of query and value: two factors A of the hidden width, and B of what query and value give, by the rank."""
    record = load_models()[name]
    candidate = Candidate(method="lora", r=8, lora_alpha=16.0, target_modules=("q_proj", "v_proj"))
    config = litgpt_config(record.config, candidate)
    model = built(config.pop("model_type"), **config)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    adapters = sum(count for name, count in counts.items() if "lora_" in name)
    width, groups = config["hidden_size"], config["num_key_value_heads"] * config["head_dim"]
    assert adapters == config["num_hidden_layers"] * 8 * (2 * width + width + groups)
    assert sum(counts.values()) - adapters == record.parameters
    model.requires_grad_(True)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == adapters
    assert litgpt_candidate(candidate).method == "full"


@pytest.mark.parametrize("rows", [1, 4])
def test_lengths_keep_to_their_bounds_and_longer_batches_have_longer_rows(rows):
    orders = batch_orders(FUDAN, 4096, rows)
    assert [len(order) for order in orders] == [BATCHES] * ORDERS
    assert all(91 <= length <= 4096 for order in orders for length in order)
    assert orders == batch_orders(FUDAN, 4096, rows)
    mean = statistics.fmean(length for order in orders for length in order)
    assert (mean > 2500) == (rows > 1)


def test_lengths_have_the_published_mean_and_deviation_where_no_row_is_left_out():
    lengths = [length for order in batch_orders(FUDAN, 10**9, 1) for length in order]
    assert statistics.fmean(lengths) == pytest.approx(FUDAN.mean, rel=0.1)
    assert statistics.stdev(lengths) == pytest.approx(FUDAN.deviation, rel=0.2)


def test_modules_that_are_trained_in_full_are_part_of_the_adapter():
    embedded = [row for row in ROWS.values() if row.full_modules and row.task == "causal_lm"]
    assert embedded
    for row in embedded:
        adapter = adapter_of(row)
        assert adapter is not None
        assert tuple(adapter["modules_to_save"]) == row.full_modules
    assert adapter_of(ROWS["qwen_readme-001"]) is None


def test_rows_of_other_model_code_name_it():
    named = {row.id: request_of(row, None).model_code for row in ROWS.values() if row.model_code == "stand_in"}
    missing = {name.partition("-")[0] for name, code in named.items() if not code}
    assert missing == {"torchtune"}
