"""The plain data that the stages exchange: frozen dataclasses and nothing else."""

from autopeft.specs.candidate import (
    Attention,
    Candidate,
    Dtype,
    Optimizer,
    OptionValue,
    Quantization,
    SchedulerName,
    TrainerName,
)
from autopeft.specs.claim import Basis, Claim
from autopeft.specs.codec import SCHEMA_VERSION, from_dict, from_json, to_dict, to_json
from autopeft.specs.data import DatasetProfile, Finding, TruncationPoint
from autopeft.specs.epoch import BatchSampler, EpochPeaks
from autopeft.specs.estimate import MemoryEstimate, TimeEstimate
from autopeft.specs.explanation import Combination, Explanation, Lever, QualityRisk
from autopeft.specs.hardware import Device, DeviceKind, HardwareProfile, PriceClass
from autopeft.specs.model import CountSource, LinearLayer, ModelSpec, StoredFormat
from autopeft.specs.plan import (
    PLAN_SCHEMA_VERSION,
    QUALITY_TERMS,
    Baseline,
    Objective,
    PlanInputs,
    RankedCandidate,
    Recommendation,
    RejectedCandidate,
)
from autopeft.specs.result import Comparison, PhaseTime, RankedMethod, Report, TrialResult, TrialStatus, Verdict
from autopeft.specs.runner import (
    Job,
    JobFacts,
    RungReport,
    Runner,
    ScoreRequest,
    Scores,
    SplitName,
    TrainOutcome,
    TrainRequest,
)
from autopeft.specs.space import Distribution, MethodSpace, SearchSpace, Situation
from autopeft.specs.step_style import StepStyle

__all__ = [
    "PLAN_SCHEMA_VERSION",
    "QUALITY_TERMS",
    "SCHEMA_VERSION",
    "Attention",
    "Baseline",
    "Basis",
    "BatchSampler",
    "Candidate",
    "Claim",
    "Combination",
    "Comparison",
    "CountSource",
    "DatasetProfile",
    "Device",
    "DeviceKind",
    "Distribution",
    "Dtype",
    "EpochPeaks",
    "Explanation",
    "Finding",
    "HardwareProfile",
    "Job",
    "JobFacts",
    "Lever",
    "LinearLayer",
    "MemoryEstimate",
    "MethodSpace",
    "ModelSpec",
    "Objective",
    "Optimizer",
    "OptionValue",
    "PhaseTime",
    "PlanInputs",
    "PriceClass",
    "Quantization",
    "QualityRisk",
    "RankedCandidate",
    "RankedMethod",
    "Recommendation",
    "RejectedCandidate",
    "Report",
    "Runner",
    "RungReport",
    "SchedulerName",
    "ScoreRequest",
    "Scores",
    "SearchSpace",
    "Situation",
    "SplitName",
    "StepStyle",
    "StoredFormat",
    "TimeEstimate",
    "TrainOutcome",
    "TrainRequest",
    "TrainerName",
    "TrialResult",
    "TrialStatus",
    "TruncationPoint",
    "Verdict",
    "from_dict",
    "from_json",
    "to_dict",
    "to_json",
]
