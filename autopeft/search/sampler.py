"""The conditional space as Optuna sees it, and the sampler that proposes in it.

All methods share plain parameter names (`r`, `learning_rate`), so that Optuna's importances, plots and dashboard read
the study as it is. Optuna wants one distribution for a name, so each name has the union of what the methods allow, and
the sampler proposes only what the trial's own method allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from autopeft.search.settings import derive_seed
from autopeft.specs import Distribution, MethodSpace, OptionValue

METHOD = "method"
_KEPT_STATES = (TrialState.COMPLETE, TrialState.PRUNED)


class ConditionalSpace:
    """The searched knobs of all methods under shared names.

    A name whose kind or log flag differs between methods is asked as ``<method>.<name>``.
    """

    def __init__(
        self, spaces: Mapping[str, MethodSpace], recommended: Iterable[Mapping[str, OptionValue]] = ()
    ) -> None:
        """Builds the distributions.

        Args:
            spaces: by method name.
            recommended: values that will be enqueued, each with its "method"; ranges are widened to hold them.
        """
        self.methods = tuple(spaces)
        self._own: dict[str, dict[str, BaseDistribution]] = {
            method: {knob: _to_optuna(entry) for knob, entry in space.parameters.items()}
            for method, space in spaces.items()
        }
        self._split = _names_that_differ(self._own.values())
        self._shared = self._unions(tuple(recommended))

    def parameter(self, method: str, knob: str) -> str:
        """Returns the name under which Optuna knows a knob of a method."""
        return f"{method}.{knob}" if knob in self._split else knob

    def knobs(self, method: str) -> tuple[str, ...]:
        """Returns the searched knobs of a method."""
        return tuple(self._own[method])

    def shared(self, parameter: str) -> BaseDistribution:
        """Returns the distribution that the study records for a parameter."""
        return CategoricalDistribution(self.methods) if parameter == METHOD else self._shared[parameter]

    def own(self, method: str, parameter: str) -> BaseDistribution:
        """Returns what one method allows for a parameter."""
        return self._own[method][parameter.removeprefix(f"{method}.")]

    def to_parameters(self, method: str, values: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """Returns knob values under the names that the study uses, with the method; other values are left out."""
        known = {self.parameter(method, knob): values[knob] for knob in self.knobs(method) if knob in values}
        return {METHOD: method, **known}

    def to_values(self, method: str, parameters: Mapping[str, Any]) -> dict[str, OptionValue]:
        """Returns a trial's parameters as knob values of its method."""
        return {knob: parameters[self.parameter(method, knob)] for knob in self.knobs(method)}

    def _unions(self, recommended: tuple[Mapping[str, OptionValue], ...]) -> dict[str, BaseDistribution]:
        found: dict[str, list[BaseDistribution]] = {}
        for method, knobs in self._own.items():
            for knob, distribution in knobs.items():
                found.setdefault(self.parameter(method, knob), []).append(distribution)
        values: dict[str, list[OptionValue]] = {name: [] for name in found}
        for entry in recommended:
            for name, value in self.to_parameters(str(entry[METHOD]), entry).items():
                values.setdefault(name, []).append(value)
        return {name: _union(distributions, values[name]) for name, distributions in found.items()}


class MethodwiseSampler(BaseSampler):
    """TPE that learns the method from all trials, and a method's knobs from that method's trials alone.

    A learning rate that is right for LoRA is ten times too low for AdaLoRA, so observations of different methods are
    not mixed. Each proposal is a function of the seed, the trial's place in the search and the finished trials, and of
    nothing else: a search that was killed and resumed proposes what it would have proposed.
    """

    def __init__(self, space: ConditionalSpace, seed: int, place_of: Callable[[int], int]) -> None:
        """Remembers what proposals depend on.

        Args:
            space: what may be proposed.
            seed: of all proposals.
            place_of: trial number -> its place in the search; interrupted trials have none of their own.
        """
        self._space = space
        self._seed = seed
        self._place_of = place_of

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns nothing: the space is conditional, so parameters are proposed one by one."""
        del study, trial
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Returns nothing, see ``infer_relative_search_space``."""
        del study, trial, search_space
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Returns the proposal for one parameter."""
        trials = study.get_trials(deepcopy=False, states=_KEPT_STATES)
        distribution = param_distribution
        if param_name != METHOD:
            method = trial.params[METHOD]
            trials = [past for past in trials if past.params.get(METHOD) == method]
            distribution = self._space.own(method, param_name)
        if distribution.single():
            return _only_value(distribution)
        seed = derive_seed(self._seed, "sampler", self._place_of(trial.number), param_name)
        return _propose(param_name, distribution, trials, seed)


def _propose(name: str, distribution: BaseDistribution, trials: list[FrozenTrial], seed: int) -> Any:
    """Returns one TPE proposal from a study that holds only this parameter."""
    # The first trial of a method is a recommendation, so TPE may trust it from the start (n_startup_trials).
    study = optuna.create_study(sampler=TPESampler(seed=seed, n_startup_trials=1), direction="minimize")
    for trial in trials:
        if name in trial.params and _contains(distribution, trial.params[name]):
            study.add_trial(_only(trial, name, distribution))
    return study.ask({name: distribution}).params[name]


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    numeric = cast("FloatDistribution | IntDistribution", distribution)
    return bool(numeric.low <= value <= numeric.high)


def _only(trial: FrozenTrial, name: str, distribution: BaseDistribution) -> FrozenTrial:
    return create_trial(
        state=trial.state,
        value=trial.value,
        params={name: trial.params[name]},
        distributions={name: distribution},
        intermediate_values=trial.intermediate_values,
        constraints=trial.constraints,
    )


def _to_optuna(entry: Distribution) -> BaseDistribution:
    if entry.type == "categorical":
        return CategoricalDistribution(entry.choices)
    assert entry.low is not None
    assert entry.high is not None
    if entry.type == "float":
        return FloatDistribution(entry.low, entry.high, log=entry.log, step=entry.step)
    return IntDistribution(int(entry.low), int(entry.high), log=entry.log, step=int(entry.step or 1))


def _names_that_differ(methods: Iterable[Mapping[str, BaseDistribution]]) -> set[str]:
    kinds: dict[str, set[tuple[str, object, object]]] = {}
    for knobs in methods:
        for knob, distribution in knobs.items():
            kind = (
                type(distribution).__name__,
                getattr(distribution, "log", None),
                getattr(distribution, "step", None),
            )
            kinds.setdefault(knob, set()).add(kind)
    return {knob for knob, found in kinds.items() if len(found) > 1}


def _union(distributions: list[BaseDistribution], values: list[OptionValue]) -> BaseDistribution:
    first = distributions[0]
    if isinstance(first, CategoricalDistribution):
        every = [choice for entry in distributions for choice in cast(CategoricalDistribution, entry).choices] + values
        return CategoricalDistribution(_sorted_where_possible(list(dict.fromkeys(every))))
    numbers = [float(value) for value in values]
    ranges = [cast("FloatDistribution | IntDistribution", entry) for entry in distributions]
    low, high = min([entry.low for entry in ranges] + numbers), max([entry.high for entry in ranges] + numbers)
    if isinstance(first, IntDistribution):
        return IntDistribution(int(low), int(high), log=first.log, step=first.step)
    assert isinstance(first, FloatDistribution)
    return FloatDistribution(low, high, log=first.log, step=first.step)


def _sorted_where_possible(choices: list[Any]) -> list[Any]:
    numeric = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices)
    return sorted(choices) if numeric else choices


def _only_value(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    return cast("FloatDistribution | IntDistribution", distribution).low
