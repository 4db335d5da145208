"""Open rounds and their states in the store: what a coordinator that comes back, or that follows another one, goes on with."""

from __future__ import annotations

from freehold.coordinator import asynchronous
from freehold.coordinator import study_records as records
from freehold.coordinator.child import ServerStates
from freehold.coordinator.run import OpenRun, check, fold
from freehold.coordinator.store import Put, Store, explained
from freehold.wire.local import close
from freehold.wire.tally import FixedPointSum


def restore(store: Store, run: OpenRun) -> None:
    """The open round as the store has it: states, who was asked, and who was heard. What they sent is still to be summed.

    Raises StoreError.
    """
    row = store.read(lambda c: records.round_of(c, run.id, run.round))
    server, shared = store.read(lambda c: records.states_of(c, run.id))
    assert row is not None
    state = run.state
    run.server, run.shared = server, store.blob(shared)
    run.open(run.round, tuple(filter(None, row.cohort.split(","))), row.population, row.deadline)
    if run.buffer is not None:
        run.buffer.asked = store.read(lambda c: records.cohorts_of(c, run.id, asynchronous.earlier(run)))
    before = store.read(lambda c: records.digests(c, run.id, run.round - 1))
    run.counted = {each.node: each.sha256 for each in before if each.counted}
    if row.closed is not None:  # between two cycles
        run.state = state
        run.drop_tally()
        return
    if run.tally is None:
        run.received = dict.fromkeys(store.read(lambda c: records.measures_of(c, run.id, run.round)), "")
        return
    for each in store.read(lambda c: records.digests(c, run.id, run.round)):
        run.received[each.node] = each.sha256


async def store_states(store: Store, run: OpenRun, round: int, states: ServerStates, epoch: int | None) -> tuple[Put, Put]:
    """The states before a round, safe; twice the same where nodes see all of it. Raises StoreError.

    `epoch`: of the lease, if there is one. Of a leader that was superseded and goes on, the files must not be those of
    the one that now leads.
    """
    own = f".{epoch}" if epoch else ""
    try:
        server = await store.put(states.server, name=run.place(round, f"server{own}"), point="coordinator.state")
        if states.shared is states.server:
            return server, server
        return server, await store.put(states.shared, name=run.place(round, f"shared{own}"), point="coordinator.state")
    finally:
        states.close()


def fold_stored(store: Store, run: OpenRun, total: FixedPointSum, stored: records.Row) -> None:
    """Add a stored contribution to a sum."""
    body = stored.body if stored.body is not None else store.open_place(stored.place, stored.sha256)
    try:
        with explained():
            fold(body, total, stored.weight, check(body, run, total, stored.weight), run.damping(stored.round))
    finally:
        close([body] if isinstance(body, int) else [])
