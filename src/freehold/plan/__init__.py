"""The plan: the one description of a run that the simulator and a federation both read, that people approve and keys sign.

Written as TOML, strict: a key that nobody reads, a wrong type, a contradiction or a number out of range is an error that
names the dotted path and what to do. `digest` is the plan's identity: the same for every way of writing the same plan.
"""

from freehold.plan.checks import FORMAT
from freehold.plan.runs import Run, runs_of
from freehold.plan.spec import Compression, Contribution, DType, SentAs, TensorSpec, check_contribution
from freehold.plan.tables import AlgorithmRef, Companion, Plan, Privacy, RoundPolicy, Scalar, TaskRef, Training, Work, WrapperRef
from freehold.plan.text import digest, dumps, load_plan, parse

__all__ = [
    "FORMAT",
    "AlgorithmRef",
    "Companion",
    "Compression",
    "Contribution",
    "DType",
    "Plan",
    "Privacy",
    "RoundPolicy",
    "Run",
    "Scalar",
    "SentAs",
    "TaskRef",
    "TensorSpec",
    "Training",
    "Work",
    "WrapperRef",
    "check_contribution",
    "digest",
    "dumps",
    "load_plan",
    "parse",
    "runs_of",
]
