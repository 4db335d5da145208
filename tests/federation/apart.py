"""A federation of which hungary lives in another network than the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.federation.harness import Federation
from tests.federation.namespaces import FAR, NEAR, Networks


class Apart(Federation):
    """Its networks are made and ended by who makes it."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        networks: Networks,
        fork: Path | None,
        settings: Mapping[str, object],
        dataset: str = "heart",
    ) -> None:
        super().__init__(folder, names, fork=fork, settings=settings, dataset=dataset)
        self.networks = networks

    @property
    def url(self) -> str:
        return f"https://{NEAR}:{self.port}"

    def around(self, name: str) -> Sequence[str]:
        return self.networks.inside(FAR if name == "hungary" else NEAR)
