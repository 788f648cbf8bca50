"""Gradient, loss and saved adapter of autopeft's training equal those of plain transformers, peft and trl code.

Float32 on a tiny Llama, from the libraries' public API. Two optimizer steps on one batch: a warm-up of one step has a
learning rate of zero, so that the second step's gradient is that of the untrained adapter.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from datasets import Dataset
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from autopeft.engine.step import StepParts, forward_loss, update
from autopeft.methods import get_method
from autopeft.profiling.dataset import hash_files
from autopeft.specs import Candidate, Job, TrainRequest
from autopeft.training.data import IGNORE_INDEX
from autopeft.training.session import Session, TrainLog
from autopeft.training.trainer import CandidateTrainer, StepWatch, trainer_config

SEED, STEPS, RATE, ROWS = 3, 2, 1e-3, 8
TARGETS = ["down_proj", "q_proj", "v_proj"]
TOLERANCES = {"loss": 1e-5, "gradient": 1e-5, "saved": 5e-4}
"""Largest difference of a tensor, as a share of its largest value; docs/methods.md quotes what was found.

Adam divides a first gradient by its own size plus 1e-8, so that round-off counts where a gradient is hardly larger: in
OFT, whose weights start at zero, it shows.
"""

LORA = Candidate(
    method="lora",
    r=4,
    lora_alpha=4.0,
    target_modules=tuple(TARGETS),
    dtype="float32",
    learning_rate=RATE,
    per_device_batch_size=ROWS,
    max_length=32,
    trainer="transformers",
)
SCHEDULE = ("tinit", "tfinal", "deltaT")
WITHOUT_RANK = {"r": None, "lora_alpha": None}


def lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=TARGETS, **{"lora_alpha": 4} | settings)


CASES: dict[str, tuple[Candidate, Callable[[], Any]]] = {
    "lora": (LORA, lora),
    "rslora": (replace(LORA, method="rslora", lora_alpha=2.0), lambda: lora(lora_alpha=2, use_rslora=True)),
    "dora": (replace(LORA, method="dora"), lambda: lora(use_dora=True)),
    "pissa": (replace(LORA, method="pissa"), lambda: lora(init_lora_weights="pissa_niter_16")),
    "olora": (replace(LORA, method="olora"), lambda: lora(init_lora_weights="olora")),
    "eva": (
        replace(LORA, method="eva"),
        lambda: lora(init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0)),
    ),
    "loraplus": (replace(LORA, method="loraplus", options={"loraplus_lr_ratio": 16.0}), lora),
    "miss": (
        replace(LORA, method="miss", lora_alpha=None),
        lambda: peft.MissConfig(task_type="CAUSAL_LM", r=4, target_modules=TARGETS),
    ),
    "vera": (
        replace(LORA, method="vera", lora_alpha=None),
        lambda: peft.VeraConfig(task_type="CAUSAL_LM", r=4, target_modules=TARGETS),
    ),
    "ia3": (
        replace(LORA, method="ia3", **WITHOUT_RANK),
        lambda: peft.IA3Config(task_type="CAUSAL_LM", target_modules=TARGETS, feedforward_modules=[]),
    ),
    "oft": (
        replace(LORA, method="oft", options={"oft_block_size": 32}, **WITHOUT_RANK),
        lambda: peft.OFTConfig(task_type="CAUSAL_LM", oft_block_size=32, target_modules=TARGETS),
    ),
    "full": (
        replace(LORA, method="full", target_modules=(), adapter_dtype=None, **WITHOUT_RANK),
        lambda: None,
    ),
}


class Trained(NamedTuple):
    """What one training came to."""

    gradients: dict[str, torch.Tensor]
    loss: float
    saved: dict[str, torch.Tensor]


class GradientsOfTheLastStep(TrainerCallback):
    """Keeps the gradients that the optimizer saw."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradients = gradients_of(model)


@pytest.fixture(scope="module")
def session(tiny_model: Path, number_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    rows = number_data.read_text(encoding="utf-8").splitlines()[: ROWS + 8]
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return Session(
        Job(
            model=str(tiny_model),
            revision=None,
            data_files=(str(data),),
            data_hash=hash_files((str(data),)),
            data_format="prompt_completion",
            columns={"prompt": "prompt", "completion": "completion"},
            max_length=32,
            device="cpu",
            memory_limit_bytes=None,
            cache_folder=str(tmp_path_factory.mktemp("cache")),
            choose_rows=4,
            test_rows=4,
            seed=0,
        )
    )


def ours(session: Session, candidate: Candidate, folder: Path) -> Trained:
    request = TrainRequest(
        name="t", candidate=candidate, steps=STEPS, rungs=(), seed=SEED, output_folder=str(folder / "ours")
    )
    log, keep = TrainLog(), GradientsOfTheLastStep()
    parts: StepParts = session.parts(request, log)
    watch = StepWatch(request, lambda step, loss: True, lambda step: None)
    collator = session.collator(parts.model)
    config = trainer_config(candidate, request, "cpu")
    trainer = CandidateTrainer(parts, config, session.data.splits["train"], collator, session.tokenizer)
    watch.trainer = trainer
    trainer.add_callback(watch)
    trainer.add_callback(keep)
    trainer.train()
    loss = trainer.pending_losses()[-1]
    get_method(candidate.method).save(parts.model, folder / "ours", log.start)
    return Trained(keep.gradients, loss, saved_in(folder / "ours"))


def plain(session: Session, name: str, folder: Path) -> Trained:
    """Trains as the libraries' documentation says, on the same tokens."""
    model = AutoModelForCausalLM.from_pretrained(session.folder, dtype=torch.float32)
    config = CASES[name][1]()
    set_seed(SEED)
    if config is not None:
        model = peft.get_peft_model(model, config)
    if name == "eva":
        batches = list(session._batches(CASES[name][0], SEED))
        peft.initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    start = folder / "start"
    if name in ("pissa", "olora"):
        kind, model.peft_config["default"].init_lora_weights = model.peft_config["default"].init_lora_weights, True
        model.save_pretrained(start)
        model.peft_config["default"].init_lora_weights = kind
    optimizer = None
    if name == "loraplus":
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=16.0)
    rows = session.data.splits["train"]
    tokens = [
        {"input_ids": row.input_ids, "completion_mask": [int(label != IGNORE_INDEX) for label in row.labels]}
        for row in rows
    ]
    keep = GradientsOfTheLastStep()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "trainer"), max_steps=STEPS, per_device_train_batch_size=ROWS, learning_rate=RATE,
            lr_scheduler_type=LORA.scheduler, warmup_steps=1, max_grad_norm=LORA.max_grad_norm, weight_decay=0.0,
            bf16=False, use_cpu=True, seed=SEED, max_length=32, gradient_checkpointing=False, save_strategy="no",
            logging_steps=1, report_to="none", disable_tqdm=True, completion_only_loss=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(tokens),
        processing_class=session.tokenizer,
        optimizers=(optimizer, None),
        callbacks=[keep],
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    more = {"path_initial_model_for_weight_conversion": str(start)} if start.exists() else {}
    trainer.model.save_pretrained(folder / "plain", **more)
    return Trained(keep.gradients, float(losses[-1]), saved_in(folder / "plain"))


def saved_in(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Returns the largest difference of a tensor as a share of its largest value."""
    assert set(found) == set(wanted)
    assert wanted
    shares = []
    for name, tensor in wanted.items():
        largest = float(tensor.abs().max())
        shares.append(float((found[name] - tensor).abs().max()) / (largest or 1.0))
    return max(shares)


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_the_plain_libraries(name: str, session: Session, tmp_path: Path) -> None:
    mine, theirs = ours(session, CASES[name][0], tmp_path), plain(session, name, tmp_path)
    found = {
        "loss": abs(mine.loss - theirs.loss) / theirs.loss,
        "gradient": difference(mine.gradients, theirs.gradients),
        "saved": difference(mine.saved, theirs.saved),
    }
    logging.getLogger(__name__).info("%s %s", name, {key: f"{value:.1e}" for key, value in found.items()})
    assert all(found[key] < bound for key, bound in TOLERANCES.items()), found


def test_adaloras_step_is_that_of_pefts_own_loss_and_schedule(session: Session, tmp_path: Path) -> None:
    """In trl nothing calls ``update_and_allocate``: the plain code is the loop of peft's documentation."""
    steps = 12
    candidate = replace(LORA, method="adalora", lora_alpha=6.0, options={"init_r": 6, "orth_reg_weight": 0.5})
    rows = session.data.splits["train"]
    settings = {name: get_method("adalora").adapter_spec(candidate, steps).settings[name] for name in SCHEDULE}
    config = peft.AdaLoraConfig(
        task_type="CAUSAL_LM", target_r=4, init_r=6, lora_alpha=6, target_modules=TARGETS, total_step=steps,
        orth_reg_weight=0.5, **settings,
    )  # fmt: skip
    set_seed(SEED)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(session.folder, dtype=torch.float32), config)
    request = TrainRequest(
        name="t", candidate=candidate, steps=steps, rungs=(), seed=SEED, output_folder=str(tmp_path / "ours")
    )
    parts = session.parts(request, TrainLog())
    batch = session.collator(parts.model)([row.columns for row in rows])
    optimizer = torch.optim.AdamW([each for each in theirs.parameters() if each.requires_grad], lr=RATE, weight_decay=0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    kept = inputs["labels"][:, -batch.get("logits_to_keep", 0) :]
    theirs.train()
    parts.model.train()
    for step in range(1, steps + 1):
        loss = theirs(**inputs).loss
        loss.backward()
        mine = forward_loss(parts, batch, (kept[:, 1:] != IGNORE_INDEX).sum(), 1)
        mine.backward()
        assert float(mine.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
        if step == 1:
            assert difference(gradients_of(parts.model), gradients_of(theirs)) < TOLERANCES["gradient"]
        update(parts, step)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), LORA.max_grad_norm)
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    parts.method.save(parts.model, tmp_path / "ours", None)
    theirs.save_pretrained(tmp_path / "plain")
    assert difference(saved_in(tmp_path / "ours"), saved_in(tmp_path / "plain")) < TOLERANCES["saved"]


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
