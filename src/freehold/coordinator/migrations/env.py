"""Run by Alembic: migrates over the connection that `upgrade` hands it."""

from __future__ import annotations

from alembic import context

from freehold.coordinator import enrolment_tables, study_tables
from freehold.coordinator.schema import metadata

__all__ = ["enrolment_tables", "study_tables"]

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
