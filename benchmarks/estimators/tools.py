"""The estimators of tools.yaml: one adapter each, from rows to the tool's own figures."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy.environments import CACHE, Environment, build
from accuracy.records import AccuracyRow, ModelRecord

from autopeft.errors import AutoPeftError
from autopeft.resources import read_record
from autopeft.units import GIB

HERE = Path(__file__).parent
DEFINITIONS = HERE / "tools.yaml"
ANSWER_SECONDS = 600.0
SHORT_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """What tools.yaml says of an estimator that is run."""

    packages: tuple[str, ...]
    told: str
    ignores: str
    figure: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedTool:
    """What tools.yaml says of an estimator that was tried and is not run."""

    version: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Both kinds, by package name."""

    used: dict[str, Tool]
    not_used: dict[str, UnusedTool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a tool says of a row.

    Attributes:
        tool: its package name.
        row: the row's id.
        command: what it was told; MODEL stands for a folder with the model's config.json.
        allocated_bytes: its figure for allocated memory; None if it cannot express the row.
        reserved_bytes: its figure for reserved or device memory; the same where it makes no difference.
        reason: why it cannot express the row; empty if it can.
    """

    tool: str
    row: str
    command: str = ""
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A row with its model and the folder of the model's config.json."""

    row: AccuracyRow
    model: ModelRecord
    folder: Path


class EstimatorError(AutoPeftError):
    """An estimator ended with an error of its own; the text holds its last words."""


def load_tools() -> Tools:
    """Returns the estimators of tools.yaml."""
    return read_record(DEFINITIONS, Tools)


def tool_folder(name: str) -> Path:
    """Returns where the environment of an estimator lies or would lie."""
    return CACHE / "estimators" / name


def ask(name: str, tool: Tool, questions: Sequence[Question]) -> list[Answer]:
    """Builds the tool's environment if need be and returns its answers, one a question, in their order."""
    environment = Environment(name=name, packages=tool.packages)
    build(environment, tool_folder(name))
    return ADAPTERS[name](questions)


def inexpressible(row: AccuracyRow) -> str:
    """Returns why no estimator can express a row; empty if some can."""
    if row.optimizer_class:
        return f"has no option for the optimizer {row.optimizer_class}"
    # rsLoRA is LoRA with another scaling: the same memory.
    if row.candidate.method not in ("lora", "rslora", "full"):
        return f"has no option for {row.candidate.method}"
    if row.task != "causal_lm":
        return "prices causal language models only"
    if row.full_modules:
        return "has no option for modules trained beside the adapter"
    return ""


def ask_accelerate(questions: Sequence[Question]) -> list[Answer]:
    """``accelerate estimate-memory``: weights, or training with Adam."""
    open_questions = [question for question in questions if not inexpressible(question.row)]
    quantized = {"none": "float16", "int8": "int8", "nf4": "int4"}
    dtypes = [
        "float32" if q.row.candidate.dtype == "float32" else quantized[q.row.candidate.quantization]
        for q in open_questions
    ]
    kinds = sorted({(str(q.folder), dtype) for q, dtype in zip(open_questions, dtypes, strict=True)})
    sizes = _drive("accelerate", [{"folder": folder, "dtype": dtype} for folder, dtype in kinds])
    by_kind = dict(zip(kinds, sizes, strict=True))
    answers = {}
    for question, dtype in zip(open_questions, dtypes, strict=True):
        figure = "training_bytes" if question.row.candidate.method == "full" else "weights_bytes"
        size = by_kind[str(question.folder), dtype][figure]
        command = f"accelerate estimate-memory MODEL --library_name transformers --dtypes {dtype}"
        answers[question.row.id] = _answer("accelerate", question, command, size, size)
    return _in_order("accelerate", questions, answers)


def ask_hf_vram_calc(questions: Sequence[Question]) -> list[Answer]:
    """``hf-vram-calc``: its LoRA column, or its training column for full fine-tuning."""
    open_questions = [question for question in questions if not inexpressible(question.row)]
    arguments = [_hf_vram_calc_arguments(question) for question in open_questions]
    reports = _drive("hf-vram-calc", arguments)
    answers = {}
    for question, words, report in zip(open_questions, arguments, reports, strict=True):
        column = "training_gib" if question.row.candidate.method == "full" else "lora_size_gib"
        size = round(report["memory_requirements"][0][column] * GIB)
        command = _command("hf-vram-calc", words, question)
        answers[question.row.id] = _answer("hf-vram-calc", question, command, size, size)
    return _in_order("hf-vram-calc", questions, answers)


def _hf_vram_calc_arguments(question: Question) -> list[str]:
    candidate = question.row.candidate
    dtype = {"none": SHORT_DTYPE[candidate.dtype], "int8": "int8", "nf4": "int4"}[candidate.quantization]
    words = ["--model", question.folder.name, "--model_path", str(question.folder), "--dtype", dtype]
    words += ["--max_batch_size", str(candidate.per_device_batch_size)]
    words += ["--max_seq_len", str(question.row.sequence_length)]
    return words + (["--lora_rank", str(candidate.r)] if candidate.r else [])


def ask_vramcalc(questions: Sequence[Question]) -> list[Answer]:
    """``vramcalc estimate --train``: its total."""
    return _each(questions, _ask_vramcalc)


def _ask_vramcalc(question: Question) -> Answer:
    row, candidate = question.row, question.row.candidate
    reason = inexpressible(row) or ("has no option for quantization" if candidate.quantization != "none" else "")
    if not reason and question.model.config["model_type"] not in ("llama", "mistral", "qwen2", "gemma"):
        reason = f"does not know the architecture {question.model.config['model_type']}"
    if not reason and candidate.optimizer not in ("adamw_torch", "adamw_torch_fused", "sgd"):
        reason = f"has no option for {candidate.optimizer}"
    if reason:
        return Answer(tool="vramcalc", row=row.id, reason=reason)
    words = [
        "estimate",
        str(question.folder),
        "--train",
        "--dtype",
        SHORT_DTYPE[candidate.dtype],
        "--precision",
        "pure",
    ]
    words += ["--batch", str(candidate.per_device_batch_size), "--seq", str(row.sequence_length), "--json"]
    words += ["--optimizer", "sgd" if candidate.optimizer == "sgd" else "adamw"]
    words += ["--attn", "flash" if candidate.attention == "flash_attention_2" else candidate.attention]
    words += ["--lora", str(candidate.r)] if candidate.r else []
    words += ["--grad-checkpoint"] if candidate.activation_checkpointing else []
    estimate = json.loads(_call("vramcalc", words))["estimate"]
    return _answer("vramcalc", question, _command("vramcalc", words, question), estimate["total"], estimate["total"])


def ask_canifinetune(questions: Sequence[Question]) -> list[Answer]:
    """``canifinetune estimate``: its total without the safety margin."""
    return _each(questions, _ask_canifinetune)


def _ask_canifinetune(question: Question) -> Answer:
    reason = inexpressible(question.row)
    if reason:
        return Answer(tool="canifinetune", row=question.row.id, reason=reason)
    words = _canifinetune_words(question)
    memory = json.loads(_call("canifinetune", words))["memory"]
    reserved = memory["total_estimated_gb"] - memory["safety_margin_gb"]
    allocated = reserved - memory["cuda_overhead_gb"]
    command = _command("canifinetune", words, question)
    return _answer("canifinetune", question, command, round(allocated * GIB), round(reserved * GIB))


def _canifinetune_words(question: Question) -> list[str]:
    row, candidate = question.row, question.row.candidate
    method = "full" if candidate.method == "full" else "lora" if candidate.quantization == "none" else "qlora"
    nf4 = "nf4_double_quant" if candidate.double_quantization else "nf4"
    optimizer = {"adamw_bnb_8bit": "adamw_8bit"}.get(candidate.optimizer, candidate.optimizer)
    words = [
        "estimate",
        "--model",
        row.model,
        "--override-json",
        str(question.folder / "override.json"),
        "--offline",
        "--json",
    ]
    words += ["--gpu-vram-gb", str(row.device_bytes // GIB), "--method", method]
    words += ["--seq-len", str(row.sequence_length), "--micro-batch-size", str(candidate.per_device_batch_size)]
    words += ["--quantization", {"none": "none", "int8": "int8", "nf4": nf4}[candidate.quantization]]
    words += ["--base-dtype", SHORT_DTYPE[candidate.dtype], "--optimizer", optimizer, "--attn", candidate.attention]
    words += ["--gradient-checkpointing" if candidate.activation_checkpointing else "--no-gradient-checkpointing"]
    if candidate.r is None:
        return words
    scope = "all_linear" if len(candidate.target_modules) > 4 else "attention"
    scope = "conservative" if len(candidate.target_modules) == 2 else scope
    return [*words, "--lora-rank", str(candidate.r), "--target-scope", scope]


ADAPTERS: dict[str, Callable[[Sequence[Question]], list[Answer]]] = {
    "accelerate": ask_accelerate,
    "canifinetune": ask_canifinetune,
    "hf-vram-calc": ask_hf_vram_calc,
    "vramcalc": ask_vramcalc,
}


def _each(questions: Sequence[Question], ask_one: Callable[[Question], Answer]) -> list[Answer]:
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(ask_one, questions))


def _answer(tool: str, question: Question, command: str, allocated: int, reserved: int) -> Answer:
    return Answer(
        tool=tool, row=question.row.id, command=command, allocated_bytes=int(allocated), reserved_bytes=int(reserved)
    )


def _in_order(tool: str, questions: Sequence[Question], answers: dict[str, Answer]) -> list[Answer]:
    rows = [question.row for question in questions]
    return [answers.get(row.id) or Answer(tool=tool, row=row.id, reason=inexpressible(row)) for row in rows]


def _command(tool: str, words: Sequence[str], question: Question) -> str:
    return " ".join([tool, *words]).replace(str(question.folder), "MODEL")


def _call(tool: str, words: Sequence[str]) -> str:
    return _output(tool, [str(tool_folder(tool) / "bin" / tool), *words], None)


def _drive(tool: str, requests: Sequence[Any]) -> list[Any]:
    script = HERE / f"drive_{tool.replace('-', '_')}.py"
    python = str(tool_folder(tool) / "bin" / "python")
    answers = json.loads(_output(tool, [python, str(script)], json.dumps(requests)))
    assert len(answers) == len(requests)
    return list(answers)


def _output(tool: str, command: Sequence[str], stdin: str | None) -> str:
    # The drivers and tools must not see this project's packages or a hub.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    done = subprocess.run(
        command, input=stdin, env=environment, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
    )
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise EstimatorError(f"{tool} ended with {done.returncode} for {' '.join(command)}; it said:\n{said}")
    return done.stdout
