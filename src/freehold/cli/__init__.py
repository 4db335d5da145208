"""The command line: `freehold`. Only this package prints, reads the environment and exits."""

from freehold.cli.program import app, main

__all__ = ["app", "main"]
