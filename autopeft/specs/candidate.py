"""One complete training configuration, not yet tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Quantization = Literal["none", "int8", "nf4"]
Dtype = Literal["float32", "bfloat16", "float16"]
Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
    "sgd",
    "lorafa",
]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
TrainerName = Literal["transformers", "trl"]
SchedulerName = Literal["linear", "cosine", "constant", "constant_with_warmup"]
OptionValue = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One complete configuration; names as in the glossary (docs/glossary.md).

    Attributes:
        method: a name in the registry.
        r: rank of the update (AdaLoRA: the mean rank it ends with); None for a method without one.
        lora_alpha: numerator of the scaling; None for a method without one.
        target_modules: names of adapted linear layers, sorted; empty for full fine-tuning.
        quantization: storage of the frozen base.
        double_quantization: whether nf4's scales are quantized too; False without nf4.
        dtype: type that base weights are loaded in and computed with.
        adapter_dtype: type that adapter weights and their gradients are stored in; None without an adapter.
        learning_rate: peak of the schedule.
        warmup_ratio: share of the steps that warm up, 0 to 1.
        per_device_batch_size: rows of one forward on one device.
        gradient_accumulation_steps: forwards per optimizer step.
        max_length: tokens that a row is truncated to.
        prepare_kbit: whether ``prepare_model_for_kbit_training`` runs (quantized bases only).
        options: the method's own settings (AdaLoRA: "init_r", LoftQ: "loftq_iterations", ...).
    """

    method: str
    r: int | None
    lora_alpha: float | None
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    quantization: Quantization = "none"
    double_quantization: bool = False
    dtype: Dtype = "bfloat16"
    adapter_dtype: Dtype | None = "float32"
    learning_rate: float = 2e-4
    scheduler: SchedulerName = "linear"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    per_device_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    max_length: int = 1024
    packing: bool = False
    activation_checkpointing: bool = False
    optimizer: Optimizer = "adamw_torch"
    attention: Attention = "sdpa"
    trainer: TrainerName = "trl"
    prepare_kbit: bool = False
    options: dict[str, OptionValue] = field(default_factory=dict)

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step on one device."""
        return self.per_device_batch_size * self.gradient_accumulation_steps
