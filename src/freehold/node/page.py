"""The node's own page, for its owner, on loopback: what it is doing, what left, and what joining was worth.

Standard library only. No script; it loads itself anew. Names come from outside, so everything is escaped.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from freehold.errors import NodeError

HOST = "127.0.0.1"
REFRESH_S = 5

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#888;--good:#1a7f37;--bad:#c62828;--card:#8881}
*{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.25rem 0}.soft{color:var(--soft)}
.state{display:inline-block;padding:.05rem .6rem;border-radius:1rem;font-size:.9rem;color:#fff;background:var(--soft)}
.state.connected{background:var(--good)}.state.unreachable,.state.stopped,.state.refused{background:var(--bad)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.75rem;margin:1rem 0}
.card{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}.card b{display:block;font-size:1.3rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem .35rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);font-size:.9rem}td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
ul{margin:.25rem 0;padding-left:1.2rem}code{overflow-wrap:anywhere}
.error,.rest{border-left:3px solid var(--bad);padding:.3rem .8rem;background:var(--card)}.rest{border-color:var(--soft)}
"""


class Page:
    """A small server that shows `status()`: the facts of `Service.facts`, with the node's studies."""

    def __init__(self, port: int, status: Callable[[], Mapping[str, Any]], state: Path) -> None:
        """Listen on loopback, port 0 for any free one; raises NodeError when the port is taken."""
        self._status, self._state = status, state
        page = self

        class Answer(BaseHTTPRequestHandler):
            server_version = "Freehold"
            sys_version = ""
            timeout = 10

            def do_GET(self) -> None:
                status, kind, body = page.answer(self.path, self.headers.get("Host", ""))
                self.send_response(status)
                for name, value in (
                    ("Content-Type", kind),
                    ("Content-Length", str(len(body))),
                    ("Cache-Control", "no-store"),
                    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
                    ("X-Content-Type-Options", "nosniff"),
                    ("Referrer-Policy", "no-referrer"),
                ):
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        try:
            self._server = ThreadingHTTPServer((HOST, port), Answer)
        except OSError as error:
            raise NodeError(
                f"The node's page cannot listen on {HOST}:{port}: {error.strerror}.",
                hint="Another program has the port; give another --port.",
            ) from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://{HOST}:{self.port}/"
        Thread(target=self._server.serve_forever, name="page", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, host: str) -> tuple[int, str, bytes]:
        """Status, media type and body of a request. Another host name is refused: a web site may have its name lead here."""
        if host not in (f"{HOST}:{self.port}", f"localhost:{self.port}"):
            return 421, "text/plain; charset=utf-8", f"This page is at {self.url} only.\n".encode()
        if path == "/livez":
            return 200, "text/plain; charset=utf-8", b"ok\n"
        told = self.told()
        if path == "/readyz":
            ready = told["state"] in ("connected", "resting")
            return (
                (200, "text/plain; charset=utf-8", b"ok\n") if ready else (503, "text/plain; charset=utf-8", b"not connected\n")
            )
        if path == "/status.json":
            return 200, "application/json", json.dumps(told, indent=1).encode()
        if path == "/":
            return 200, "text/html; charset=utf-8", html(told).encode()
        return 404, "text/plain; charset=utf-8", b"There is nothing here.\n"

    def told(self) -> dict[str, Any]:
        """All that the page shows."""
        return {**self._status(), "studies": studies_of(self._state)}


def studies_of(state: Path) -> list[dict[str, Any]]:
    """What the guard noted of each study, newest first, with what each algorithm is worth against training alone."""
    found = []
    paths = sorted((state / "studies").glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in paths:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # it is being written; the next look sees it
        data = told.get("data", {})
        found.append(
            {
                "name": told.get("name", ""),
                "plan": told.get("plan", ""),
                "examples": data.get("examples"),
                "findings": data.get("findings", []),
                "worth": _worth(told.get("measured", {})),
                "serves": _choices(told.get("measured", {})),
            }
        )
    return found


def _choices(measured: Mapping[str, Mapping[str, Any]]) -> Counter[str]:
    """How often the node would serve what: in each repeat, what it said last, when most was measured."""
    return Counter({run.get("repeat"): str(run["served"]) for run in measured.values() if run.get("served")}.values())


def _worth(measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per algorithm, means over the repeats: the own model on the own test examples, and the one trained alone."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for each in measured.values():
        kinds.setdefault(str(each.get("algorithm", "")), []).append(each)
    rows = []
    for name, runs in kinds.items():
        own, alone = [_figure(run, "splits") for run in runs], [_figure(run, "alone") for run in runs]
        pairs = [(a[1], b[1]) for a, b in zip(own, alone, strict=True) if a and b and a[0] == b[0]]
        if not pairs:
            continue
        rows.append(
            {
                "algorithm": name,
                "figure": next(a[0] for a in own if a),
                "own": statistics.fmean(a for a, _ in pairs),
                "alone": statistics.fmean(b for _, b in pairs),
                "repeats": len(pairs),
                "test": max((run["splits"].get("test") or {}).get("examples", 0) for run in runs),
            }
        )
    return rows


def _figure(run: Mapping[str, Any], which: str) -> tuple[str, float] | None:
    sums = ((run.get(which) or {}).get("test") or {}).get("sums") or {}
    count = sums.get("count", 0.0)
    if not count:
        return None
    if "correct" in sums:
        return "accuracy", sums["correct"] / count
    if "squared_error" in sums:
        return "error", math.sqrt(sums["squared_error"] / count)
    return None


def html(told: Mapping[str, Any]) -> str:
    """The page."""
    node, state = escape(str(told["node"])), escape(str(told["state"]))
    certificate = told.get("certificate") or {}
    cards = [
        ("rounds since it started", f"{told['rounds']}"),
        ("sent: contributions", size(told["sent_bytes"])),
        ("received: models, plans", size(told["received_bytes"])),
        ("certificate until", when(certificate.get("not_after"))),
    ]
    shown = "".join(f'<div class="card"><b>{escape(value)}</b>{escape(label)}</div>' for label, value in cards)
    data = "".join(f"<li>{escape(name)}: <code>{escape(path)}</code></li>" for name, path in told["datasets"].items())
    rest = f'<p class="rest">{escape(resting(told["rest"]))}</p>' if told.get("rest") else ""
    error = f'<h2>Last error</h2><p class="error">{escape(told["last_error"])}</p>' if told["last_error"] else ""
    said = told.get("last_choice")
    choice = f'<h2>By your own choice</h2><p class="rest">Last kept back: {escape(said)}</p>' if said else ""
    sandbox = _sandbox(str(told.get("sandbox", "")), int(told.get("escapes_held", 0)))
    studies = (
        "".join(map(_study, told["studies"])) or '<p class="soft">None yet: the node waits for a study that needs its data.</p>'
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{REFRESH_S}">'
        f'<meta name="viewport" content="width=device-width"><title>{node}: {state}</title><style>{_STYLE}</style></head><body>'
        f'<h1>{node} <span class="state {state}">{state}</span></h1>'
        f'<p class="soft">in {escape(str(told["federation"] or "no federation yet"))}, coordinator '
        f"{escape(str(told['coordinator'] or '-'))}, running since {escape(when(told['since']))}</p>"
        f'{rest}{sandbox}<div class="cards">{shown}</div>{choice}{error}'
        f"<h2>Data that plans may ask for</h2><ul>{data or '<li>none</li>'}</ul>"
        f'<p class="soft">It is read on this machine and never sent. What is sent are contributions: changes of parameters, '
        f"without noise unless a plan says so, and those can reveal records.</p>"
        f"<h2>Studies</h2>{studies}"
        f'<p class="soft">As of {time.strftime("%H:%M:%S")}. Also as <code>/status.json</code>.</p></body></html>'
    )


def _sandbox(said: str, held: int) -> str:
    """In red unless training code is walled in."""
    if said == "off":
        text = "Training code runs without a sandbox (--insecure-no-sandbox): it may do whatever this user may."
        return f'<p class="error">{text}</p>'
    if said.startswith("refused: "):
        return f'<p class="error">This node does not train. {escape(said.removeprefix("refused: "))}</p>'
    if not said:
        return ""
    return f'<p class="soft">Training code runs in a sandbox, level {escape(said)}; {held} of {held} ways out held.</p>'


def _study(study: Mapping[str, Any]) -> str:
    findings = "".join(f"<li>{escape(text)}</li>" for text in study["findings"])
    examples = "" if study["examples"] is None else f"{study['examples']} examples here. "
    rows = ""
    for row in study["worth"]:
        own, alone = (_shown(row["figure"], row[name]) for name in ("own", "alone"))
        gain = row["own"] - row["alone"]
        difference = f"{100 * gain:+.1f} points" if row["figure"] == "accuracy" else f"{gain:+.3g}"
        rows += (
            f'<tr><td>{escape(row["algorithm"])}</td><td class="n">{own}</td><td class="n">{alone}</td>'
            f'<td class="n">{difference}</td><td class="n">{row["repeats"]} × {row["test"]}</td>'
            f"</tr>"
        )
    table = (
        f'<table><tr><th>algorithm</th><th class="n">own model</th><th class="n">alone</th><th class="n">difference</th>'
        f'<th class="n">repeats × test</th></tr>{rows}</table>'
        f'<p class="soft">Mean {escape(study["worth"][0]["figure"])} on this node\'s own tests. Few examples decide little; '
        f"the coordinator's report has the intervals.</p>"
        if rows
        else '<p class="soft">Nothing is measured yet.</p>'
    )
    head = f"<h3>{escape(str(study['name']))}</h3><p class=soft>{examples}<code>{escape(str(study['plan'])[:23])}…</code></p>"
    return (
        head + table + _serves(study["serves"]) + (f"<p>What is odd about the data:</p><ul>{findings}</ul>" if findings else "")
    )


def _serves(counted: Mapping[str, int]) -> str:
    words = {"local": "the model trained alone", "shared": "the shared model", "personal": "the personal model"}
    said = ", ".join(f"{words.get(name, name)} ({count}×)" for name, count in sorted(counted.items(), key=lambda i: -i[1]))
    return f"<p>By its own validation examples this node would serve {escape(said)}.</p>" if said else ""


def _shown(figure: str, value: float) -> str:
    return f"{100 * value:.1f} %" if figure == "accuracy" else f"{value:.3g}"


def resting(rest: Mapping[str, Any]) -> str:
    """Why a node rests and until when, for people."""
    until = "as long as that is so" if rest["until"] is None else f"until {when(rest['until'])}"
    return f"It rests {until}, since {rest['why']}."


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def when(unix: float | None) -> str:
    """A time for people."""
    return "-" if not unix else time.strftime("%d %b %H:%M", time.localtime(unix))
