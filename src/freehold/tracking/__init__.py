"""Runs in the user's own MLflow or TensorBoard: listeners to the events of a study. Either is imported when asked for."""

from freehold.tracking.spec import listener

__all__ = ["listener"]
