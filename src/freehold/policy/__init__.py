"""The owner's policy: what may be done with which data. Strict TOML, default deny, decided rule by rule.

A plan is *allowed* by the rules, *waits* where none covers it, or is *denied* where one says no; nothing here reads data.
"""

from freehold.policy.decide import Facts, Finding, Verdict, decide
from freehold.policy.tables import LIMITS, PERMITS, DataRules, Policy
from freehold.policy.template import new_policy, sample_policy
from freehold.policy.text import FILE, load_policy, parse_policy, read_policy

__all__ = [
    "FILE",
    "LIMITS",
    "PERMITS",
    "DataRules",
    "Facts",
    "Finding",
    "Policy",
    "Verdict",
    "decide",
    "load_policy",
    "new_policy",
    "parse_policy",
    "read_policy",
    "sample_policy",
]
