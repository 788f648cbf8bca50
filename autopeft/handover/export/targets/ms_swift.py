"""ms-swift: a YAML file."""

from __future__ import annotations

from typing import Any

from autopeft.handover.export.recipe import Recipe, prompt_and_answer, turns
from autopeft.handover.export.target import DATA_FILE, Target
from autopeft.handover.export.yaml_file import yaml_text

_ATTENTION = {"sdpa": "sdpa", "eager": "eager", "flash_attention_2": "flash_attention_2"}


class MsSwift(Target):
    """ms-swift's arguments."""

    name = "ms-swift"
    main = "swift.yaml"

    def content(self, recipe: Recipe) -> str:
        """Returns swift.yaml."""
        settings = {
            "model": recipe.model,
            "model_revision": recipe.revision,
            "use_hf": True,
            "torch_dtype": recipe.candidate.dtype,
            "attn_impl": _ATTENTION[recipe.candidate.attention],
            **_adapter(recipe),
            "dataset": [DATA_FILE],
            "use_chat_template": recipe.row_kind == "chat",
            "loss_scale": "all" if recipe.row_kind == "text" else "default",
            **_training(recipe),
        }
        return yaml_text(settings, recipe, self.trainer)

    def row(self, recipe: Recipe, index: int) -> dict[str, Any]:
        """Returns a row with "messages"; a text is an answer without a question."""
        row = recipe.rows[index]
        if recipe.row_kind == "text":
            return {"messages": [{"role": "assistant", "content": row.text}]}
        if recipe.row_kind == "chat":
            return {"messages": turns(row)}
        prompt, answer = prompt_and_answer(row)
        return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}

    def notes(self, recipe: Recipe) -> list[str]:
        """Returns what ms-swift does in its own way."""
        return ["conversations are written by ms-swift's own template of the model"] * (recipe.row_kind == "chat")


def _adapter(recipe: Recipe) -> dict[str, Any]:
    candidate = recipe.candidate
    if recipe.adapter is None:
        return {"tuner_type": "full"}
    bits = {"none": None, "int8": 8, "nf4": 4}[candidate.quantization]
    return {
        "tuner_type": "lora",
        "lora_rank": candidate.r,
        "lora_alpha": candidate.lora_alpha,
        "lora_dropout": candidate.lora_dropout,
        "lora_dtype": candidate.adapter_dtype,
        "target_modules": list(candidate.target_modules),
        "use_dora": bool(recipe.adapter.settings.get("use_dora")),
        "use_rslora": bool(recipe.adapter.settings.get("use_rslora")),
        "quant_method": "bnb" if bits else None,
        "quant_bits": bits,
        "bnb_4bit_quant_type": "nf4" if bits == 4 else None,
        "bnb_4bit_use_double_quant": candidate.double_quantization if bits == 4 else None,
        "bnb_4bit_compute_dtype": candidate.dtype if bits == 4 else None,
    }


def _training(recipe: Recipe) -> dict[str, Any]:
    candidate = recipe.candidate
    return {
        "max_length": candidate.max_length,
        "truncation_strategy": "right",
        "packing": candidate.packing,
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
        "gradient_checkpointing": candidate.activation_checkpointing,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "output_dir": "adapter",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": ["none"],
    }
