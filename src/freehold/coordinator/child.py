"""The coordinator's side of the child that runs algorithm code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from freehold.coordinator.serverjobs import Begin, Close, Describe, Described, FromChild, ServerCodeError, States, ToChild
from freehold.errors import PeerGone, ServerCodeFailed
from freehold.plan import TensorSpec
from freehold.wire.local import close, read, sealed
from freehold.wire.process import Child, Spawn, spawn

MODULE = "freehold.coordinator.servercode"


class ServerStates(NamedTuple):
    """A run's states between two rounds, as safetensors."""

    server: bytes
    shared: bytes
    """Equal to `server` where nodes see all of it."""


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
        self, plan: bytes, number: int, *, round: int, heard: int, population: int, server: bytes, tally: int
    ) -> ServerStates:
        """The states after a round whose sum lies behind the descriptor `tally`."""
        memory = sealed(server, "server")
        try:
            job = Close(number=number, round=round, heard=heard, population=population)
            return self._states(job, plan, (memory, tally))
        finally:
            close([memory])

    def end(self) -> None:
        """End the child; the next question starts another."""
        self._child.end()

    def _states(self, job: ToChild, plan: bytes, fds: Sequence[int]) -> ServerStates:
        reply, got = self._ask(job, plan, fds)
        try:
            if not isinstance(reply, States) or not 1 <= len(got) <= 2:
                raise ServerCodeFailed("The algorithm's server code answered nonsense.", hint="Look at the plan's algorithm.")
            states = [read(fd) for fd in got]
        finally:
            close(got)
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
            raise ServerCodeFailed(f"({reply.code}) {reply.message}", hint=reply.hint)
        return reply, got
