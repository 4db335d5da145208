"""One fork server for all tests of a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.testing import forkserver
from tests.federation.harness import fork_server


@pytest.fixture(scope="session")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Path of the fork server's socket."""
    with fork_server(tmp_path_factory.mktemp("fork")) as path:
        os.environ[forkserver.VARIABLE] = str(path)
        try:
            yield path
        finally:
            del os.environ[forkserver.VARIABLE]
