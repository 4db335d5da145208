"""Several coordinators over one database."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A lease that one coordinator holds, the federation's roots, and when a node was last seen by any coordinator."""
    leases = op.create_table(
        "leases",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.bulk_insert(leases, [{"name": "rounds", "holder": "", "epoch": 0, "until": 0.0}])
    op.create_table(
        "roots",
        sa.Column("pin", sa.String(length=64), nullable=False),
        sa.Column("federation", sa.String(length=63), nullable=False),
        sa.PrimaryKeyConstraint("pin", name=op.f("pk_roots")),
    )
    with op.batch_alter_table("offers", schema=None) as batch_op:
        batch_op.add_column(sa.Column("seen", sa.Double(), server_default="0", nullable=False))


def downgrade() -> None:
    """As before."""
    with op.batch_alter_table("offers", schema=None) as batch_op:
        batch_op.drop_column("seen")
    op.drop_table("roots")
    op.drop_table("leases")
