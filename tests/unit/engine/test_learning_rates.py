"""Which learning rate each trained parameter gets."""

from dataclasses import replace

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from autopeft.engine.adapters import inject
from autopeft.engine.base import load_base
from autopeft.engine.optimizer import make_optimizer
from autopeft.specs import Candidate
from autopeft.testing import tiny_llama

PLUS = Candidate(
    method="loraplus",
    r=4,
    lora_alpha=4.0,
    target_modules=("q_proj", "down_proj"),
    dtype="float32",
    learning_rate=1e-3,
    weight_decay=0.1,
    options={"loraplus_lr_ratio": 8.0},
)


def rates_of(optimizer, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    return {names[id(each)]: (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}


def test_loraplus_gives_the_second_factor_its_ratio_as_pefts_optimizer_does(tmp_path):
    model = inject(load_base(tiny_llama(tmp_path), PLUS, "cpu"), PLUS, 10)
    peft = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8.0, loraplus_weight_decay=0.1
    )
    ours = rates_of(make_optimizer(model, PLUS), model)
    assert ours == rates_of(peft, model)
    assert {rate for rate, _ in ours.values()} == {1e-3, 8e-3}


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "adamw_bnb_8bit"])
def test_other_optimizers_keep_the_ratio(tmp_path, optimizer):
    candidate = replace(PLUS, optimizer=optimizer)
    model = inject(load_base(tiny_llama(tmp_path), candidate, "cpu"), candidate, 10)
    rates = rates_of(make_optimizer(model, candidate), model)
    assert all(rate == (8e-3 if "lora_B" in name else 1e-3) for name, (rate, _) in rates.items())
