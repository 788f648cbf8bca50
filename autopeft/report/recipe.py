"""The winner as recipe.yaml, and as the lines of Python that load it."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import yaml

from autopeft.errors import RunFolderError
from autopeft.report.record import RunRecord
from autopeft.specs import LANGUAGE_PART_KEYS, SCHEMA_VERSION, Candidate, ModelSpec, TrialResult, Verdict, to_dict

_LONGEST_LINE = 110


def recipe_yaml(record: RunRecord) -> str:
    """Returns recipe.yaml: how to load the winner as comments, then all that made it as plain data.

    Raises:
        RunFolderError: if the run has no verdict yet, or the results lack the winner's training.
    """
    verdict = _verdict_of(record)
    comments = [
        f"# The winner of the autopeft run {record.folder!r}: settings, data, versions and result.",
        "# Load it with:",
        "#",
        *(f"#   {line}".rstrip() for line in load_snippet(record).splitlines()),
    ]
    body = yaml.safe_dump(
        _content(record, verdict), sort_keys=False, allow_unicode=True, default_flow_style=False, width=_LONGEST_LINE
    )
    return "\n".join(comments) + "\n\n" + body


def load_snippet(record: RunRecord) -> str:
    """Returns the lines of Python that load the winner of a finished run.

    Raises:
        RunFolderError: if the run has no verdict yet.
    """
    winner, model = _verdict_of(record).winner, record.plan.model
    loader = "AutoModelForCausalLM" if model.kind == "causal_lm" else "AutoModelForSequenceClassification"
    folder = record.folder.rstrip("/")
    if not winner.target_modules:
        return _lines(
            [loader], [f"model = {loader}.from_pretrained({f'{folder}/adapter'!r}, dtype=torch.{winner.dtype})"]
        )
    storage = [] if model.stored_format else _quantization_settings(winner)
    names = [loader, "AutoTokenizer", *(["BitsAndBytesConfig"] if storage else [])]
    source, before = _source(model), list[str]()
    if model.format == "gguf" and model.path:
        names, source = [*names, "GgufConfig"], repr(f"{folder}/base")
        before = _dequantizing(PurePath(model.path), loader, source)
    labels = len(record.plan.data.label_counts)
    settings = [source, f"dtype=torch.{winner.dtype}", *storage]
    if model.wrapper is not None:
        names.append("AutoConfig")
        settings.append(f"config=AutoConfig.from_pretrained({source}).get_text_config(decoder=True)")
        settings.append(f"key_mapping={LANGUAGE_PART_KEYS!r}")
    settings += [f"num_labels={labels}"] if model.kind == "encoder" and labels else []
    loading = [
        f"tokenizer = AutoTokenizer.from_pretrained({source})",
        f"base = {loader}.from_pretrained({', '.join(settings)})",
        f"model = PeftModel.from_pretrained(base, {f'{folder}/adapter'!r})",
    ]
    return _lines(names, [*before, *loading], ("from peft import PeftModel",))


def _verdict_of(record: RunRecord) -> Verdict:
    if record.verdict is None:
        raise RunFolderError(
            f"{record.folder} has no verdict yet, so there is no winner to load; "
            f"finish the run first: autopeft run --resume --output {record.folder}"
        )
    return record.verdict


def _lines(names: list[str], body: list[str], imports: tuple[str, ...] = ()) -> str:
    return "\n".join(["import torch", *imports, f"from transformers import {', '.join(sorted(names))}", "", *body, ""])


def _source(model: ModelSpec) -> str:
    revision = f", revision={model.revision!r}" if model.format == "hub" and model.revision else ""
    return f"{(model.path or model.id)!r}{revision}"


def _dequantizing(path: PurePath, loader: str, target: str) -> list[str]:
    """The base that the adapter was trained on is the GGUF file's weights, dequantized; that is done once."""
    source = f"{str(path.parent)!r}, gguf_file={path.name!r}"
    return [
        f"AutoTokenizer.from_pretrained({source}).save_pretrained({target})",
        f"{loader}.from_pretrained(",
        f"    {source}, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)",
        f").save_pretrained({target})",
        "",
    ]


def _quantization_settings(winner: Candidate) -> list[str]:
    if winner.quantization == "none":
        return []
    if winner.quantization == "int8":
        return ["quantization_config=BitsAndBytesConfig(load_in_8bit=True)"]
    options = [
        "load_in_4bit=True",
        'bnb_4bit_quant_type="nf4"',
        f"bnb_4bit_use_double_quant={winner.double_quantization}",
        f"bnb_4bit_compute_dtype=torch.{winner.dtype}",
    ]
    return [f"quantization_config=BitsAndBytesConfig({', '.join(options)})"]


def _content(record: RunRecord, verdict: Verdict) -> dict[str, Any]:
    plan, training = record.plan, winners_training(record, verdict)
    model = {name: getattr(plan.model, name) for name in ("id", "format", "path", "revision", "model_type", "license")}
    data = to_dict(plan.data)
    device = plan.hardware.device
    return {
        "schema_version": SCHEMA_VERSION,
        "base_model": model,
        "adapter": "adapter",
        **to_dict(verdict.winner),
        "effective_batch_size": verdict.winner.effective_batch_size,
        "data": {name: data[name] for name in ("source", "content_hash", "format", "columns", "task", "example_count")},
        "training": {name: getattr(training, name) for name in ("name", "steps", "tokens", "seed", "seconds")},
        "hardware": {"name": plan.hardware.name, "device": device.name, "kind": device.kind},
        "versions": dict(sorted(training.versions.items())),
        "result": {
            "conclusion": verdict.conclusion,
            "losses": verdict.losses,
            "comparisons": [to_dict(entry) for entry in verdict.comparisons],
        },
    }


def winners_training(record: RunRecord, verdict: Verdict) -> TrialResult:
    """Returns the winner's final training, or its trial of the search where the budget cut the final one.

    Raises:
        RunFolderError: if results.jsonl holds neither.
    """
    finals = [trial for trial in record.trials if trial.name == "final-winner" and trial.status == "complete"]
    searched = [trial for trial in record.trials if trial.trial == verdict.winner_trial and trial.stage == "search"]
    for trial in [*finals[-1:], *searched]:
        return trial
    raise RunFolderError(
        f"{record.folder}: the verdict names trial {verdict.winner_trial} as the winner, but results.jsonl holds "
        "neither it nor final-winner; restore results.jsonl, or run again into another folder"
    )
