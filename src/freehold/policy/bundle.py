"""The digest of a bundle of Python files: what a plan pins and a policy allows. Running bundles is not built."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from freehold.errors import PolicyError

_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*\.py")


def bundle_digest(files: Mapping[str, bytes]) -> str:
    """`sha256:…` of a bundle, path -> content. Raises PolicyError for a path that no import would find, or no files."""
    wrong = [path for path in files if not _PATH.fullmatch(path)]
    if wrong or not files:
        raise PolicyError(
            f"{wrong[0][:80]!r} is no path of a Python module." if wrong else "The bundle has no files.",
            hint="Paths are relative, with /, and end with .py: package/module.py.",
        )
    listed = [[path, hashlib.sha256(files[path]).hexdigest()] for path in sorted(files)]
    return "sha256:" + hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()
