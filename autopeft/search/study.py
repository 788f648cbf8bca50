"""The Optuna study of a run: what is tried next, and what became of it, on disk before the next begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from autopeft.search.run_folder import RunFolder
from autopeft.search.sampler import METHOD, ConditionalSpace, MethodwiseSampler
from autopeft.search.settings import CandidateSource
from autopeft.specs import Candidate, TrialResult

STUDY_NAME = "autopeft"
_DUPLICATE = "duplicate_of"
_INFEASIBLE = "required_memory_excess"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A candidate that Optuna asks to be tried.

    Attributes:
        trial: Optuna's trial, to report to.
    """

    trial: optuna.Trial
    candidate: Candidate

    @property
    def name(self) -> str:
        """Folder-safe name of the training."""
        return f"trial-{self.trial.number:04d}"


class SearchStudy:
    """The journaled study of one run.

    A trial is *settled* when it has a line in results.jsonl, or was passed over as infeasible or as a duplicate. One
    that a kill interrupted is told as failed, and the next trial takes its place and its parameters.
    """

    def __init__(
        self,
        folder: RunFolder,
        source: CandidateSource,
        mandatory: tuple[Candidate, ...],
        seed: int,
        priors: tuple[Candidate, ...] = (),
    ) -> None:
        """Opens the study, or makes it, and brings it in line with results.jsonl.

        Args:
            folder: where the journal and the results are.
            source: turns parameters into candidates.
            mandatory: the first candidate of each searched method, in the order in which they are tried.
            seed: of the sampler.
            priors: of the same methods, tried next, before the sampler proposes anything; they may be pruned.
        """
        self._folder = folder
        self._source = source
        self._mandatory = len(mandatory)
        self._enqueued = mandatory + priors
        recommended = [{METHOD: entry.method, **source.values_of(entry)} for entry in self._enqueued]
        self._space = ConditionalSpace({entry.method: source.allowed(entry.method) for entry in mandatory}, recommended)
        self._queue = [self._space.to_parameters(str(values[METHOD]), values) for values in recommended]
        self._finished = {result.trial for result in folder.load_results() if result.stage == "search"}
        backend = JournalFileBackend(str(folder.journal), lock_obj=JournalFileOpenLock(str(folder.journal)))
        self.study = optuna.create_study(
            storage=JournalStorage(backend),
            study_name=STUDY_NAME,
            sampler=MethodwiseSampler(self._space, seed, self._place_of),
            pruner=MedianPruner(n_startup_trials=len(mandatory)),
            direction="minimize",
            load_if_exists=True,
        )
        self._recover()

    @property
    def settled(self) -> int:
        """How many trials are settled."""
        return sum(map(self._is_settled, self._trials()))

    def passed_over_lately(self) -> int:
        """Returns how many proposals in a row, up to now, were passed over."""
        count = 0
        for trial in reversed([trial for trial in self._trials() if self._is_settled(trial)]):
            if trial.number in self._finished:
                break
            count += 1
        return count

    def next_is_mandatory(self) -> bool:
        """Returns whether the next proposal is the first trial of a method."""
        return self.settled < self._mandatory

    def propose(self) -> Proposal:
        """Returns the next recommended candidate, or what the sampler proposes when all have been tried."""
        place = self.settled
        waiting = any(trial.state == TrialState.WAITING for trial in self._trials())
        if place < len(self._enqueued) and not waiting:
            self.study.enqueue_trial(self._queue[place])
        trial = self.study.ask()
        method = trial.suggest_categorical(METHOD, self._space.methods)
        for knob in self._space.knobs(method):
            name = self._space.parameter(method, knob)
            _suggest(trial, name, self._space.shared(name))
        if place < len(self._enqueued):
            candidate = self._enqueued[place]
        else:
            candidate = self._source.candidate(method, self._space.to_values(method, trial.params))
        return Proposal(trial=trial, candidate=candidate)

    def pass_over_duplicate(self, proposal: Proposal, of: str) -> None:
        """Settles a proposal that was tried before, without a training."""
        proposal.trial.set_user_attr(_DUPLICATE, of)
        self.study.tell(proposal.trial, state=TrialState.FAIL)

    def pass_over_infeasible(self, proposal: Proposal, required_bytes: int | None, available_bytes: int) -> None:
        """Settles a proposal that needs too much memory; the sampler learns how much too much."""
        excess = 1.0 if required_bytes is None else required_bytes / max(1, available_bytes) - 1
        proposal.trial.set_constraint(_INFEASIBLE, max(excess, 1e-9))
        self.study.tell(proposal.trial, state=TrialState.PRUNED)

    def should_prune(self, proposal: Proposal, step: int, loss: float) -> bool:
        """Reports a rung and returns whether the trial is worse than the median of the finished ones there.

        A method's first trial always runs on: the pruner's startup trials are as many as there are of them.
        """
        proposal.trial.report(loss, step)
        return bool(proposal.trial.should_prune())

    def tell(self, result: TrialResult) -> None:
        """Settles a trial from its line in results.jsonl, which is on disk already."""
        assert result.trial is not None
        self._finished.add(result.trial)
        if result.status == "complete":
            assert result.eval_loss is not None
            self.study.tell(result.trial, result.eval_loss)
        else:
            self.study.tell(result.trial, state=TrialState.PRUNED if result.status == "pruned" else TrialState.FAIL)

    def _recover(self) -> None:
        """Tells what a kill left untold: finished trainings from their lines, the one in flight as failed."""
        results = {result.trial: result for result in self._folder.load_results() if result.stage == "search"}
        for trial in self._trials():
            if trial.state != TrialState.RUNNING:
                continue
            if trial.number in results:
                self.tell(results[trial.number])
            else:
                self._tell_interrupted(trial)

    def _tell_interrupted(self, trial: FrozenTrial) -> None:
        if _is_passed_over(trial):
            self.study.tell(
                trial.number, state=TrialState.FAIL if _DUPLICATE in trial.user_attrs else TrialState.PRUNED
            )
            return
        self.study.tell(trial.number, state=TrialState.FAIL)
        if self.settled >= len(self._enqueued) and trial.params:
            self.study.enqueue_trial(dict(trial.params))

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _is_settled(self, trial: FrozenTrial) -> bool:
        return trial.number in self._finished or (trial.state.is_finished() and _is_passed_over(trial))

    def _place_of(self, number: int) -> int:
        return sum(self._is_settled(trial) for trial in self._trials() if trial.number < number)


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log, step=distribution.step)
    else:
        assert isinstance(distribution, IntDistribution)
        trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log, step=distribution.step)


def _is_passed_over(trial: FrozenTrial) -> bool:
    return _DUPLICATE in trial.user_attrs or _INFEASIBLE in trial.constraints


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keeps Optuna's progress lines off the terminal while a search runs; its own setting comes back afterwards."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
