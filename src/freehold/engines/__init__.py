"""Engines run a cohort: `loop`, one client at a time; `vector`, all clients of a chunk as one batched program."""

from freehold.engines.arena import Arena, Sealed
from freehold.engines.choice import Choice, ExecutorName
from freehold.engines.device import DeviceName, device_of, moved
from freehold.engines.execution import Execution
from freehold.engines.feed import Feed, Work, planned_work
from freehold.engines.guarded import guarded
from freehold.engines.layout import state_bytes
from freehold.engines.loop import LoopEngine
from freehold.engines.processes import Processes
from freehold.engines.shards import Build, Runner, ShardedEngine, Store
from freehold.engines.spec import METRICS, contribution_tensors, departing
from freehold.engines.store import PersonalStates, PersonalStore
from freehold.engines.sweep import SweepEngine, lost_of, pays, riding
from freehold.engines.vector import VectorEngine

__all__ = [
    "METRICS",
    "Arena",
    "Build",
    "Choice",
    "DeviceName",
    "Execution",
    "ExecutorName",
    "Feed",
    "LoopEngine",
    "PersonalStates",
    "PersonalStore",
    "Processes",
    "Runner",
    "Sealed",
    "ShardedEngine",
    "Store",
    "SweepEngine",
    "VectorEngine",
    "Work",
    "contribution_tensors",
    "departing",
    "device_of",
    "guarded",
    "lost_of",
    "moved",
    "pays",
    "planned_work",
    "riding",
    "state_bytes",
]
