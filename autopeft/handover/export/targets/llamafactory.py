"""LLaMA-Factory: a YAML file, and a description of the data."""

from __future__ import annotations

import json
from typing import Any

from autopeft.handover.export.recipe import Recipe, row_as_messages
from autopeft.handover.export.target import DATA_FILE, Target, alpha_note, whole_alpha
from autopeft.handover.export.yaml_file import yaml_text

_DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "chat": {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    },
    "plain": {"columns": {"prompt": "prompt", "response": "completion"}},
    "text": {"columns": {"prompt": "text"}},
}
_ATTENTION = {"sdpa": "sdpa", "eager": "disabled", "flash_attention_2": "fa2"}


class LlamaFactory(Target):
    """LLaMA-Factory's configuration."""

    name = "llamafactory"
    main = "llamafactory.yaml"

    def content(self, recipe: Recipe) -> str:
        """Returns llamafactory.yaml."""
        settings = {
            "model_name_or_path": recipe.model,
            "model_revision": recipe.revision,
            "stage": "pt" if recipe.row_kind == "text" else "sft",
            "do_train": True,
            "dataset_dir": ".",
            "dataset": "autopeft",
            "template": "empty" if recipe.row_kind == "plain" else None,
            **_adapter(recipe),
            **_training(recipe),
        }
        return yaml_text(settings, recipe, self.trainer)

    def row(self, recipe: Recipe, index: int) -> dict[str, Any]:
        """Returns a row with "messages", "prompt" and "completion", or "text"."""
        return row_as_messages(recipe.rows[index], recipe.row_kind)

    def more_files(self, recipe: Recipe) -> dict[str, str]:
        """Returns dataset_info.json."""
        content = {"autopeft": {"file_name": DATA_FILE, **_DESCRIPTIONS[recipe.row_kind]}}
        return {"dataset_info.json": json.dumps(content, indent=2) + "\n"}

    def notes(self, recipe: Recipe) -> list[str]:
        """Returns what LLaMA-Factory does in its own way."""
        notes = alpha_note(recipe)
        if recipe.row_kind == "chat":
            notes.append(
                "the chat template is read off the tokenizer; name one of LLaMA-Factory's (template: llama3, ...) if "
                "it says that it cannot"
            )
        return notes


def _adapter(recipe: Recipe) -> dict[str, Any]:
    candidate = recipe.candidate
    if recipe.adapter is None:
        return {"finetuning_type": "full"}
    bits = {"none": None, "int8": 8, "nf4": 4}[candidate.quantization]
    return {
        "finetuning_type": "lora",
        "lora_rank": candidate.r,
        "lora_alpha": whole_alpha(recipe),
        "lora_dropout": candidate.lora_dropout,
        "lora_target": ",".join(candidate.target_modules),
        "use_dora": bool(recipe.adapter.settings.get("use_dora")),
        "use_rslora": bool(recipe.adapter.settings.get("use_rslora")),
        "quantization_bit": bits,
        "quantization_type": "nf4" if bits == 4 else None,
        "double_quantization": candidate.double_quantization if bits == 4 else None,
    }


def _training(recipe: Recipe) -> dict[str, Any]:
    candidate = recipe.candidate
    return {
        "cutoff_len": candidate.max_length,
        "packing": candidate.packing,
        "flash_attn": _ATTENTION[candidate.attention],
        "per_device_train_batch_size": candidate.per_device_batch_size,
        "gradient_accumulation_steps": candidate.gradient_accumulation_steps,
        "max_steps": recipe.steps,
        "learning_rate": candidate.learning_rate,
        "lr_scheduler_type": candidate.scheduler,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": candidate.weight_decay,
        "max_grad_norm": candidate.max_grad_norm,
        "optim": candidate.optimizer,
        "bf16": candidate.dtype == "bfloat16",
        "fp16": candidate.dtype == "float16",
        "pure_bf16": candidate.dtype == "bfloat16" and candidate.adapter_dtype == "bfloat16",
        "disable_gradient_checkpointing": not candidate.activation_checkpointing,
        "seed": recipe.seed,
        "output_dir": "adapter",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
