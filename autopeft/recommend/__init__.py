"""From profiles to ranked candidates: pure, torch-free, the same answer for the same inputs."""

from autopeft.recommend.advice import Advice, advise
from autopeft.recommend.candidates import CandidateFactory
from autopeft.recommend.learning_rate import Conditions, advised_learning_rate
from autopeft.recommend.ranking import plain_lora, recommend
from autopeft.recommend.reprice import price_best, reprice
from autopeft.recommend.retrace import factory_for, retrace

__all__ = [
    "Advice",
    "CandidateFactory",
    "Conditions",
    "advise",
    "advised_learning_rate",
    "factory_for",
    "plain_lora",
    "price_best",
    "recommend",
    "reprice",
    "retrace",
]
