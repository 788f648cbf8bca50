"""The search: an Optuna study with budgets, a run folder that survives a kill, and an honest verdict."""

from autopeft.search.run import run_search
from autopeft.search.run_folder import RunFolder
from autopeft.search.settings import CandidateSource, Event, RunSettings, Watcher

__all__ = ["CandidateSource", "Event", "RunFolder", "RunSettings", "Watcher", "run_search"]
