"""Expanded event streams against a generator that writes the steps of a model at any depth."""

import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.memory._expansion import ExpansionError, LabelledEvent, expand, memory_events
from autopeft.memory.allocator import AllocatorSettings, replay
from autopeft.units import KIB, MIB

BOTH = (AllocatorSettings(), AllocatorSettings(expandable_segments=True))


@dataclass(frozen=True)
class Plan:
    """What the generated model is like.

    Attributes:
        widths: bytes of one weight by the block's place in the pattern; their number is the period.
        parameters: trained weights of a block.
        saved: tensors that a block keeps for its backward.
        checkpointing: whether a block's saved tensors come back in the backward instead, in a segment of their own.
        foreach: whether the optimizer's temporaries of all weights live together.
    """

    widths: tuple[int, ...] = (3 * MIB,)
    parameters: int = 3
    saved: int = 4
    checkpointing: bool = False
    foreach: bool = True
    steps: int = 2


@dataclass
class Model:
    """Writes the events of loading a model of some depth and training it."""

    plan: Plan
    depth: int
    events: list[LabelledEvent] = field(default_factory=list)
    live: dict[int, tuple[str, int | None, int]] = field(default_factory=dict)
    count: int = 0
    segment: str = "load"
    block: int | None = None

    def at(self, segment: str, block: int | None = None) -> None:
        self.segment, self.block = segment, block

    def new(self, size_bytes: int) -> int:
        self.count += 1
        self.events.append(LabelledEvent(self.segment, self.block, "allocate", self.count, size_bytes))
        return self.count

    def drop(self, *ids: int) -> None:
        for number in ids:
            self.events.append(LabelledEvent(self.segment, self.block, "free", number, 0))

    def width(self, block: int) -> int:
        return self.plan.widths[block % len(self.plan.widths)]

    def run(self) -> list[LabelledEvent]:
        self.new(30 * MIB)
        for block in range(self.depth):
            for _ in range(self.plan.parameters):
                self.new(self.width(block))
        self.new(30 * MIB)
        self.states: dict[int, int] = {}
        for _ in range(self.plan.steps):
            self.step()
        return self.events

    def step(self) -> None:
        self.at("forward")
        batch, hidden = self.new(8 * KIB), self.new(2 * MIB + 512)
        kept, masks = [], []
        for block in range(self.depth):
            self.at("forward", block)
            kept.append(self.forward(block, hidden, recomputed=False))
            masks.append(self.new(700 * KIB))
            following = self.new(2 * MIB + 512)
            if block:
                # Freed by the next block, as a residual is; the first block's input stays.
                self.drop(masks[block - 1])
            kept[block].append(hidden)
            hidden = following
        self.at("forward")
        self.drop(masks[-1])
        logits = self.new(90 * MIB)
        loss = self.new(4)
        self.backward(kept, hidden, logits)
        self.at("backward")
        self.drop(batch, loss)
        self.finish()

    def forward(self, block: int, hidden: int, recomputed: bool) -> list[int]:
        temporary = self.new(self.width(block) * 2)
        saved = [self.new(self.width(block) // (1 + number)) for number in range(self.plan.saved - (block == 0))]
        self.drop(temporary)
        if self.plan.checkpointing and not recomputed:
            self.drop(*saved)
            return []
        return saved

    def backward(self, kept: list[list[int]], hidden: int, logits: int) -> None:
        self.at("backward")
        wide = self.new(90 * MIB)
        gradient = self.new(2 * MIB + 512)
        self.drop(logits, wide, hidden)
        self.gradients: list[list[int]] = [[] for _ in range(self.depth)]
        for block in reversed(range(self.depth)):
            self.at("backward", block)
            saved = list(kept[block])
            if self.plan.checkpointing:
                # torch sets up a recomputation before the block's own code runs.
                self.at("recompute")
                self.drop(self.new(600))
                self.at("recompute", block)
                saved += self.forward(block, hidden, recomputed=True)
                self.at("backward", block)
            self.gradients[block] = [self.new(self.width(block)) for _ in range(self.plan.parameters)]
            further = self.new(2 * MIB + 512)
            self.drop(gradient, *saved)
            gradient = further
        self.at("backward")
        self.drop(gradient)

    def finish(self) -> None:
        """Clips, steps and drops the gradients, outside all blocks as an optimizer does."""
        self.at("optimizer")
        weights = [(block, number) for block in range(self.depth) for number in range(self.plan.parameters)]
        norms = [self.new(4) for _ in weights]
        stack = self.new(4 * len(weights) * 1000)
        self.drop(*norms, stack)
        if not self.states:
            for block, number in weights:
                self.states[block, number, 0] = self.new(2 * self.width(block))
                self.states[block, number, 1] = self.new(2 * self.width(block))
        if self.plan.foreach:
            self.drop(*[self.new(self.width(block)) for block, _ in weights])
        else:
            for block, _ in weights:
                self.drop(self.new(self.width(block)), self.new(self.width(block)))
        for block in range(self.depth):
            self.drop(*self.gradients[block])


def shallow(plan: Plan, layers: int) -> tuple[list[LabelledEvent], list[LabelledEvent], tuple[int, int]]:
    period = len(plan.widths)
    first = 3
    while first < period or (layers - first) % period:
        first += 1
    return Model(plan, first).run(), Model(plan, first + period).run(), (first, first + period)


plans = st.builds(
    Plan,
    widths=st.lists(st.integers(20 * KIB, 40 * MIB), min_size=1, max_size=3).map(tuple),
    parameters=st.integers(1, 4),
    saved=st.integers(1, 5),
    checkpointing=st.booleans(),
    foreach=st.booleans(),
    steps=st.integers(1, 2),
)


@given(plans, st.integers(9, 24))
@settings(max_examples=60, deadline=None)
def test_the_expanded_stream_replays_as_the_deep_model_does(plan, layers):
    low, high, depths = shallow(plan, layers)
    expanded = memory_events(expand(low, high, depths, layers))
    direct = memory_events(Model(plan, layers).run())
    for how in BOTH:
        assert replay(expanded, how) == replay(direct, how)


@given(plans, st.integers(9, 24))
@settings(max_examples=30, deadline=None)
def test_the_expanded_stream_is_the_deep_one_event_by_event(plan, layers):
    low, high, depths = shallow(plan, layers)
    expanded = expand(low, high, depths, layers)
    direct = Model(plan, layers).run()
    assert [(event.segment, event.action) for event in expanded] == [(event.segment, event.action) for event in direct]
    labels = [(mine.block, its.block) for mine, its in zip(expanded, direct, strict=True) if its.block is not None]
    assert all(mine == its for mine, its in labels)
    sizes = [event.size_bytes for event in direct if event.action == "allocate"]
    assert [event.size_bytes for event in expanded if event.action == "allocate"] == sizes


def test_expanding_to_the_deeper_trace_gives_it_back():
    plan = Plan()
    low, high, depths = shallow(plan, 9)
    expanded = expand(low, high, depths, depths[1])
    assert [event[:3] for event in expanded] == [event[:3] for event in high]


def test_events_between_two_blocks_belong_to_the_first_of_them():
    def between(depth):
        events = [LabelledEvent("forward", None, "allocate", 1000, MIB)]
        for block in range(depth):
            events.append(LabelledEvent("forward", block, "allocate", block, 3 * MIB))
            events.append(LabelledEvent("forward", None, "allocate", 100 + block, MIB))
        return events

    expanded = expand(between(3), between(4), (3, 4), 10)
    assert sum(event.size_bytes for event in expanded) == (1 + 10 * 4) * MIB


@pytest.mark.parametrize(("depths", "layers"), [((2, 3), 8), ((3, 5), 8), ((4, 4), 8), ((3, 4), 3)])
def test_depths_that_are_not_a_period_apart_are_refused(depths, layers):
    with pytest.raises(ExpansionError, match="trace the full depth"):
        expand([], [], depths, layers)


def test_traces_of_different_models_are_refused():
    low, _, depths = shallow(Plan(), 9)
    with pytest.raises(ExpansionError):
        expand(low, Model(Plan(parameters=2), depths[1]).run(), depths, 9)


def test_a_free_without_an_allocation_is_refused():
    stray = [LabelledEvent("forward", None, "free", 5, 0)]
    with pytest.raises(ExpansionError, match="storage 5"):
        expand(stray, stray, (3, 4), 8)


def test_eighty_blocks_of_two_thousand_events_take_about_a_second():
    plan = Plan(saved=400, parameters=14)
    low, high, depths = shallow(plan, 80)
    start = time.process_time()
    events = expand(low, high, depths, 80)
    assert len(events) > 130_000
    # 0.9 s on two shared cores; the limit fails on anything quadratic in the depth.
    assert time.process_time() - start < 5.0
