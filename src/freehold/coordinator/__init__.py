"""The coordinator: enrolls nodes, runs studies round by round, and never sees anything but sums and contributions."""

__all__: list[str] = []
