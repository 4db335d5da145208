"""Metrics for Prometheus, and whether the coordinator lives and is ready, on a listener of their own without TLS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from freehold.coordinator.presence import Presence
from freehold.events import Event

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)


class Metrics:
    """Counts events, and looks at the nodes when it is asked."""

    def __init__(self, presence: Presence, certificates: Callable[[], dict[str, float]], clock: Callable[[], float]) -> None:
        """`certificates()`: kind -> when it expires, Unix time."""
        self._registry = CollectorRegistry()
        self._clock = clock
        self._closed: dict[str, float] = {}
        own = self._registry
        self._duration = Histogram(
            "freehold_round_duration_seconds", "From one round's closing to the next.", buckets=_SECONDS, registry=own
        )
        self._rounds = Counter("freehold_rounds", "Rounds that closed, or were short of answers.", ["result"], registry=own)
        self._last = Gauge("freehold_round_last_completed_timestamp_seconds", "When a round closed last.", registry=own)
        self._received = Counter("freehold_contribution_bytes", "Bytes of contributions received.", registry=own)
        self._contributions = Counter("freehold_contributions", "Contributions received.", registry=own)
        self._rejected = Counter("freehold_requests_refused", "Requests refused, by error number.", ["reason"], registry=own)
        self._declined = Counter("freehold_work_declined", "Work that nodes declined, by error number.", ["reason"], registry=own)
        self._studies = Counter("freehold_studies", "Studies that started or ended.", ["state"], registry=own)
        self._registry.register(_Nodes(presence, certificates, clock))
        ProcessCollector(registry=own)

    def listen(self, event: Event) -> None:
        """Count an event."""
        name, fields = event.name, event.fields
        if name == "round.closed":
            now, run = time.monotonic(), str(fields["run"])
            if run in self._closed:  # a round opens in the transaction that closes the one before
                self._duration.observe(now - self._closed[run])
            self._closed[run] = now
            self._rounds.labels("closed").inc()
            self._last.set(self._clock())
        elif name == "round.short":
            self._rounds.labels("short").inc()
        elif name == "contribution.received":
            self._contributions.inc()
            self._received.inc(float(fields["bytes"]))
        elif name == "request.refused":
            self._rejected.labels(str(fields["code"])).inc()
        elif name == "work.declined":
            self._declined.labels(str(fields["code"])).inc()
        elif name in ("run.finished", "run.rested"):
            self._closed.pop(str(fields["run"]), None)
        elif name.startswith("study."):
            self._studies.labels(name.removeprefix("study.")).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def build(self, ready: Callable[[], bool]) -> web.Application:
        """/metrics, /livez and /readyz."""

        async def metrics(request: web.Request) -> web.StreamResponse:
            return web.Response(body=self.text(), content_type="text/plain", charset="utf-8")

        async def livez(request: web.Request) -> web.StreamResponse:
            return web.Response(text="ok\n")

        async def readyz(request: web.Request) -> web.StreamResponse:
            return web.Response(text="ok\n") if ready() else web.Response(status=503, text="not ready\n")

        app = web.Application()
        app.add_routes([web.get("/metrics", metrics), web.get("/livez", livez), web.get("/readyz", readyz)])
        return app


class _Nodes(Collector):
    """What is true now rather than counted."""

    def __init__(self, presence: Presence, certificates: Callable[[], dict[str, float]], clock: Callable[[], float]) -> None:
        self._presence, self._certificates, self._clock = presence, certificates, clock

    def collect(self) -> Iterator[Metric]:
        """Nodes and certificates."""
        now, nodes = self._clock(), self._presence.all()
        connected = sum(seen.connected(now) for seen in nodes.values())
        states = GaugeMetricFamily("freehold_nodes", "Nodes by state.", labels=["state"])
        states.add_metric(["connected"], connected)
        states.add_metric(["silent"], len(nodes) - connected)
        yield states
        seen_at = GaugeMetricFamily(
            "freehold_node_last_seen_timestamp_seconds", "When a node was heard of last; 0: not since the start.", labels=["node"]
        )
        for name, seen in sorted(nodes.items()):
            seen_at.add_metric([name], seen.last)
        yield seen_at
        expiry = GaugeMetricFamily("freehold_cert_expiry_timestamp_seconds", "When a certificate expires.", labels=["kind"])
        for kind, when in sorted(self._certificates().items()):
            expiry.add_metric([kind], when)
        yield expiry


async def serve_plain(app: web.Application, host: str, port: int) -> web.AppRunner:
    """Serve without TLS, for loopback; raises OSError where the port is taken."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner
