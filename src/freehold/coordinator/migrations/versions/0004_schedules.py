"""Schedules of studies that keep learning."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table for them."""
    op.create_table(
        "schedules",
        sa.Column("study", sa.String(length=71), nullable=False),
        sa.Column("every_s", sa.Double(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=True),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("due", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.digest"], name=op.f("fk_schedules_study_studies")),
        sa.PrimaryKeyConstraint("study", name=op.f("pk_schedules")),
    )
