"""Studies: a task, data, algorithms and seeds put together, run on an engine, and told honestly."""

from freehold.study.api import SEEDS, Data, Reading, compare, make_plan, read, simulate
from freehold.study.cell import Interrupted
from freehold.study.compare import run_comparison
from freehold.study.noised import Noised
from freehold.study.settings import EngineName, Settings, Trial
from freehold.study.source import FlambySplit, RepeatedSplits, Source
from freehold.study.trials import flamby_trials, plan_for, repeated, trials_for, trials_of
from freehold.study.tune import tune

__all__ = [
    "SEEDS",
    "Data",
    "EngineName",
    "FlambySplit",
    "Interrupted",
    "Noised",
    "Reading",
    "RepeatedSplits",
    "Settings",
    "Source",
    "Trial",
    "compare",
    "flamby_trials",
    "make_plan",
    "plan_for",
    "read",
    "repeated",
    "run_comparison",
    "simulate",
    "trials_for",
    "trials_of",
    "tune",
]
