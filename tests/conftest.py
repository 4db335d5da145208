"""What all tests share: one thread, a reproducible Hypothesis, and the tiny problems of `tests.problems`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from freehold.core import Task
from freehold.engines import Feed
from tests import problems

torch.set_num_threads(1)
settings.register_profile("freehold", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("freehold")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips `gpu` tests where there is no CUDA device: the only tests that are ever skipped."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny_task() -> Task:
    """A float64 MLP for three classes."""
    return problems.plain()


@pytest.fixture(scope="session")
def mixed_task() -> Task:
    """A float64 network with BatchNorm and dropout."""
    return problems.mixed()


@pytest.fixture(scope="session")
def tiny_data() -> Feed:
    """Twelve clients of ragged sizes with three concepts."""
    return problems.feed_for()


@pytest.fixture
def rng() -> torch.Generator:
    """A generator that starts from the same seed in each test."""
    return torch.Generator().manual_seed(0)
