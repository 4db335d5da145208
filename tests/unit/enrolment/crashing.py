"""A node as a process that a failpoint can kill: python -m ... join|renew COORDINATOR STATE [TOKEN-FILE]."""

from __future__ import annotations

import sys
from pathlib import Path

from freehold.node.join import join, read_token, renew
from tests.unit.enrolment.world import HOST, Loopback, World


def main(action: str, folder: str, state: str, *token: str) -> None:
    world = World(Path(folder))
    if action == "join":
        join(Path(state), read_token(token[0]), url=f"https://{HOST}", node="alice", network=Loopback(world))
    else:
        renew(Path(state), Loopback(world))
    world.engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
