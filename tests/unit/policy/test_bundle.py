"""The digest of a bundle covers every path and every byte, and nothing else."""

from __future__ import annotations

import pytest

from freehold.errors import PolicyError
from freehold.policy.bundle import bundle_digest


def test_the_digest_is_that_of_paths_and_contents() -> None:
    files = {"a.py": b"x = 1\n", "pack/b.py": b""}
    found = bundle_digest(files)
    assert found == bundle_digest(dict(reversed(files.items())))
    others = [{**files, "a.py": b"x = 2\n"}, {**files, "c.py": b""}, {"a.py": b"x = 1\n"}, {"b.py": b"x = 1\n", "pack/b.py": b""}]
    assert len({found, *map(bundle_digest, others)}) == 5


@pytest.mark.parametrize("path", ["../a.py", "/a.py", "a.txt", "a//b.py", "a.py\n", ""])
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(PolicyError):
        bundle_digest({path: b""})
    with pytest.raises(PolicyError):
        bundle_digest({})
