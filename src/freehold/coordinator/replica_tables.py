"""The tables by which several coordinators over one database agree: who closes rounds, and whose federation it is."""

from __future__ import annotations

import sqlalchemy as sa

from freehold.coordinator.schema import metadata

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("holder", sa.String(64), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),  # grows each time that it is taken
    sa.Column("until", sa.Double, nullable=False),  # by the database's clock
)

roots = sa.Table(
    "roots",
    metadata,
    sa.Column("pin", sa.String(64), primary_key=True),  # SHA-256 of the public key of a root of this federation
    sa.Column("federation", sa.String(63), nullable=False),
)
