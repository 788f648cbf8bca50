"""Exports of a real plan of a tiny model: what they say, and that the trl and peft scripts train as our engine does."""

from __future__ import annotations

import json
import math
import re
import runpy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import autopeft
from autopeft.cli import main
from autopeft.errors import InvalidInputError, UnknownNameError
from autopeft.handover.export.target import targets, trainers
from autopeft.methods import get_method
from autopeft.specs import Candidate, Recommendation

ROWS = 8
STEPS = 4

Planned = Callable[..., Recommendation]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "numbers.jsonl"
    rows = [{"prompt": f"{n} + 1 = ", "completion": str(n + 1)} for n in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plan(tiny_model: Path, numbers: Path) -> Recommendation:
    return autopeft.suggest(model=str(tiny_model), data=str(numbers), hardware="rtx-4090", methods=["lora"])


@pytest.fixture(scope="module")
def planned(plan: Recommendation) -> Planned:
    """Returns a function that gives the plan with one candidate, changed; a step sees every row, in whatever order."""

    def make(method: str = "lora", steps: int = STEPS, **changes: Any) -> Recommendation:
        scaled = get_method(method)
        candidate = replace(
            plan.candidates[0].candidate,
            **{
                "method": method,
                "r": 4,
                "lora_alpha": scaled.lora_alpha(4, 1.0),
                "target_modules": ("down_proj", "q_proj", "v_proj"),
                "quantization": "none",
                "dtype": "float32",
                "adapter_dtype": "float32",
                "learning_rate": 1e-2,
                "per_device_batch_size": ROWS,
                "gradient_accumulation_steps": 1,
                "max_length": 32,
                "activation_checkpointing": False,
                "optimizer": "adamw_torch",
                "options": {},
            }
            | ({"r": None, "lora_alpha": None, "target_modules": (), "adapter_dtype": None} if method == "full" else {})
            | changes,
        )
        return replace(plan, candidates=(replace(plan.candidates[0], candidate=candidate, steps=steps),))

    return make


def losses_of_the_engine(plan: Recommendation) -> list[float]:
    """Trains the plan's candidate by the engine's own functions, on all rows at once."""
    import torch
    from transformers import set_seed

    from autopeft.engine.adapters import inject
    from autopeft.engine.base import load_base
    from autopeft.engine.loss import batch_loss
    from autopeft.engine.optimizer import make_optimizer
    from autopeft.methods import MethodContext
    from autopeft.profiling.dataset import read_examples
    from autopeft.profiling.encoding import encode_examples
    from autopeft.training.data import Collator, token_row

    candidate: Candidate = plan.candidates[0].candidate
    folder = Path(str(plan.model.path))
    examples = read_examples(plan.data.files, plan.data.format, plan.data.columns)
    rows = [token_row(number, row, 32) for number, row in enumerate(encode_examples(folder, examples))]
    batch = Collator(0, keeps_logits=False)([row.columns for row in rows])
    items = int((batch["labels"][:, 1:] != -100).sum())
    base = load_base(folder, candidate, "cpu")
    set_seed(plan.seed)
    model = inject(base, candidate, STEPS)
    optimizer = make_optimizer(model, candidate)
    warmup = max(1, round(candidate.warmup_ratio * STEPS))
    rates = [step / warmup if step < warmup else (STEPS - step) / (STEPS - warmup) for step in range(STEPS)]
    context = MethodContext(candidate=candidate, steps=STEPS, seed=plan.seed, weights=None)  # type: ignore[arg-type]
    losses = []
    model.train()
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = candidate.learning_rate * rate
        loss, _ = batch_loss(model, batch, "transformers", items)
        losses.append(float(loss.detach()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], candidate.max_grad_norm)
        optimizer.step()
        get_method(candidate.method).after_optimizer_step(model, step + 1, context)
        optimizer.zero_grad()
    return losses


def losses_of_the_script(folder: Path) -> list[float]:
    """Runs the script as `python train.py` would, but in this process, where the libraries are imported already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = runpy.run_path(str(folder / "train.py"))
    return [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]


@pytest.mark.parametrize("target", ["trl", "peft"])
def test_an_exported_script_trains_as_the_engine_does(target: str, planned: Planned, tmp_path: Path) -> None:
    plan = planned("rslora")
    autopeft.export_recipe(plan, to=target, output=tmp_path / "out")
    found, expected = losses_of_the_script(tmp_path / "out"), losses_of_the_engine(plan)
    assert expected[-1] < expected[0] - 0.05
    assert found == pytest.approx(expected, rel=1e-5)
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["trl", "peft"])
@pytest.mark.parametrize("method", ["dora", "adalora", "full"])
def test_every_exported_method_trains(method: str, target: str, planned: Planned, tmp_path: Path) -> None:
    steps = 12 if method == "adalora" else STEPS
    autopeft.export_recipe(planned(method, steps), to=target, output=tmp_path / "out")
    losses = losses_of_the_script(tmp_path / "out")
    assert len(losses) == steps
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


def test_every_target_is_known_to_the_profile_and_the_other_way_round() -> None:
    assert set(targets()) == set(trainers()) == {"trl", "peft", "axolotl", "llamafactory", "ms-swift", "unsloth"}


@pytest.mark.parametrize("target", sorted(targets()))
def test_an_export_holds_the_candidate_and_the_rows(target: str, planned: Planned, tmp_path: Path) -> None:
    plan = planned("rslora", learning_rate=0.00123, weight_decay=0.01)
    export = autopeft.export_recipe(plan, to=target, output=tmp_path / "out")
    text = (tmp_path / "out" / export.main).read_text()
    assert "0.00123" in text
    assert "rslora" in text
    assert export.version in text
    assert export.command in text
    rows = (tmp_path / "out" / "data.jsonl").read_text().splitlines()
    assert len(rows) == ROWS
    assert "7 + 1 = " in rows[7]
    if export.main.endswith(".py"):
        compile(text, export.main, "exec")
    else:
        assert yaml.safe_load(text)["learning_rate"] == 0.00123


@pytest.mark.parametrize("target", sorted(targets()))
def test_a_quantized_base_is_asked_for(target: str, planned: Planned, tmp_path: Path) -> None:
    export = autopeft.export_recipe(
        planned(quantization="nf4", dtype="bfloat16", prepare_kbit=True), to=target, output=tmp_path / "out"
    )
    text = (tmp_path / "out" / export.main).read_text()
    assert re.search(r"load_in_4bit[=:] ?[Tt]rue|quant(ization)?_bits?: 4", text)


def test_conversations_are_exported_as_turns(planned: Planned, tmp_path: Path) -> None:
    plan = planned()
    chat = replace(plan, model=replace(plan.model, has_chat_template=True))
    autopeft.export_recipe(chat, to="axolotl", output=tmp_path / "axolotl")
    first = json.loads((tmp_path / "axolotl" / "data.jsonl").read_text().splitlines()[0])
    assert first["messages"] == [{"role": "user", "content": "0 + 1 = "}, {"role": "assistant", "content": "1"}]
    autopeft.export_recipe(chat, to="trl", output=tmp_path / "trl")
    first = json.loads((tmp_path / "trl" / "data.jsonl").read_text().splitlines()[0])
    assert first == {
        "prompt": [{"role": "user", "content": "0 + 1 = "}],
        "completion": [{"role": "assistant", "content": "1"}],
    }


def test_running_text_is_exported_as_text(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps({"text": f"The story of {n} rivers. " * 3}) + "\n" for n in range(20)))
    plan = autopeft.suggest(model=str(tiny_model), data=str(data), hardware="rtx-4090", methods=["lora"])
    export = autopeft.export_recipe(plan, to="llamafactory", output=tmp_path / "out")
    assert yaml.safe_load((tmp_path / "out" / export.main).read_text())["stage"] == "pt"
    assert json.loads((tmp_path / "out" / "data.jsonl").read_text().splitlines()[0])["text"].startswith("The story")


def test_what_a_trainer_cannot_say_is_refused_or_told(planned: Planned, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot train adalora"):
        autopeft.export_recipe(planned("adalora", 12), to="axolotl", output=tmp_path / "out")
    with pytest.raises(InvalidInputError, match="cannot train dora"):
        autopeft.export_recipe(planned("dora"), to="unsloth", output=tmp_path / "out")
    with pytest.raises(InvalidInputError, match="loftq"):
        autopeft.export_recipe(planned("loftq", quantization="nf4"), to="trl", output=tmp_path / "out")
    with pytest.raises(InvalidInputError, match="candidates 1 to 1, not 2"):
        autopeft.export_recipe(planned(), to="trl", output=tmp_path / "out", candidate=2)
    with pytest.raises(UnknownNameError, match="axolotl"):
        autopeft.export_recipe(planned(), to="axolot", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export = autopeft.export_recipe(planned(lora_alpha=5.7), to="axolotl", output=tmp_path / "out")
    assert any("5.7 is rounded to 6" in note for note in export.notes)


def test_the_command_prints_the_notes_and_how_to_start(
    planned: Planned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from autopeft.api import write_plan

    write_plan(planned(), tmp_path / "plan.json")
    with pytest.raises(SystemExit) as stop:
        main(["export-recipe", str(tmp_path / "plan.json"), "--to", "axolotl", "-o", str(tmp_path / "out")])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "axolotl train axolotl.yaml" in printed
    assert "all rows are for training" in printed
