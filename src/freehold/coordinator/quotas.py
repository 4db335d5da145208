"""How much of a coordinator one researcher may take: studies at once, and code on its disk. Operators have no limit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sqlalchemy as sa

from freehold.coordinator.study_tables import blobs, studies
from freehold.errors import StudyRefused
from freehold.plan import parse

MEGABYTE = 1_000_000
RESEARCHER = "researcher/"


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """For each researcher; 0: no limit."""

    studies: int = 50
    """That run at once."""
    bundles_mb: int = 100
    """Of code that came with plans, of all studies that are kept here; each bundle counts once."""

    def check(self, connection: sa.Connection, by: str, bundle: str | None) -> None:
        """Raise StudyRefused unless this researcher has room for the study that is being entered, its row included."""
        if not by.startswith(RESEARCHER):
            return
        own = studies.c.by == by
        running = connection.execute(sa.select(sa.func.count()).where(own, studies.c.state == "running")).scalar_one()
        if self.studies and running > self.studies:
            raise StudyRefused(
                f"{running - 1} studies of {by} are running; this coordinator runs {self.studies} of one researcher at once.",
                hint="Wait for one to end, or stop one: `freehold study stop`. An operator can raise researcher_studies.",
            )
        if not self.bundles_mb or bundle is None:
            return
        plans = sa.select(blobs.c.body).join(studies, studies.c.plan == blobs.c.sha256).where(own)
        named = {_bundle(bytes(body)) for body in connection.execute(plans).scalars() if body is not None} - {""}
        held = connection.execute(sa.select(sa.func.sum(blobs.c.length)).where(blobs.c.sha256.in_(named))).scalar_one() or 0
        if held > self.bundles_mb * MEGABYTE:
            raise StudyRefused(
                f"With this bundle the code of {by} takes {held} bytes; this coordinator keeps {self.bundles_mb} MB of one "
                "researcher.",
                hint="Use a bundle that is here already. An operator can raise researcher_bundles_mb.",
            )


@lru_cache(maxsize=4096)
def _bundle(text: bytes) -> str:
    """SHA-256 of the bundle that a plan names; "" for none."""
    return (parse(text.decode()).task.bundle or "").removeprefix("sha256:")
