"""The space that Optuna sees, and the proposals in it."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from autopeft.search.sampler import METHOD, ConditionalSpace, MethodwiseSampler
from autopeft.spaces import all_spaces
from autopeft.specs import Distribution, MethodSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)


def _method(name: str, **parameters: Distribution) -> MethodSpace:
    return MethodSpace(method=name, summary="", parameters=parameters)


def _choices(*choices) -> Distribution:
    return Distribution(type="categorical", default=choices[0], effect="", choices=choices)


def _number(kind, low, high, *, log=False) -> Distribution:
    return Distribution(type=kind, default=low, effect="", low=low, high=high, log=log)


def _ask(study: optuna.Study, space: ConditionalSpace, method: str | None = None) -> optuna.Trial:
    if method is not None:
        study.enqueue_trial({METHOD: method})
    trial = study.ask()
    chosen = trial.suggest_categorical(METHOD, space.methods)
    for knob in space.knobs(chosen):
        name = space.parameter(chosen, knob)
        distribution = space.shared(name)
        if isinstance(distribution, CategoricalDistribution):
            trial.suggest_categorical(name, distribution.choices)
        elif isinstance(distribution, FloatDistribution):
            trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
        else:
            assert isinstance(distribution, IntDistribution)
            trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    return trial


def _study(space: ConditionalSpace, seed: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=MethodwiseSampler(space, seed, lambda number: number))


def test_shipped_methods_share_plain_names():
    space = ConditionalSpace(all_spaces())
    for method in space.methods:
        assert all(space.parameter(method, knob) == knob for knob in space.knobs(method))


def test_a_shared_name_has_the_union_and_the_recommended_values():
    space = ConditionalSpace(
        {
            "a": _method("a", r=_choices(8, 16), rate=_number("float", 0.1, 1.0)),
            "b": _method("b", r=_choices(4, 8), rate=_number("float", 0.5, 2.0)),
        },
        [{METHOD: "a", "r": 12, "rate": 5.0}],
    )
    assert space.shared("r") == CategoricalDistribution((4, 8, 12, 16))
    assert space.shared("rate") == FloatDistribution(0.1, 5.0)
    assert space.own("b", "r") == CategoricalDistribution((4, 8))


def test_names_of_different_kinds_are_kept_apart_by_method():
    space = ConditionalSpace({"a": _method("a", r=_choices(8, 16)), "b": _method("b", r=_number("int", 1, 9))})
    assert space.parameter("a", "r") == "a.r"
    assert space.to_parameters("a", {"r": 8}) == {METHOD: "a", "a.r": 8}
    assert space.to_values("a", {METHOD: "a", "a.r": 8}) == {"r": 8}
    trial = _ask(_study(space), space, "b")
    assert 1 <= trial.params["b.r"] <= 9


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), losses=st.lists(st.floats(0, 5), min_size=1, max_size=6))
def test_every_proposal_lies_in_the_space_of_its_own_method(seed, losses):
    spaces = {
        "a": _method(
            "a", r=_choices(8, 16, 32), rate=_number("float", 1e-5, 1e-3, log=True), depth=_number("int", 1, 4)
        ),
        "b": _method("b", r=_choices(4, 8), rate=_number("float", 1e-3, 1e-1, log=True)),
    }
    space = ConditionalSpace(spaces)
    study = _study(space, seed)
    for loss in losses:
        trial = _ask(study, space)
        own = spaces[trial.params[METHOD]].parameters
        assert set(trial.params) == {METHOD, *own}
        assert trial.params["r"] in own["r"].choices
        assert own["rate"].low <= trial.params["rate"] <= own["rate"].high
        study.tell(trial, loss)


def test_a_proposal_depends_on_seed_place_and_past_alone():
    space = ConditionalSpace({name: entry for name, entry in all_spaces().items() if name != "full"})

    def proposals(seed: int, lost: int) -> list[dict[str, object]]:
        """Asks six times; after the second, as many trials are lost in a kill."""
        places: dict[int, int] = {}
        study = optuna.create_study(
            sampler=MethodwiseSampler(space, seed, lambda number: places.get(number, len(done)))
        )
        done: list[dict[str, object]] = []
        while len(done) < 6:
            trial = _ask(study, space)
            if len(done) == 2 and lost:
                lost -= 1
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            done.append(trial.params)
            study.tell(trial, float(trial.params["learning_rate"]))
        return done

    assert proposals(1, lost=0) == proposals(1, lost=0) == proposals(1, lost=3)
    assert proposals(1, lost=0) != proposals(2, lost=0)


def test_the_sampler_finds_a_better_learning_rate_than_it_started_with():
    space = ConditionalSpace({"lora": _method("lora", learning_rate=_number("float", 1e-5, 1e-1, log=True))})
    study = _study(space)
    study.enqueue_trial({METHOD: "lora", "learning_rate": 1e-4})
    for _ in range(15):
        trial = _ask(study, space)
        study.tell(trial, (trial.params["learning_rate"] - 1e-3) ** 2)
    assert 3e-4 < study.best_params["learning_rate"] < 3e-3


@pytest.mark.parametrize("state", [optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL])
def test_trials_without_a_value_do_not_stop_the_sampler(state):
    space = ConditionalSpace({"lora": _method("lora", r=_choices(4, 8, 16))})
    study = _study(space)
    for _ in range(3):
        trial = _ask(study, space)
        trial.report(1.0, 3)
        study.tell(trial, state=state)
    assert _ask(study, space).params["r"] in (4, 8, 16)
