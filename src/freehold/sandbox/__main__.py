"""`python -m freehold.sandbox`: does nothing, so that a jail can be tried."""
