"""Reads a data set: a seeded sample of it, or all of it on all cores, with the same kind of result."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from autopeft.errors import DataError, InvalidInputError
from autopeft.profiling._example import Example
from autopeft.profiling._files import FoundFiles, hash_and_count, hash_files
from autopeft.profiling._formats import RowReader
from autopeft.profiling._rows import SHOWN_ROWS
from autopeft.profiling._tokens import counter_for
from autopeft.profiling.scan.blocks import Block, can_be_sampled, iter_blocks, sampled_blocks, total_bytes
from autopeft.profiling.scan.copies import Copies, find_copies
from autopeft.profiling.scan.facts import Facts, Lengths, truncation_limits
from autopeft.profiling.scan.neighbours import LARGEST_SAMPLE, lowest
from autopeft.profiling.scan.pool import scan_blocks
from autopeft.profiling.scan.sampling import threshold_for
from autopeft.profiling.scan.scanner import CONSTANT, ScanTask, count_into
from autopeft.profiling.scan.similar import SimilarRow, hash64, similar_row
from autopeft.specs.data import CountsSource, Coverage, OnBadRow
from autopeft.specs.model import ModelSpec

Progress = Callable[[int, int], None]
"""Told the bytes read and the bytes there are."""

SMALL_BYTES = 2**24
"""Data up to this size is read whole even for a sample: its rows, not its tokens."""
COUNTED_CHARACTERS = 2**20
"""Whose tokens are counted for a sample, on average: about a second's work."""
FEWEST_COUNTED = 100
LOOKED_AT_ROWS = 20_000
"""Rows whose scripts and kind are told in a full pass."""
_SPARE = 1.2
"""So many times more rows are compared than wanted, for their number is not known before."""
_POOL_BYTES = 2**23
"""From this size on worker processes, which take a quarter of a second to start, are worth it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How much of a data set is read, and by whom; the answer depends on ``coverage`` and ``sample_rows`` alone.

    Attributes:
        coverage: "sample" counts the tokens of a seeded sample, and reads no more than that of large JSON Lines files;
            "all" counts every row.
        sample_rows: rows of the sample, at most.
        workers: processes of a full pass; None means one a core.
        on_progress: told how far a full pass is.
        held_out: file or folder that leakage is looked for against; None means what the folder itself holds out.
    """

    coverage: Coverage = "sample"
    sample_rows: int = 2000
    workers: int | None = None
    on_progress: Progress | None = None
    held_out: str | None = None

    def __post_init__(self) -> None:
        if self.sample_rows < 1:
            raise InvalidInputError(f"sample_rows must be at least 1, but is {self.sample_rows}")
        if self.workers is not None and self.workers < 1:
            raise InvalidInputError(f"workers must be at least 1, but are {self.workers}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is read, and as what.

    Attributes:
        found: the files.
        reader: of their rows.
        model: whose tokenizer counts.
        seed: of every sample.
        on_bad_row: what to do with rows that cannot be used.
    """

    found: FoundFiles
    reader: RowReader
    model: ModelSpec | None
    seed: int
    on_bad_row: OnBadRow

    def task(self, **wanted: int | bool | None) -> ScanTask:
        """Returns the task of a scan."""
        return replace(
            ScanTask(
                data_format=self.reader.data_format, columns=self.reader.columns, model=self.model, seed=self.seed
            ),
            **wanted,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What reading a data set gave.

    Attributes:
        source: what was read.
        content_hash: SHA-256 of the files; empty where it was not asked for.
        counted_by: what counted tokens.
        facts: of the rows that were read; ``facts.lengths`` of those whose tokens were counted.
        every_row: whether all rows were read.
        every_token: whether the tokens of all rows were counted.
        rows: rows of the data set that can be used; an estimate unless ``every_row``.
        total_tokens: of all of them; an estimate unless ``every_token``.
        max_tokens: of the longest counted row.
        copies: the rows read that repeat an earlier one.
        compared: the sample in which rows are compared with one another.
        completions: completions looked at, and how many of them are ``constant``.
        constant: the most frequent completion; None where none is half of them.
        held_out: facts of the held-out files; None without such.
    """

    source: Source
    content_hash: str
    counted_by: CountsSource
    facts: Facts
    every_row: bool
    every_token: bool
    rows: int
    total_tokens: int
    max_tokens: int
    copies: Copies
    compared: tuple[SimilarRow, ...] = ()
    completions: tuple[int, int] = (0, 0)
    constant: str | None = None
    held_out: Facts | None = None


@dataclass(slots=True)
class _Sampled:
    """A sample scan: the merged facts, and what its blocks were of the whole."""

    facts: Facts
    every_row: bool
    rows: int
    content_hash: str
    chosen: list[Example] = field(default_factory=list)


def survey_sample(source: Source, reading: Reading, *, hashed: bool = True) -> Survey:
    """Reads a sample and counts its tokens.

    Args:
        source: what to read.
        reading: how much of it.
        hashed: whether the content hash is needed; it takes reading the files through.

    Raises:
        DataError: if the data is empty, or has rows that cannot be used and are not to be skipped.
    """
    sampled = _scan_sample(source, reading, hashed=hashed)
    facts, model = sampled.facts, source.model
    counter = counter_for(model)
    count_into(facts, sampled.chosen, counter, model, range(len(sampled.chosen)))
    for example in sampled.chosen:
        facts.texts.add(example)
    longest = Facts(Lengths(facts.lengths.limits))
    count_into(longest, _others(facts, sampled.chosen), counter, model)
    for code, noted in longest.noted.items():
        for shown in noted.shown:
            facts.note(code, shown)
    completion, constant = _most_common(sampled.chosen)
    every_token = sampled.every_row and len(sampled.chosen) == facts.rows
    characters = sum(example.characters for example in sampled.chosen)
    per_row = facts.characters / facts.rows
    return Survey(
        source=source,
        content_hash=sampled.content_hash,
        counted_by=counter.source,
        facts=facts,
        every_row=sampled.every_row,
        every_token=every_token,
        rows=sampled.rows,
        total_tokens=facts.lengths.tokens if every_token else _extrapolated(facts, characters, per_row * sampled.rows),
        max_tokens=max((*facts.lengths.by_tokens, *longest.lengths.by_tokens)),
        copies=find_copies(facts.hashes, SHOWN_ROWS),
        compared=tuple(similar_row(each, 0, hash64(each.content), None) for each in sampled.chosen),
        completions=(sum(bool(each.learnt_text.strip()) for each in sampled.chosen), constant),
        constant=completion,
    )


def survey_all(source: Source, reading: Reading, first: Survey) -> Survey:
    """Reads every row and counts its tokens, on all cores.

    Args:
        source: what to read.
        reading: by how many workers.
        first: the survey of a sample, which tells how many rows to expect.

    Raises:
        DataError: as ``survey_sample``.
        WorkerError: if a worker ends by itself.
    """
    compared_below = threshold_for(round(_SPARE * LARGEST_SAMPLE), first.rows)
    watched = None if first.constant is None else hash64(first.constant)
    task = source.task(
        count_tokens=True,
        looked_at_below=threshold_for(LOOKED_AT_ROWS, first.rows),
        compared_below=compared_below,
        sign=True,
        watched_completion=watched,
    )
    files = source.found.used
    with ThreadPoolExecutor(1) as executor:
        content_hash = executor.submit(hash_files, files)
        facts = _merged(source, scan_blocks(iter_blocks(files), task, _workers(reading, files)), files, reading)
        held_out = _survey_held_out(source, reading)
        digest = content_hash.result()
    facts.left_out.settle(facts.rows, source.on_bad_row, source.reader.needed)
    noted = facts.noted.pop(CONSTANT, None)
    return Survey(
        source=source,
        content_hash=digest,
        counted_by=first.counted_by,
        facts=facts,
        every_row=True,
        every_token=True,
        rows=facts.rows,
        total_tokens=facts.lengths.tokens,
        max_tokens=max(facts.lengths.by_tokens),
        copies=find_copies(facts.hashes, SHOWN_ROWS),
        compared=tuple(lowest(facts.similar, LARGEST_SAMPLE)),
        completions=(facts.rows - _count(facts, "empty-completions"), noted.count if noted else 0),
        constant=first.constant,
        held_out=held_out,
    )


def _survey_held_out(source: Source, reading: Reading) -> Facts | None:
    files = source.found.left_out
    if not files:
        return None
    task = source.task(compared_below=threshold_for(LARGEST_SAMPLE, max(1, total_bytes(files) // 64)), sign=True)
    facts = _merged(source, scan_blocks(iter_blocks(files), task, _workers(reading, files)), files, reading)
    return facts if facts.rows else None


def _merged(source: Source, scanned: Iterable[tuple[Block, Facts]], files: Sequence[str], reading: Reading) -> Facts:
    facts = _no_facts(source.model)
    done, total = 0, total_bytes(files)
    for block, found in scanned:
        facts.merge(found)
        done += block.size_bytes
        if reading.on_progress is not None:
            reading.on_progress(min(done, total), total)
    return facts


def _no_facts(model: ModelSpec | None) -> Facts:
    return Facts(Lengths(truncation_limits(model.context_length if model else None)))


def _workers(reading: Reading, files: Sequence[str]) -> int:
    if reading.workers is not None:
        return reading.workers
    if total_bytes(files) < _POOL_BYTES:
        return 1
    from autopeft.profiling._host import probe_host

    return probe_host().profile.logical_cores


def _scan_sample(source: Source, reading: Reading, *, hashed: bool) -> _Sampled:
    files = source.found.used
    size = total_bytes(files)
    sparse = size > SMALL_BYTES and can_be_sampled(files)
    blocks: Iterable[Block] = sampled_blocks(files, source.seed) if sparse else iter_blocks(files)
    content_hash, lines = "", None
    if sparse and hashed:
        blocks, content_hash, lines = _numbered(files, list(blocks))
    facts = _no_facts(source.model)
    bytes_read = lines_read = 0
    for block, found in scan_blocks(blocks, source.task(keep_rows=reading.sample_rows), workers=1):
        facts.merge(found, _kept_rows(facts, found, reading.sample_rows))
        bytes_read += len(block.lines)
        lines_read += block.lines.count(b"\n") + (not block.lines.endswith(b"\n") and bool(block.lines))
    facts.left_out.settle(facts.rows, source.on_bad_row, source.reader.needed)
    if not facts.rows:
        raise DataError(f"the data set is empty: no row in {', '.join(files)}")
    rows = facts.rows
    if sparse:
        share = rows / lines_read * lines if lines is not None else rows / bytes_read * size
        rows = max(rows, round(share))
    if hashed and not sparse:
        content_hash = hash_files(files)
    return _Sampled(facts, not sparse, rows, content_hash, _chosen(facts, reading.sample_rows))


def _numbered(files: Sequence[str], blocks: list[Block]) -> tuple[list[Block], str, int]:
    """Returns the blocks with true line numbers, the files' hash and their lines."""
    offsets = [[block.first_number - 1 for block in blocks if block.file_index == index] for index in range(len(files))]
    content_hash, before, lines = hash_and_count(files, offsets)
    numbers = {(index, offset): count + 1 for (index, offset), count in before.items()}
    numbered = [replace(block, first_number=numbers[block.file_index, block.first_number - 1]) for block in blocks]
    return numbered, content_hash, lines


def _kept_rows(facts: Facts, found: Facts, sample_rows: int) -> int:
    """Returns how many rows are held, so that a sample of very long ones needs no more memory than one of short ones.

    Eight times what is counted in the end, in case later rows are shorter.
    """
    rows, characters = facts.rows + found.rows, facts.characters + found.characters
    return min(sample_rows, max(FEWEST_COUNTED, 8 * COUNTED_CHARACTERS * rows // max(1, characters)))


def _chosen(facts: Facts, sample_rows: int) -> list[Example]:
    """Returns the rows whose tokens are counted: those of lowest rank, in the order in which they stand."""
    affordable = COUNTED_CHARACTERS * facts.rows // max(1, facts.characters)
    wanted = min(sample_rows, max(FEWEST_COUNTED, affordable))
    by_rank = sorted(facts.kept, key=lambda entry: -entry[0])[:wanted]
    files = {file: index for index, (file, _, _) in reversed(list(enumerate(facts.numbers.blocks)))}
    return sorted((example for _, example in by_rank), key=lambda example: (files[example.file], example.line))


def _others(facts: Facts, chosen: Sequence[Example]) -> list[Example]:
    """Returns the longest rows that the sample does not hold, as many as can be counted in the time of a sample."""
    places = {(example.file, example.line) for example in chosen}
    longest = sorted(facts.longest, key=lambda entry: (-entry[0], -entry[1]))
    found: list[Example] = []
    characters = 0
    for size, _, example in longest:
        characters += size
        if (example.file, example.line) not in places and (not found or characters <= COUNTED_CHARACTERS):
            found.append(example)
    return found


def _most_common(examples: Sequence[Example]) -> tuple[str | None, int]:
    """Returns the completion that at least half of the rows with one have, and how many have it."""
    tally = Tally(text for example in examples if (text := example.learnt_text.strip()))
    if not tally:
        return None, 0
    completion, count = min(tally.items(), key=lambda item: (-item[1], item[0]))
    return (completion, count) if 2 * count >= tally.total() else (None, 0)


def _extrapolated(facts: Facts, characters: int, all_characters: float) -> int:
    """Returns the tokens of all rows: the sample's, scaled by characters (a ratio estimate)."""
    if not characters:
        return facts.lengths.tokens
    return round(facts.lengths.tokens * all_characters / characters)


def _count(facts: Facts, code: str) -> int:
    return facts.noted[code].count if code in facts.noted else 0
