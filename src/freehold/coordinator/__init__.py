"""The coordinator: the server process that enrolls nodes, asks them round by round, sums, and updates."""
