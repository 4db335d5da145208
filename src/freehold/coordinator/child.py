"""The coordinator's side of the child that runs algorithm code; of a plan that brings its code, one in a sandbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from freehold.coordinator.serverjobs import Begin, Close, Describe, Described, FromChild, Load, ServerCodeError, States, ToChild
from freehold.errors import FreeholdError, NotAsynchronous, PeerGone, ServerCodeFailed, StudyRefused
from freehold.plan import TensorSpec, parse
from freehold.wire.codec import layout
from freehold.wire.local import Mapped, Pieces, close, is_sealed, sealed
from freehold.wire.process import Child, Spawn, spawn

MODULE = "freehold.coordinator.servercode"
MOST_SANDBOXED = 2
"""Children in sandboxes that are warm at once; each is for one bundle."""
SANDBOXED_LIMIT_S = 120.0
"""For one question to code that came with a plan: the other studies wait for it."""


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

    def __init__(
        self,
        *,
        spawn: Spawn = spawn,
        sandboxed: Callable[[], Spawn] | None = None,
        bundle_of: Callable[[str], bytes] | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        """`sandboxed`: what starts a child for code that came with a plan, or raises SandboxError. `bundle_of`: by its digest."""
        self._child = Child(MODULE, FromChild, spawn=spawn)
        self._timeout_s = timeout_s
        self._sandboxed, self._bundle_of = sandboxed, bundle_of
        self._of_bundles: dict[str, Child] = {}

    def describe(self, plan: bytes, bundle: bytes | None = None) -> list[tuple[TensorSpec, ...]]:
        """What leaves a node: of the plan's algorithm, then of each companion.

        `bundle`: code that is not yet where `bundle_of` looks.
        """
        if bundle is not None:
            self._for(plan, bundle)
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
        """End the children; the next question starts another."""
        for child in (self._child, *self._of_bundles.values()):
            child.end()

    def _states(self, job: ToChild, plan: bytes, fds: Sequence[int]) -> ServerStates:
        reply, got = self._ask(job, plan, fds)
        if not isinstance(reply, States) or not 1 <= len(got) <= 2 or not all(map(is_sealed, got)):
            close(got)
            raise ServerCodeFailed("The algorithm's server code answered nonsense.", hint="Look at the plan's algorithm.")
        if _bundle_named(plan) is not None:
            _check_tensors(got)
        states = [Pieces(fd) for fd in got]
        return ServerStates(states[0], states[-1])

    def _ask(self, job: ToChild, plan: bytes, fds: Sequence[int]) -> tuple[FromChild, list[int]]:
        child = self._for(plan, None)
        memory = sealed(plan, "plan")
        try:
            limit_s = self._timeout_s if child is self._child else min(self._timeout_s, SANDBOXED_LIMIT_S)
            reply, got = child.ask(job, (memory, *fds), timeout_s=limit_s)
        except (PeerGone, TimeoutError) as error:
            raise ServerCodeFailed(
                "The process that runs the algorithm's server code died or did not answer.",
                hint="Most often there was not enough memory; the study goes on in the round it was in.",
            ) from error
        finally:
            close([memory])
        if isinstance(reply, ServerCodeError):
            close(got)
            raise _error(reply)
        return reply, got

    def _for(self, plan: bytes, bundle: bytes | None) -> Child:
        """The child that may run this plan's code."""
        named = _bundle_named(plan)
        if named is None:
            return self._child
        child = self._of_bundles.pop(named, None)
        if child is None:
            found = bundle
            if found is None and self._bundle_of is not None:
                found = self._bundle_of(named)
            if self._sandboxed is None or found is None:
                raise ServerCodeFailed("The plan's code did not come along.", hint="Add --bundle FILE.")
            child = self._in_sandbox(plan, found, self._sandboxed())
        self._of_bundles[named] = child  # the one that was used last comes last
        for name in list(self._of_bundles)[:-MOST_SANDBOXED]:
            self._of_bundles.pop(name).end()
        return child

    def _in_sandbox(self, plan: bytes, bundle: bytes, spawn: Spawn) -> Child:
        def opening(child: Child) -> None:
            memory = [sealed(plan, "plan"), sealed(bundle, "bundle")]
            try:
                reply, got = child.ask(Load(), memory, timeout_s=min(self._timeout_s, SANDBOXED_LIMIT_S), restarts=0)
            finally:
                close(memory)
            close(got)
            if isinstance(reply, ServerCodeError):
                raise _error(reply)

        return Child(MODULE, FromChild, spawn=spawn, opening=opening)


def _check_tensors(fds: list[int]) -> None:
    """Raise TensorsMalformed, after closing them, unless these are states: foreign code could answer with anything."""
    try:
        for fd in fds:
            with Mapped(fd) as view:
                layout(view)
    except BaseException:
        close(fds)
        raise


@lru_cache(maxsize=32)
def _bundle_named(plan: bytes) -> str | None:
    return parse(plan.decode()).task.bundle


def _error(reply: ServerCodeError) -> FreeholdError:
    for kind in (NotAsynchronous, StudyRefused):
        if reply.code == kind.code:
            return kind(reply.message, hint=reply.hint)
    return ServerCodeFailed(f"({reply.code}) {reply.message}", hint=reply.hint)
