"""`python -m freehold.cli`: the same program as `freehold`."""

from freehold.cli.program import main

if __name__ == "__main__":
    main()
