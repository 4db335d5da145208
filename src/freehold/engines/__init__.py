"""Engines run a cohort: `loop`, one client at a time; `vector`, all clients of a chunk as one batched program."""

from freehold.engines.feed import Feed, Work, planned_work
from freehold.engines.guarded import guarded
from freehold.engines.loop import LoopEngine
from freehold.engines.spec import METRICS, contribution_tensors, departing
from freehold.engines.store import PersonalStore
from freehold.engines.sweep import SweepEngine, lost_of, pays, riding
from freehold.engines.vector import VectorEngine

__all__ = [
    "METRICS",
    "Feed",
    "LoopEngine",
    "PersonalStore",
    "SweepEngine",
    "VectorEngine",
    "Work",
    "contribution_tensors",
    "departing",
    "guarded",
    "lost_of",
    "pays",
    "planned_work",
    "riding",
]
