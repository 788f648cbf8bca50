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
from autopeft.errors import AutoPeftError, InvalidInputError
from autopeft.specs import Candidate, RungReport, TrainRequest
from autopeft.training.checkpoint import (
    KEPT,
    Progress,
    checkpoint_steps,
    load_weights,
    write_progress,
    write_weights,
)
from autopeft.training.data import Collator, TokenRow
from autopeft.training.loss_watch import LossWatch

CHECK_EVERY = 10
"""Steps between checks that the loss is a number; each waits for the device."""


class BrokenTrainingError(AutoPeftError):
    """The loss is no finite number or never changes, or no gradient arrives; the text names the likely cause."""


class TimeUpError(AutoPeftError):
    """The time limit of one training has passed."""


class RowSampler(LengthGroupedSampler):
    """The order of the rows: those of like length share a step, and the longest comes first.

    So it shows at once whether memory suffices. Data, seed and epoch decide the order, nothing else.

    transformers' own sampler draws from torch's global generator, which dropout moves on, so that candidates with and
    without dropout would see other batches from the second epoch on. An order that depends on the number of the epoch,
    and not on the epochs drawn before, is the same after a resume.
    """

    def __init__(self, rows_of_step: int, lengths: list[int], seed: int) -> None:
        super().__init__(rows_of_step, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Makes the next order that of an epoch, from 0."""
        self.generator.manual_seed(self._seed + epoch)


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
        self.train_loss = math.nan
        self._forward_losses: list[torch.Tensor] = []
        self._step_losses: list[torch.Tensor] = []
        self._watch = LossWatch(parts.context.candidate)
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
        self._forward_losses.append(loss.detach())
        return loss

    def pending_losses(self) -> tuple[float, ...]:
        """Returns the losses that `take_train_loss` has not seen yet."""
        return tuple(float(loss) for loss in self._step_losses)

    def go_on_from(self, progress: Progress) -> None:
        """Counts on from a checkpoint."""
        self.tokens = progress.tokens
        self._step_losses = [torch.tensor(loss, device=self.args.device) for loss in progress.pending_losses]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Writes the weights of a checkpoint."""
        write_weights(Path(output_dir or str(self.args.output_dir)), self.parts)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Reads the weights of a checkpoint."""
        load_weights(Path(resume_from_checkpoint), self.parts)

    def _get_train_sampler(self, train_dataset: Any = None) -> RowSampler:
        """Returns the order of the rows, by data and seed alone."""
        rows_of_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return RowSampler(rows_of_step, self._lengths, self.args.data_seed)

    def bare_model(self) -> Any:
        """Returns the model without what accelerate put around its forward, so that it is scored as it is served."""
        return self.accelerator.unwrap_model(self.parts.model, keep_fp32_wrapper=False)

    def end_step(self) -> None:
        """Adds up the losses of the step's forwards, each its share of the mean; the device is not waited for."""
        self._step_losses.append(torch.stack(self._forward_losses).sum())
        self._forward_losses = []

    def take_train_loss(self, step: int) -> float:
        """Returns the mean loss of the optimizer steps since the last check, and checks that they are sound.

        Args:
            step: the last one.

        Raises:
            BrokenTrainingError: if a loss is no number, or all are one and the same.
        """
        if not self._step_losses:
            return self.train_loss
        losses = torch.stack(self._step_losses).tolist()
        self._step_losses = []
        _raise_if(self._watch.complaint(losses, step - len(losses) + 1))
        self.train_loss = sum(losses) / len(losses)
        return self.train_loss

    def check_skip(self) -> bool:
        """Returns whether float16's gradient scaler skipped the optimizer step.

        Raises:
            BrokenTrainingError: after too many in a row.
        """
        skipped = bool(self.accelerator.optimizer_step_was_skipped)
        _raise_if(self._watch.count_skip(skipped))
        return skipped

    def check_gradients(self) -> None:
        """Checks that a gradient arrives anywhere.

        Raises:
            BrokenTrainingError: if all are zero or missing.
        """
        gradients = [parameter.grad for parameter in self.parts.model.parameters() if parameter.grad is not None]
        if not any(bool(gradient.any()) for gradient in gradients):
            raise BrokenTrainingError(
                "no gradient reached any trained weight in the first step: all labels are masked, or the adapter is "
                "not on the way from the input to the loss; check the columns, max_length and target_modules"
            )


def _raise_if(complaint: str | None) -> None:
    if complaint is not None:
        raise BrokenTrainingError(complaint)


class StepWatch(TrainerCallback):
    """Runs the method's hook after each optimizer step, stops at rungs and at the time limit."""

    def __init__(
        self,
        request: TrainRequest,
        at_rung: Callable[[int, float], bool],
        on_step: Callable[[int], None],
        curve: Sequence[RungReport] = (),
    ) -> None:
        """Makes a watch for one training.

        Args:
            request: gives rungs and time limit.
            at_rung: told the step and the training loss; False prunes.
            on_step: told of each step.
            curve: that ``at_rung`` adds to; checkpoints hold it.
        """
        self.trainer: CandidateTrainer | None = None
        self.train_seconds = 0.0
        self.first_step_seconds: float | None = None
        self.steps_done = 0
        self.pruned = False
        self._request = request
        self._at_rung = at_rung
        self._on_step = on_step
        self._curve = curve
        self._mark = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._mark = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Checks once that there is something to learn from."""
        if state.global_step == 0:
            self._trainer.check_gradients()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Calls the method's hook; transformers counts the step only afterwards.

        Not after a step that float16's gradient scaler skipped: its gradients are infinite, and AdaLoRA's running
        means of them would stay so.
        """
        if self._trainer.check_skip():
            return
        parts = self._trainer.parts
        parts.method.after_optimizer_step(parts.model, state.global_step + 1, parts.context)

    def go_on_from(self, progress: Progress) -> None:
        """Counts on from a checkpoint."""
        self.steps_done, self.train_seconds = progress.step, progress.train_seconds
        self.first_step_seconds = progress.first_step_seconds

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the checkpoint whole."""
        progress = Progress(
            step=self.steps_done,
            tokens=self._trainer.tokens,
            train_seconds=self.train_seconds,
            first_step_seconds=self.first_step_seconds,
            curve=tuple(self._curve),
            pending_losses=self._trainer.pending_losses(),
        )
        write_progress(Path(args.output_dir) / f"checkpoint-{state.global_step}", progress)
        self._mark = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Counts the step, checks loss and time, and asks at a rung whether to go on."""
        self.steps_done = state.global_step
        self._trainer.end_step()
        self._count_time()
        self._on_step(self.steps_done)
        if self.steps_done in self._request.rungs:
            self.pruned = not self._at_rung(self.steps_done, self._trainer.take_train_loss(self.steps_done))
            control.should_training_stop = control.should_training_stop or self.pruned
        elif self.steps_done % CHECK_EVERY == 0:
            self._trainer.take_train_loss(self.steps_done)
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
    """Returns trl's configuration of one training; the trainer itself writes nothing but checkpoints.

    Raises:
        InvalidInputError: for a candidate that packs; trl would drop the setting without a word for tokenized rows.
    """
    if candidate.packing:
        raise InvalidInputError(
            "packing is true: `autopeft estimate` prices several documents in a row, but no training packs them yet; "
            "train with packing: false, where rows of like length share a step"
        )
    checkpoints = request.checkpoint_folder
    return SFTConfig(
        output_dir=checkpoints or str(Path(request.output_folder) / ".trainer"),
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
        gradient_checkpointing=False,  # the engine has switched it on where the candidate says so
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=torch.device(device).type in ("cuda", "xpu"),
        save_strategy="no" if checkpoints is None else "steps",
        save_steps=checkpoint_steps(request.steps),
        save_total_limit=KEPT,
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
