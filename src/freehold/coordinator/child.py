"""The coordinator's side of the child that runs algorithm code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from freehold.coordinator.serverjobs import Begin, Close, Describe, Described, FromChild, ServerCodeError, States, ToChild
from freehold.errors import NotAsynchronous, PeerGone, ServerCodeFailed
from freehold.plan import TensorSpec
from freehold.wire.local import Pieces, close, is_sealed, sealed
from freehold.wire.process import Child, Spawn, spawn

MODULE = "freehold.coordinator.servercode"


class ServerStates(NamedTuple):
    """A run's states between two rounds, as safetensors in sealed memory, which whoever asked closes."""

    server: Pieces
    shared: Pieces
    """The same as `server` where nodes see all of it."""

    def close(self) -> None:
        """Give the memory back."""
        close({self.server.fd, self.shared.fd})


class ServerCode:
    """Asks the child; blocking, one question at a time."""

    def __init__(self, *, spawn: Spawn = spawn, timeout_s: float = 600.0) -> None:
        self._child = Child(MODULE, FromChild, spawn=spawn)
        self._timeout_s = timeout_s

    def describe(self, plan: bytes) -> list[tuple[TensorSpec, ...]]:
        """What leaves a node: of the plan's algorithm, then of each companion."""
        reply, fds = self._ask(Describe(), plan, ())
        close(fds)
        assert isinstance(reply, Described)
        return reply.tensors

    def begin(self, plan: bytes, number: int) -> ServerStates:
        """The states of a run before its first round."""
        return self._states(Begin(number=number), plan, ())

    def close_round(
        self, plan: bytes, number: int, *, round: int, heard: int, population: int, server: int, tally: int
    ) -> ServerStates:
        """The states after a round: descriptors show the `server` state before it, and its sum."""
        return self._states(Close(number=number, round=round, heard=heard, population=population), plan, (server, tally))

    def end(self) -> None:
        """End the child; the next question starts another."""
        self._child.end()

    def _states(self, job: ToChild, plan: bytes, fds: Sequence[int]) -> ServerStates:
        reply, got = self._ask(job, plan, fds)
        if not isinstance(reply, States) or not 1 <= len(got) <= 2 or not all(map(is_sealed, got)):
            close(got)
            raise ServerCodeFailed("The algorithm's server code answered nonsense.", hint="Look at the plan's algorithm.")
        states = [Pieces(fd) for fd in got]
        return ServerStates(states[0], states[-1])

    def _ask(self, job: ToChild, plan: bytes, fds: Sequence[int]) -> tuple[FromChild, list[int]]:
        memory = sealed(plan, "plan")
        try:
            reply, got = self._child.ask(job, (memory, *fds), timeout_s=self._timeout_s)
        except (PeerGone, TimeoutError) as error:
            raise ServerCodeFailed(
                "The process that runs the algorithm's server code died or did not answer.",
                hint="Most often there was not enough memory; the study goes on in the round it was in.",
            ) from error
        finally:
            close([memory])
        if isinstance(reply, ServerCodeError):
            close(got)
            if reply.code == NotAsynchronous.code:
                raise NotAsynchronous(reply.message, hint=reply.hint)
            raise ServerCodeFailed(f"({reply.code}) {reply.message}", hint=reply.hint)
        return reply, got
