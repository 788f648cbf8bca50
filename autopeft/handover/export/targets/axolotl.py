"""Axolotl: a YAML file."""

from __future__ import annotations

from typing import Any

from autopeft.handover.export.recipe import Recipe, row_as_messages
from autopeft.handover.export.target import DATA_FILE, Target, alpha_note, whole_alpha
from autopeft.handover.export.yaml_file import yaml_text

_ROWS: dict[str, dict[str, Any]] = {
    "chat": {"type": "chat_template", "field_messages": "messages", "roles_to_train": ["assistant"]},
    "plain": {
        "type": {
            "field_instruction": "prompt",
            "field_output": "completion",
            "format": "{instruction}",
            "no_input_format": "{instruction}",
        }
    },
    "text": {"type": "completion", "field": "text"},
}


class Axolotl(Target):
    """Axolotl's configuration."""

    name = "axolotl"
    main = "axolotl.yaml"

    def content(self, recipe: Recipe) -> str:
        """Returns axolotl.yaml."""
        settings = {
            "base_model": recipe.model,
            "revision_of_model": recipe.revision,
            **_adapter(recipe),
            "datasets": [{"path": DATA_FILE, "ds_type": "json", **_ROWS[recipe.row_kind]}],
            "dataset_prepared_path": "prepared",
            "val_set_size": 0.0,
            "output_dir": "./adapter",
            **_training(recipe),
        }
        return yaml_text(settings, recipe, self.trainer)

    def row(self, recipe: Recipe, index: int) -> dict[str, Any]:
        """Returns a row with "messages", "prompt" and "completion", or "text"."""
        return row_as_messages(recipe.rows[index], recipe.row_kind)

    def notes(self, recipe: Recipe) -> list[str]:
        """Returns what Axolotl does in its own way."""
        return alpha_note(recipe)


def _adapter(recipe: Recipe) -> dict[str, Any]:
    candidate = recipe.candidate
    if recipe.adapter is None:
        return {}
    nf4 = candidate.quantization == "nf4"
    return {
        "adapter": "qlora" if nf4 else "lora",
        "load_in_4bit": nf4,
        "load_in_8bit": candidate.quantization == "int8",
        "bnb_config_kwargs": {"bnb_4bit_use_double_quant": candidate.double_quantization} if nf4 else None,
        "lora_r": candidate.r,
        "lora_alpha": whole_alpha(recipe),
        "lora_dropout": candidate.lora_dropout,
        "lora_target_modules": list(candidate.target_modules),
        "peft_use_dora": recipe.adapter.settings.get("use_dora"),
        "peft_use_rslora": recipe.adapter.settings.get("use_rslora"),
        "peft_autocast_adapter_dtype": candidate.adapter_dtype == "float32",
    }


def _training(recipe: Recipe) -> dict[str, Any]:
    candidate = recipe.candidate
    return {
        "sequence_len": candidate.max_length,
        "sample_packing": candidate.packing,
        "micro_batch_size": candidate.per_device_batch_size,
        "gradient_accumulation_steps": candidate.gradient_accumulation_steps,
        "max_steps": recipe.steps,
        "learning_rate": candidate.learning_rate,
        "lr_scheduler": candidate.scheduler,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": candidate.weight_decay,
        "max_grad_norm": candidate.max_grad_norm,
        "optimizer": candidate.optimizer,
        "bf16": candidate.dtype == "bfloat16",
        "fp16": candidate.dtype == "float16",
        "tf32": False,
        "attn_implementation": candidate.attention,
        "gradient_checkpointing": candidate.activation_checkpointing,
        "group_by_length": not candidate.packing,
        "train_on_inputs": False,
        "seed": recipe.seed,
        "logging_steps": 1,
    }
