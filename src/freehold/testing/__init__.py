"""For tests of federations, ours and those of plug-ins: real processes, started fast."""

__all__: list[str] = []
