"""In what sandbox training code runs on a node, and in what a contribution was trained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A level of each: so far nobody has said one."""
    for table in ("offers", "contributions"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("sandbox", sa.String(length=16), server_default="", nullable=False))
