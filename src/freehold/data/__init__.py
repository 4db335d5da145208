"""Populations: read, checked, partitioned, split and turned into tensors.

A population is (features, target, client) of every example. It comes from files, frames, arrays or a shipped data set; a
schema says what its columns mean; `partition` makes clients where there are none; `split` and `prepare` make tensors.
"""

from freehold.data.arrays import from_arrays
from freehold.data.check import Finding, check, told
from freehold.data.digits import digits
from freehold.data.heart import heart, heart_flamby
from freehold.data.mock import mock_population
from freehold.data.partition import partition
from freehold.data.pfllib import from_pfllib
from freehold.data.population import SPLITS, Population, Problem
from freehold.data.prepare import Prepared, prepare
from freehold.data.schema import Column, Schema, Target, infer_schema, load_schema, parse_schema
from freehold.data.sources import from_csv, from_files, from_frame, from_parquet
from freehold.data.split import SplitRule, Splits, split

__all__ = [
    "SPLITS",
    "Column",
    "Finding",
    "Population",
    "Prepared",
    "Problem",
    "Schema",
    "SplitRule",
    "Splits",
    "Target",
    "check",
    "digits",
    "from_arrays",
    "from_csv",
    "from_files",
    "from_frame",
    "from_parquet",
    "from_pfllib",
    "heart",
    "heart_flamby",
    "infer_schema",
    "load_schema",
    "mock_population",
    "parse_schema",
    "partition",
    "prepare",
    "split",
    "told",
]
