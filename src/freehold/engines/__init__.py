"""Engines run a cohort: `loop`, one client at a time; `vector`, all clients of a chunk as one batched program."""

from freehold.engines.feed import Feed, Work, planned_work
from freehold.engines.guarded import guarded
from freehold.engines.loop import LoopEngine
from freehold.engines.processes import Processes
from freehold.engines.shards import Build, Runner, ShardedEngine
from freehold.engines.spec import METRICS, contribution_tensors, departing
from freehold.engines.store import PersonalStore
from freehold.engines.vector import VectorEngine

__all__ = [
    "METRICS",
    "Build",
    "Feed",
    "LoopEngine",
    "PersonalStore",
    "Processes",
    "Runner",
    "ShardedEngine",
    "VectorEngine",
    "Work",
    "contribution_tensors",
    "departing",
    "guarded",
    "planned_work",
]
