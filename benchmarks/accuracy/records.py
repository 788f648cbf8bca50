"""Published memory measurements as rows: what was trained, by which code, and what was measured.

The rows are copied, with their source, into ``rows/<source>.yaml``; ``README.md`` says how they were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autopeft.errors import InvalidInputError
from autopeft.resources import read_record, read_yaml, to_record
from autopeft.specs import Candidate

MeasuredKind = Literal[
    "max_allocated",
    "max_reserved",
    "nvidia_smi",
    "unknown",
    "allocated_after_step",
    "reserved_p99_per_step",
    "reserved_mean_per_step",
]
Loop = Literal["transformers", "trl", "own"]
LengthKind = Literal["exact", "longest", "cap"]
MixedPrecision = Literal["none", "bfloat16", "float16", "unknown"]
Suite = Literal["fixed_tokens", "method_comparison", "other"]
ModelCode = Literal["record", "stand_in"]
Outcome = Literal["measured", "out_of_memory"]
OldHabit = Literal["float32_logits", "quantized_inputs_kept", "adam_denominators"]
TimeScope = Literal["fixed_lengths", "varying_lengths"]

FOLDER = Path(__file__).parent
ROWS = FOLDER / "rows"
EXCLUDED = FOLDER / "excluded.yaml"
MODELS = FOLDER / "models.yaml"
ARCHITECTURES = FOLDER / "architectures"
WIDTHS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One published number of a run.

    Attributes:
        id: the number's name in the collection that it was taken from.
        kind: which of the device's memory figures it is; the ``_per_step`` kinds are sampled after every step.
        bytes: per device.
        resolution_bytes: half of the last printed digit; the number is known no better than plus or minus this.
    """

    id: str
    kind: MeasuredKind
    bytes: int
    resolution_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Library versions of the record; None where the source does not state one."""

    torch: str | None = None
    transformers: str | None = None
    peft: str | None = None
    trl: str | None = None
    bitsandbytes: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthStatistics:
    """What a source says of the tokens of its rows before those longer than a run's limit are left out.

    Attributes:
        mean: of the rows.
        deviation: standard deviation.
        least: tokens of the shortest row.
    """

    mean: float
    deviation: float
    least: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRow:
    """One run of which memory was published, with everything that its memory depends on.

    Attributes:
        id: unique over all sources.
        source: name of the file of rows, which states licence and rules of the source.
        location: where the figure stands: repository at a commit and path, or paper and table.
        suite: which goal of the error table it counts for. ``fixed_tokens``: every row of every batch has
            ``sequence_length`` tokens, and allocated or reserved memory was read from torch.
        model: key in models.yaml.
        model_code: ``record`` if transformers' own model class trained; ``stand_in`` if other code with the same
            shapes did, of which transformers' class is the nearest that can be traced.
        architecture: whose model code is built from ``model``'s widths: "litgpt" for LitGPT's, "" for what models.yaml
            says.
        task: what head the model has.
        candidate: the configuration; ``method`` may be one that our registry lacks, then ``peft_config`` says which.
            Its ``trainer`` names the path of the loss, ``loop`` the code that trained.
        peft_config: the adapter's configuration as peft stores it; where given, it says more than the candidate and
            holds.
        full_modules: modules trained in full beside the adapter (peft's ``modules_to_save``).
        sequence_length: tokens of each row of the largest batch, padding included.
        length_kind: ``exact``: all batches are so long; ``longest``: the largest batch is; ``cap``: no batch is longer.
        row_lengths: how the rows' lengths are distributed, where reserved memory was read and batches differ; None
            elsewhere.
        mixed_precision: what autocast computes in.
        loop: whose training step: transformers' Trainer, trl's SFTTrainer, or the source's own.
        keeps_outputs: whether the loop holds a step's logits until the next forward has returned.
        reentrant: whether a loop of the source's own checkpoints in torch's reentrant way.
        trl_casts: whether trl's cast after ``prepare_model_for_kbit_training`` ran: embeddings and head back in
            bfloat16, norms in float32.
        old_habits: ways of the record's library versions that the environment's no longer have, by StepStyle's names.
        optimizer_class: the optimizer's name where ``candidate.optimizer`` does not say it ("lora-fa", ...); else None.
        devices: how many took part; memory is that of one.
        gpu: the device's name as published.
        hardware: name in profiles/hardware; None if the catalogue lacks the device.
        device_bytes: its nominal memory.
        outcome: whether it ran; an ``out_of_memory`` row has no measurements and bounds the prediction from below.
        measurements: what was measured in this run.
        seconds_per_step: of one optimizer step (``gradient_accumulation_steps`` forwards); None if not published.
        time_scope: whether all timed steps had ``sequence_length`` tokens a row; None without a time.
        environment: key in environments.yaml: the nearest environment that can trace the record.
        versions: of the record.
        assumed: what the source does not state and was taken to be so.
        notes: what a reader of an error should know.
    """

    id: str
    source: str
    location: str
    suite: Suite
    model: str
    candidate: Candidate
    sequence_length: int
    length_kind: LengthKind
    mixed_precision: MixedPrecision
    loop: Loop
    gpu: str
    device_bytes: int
    environment: str
    versions: Versions
    measurements: tuple[Measurement, ...]
    model_code: ModelCode = "record"
    architecture: Literal["", "litgpt"] = ""
    task: Literal["causal_lm", "sequence_classification"] = "causal_lm"
    peft_config: dict[str, Any] | None = None
    full_modules: tuple[str, ...] = ()
    row_lengths: LengthStatistics | None = None
    keeps_outputs: bool = False
    reentrant: bool = False
    trl_casts: bool = False
    old_habits: tuple[OldHabit, ...] = ()
    optimizer_class: str | None = None
    hardware: str | None = None
    devices: int = 1
    outcome: Outcome = "measured"
    seconds_per_step: float | None = None
    time_scope: TimeScope | None = None
    assumed: tuple[str, ...] = ()
    notes: str = ""

    def measured(self, kind: MeasuredKind) -> int | None:
        """Returns the measured bytes of one kind; None if it was not published."""
        return next((item.bytes for item in self.measurements if item.kind == kind), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcludedRows:
    """Published numbers of a source that are not rows, and why.

    Attributes:
        reason: one sentence for the public table.
        ids: the numbers' names in the collection that they were taken from.
    """

    reason: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One published source: where it stands, how it measured, its rows and what was left out.

    Attributes:
        key: name of its file.
        what: what was trained, in one line.
        licence: of the figures as published.
        location: repository at a commit, or paper.
        checked: the day on which the rows were taken over and the rules written down.
        rules: facts about the source's step that its figures depend on.
        published_numbers: how many of its numbers were collected; all of them are rows or excluded.
        rows: the runs that can be compared.
        excluded: the numbers that cannot.
    """

    key: str
    what: str
    licence: str
    location: str
    checked: str
    rules: tuple[str, ...]
    published_numbers: int
    rows: tuple[AccuracyRow, ...]
    excluded: tuple[ExcludedRows, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcludedSource:
    """A source of which no number can be compared, and why."""

    source: str
    numbers: int
    licence: str
    location: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """What of a model's config.json shapes memory.

    Attributes:
        source: where the figures were read.
        config: a config.json that transformers' AutoConfig accepts.
        parameters: published count; None if none was found.
        note: what differs from the model that was measured.
        code: file of ``architectures`` that builds it; "" where transformers does.
    """

    source: str
    config: dict[str, Any]
    parameters: int | None = None
    note: str = ""
    code: str = ""

    @property
    def built_config(self) -> dict[str, Any]:
        """The configuration of what is traced: ``config``, or its widths for the structure in ``code``."""
        if not self.code:
            return self.config
        return {"model_type": self.code.removesuffix(".py"), **{name: self.config[name] for name in WIDTHS}}

    @property
    def code_path(self) -> str:
        """Where ``code`` lies; "" where transformers builds the model."""
        return str(ARCHITECTURES / self.code) if self.code else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _SourceFile:
    what: str
    licence: str
    location: str
    checked: str
    rules: tuple[str, ...]
    published_numbers: int
    rows: tuple[dict[str, Any], ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    excluded: tuple[ExcludedRows, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _ExcludedFile:
    sources: tuple[ExcludedSource, ...]


def load_rows() -> list[AccuracyRow]:
    """Returns every row of every source, in the order of the files.

    Raises:
        InvalidInputError: naming file and row, if one is not well-formed.
    """
    return [row for source in load_sources() for row in source.rows]


def load_sources() -> list[Source]:
    """Returns every source that has rows, in alphabetical order."""
    return [_load_source(path) for path in sorted(ROWS.glob("*.yaml"))]


def load_excluded_sources() -> list[ExcludedSource]:
    """Returns the sources without a row, in alphabetical order."""
    return list(read_record(EXCLUDED, _ExcludedFile).sources)


def load_models() -> dict[str, ModelRecord]:
    """Returns the models of the rows by their hub name."""
    content = read_yaml(MODELS)
    return {name: to_record(entry, ModelRecord, f"{MODELS}, {name}") for name, entry in content.items()}


def _load_source(path: Path) -> Source:
    content = read_record(path, _SourceFile)
    rows = tuple(_load_row(path, content.defaults, row) for row in content.rows)
    return Source(
        key=path.stem,
        what=content.what,
        licence=content.licence,
        location=content.location,
        checked=content.checked,
        rules=content.rules,
        published_numbers=content.published_numbers,
        rows=rows,
        excluded=content.excluded,
    )


def _load_row(path: Path, defaults: Mapping[str, Any], row: Mapping[str, Any]) -> AccuracyRow:
    if "id" not in row:
        raise InvalidInputError(f"{path}: a row has no id; every row needs the name of its first published number")
    merged = {**defaults, **row, "source": path.stem}
    for key in ("candidate", "versions"):
        merged[key] = {**defaults.get(key, {}), **row.get(key, {})}
    return to_record(merged, AccuracyRow, f"{path}, row {row['id']}")
