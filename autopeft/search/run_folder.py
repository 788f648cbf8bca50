"""The run folder: the one owner of all its file names, and of what may be written when."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from autopeft.errors import RunFolderError
from autopeft.search.durable import (
    append_line,
    drop_half_line,
    lock_file,
    read_json,
    read_lines,
    write_json,
    write_text,
)
from autopeft.search.settings import Event, RunSettings, recommended_candidates
from autopeft.spaces import all_spaces
from autopeft.specs import (
    SCHEMA_VERSION,
    Candidate,
    PhaseTime,
    Recommendation,
    Scores,
    SplitName,
    TrialResult,
    Verdict,
    from_dict,
    to_dict,
)
from autopeft.units import format_gib

_BEGUN = {".lock", "plan.json", ".plan.json.tmp", ".manifest.json.tmp"}
"""What a creation that was killed leaves: no manifest yet, so nothing of value."""

_REPORT_BYTES = 64 * 2**20
"""Room for journal, logs, scores and reports; generous, for they are text."""


class RunFolder:
    """One run on disk; held by one process at a time.

    Make one with ``create`` or ``open``, and use it as a context manager or call ``close``. results.jsonl and
    events.jsonl are only ever added to; JSON files are replaced whole.
    """

    def __init__(self, path: Path) -> None:
        """Names the files; touches nothing."""
        self.path = path
        self.plan = path / "plan.json"
        self.manifest = path / "manifest.json"
        self.journal = path / "study.journal"
        self.results = path / "results.jsonl"
        self.events = path / "events.jsonl"
        self.schedule = path / "schedule.json"
        self.splits = path / "splits.json"
        self.verdict = path / "verdict.json"
        self.report_markdown = path / "report.md"
        self.report_html = path / "report.html"
        self.recipe = path / "recipe.yaml"
        self.adapter = path / "adapter"
        self.model_card = self.adapter / "README.md"
        self.worker_log = path / "logs" / "worker.log"
        self._lock = path / ".lock"
        self._handle: Any = None
        self._created = False
        self._made = False

    @classmethod
    def create(cls, path: Path | str, plan: Recommendation, settings: RunSettings) -> RunFolder:
        """Returns a new run folder, locked, with plan.json and manifest.json in it.

        Raises:
            RunFolderError: if the folder holds another run or foreign files, cannot be written, or the disk is full.
        """
        folder = cls(Path(path).resolve())
        needed_bytes = _needed_bytes(plan, settings)
        folder._refuse_content()
        folder._made = not folder.path.exists()
        folder._make()
        try:
            folder._refuse_content()
            folder._refuse_full_disk(needed_bytes)
            write_json(folder.plan, plan.to_dict())
            write_json(folder.manifest, _manifest(plan, settings))
        except BaseException:
            folder.close()
            raise
        folder._created = True
        return folder

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Returns an existing run folder, locked, ready to go on.

        Raises:
            RunFolderError: if it holds no run, or another process works in it.
        """
        folder = cls(Path(path).resolve())
        if not folder.manifest.is_file():
            raise RunFolderError(
                f"{folder.path} holds no run (it has no manifest.json); start one: autopeft run --output {folder.path}"
            )
        folder._make()
        drop_half_line(folder.journal)
        for stale in folder.path.glob("study.journal.lock*"):
            stale.unlink()
        return folder

    def close(self) -> None:
        """Gives the folder free; safe to call more than once."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def may_be_withdrawn(self) -> bool:
        """Returns whether this object began the run, and nothing is in it yet that a resume would go on with."""
        return self._created and not self.schedule.exists() and not self.results.exists()

    def withdraw(self) -> None:
        """Removes what the run has written, so that another can begin here; a log with content stays."""
        shutil.rmtree(self.path / "trials", ignore_errors=True)
        for file in (self.events, self.splits, self.journal, self.plan, self.manifest):
            file.unlink(missing_ok=True)
        if self.worker_log.exists() and self.worker_log.stat().st_size == 0:
            self.worker_log.unlink()
        self.close()
        self._lock.unlink(missing_ok=True)
        for made in (self.worker_log.parent, *([self.path] if self._made else [])):
            with contextlib.suppress(OSError):  # not empty
                made.rmdir()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def load_plan(self) -> Recommendation:
        """Returns the plan that the run was started with."""
        return Recommendation.from_dict(read_json(self.plan), str(self.plan))

    def load_settings(self) -> RunSettings:
        """Returns the settings that the run was started with."""
        content = read_json(self.manifest)
        return from_dict(content.get("settings"), RunSettings, f"{self.manifest}, settings")

    def load_verdict(self) -> Verdict | None:
        """Returns the verdict; None as long as the run has none."""
        return from_dict(read_json(self.verdict), Verdict, str(self.verdict)) if self.verdict.exists() else None

    def load_manifest(self) -> dict[str, Any]:
        """Returns manifest.json."""
        content: dict[str, Any] = read_json(self.manifest)
        return content

    def write_report(self, path: Path, text: str) -> None:
        """Writes one of the report files, whole or not at all."""
        write_text(path, text)

    def update_manifest(self, **sections: Any) -> None:
        """Adds sections to manifest.json, or replaces them."""
        write_json(self.manifest, read_json(self.manifest) | sections)

    def add_result(self, result: TrialResult) -> None:
        """Adds one line to results.jsonl; it is on disk when this returns."""
        append_line(self.results, result.to_dict())

    def load_results(self) -> tuple[TrialResult, ...]:
        """Returns all finished trainings, in the order in which they ended."""
        return tuple(_result(record, str(self.results)) for record in read_lines(self.results))

    def add_event(self, event: Event, stage: str, elapsed_seconds: float) -> None:
        """Adds one line to events.jsonl; ``elapsed_seconds`` counts over all sessions of the run."""
        append_line(self.events, to_dict(event) | {"stage": stage, "elapsed_seconds": elapsed_seconds})

    def load_events(self) -> list[dict[str, Any]]:
        """Returns the lines of events.jsonl."""
        return read_lines(self.events)

    def trial_folder(self, name: str) -> Path:
        """Returns the folder of one training; it exists."""
        folder = self.path / "trials" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fresh_adapter_folder(self, name: str) -> Path:
        """Returns the empty folder that a training saves its adapter in."""
        folder = self.trial_folder(name) / "adapter"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def checkpoint_folder(self, name: str) -> Path:
        """Returns the folder of one training's checkpoints; it may not exist."""
        return self.path / "trials" / name / "checkpoints"

    def drop_checkpoints(self, name: str) -> None:
        """Removes the checkpoints of a training that is done."""
        shutil.rmtree(self.checkpoint_folder(name), ignore_errors=True)

    def discard(self, name: str) -> None:
        """Removes all files of one training."""
        shutil.rmtree(self.path / "trials" / name, ignore_errors=True)

    def scores_file(self, name: str, split: SplitName) -> Path:
        """Returns the file of the per-example scores of one training on one split."""
        return self.path / "trials" / name / f"scores-{split}.json"

    def write_scores(self, name: str, split: SplitName, scores: Scores) -> str:
        """Writes per-example scores; returns the path inside the run folder."""
        self.trial_folder(name)
        path = self.scores_file(name, split)
        write_json(path, scores)
        return self.relative(path)

    def load_scores(self, name: str, split: SplitName) -> Scores | None:
        """Returns per-example scores; None if that training was not scored on that split."""
        path = self.scores_file(name, split)
        return from_dict(read_json(path), Scores, str(path)) if path.exists() else None

    def relative(self, path: Path) -> str:
        """Returns a path inside the folder as it is written in files, so that the folder can be moved."""
        return path.relative_to(self.path).as_posix()

    def export_adapter(self, source: Path) -> None:
        """Copies the winner's adapter to ``adapter/``, whole or not at all."""
        temporary = self.path / ".adapter.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        shutil.rmtree(self.adapter, ignore_errors=True)
        temporary.replace(self.adapter)

    def _make(self) -> None:
        try:
            self.worker_log.parent.mkdir(parents=True, exist_ok=True)
            self._handle = lock_file(self._lock, str(self.path))
        except OSError as error:
            raise RunFolderError(f"cannot write to {self.path}: {error.strerror}; give another --output") from error

    def _refuse_content(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file, not a folder; give another --output")
        if self.manifest.exists():
            raise RunFolderError(
                f"{self.path} holds another run; continue it with: autopeft run --resume --output {self.path}, "
                "or give another --output"
            )
        found = sorted(entry.name for entry in self.path.iterdir()) if self.path.exists() else []
        foreign = [name for name in found if name not in _BEGUN | {"logs"}]
        if foreign:
            shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise RunFolderError(
                f"{self.path} is not empty (it holds {shown}); give an empty or new folder as --output"
            )

    def _refuse_full_disk(self, needed_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self.path).free
        if free_bytes < needed_bytes:
            raise RunFolderError(
                f"the disk of {self.path} has {format_gib(free_bytes)} free, but the run may need "
                f"{format_gib(needed_bytes)} for its adapters; free some, give another --output, or fewer --trials"
            )


def phase_times(events: list[dict[str, Any]]) -> tuple[PhaseTime, ...]:
    """Returns the seconds of each stage, in the order of their first event.

    What passes between two events belongs to the stage of the first.
    """
    seconds: dict[str, float] = {}
    for event, following in zip(events, events[1:] + events[-1:], strict=True):
        passed = max(0.0, following["elapsed_seconds"] - event["elapsed_seconds"])
        seconds[event["stage"]] = seconds.get(event["stage"], 0.0) + passed
    return tuple(PhaseTime(phase=stage, seconds=spent) for stage, spent in seconds.items())


def _needed_bytes(plan: Recommendation, settings: RunSettings) -> int:
    """Returns bytes for one saved adapter of each trial, two checkpoints with AdamW's states, and the text files."""
    best = recommended_candidates(plan, settings)
    widths = {"float32": 4, "bfloat16": 2, "float16": 2}
    sizes = [
        entry.estimate.trainable_parameters * widths[entry.candidate.adapter_dtype or entry.candidate.dtype]
        for entry in best
    ]
    trials = settings.trials or 4 * len(best)
    return _REPORT_BYTES + max(sizes) * (trials + 3 + 2 * 3)


def _manifest(plan: Recommendation, settings: RunSettings) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": to_dict(settings),
        "data_hash": plan.data.content_hash,
        "model": {"id": plan.model.id, "revision": plan.model.revision},
        "hardware": {"name": plan.hardware.name, "device": plan.hardware.device.name},
        "rejected": [to_dict(entry) for entry in plan.rejected],
        "not_tried": _not_tried(plan, settings),
    }


def _not_tried(plan: Recommendation, settings: RunSettings) -> list[dict[str, str]]:
    """Returns the planned candidates that the search does not begin with, and why."""
    first = {entry.candidate.method: entry.candidate for entry in recommended_candidates(plan, settings)}
    spaces = all_spaces()
    left = []
    for candidate in (entry.candidate for entry in plan.candidates):
        method = candidate.method
        if candidate == first.get(method):
            continue
        if method in first:
            reason = "another storage of the base was recommended first; the search may propose it"
        elif spaces[method].searched_by_default:
            reason = f"not asked for (--method {', '.join(first)})"
        else:
            reason = f"not searched by default: --method {method}"
        left.append({"method": method, "variant": candidate.quantization, "reason": reason})
    return left


def _result(record: dict[str, Any], where: str) -> TrialResult:
    fields = set(Candidate.__dataclass_fields__)
    nested: dict[str, Any] = {key: value for key, value in record.items() if key not in fields}
    nested["candidate"] = {key: value for key, value in record.items() if key in fields}
    return from_dict(nested, TrialResult, f"{where}, {record.get('name')}")
