"""Puts what a training really needed into the store that later predictions are calibrated with."""

from __future__ import annotations

import logging

from autopeft.errors import AutoPeftError
from autopeft.memory.calibration_store import CalibrationStore, Observation
from autopeft.memory.observing import Training, observations_of, step_seconds
from autopeft.recommend.shortening import advice_of
from autopeft.search.session import Session
from autopeft.specs import RankedCandidate, TrainOutcome

logger = logging.getLogger(__name__)


def observe(session: Session, priced: RankedCandidate, outcome: TrainOutcome) -> None:
    """Stores prediction and measurement of one training; nothing where nothing was measured, as in a dry run.

    A store that cannot be written is told in the log and does not end the run, which lacks nothing by it.
    """
    try:
        for observation in trial_observations(session, priced, outcome):
            CalibrationStore().append(observation)
    except AutoPeftError as error:
        logger.warning("%s; later predictions will do without this training", error)


def trial_observations(session: Session, priced: RankedCandidate, outcome: TrainOutcome) -> tuple[Observation, ...]:
    """Returns what a training teaches about the prediction that was made for it, before any correction."""
    plan = session.plan
    training = Training(
        candidate=priced.candidate,
        model=plan.model,
        device=plan.hardware.device,
        data=plan.data.content_hash,
        sequence_length=advice_of(plan).sequence_length,
        limit_bytes=priced.available_bytes,
        versions=session.job_facts().versions,
        source="trial",
    )
    estimate = priced.estimate.uncorrected or priced.estimate
    return observations_of(training, estimate, outcome, seconds=step_seconds(outcome))
