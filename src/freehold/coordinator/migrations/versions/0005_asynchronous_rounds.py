"""Contributions that count in a later round than the one that asked for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The round in whose sum a contribution is: so far always the one that asked for it."""
    with op.batch_alter_table("contributions", schema=None) as batch_op:
        batch_op.add_column(sa.Column("summed", sa.Integer(), nullable=True))
        batch_op.create_index("ix_contributions_summed", ["run", "summed"], unique=False)
    op.execute("update contributions set summed = round")
