"""trl's SFTTrainer with our engine's loss and optimizer and the method's hooks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from autopeft.engine.device import require_picked_device
from autopeft.engine.loss import IGNORE_INDEX, uses_autocast
from autopeft.engine.step import StepParts, forward_loss
from autopeft.errors import AutoPeftError
from autopeft.specs import Candidate, TrainRequest
from autopeft.training.data import Collator, TokenRow

CHECK_EVERY = 10
"""Steps between checks that the loss is a number; each waits for the device."""


class DivergedError(AutoPeftError):
    """The training loss is no longer a finite number."""


class TimeUpError(AutoPeftError):
    """The time limit of one training has passed."""


class CandidateTrainer(SFTTrainer):
    """Trains one candidate: batches and order of events are trl's and transformers', the loss is the engine's."""

    def __init__(
        self, parts: StepParts, config: SFTConfig, rows: Sequence[TokenRow], collator: Collator, tokenizer: Any
    ) -> None:
        """Prepares a training.

        Raises:
            HardwareError: if transformers chose another device than the plan's.
        """
        require_picked_device(parts.device_type, str(config.device))
        self.parts = parts
        self.tokens = 0
        self.recent_losses: list[torch.Tensor] = []
        self.train_loss = math.nan
        dataset = Dataset.from_list([row.columns for row in rows])
        self._lengths = [len(row.input_ids) for row in rows]
        adapter_dtype_kept = [(parameter, parameter.data) for parameter in parts.model.parameters()]
        super().__init__(
            model=parts.model,
            args=config,
            data_collator=collator,
            train_dataset=dataset,
            processing_class=tokenizer,
            optimizers=(parts.optimizer, None),
        )
        # trl stores the adapter of a quantized base in bfloat16, whatever was asked for, and rounds LoftQ's start.
        for parameter, data in adapter_dtype_kept:
            parameter.data = data

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Returns the engine's loss of one forward; the engine also switches mixed precision on."""
        assert not return_outputs, "the engine scores held-out rows itself"
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
        self.tokens += int(inputs["attention_mask"].sum())
        loss = forward_loss(self.parts, inputs, num_items_in_batch, self.current_gradient_accumulation_steps)
        self.recent_losses.append(loss.detach())
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        """Returns the order of the rows: rows of like length share a batch; data and seed decide, nothing else.

        transformers' own sampler draws from torch's global generator, which dropout moves on, so that candidates with
        and without dropout would see other batches from the second epoch on.
        """
        return LengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            lengths=self._lengths,
            generator=torch.Generator().manual_seed(self.args.data_seed),
        )

    def bare_model(self) -> Any:
        """Returns the model without what accelerate put around its forward, so that it is scored as it is served."""
        return self.accelerator.unwrap_model(self.parts.model, keep_fp32_wrapper=False)

    def take_train_loss(self) -> float:
        """Returns the mean loss of the optimizer steps since the last check, and checks that it is a number.

        Raises:
            DivergedError: if it is not.
        """
        losses, self.recent_losses = self.recent_losses, []
        if not losses:
            return self.train_loss
        candidate = self.parts.context.candidate
        # Each forward's loss is its share of the step's mean, so forwards of a step add up to it.
        self.train_loss = float(torch.stack(losses).mean()) * candidate.gradient_accumulation_steps
        if not math.isfinite(self.train_loss):
            raise DivergedError(
                f"the training loss became {self.train_loss} with learning_rate {candidate.learning_rate:g} in "
                f"{candidate.dtype}; a lower learning rate or a wider dtype trains"
            )
        return self.train_loss


class StepWatch(TrainerCallback):
    """Runs the method's hook after each optimizer step, stops at rungs and at the time limit."""

    def __init__(
        self, request: TrainRequest, at_rung: Callable[[int, float], bool], on_step: Callable[[int], None]
    ) -> None:
        self.trainer: CandidateTrainer | None = None
        self.train_seconds = 0.0
        self.first_step_seconds: float | None = None
        self.steps_done = 0
        self.pruned = False
        self._request = request
        self._at_rung = at_rung
        self._on_step = on_step
        self._mark = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._mark = time.monotonic()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Calls the method's hook; transformers counts the step only afterwards.

        Not after a step that float16's gradient scaler skipped: its gradients are infinite, and AdaLoRA's running
        means of them would stay so.
        """
        if self._trainer.accelerator.optimizer_step_was_skipped:
            return
        parts = self._trainer.parts
        parts.method.after_optimizer_step(parts.model, state.global_step + 1, parts.context)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Counts the step, checks loss and time, and asks at a rung whether to go on."""
        self.steps_done = state.global_step
        self._count_time()
        self._on_step(self.steps_done)
        if self.steps_done in self._request.rungs:
            self.pruned = not self._at_rung(self.steps_done, self._trainer.take_train_loss())
            control.should_training_stop = control.should_training_stop or self.pruned
        elif self.steps_done % CHECK_EVERY == 0:
            self._trainer.take_train_loss()
        self._check_time()
        self._mark = time.monotonic()
        return control

    @property
    def _trainer(self) -> CandidateTrainer:
        assert self.trainer is not None, "set right after the trainer is made"
        return self.trainer

    def _count_time(self) -> None:
        if self._trainer.parts.device_type == "cuda":
            torch.cuda.synchronize()
        self.train_seconds += time.monotonic() - self._mark
        if self.steps_done == 1:
            self.first_step_seconds = self.train_seconds

    def _check_time(self) -> None:
        limit = self._request.seconds_limit
        if limit is not None and self.train_seconds > limit and self.steps_done < self._request.steps:
            raise TimeUpError(f"stopped after {self.steps_done} of {self._request.steps} steps: over {limit:.0f} s")


def trainer_config(candidate: Candidate, request: TrainRequest, device: str) -> SFTConfig:
    """Returns trl's configuration of one training; nothing is logged, saved or evaluated by the trainer itself."""
    return SFTConfig(
        output_dir=str(Path(request.output_folder) / ".trainer"),
        max_steps=request.steps,
        per_device_train_batch_size=candidate.per_device_batch_size,
        gradient_accumulation_steps=candidate.gradient_accumulation_steps,
        learning_rate=candidate.learning_rate,
        lr_scheduler_type=candidate.scheduler,
        warmup_steps=max(1, round(candidate.warmup_ratio * request.steps)),
        max_grad_norm=candidate.max_grad_norm,
        weight_decay=candidate.weight_decay,
        # The engine's loss switches autocast on; of the trainer only float16's gradient scaler is wanted.
        bf16=False,
        fp16=uses_autocast(candidate) and candidate.dtype == "float16",
        use_cpu=device == "cpu",
        seed=request.seed,
        data_seed=request.seed,
        max_length=candidate.max_length,
        packing=candidate.packing,
        gradient_checkpointing=False,  # the engine has switched it on where the candidate says so
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=torch.device(device).type in ("cuda", "xpu"),
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
