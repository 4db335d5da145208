"""The code that came with plans, one file for each under <state>/bundles, named by its digest. Nobody here runs any of it.

Kept so that the owner can read it, and see what changed since the version that was approved last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from freehold import durable
from freehold.errors import ApprovalError, BundleRefused, BundleUnfit, BundleUnguarded
from freehold.plan import Plan
from freehold.plan.bundle import LIMIT_BYTES, unpack
from freehold.policy.decide import LEAST_FOR_BUNDLES
from freehold.policy.tables import SANDBOXES, Sandbox
from freehold.wire.local import read

MOST_KEPT = 100
"""Bundles at once: a coordinator cannot fill the disk with more. The oldest gives way; if it is still needed, it comes again."""


class Bundles:
    """The folder."""

    def __init__(self, state: Path) -> None:
        """`state`: the node's folder."""
        self.folder = state / "bundles"

    def take(self, plan: Plan, fds: Sequence[int]) -> bytes | None:
        """The bundle that the plan names, from the first descriptor or from here; None if it names none.

        Kept once it is known to be whole. Raises BundleRefused for one that is missing or another one.
        """
        named = plan.task.bundle
        if named is None:
            return None
        if not fds:
            found = self._kept(named)
            if found is None:
                raise BundleRefused("The plan's code did not come along.", hint="The coordinator is asked again.")
            return found
        body = read(fds[0])
        try:
            unpack(body, named)
        except BundleUnfit as error:
            raise BundleRefused(f"The plan's code was refused: {error.message}", hint=error.hint) from None
        if self._kept(named) is None:
            self._keep(named, body)
        return body

    def files(self, digest: str) -> Mapping[str, str] | None:
        """Path -> text of a bundle that is here and whole."""
        body = self._kept(digest)
        return None if body is None else unpack(body, digest)

    def _keep(self, digest: str, body: bytes) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for path in kept[: max(len(kept) + 1 - MOST_KEPT, 0)]:
                path.unlink(missing_ok=True)
            durable.write(self._path(digest), body, point="node.bundle")
        except OSError as error:
            raise ApprovalError(
                f"{self.folder} cannot be written: {error.strerror}.", hint="Make room on the disk; nothing was trained."
            ) from error

    def _kept(self, digest: str) -> bytes | None:
        with contextlib.suppress(OSError, BundleUnfit):
            path = self._path(digest)
            if path.stat().st_size <= LIMIT_BYTES:
                body = path.read_bytes()
                unpack(body, digest)
                return body
        return None

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest.removeprefix('sha256:')}.json"


def check_guarded(plan: Plan, level: Sandbox) -> None:
    """Raise BundleUnguarded for a plan that brings its code where trainers run in no strong sandbox. No policy lifts this."""
    if plan.task.bundle is not None and SANDBOXES.index(level) < SANDBOXES.index(LEAST_FOR_BUNDLES):
        raise BundleUnguarded(
            f"The code of this plan runs in a sandbox of level {LEAST_FOR_BUNDLES} or stronger; this node has {level}.",
            hint="`freehold doctor --sandbox` says what is missing.",
        )
