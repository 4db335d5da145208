"""Policies to begin with: one to edit, in which every key is explained, and one for sample data."""

from __future__ import annotations

import json

_RULES = """\
# The owner's policy for one data set. Whatever is not allowed here waits for `freehold node approve`.
# Lines with # in front are what else can be said; docs/reference/policy.md explains each key.

[data.{key}]

# What may leave: "trusted-code" (you trust the installed task not to encode records in what it sends),
# "noised" (only plans with differential privacy), or "secure-sum" (not built yet: allows nothing but noise).
release = "{release}"

# Whose code: tasks that are installed on this node, by name; or code by its digest, which needs noise.
tasks = [{tasks}]
# code = ["sha256:..."]
# Code that you have read, and trust like an installed task not to encode records: it may go without noise.
# trusted_code = ["sha256:..."]

# What is told of how good the models are on your own data: "never", "binned" (rounded) or "named" (as it is).
share_benefit = "never"

# Who must have signed the plan: the middle line of the file FILE.pub that `freehold study keygen` writes.
# study_keys = ["MCowBQYDK2VwAyEA..."]

# Privacy: the least unit, the most that one study and all studies may cost, and the largest max_norm.
# unit = "client"
# epsilon_per_study = 2.0
# epsilon_total = 8.0
# delta = 1e-5
# most_clip = 1.0

# Amounts: bytes of contributions a day, and the fewest nodes that a round must ask.
# bytes_per_day = 100_000_000
# smallest_cohort = 3

# When, and in what surroundings.
# hours = "22:00-06:00"
# memory = 4_000_000_000
# cpus = 2.0
# Device files of GPUs for the trainer; a driver is a large surface, so only for code that you trust.
# gpu = true
# sandbox = "strict"
# columns = ["age", "sex"]

# How many days a study's personal models are kept after it last trained here.
# keep_days = 90
"""

_SAMPLE = """\
# Freehold wrote this for the sample data that ships with it: public records, so everything that is installed may learn
# from them and tell how good its models are. Do not use it for data of your own: `freehold node policy new NAME`.

[data.{key}]
release = "trusted-code"
tasks = [{tasks}]
share_benefit = "named"
"""


def new_policy(data: str, *, release: str = "trusted-code") -> str:
    """A policy for the data set of that name, to be edited."""
    return _RULES.format(key=_key(data), tasks=json.dumps(data), release=release)


def sample_policy(data: str) -> str:
    """A policy for public sample data: all that the installed task of that name does."""
    return _SAMPLE.format(key=_key(data), tasks=json.dumps(data))


def _key(data: str) -> str:
    """As TOML writes a key."""
    return data if data.replace("-", "").replace("_", "").isalnum() and data.isascii() else json.dumps(data)
