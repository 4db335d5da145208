"""Metrics: what Prometheus is told."""

from __future__ import annotations

from typing import cast

from freehold.coordinator.metrics import Metrics
from freehold.coordinator.presence import Presence, Seen
from freehold.events import Event


class Nodes:
    """As much of Presence as metrics look at."""

    def all(self) -> dict[str, Seen]:
        return {"alice": Seen(datasets=frozenset(), last=1000.0), "bob": Seen(datasets=frozenset(), last=10.0)}


def told(*events: Event) -> list[str]:
    metrics = Metrics(cast(Presence, Nodes()), lambda: {"server": 5.0}, lambda: 1001.0)
    for event in events:
        metrics.listen(event)
    return metrics.text().decode().splitlines()


def test_nodes_are_counted_by_state() -> None:
    lines = told()
    assert 'freehold_nodes{state="connected"} 1.0' in lines
    assert 'freehold_nodes{state="silent"} 1.0' in lines
    assert 'freehold_node_last_seen_timestamp_seconds{node="alice"} 1000.0' in lines
    assert 'freehold_cert_expiry_timestamp_seconds{kind="server"} 5.0' in lines


def test_rounds_refusals_and_bytes_are_counted() -> None:
    closed = Event("round.closed", {"run": "a", "round": 0})
    lines = told(
        closed,
        closed,
        Event("request.refused", {"code": 403}),
        Event("contribution.received", {"bytes": 7}),
        Event("work.declined", {"code": 305}),
        Event("study.started", {}),
    )
    assert 'freehold_rounds_total{result="closed"} 2.0' in lines
    assert "freehold_round_duration_seconds_count 1.0" in lines
    assert "freehold_round_last_completed_timestamp_seconds 1001.0" in lines
    assert 'freehold_requests_refused_total{reason="403"} 1.0' in lines
    assert "freehold_contribution_bytes_total 7.0" in lines
    assert 'freehold_work_declined_total{reason="305"} 1.0' in lines
    assert 'freehold_studies_total{state="started"} 1.0' in lines
