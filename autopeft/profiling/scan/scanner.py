"""Turns a block of rows into facts: what every worker does, and the parent where workers are not worth it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopeft.profiling._example import Example
from autopeft.profiling._formats import RowReader
from autopeft.profiling._rows import BadRow
from autopeft.profiling._tokens import CountedRow, Counter, TokenizerCounter, counter_for
from autopeft.profiling.scan.blocks import Block
from autopeft.profiling.scan.facts import LONGEST_KEPT, Facts, Lengths, RowNumbers, truncation_limits
from autopeft.profiling.scan.languages import language_of
from autopeft.profiling.scan.row_checks import ROW_CHECKS, place_of
from autopeft.profiling.scan.sampling import rank_of
from autopeft.profiling.scan.similar import Signer, hash64, similar_row
from autopeft.profiling.scan.texts import count_special
from autopeft.specs.model import ModelSpec

CONSTANT = "constant-completion"
TOO_LONG = "longer-than-context"
UNKNOWN = "unknown-tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanTask:
    """What is to be found out of every block.

    Attributes:
        data_format: as ``detect_format`` returns it.
        columns: as ``detect_format`` returns them.
        model: whose tokenizer counts; None estimates.
        seed: of the ranks.
        count_tokens: whether the tokens of every row are counted.
        keep_rows: rows of lowest rank that are handed back themselves.
        looked_at_below: rows of a rank below have their texts looked at; 0 for none.
        compared_below: rows of a rank below are compared with one another; 0 for none.
        sign: whether near duplicates are looked for among them.
        watched_completion: 64 bits of a completion whose rows are counted; None for none.
    """

    data_format: str
    columns: Mapping[str, str]
    model: ModelSpec | None
    seed: int
    count_tokens: bool = False
    keep_rows: int = 0
    looked_at_below: int = 0
    compared_below: int = 0
    sign: bool = False
    watched_completion: int | None = None


class Scanner:
    """Scans blocks of one data set."""

    def __init__(self, task: ScanTask) -> None:
        """Prepares for a task; loads the tokenizer if tokens are counted."""
        self._task = task
        self._reader = RowReader(task.data_format, task.columns)
        self._limits = truncation_limits(task.model.context_length if task.model else None)
        self._counter = counter_for(task.model) if task.count_tokens else None
        self._signer = Signer() if task.sign else None

    def scan(self, block: Block) -> Facts:
        """Returns the facts of a block."""
        facts = Facts(Lengths(self._limits))
        examples = self._examples(block, facts)
        facts.rows = len(examples)
        sizes = [example.characters for example in examples]
        facts.characters = sum(sizes)
        facts.hashes = array("Q", [hash64(example.content) for example in examples])
        facts.numbers = _numbers(block, examples)
        for example in examples:
            self._check(example, facts)
        self._sample(block, examples, sizes, facts)
        if self._counter is not None:
            looked_at = self._lowest(block, examples, self._task.looked_at_below)
            count_into(facts, examples, self._counter, self._task.model, looked_at)
        return facts

    def _examples(self, block: Block, facts: Facts) -> list[Example]:
        examples = []
        for row in block.read():
            result = row if isinstance(row, BadRow) else self._reader.example(row)
            if isinstance(result, BadRow):
                facts.left_out.add(result)
            else:
                examples.append(result)
        return examples

    def _check(self, example: Example, facts: Facts) -> None:
        for code, check in ROW_CHECKS.items():
            found = check(example)
            if found is not None:
                facts.note(code, found)
        if example.label is not None:
            facts.labels[example.label] += 1
        facts.dialogues += sum([role == "user" for role, _ in example.messages]) > 1
        watched = self._task.watched_completion
        if watched is not None and hash64(example.learnt_text.strip()) == watched:
            facts.note(CONSTANT, place_of(example))

    def _sample(self, block: Block, examples: Sequence[Example], sizes: Sequence[int], facts: Facts) -> None:
        task = self._task
        if task.keep_rows:
            ranked = sorted((self._rank(block, example), order) for order, example in enumerate(examples))
            facts.kept = [(-rank, examples[order]) for rank, order in ranked[: task.keep_rows]]
            by_size = sorted(((size, -order) for order, size in enumerate(sizes)), reverse=True)[:LONGEST_KEPT]
            facts.longest = [(size, order, examples[-order]) for size, order in by_size]
        for order in self._lowest(block, examples, task.looked_at_below):
            facts.texts.add(examples[order])
            facts.texts.languages[language_of(examples[order])] += 1
        for order in self._lowest(block, examples, task.compared_below):
            example = examples[order]
            facts.similar.append(similar_row(example, self._rank(block, example), facts.hashes[order], self._signer))

    def _lowest(self, block: Block, examples: Sequence[Example], below: int) -> list[int]:
        if not below:
            return []
        return [order for order, example in enumerate(examples) if self._rank(block, example) < below]

    def _rank(self, block: Block, example: Example) -> int:
        return rank_of(self._task.seed, block.file_index, example.line)


def count_into(
    facts: Facts,
    examples: Sequence[Example],
    counter: Counter,
    model: ModelSpec | None,
    looked_at: Sequence[int] = (),
) -> list[CountedRow]:
    """Counts the tokens of rows, adds them to the facts, and returns the lengths.

    Args:
        facts: of the rows.
        examples: the rows.
        counter: as ``counter_for`` returns it.
        model: whose context is compared with.
        looked_at: which of the rows have their tokens looked at for what the tokenizer cannot say.
    """
    context = model.context_length if model else None
    rows = []
    special = counter.special_ids if isinstance(counter, TokenizerCounter) else None
    wanted = frozenset(looked_at) if special is not None else frozenset()
    for order, (row, ids) in enumerate(counter.count_and_ids(examples, wanted)):
        rows.append(row)
        facts.lengths.add(row)
        if context is not None and row.tokens > context:
            facts.note(TOO_LONG, f"{place_of(examples[order])}: {row.tokens} tokens")
        if ids is not None and special is not None and count_special(facts.texts, ids, *special):
            facts.note(UNKNOWN, place_of(examples[order]))
    return rows


def _numbers(block: Block, examples: Sequence[Example]) -> RowNumbers:
    if not examples:
        return RowNumbers()
    first = examples[0].line
    consecutive = examples[-1].line - first == len(examples) - 1
    numbers = None if consecutive else array("Q", [example.line for example in examples])
    return RowNumbers([0], [(block.file, first, numbers)])
