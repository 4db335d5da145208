"""The node's page: what it shows, and whom it answers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freehold.errors import NodeError
from freehold.node.page import Page, html, studies_of

STATUS: dict[str, Any] = {
    "node": "alice",
    "federation": "<script>alert(1)</script>",
    "coordinator": "https://localhost:1",
    "state": "connected",
    "since": 1.0,
    "rounds": 3,
    "sent_bytes": 2048,
    "received_bytes": 1,
    "last_error": "<b>no</b>",
    "datasets": {"heart": "/srv/heart.csv"},
    "certificate": {"not_before": 1.0, "not_after": 2.0},
}


def measured(right: int, alone: int, served: str, repeat: int = 0) -> dict[str, Any]:
    def split(correct: int) -> dict[str, Any]:
        return {"test": {"examples": 20, "sums": {"count": 20.0, "correct": float(correct)}}}

    return {"algorithm": "ditto", "splits": split(right), "alone": split(alone), "served": served, "repeat": repeat}


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    (tmp_path / "studies").mkdir()
    note = {
        "name": "<i>study</i>",
        "plan": "sha256:" + "a" * 64,
        "data": {"examples": 80, "findings": ["chol = 0 in <all> rows"]},
        "measured": {"x-0": measured(15, 14, "personal"), "x-1": measured(17, 14, "local", 1)},
    }
    (tmp_path / "studies" / "a.json").write_text(json.dumps(note))
    (tmp_path / "studies" / "half.json").write_text("{")
    made = Page(0, lambda: STATUS, tmp_path)
    yield made
    made.close()


def ask(page: Page, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{page.port}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_page_escapes_what_comes_from_outside(page: Page) -> None:
    status, text = ask(page, "/")
    assert status == 200
    assert not [tag for tag in ("<script", "<b>no", "<i>", "<all>") if tag in text]
    assert "chol = 0 in &lt;all&gt; rows" in text


def test_what_the_owner_chose_is_no_error(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STATUS, "last_error", "")
    assert "By your own choice" not in ask(page, "/")[1]
    monkeypatch.setitem(STATUS, "last_choice", "The owner of the data keeps <what> was measured.")
    text = ask(page, "/")[1]
    assert "keeps &lt;what&gt; was" in text and "By your own choice" in text
    assert 'class="error"' not in text and "Last error" not in text


def test_the_page_needs_nothing_from_elsewhere(page: Page) -> None:
    _, text = ask(page, "/")
    assert "src=" not in text
    assert "href=" not in text
    assert "@import" not in text


def test_another_host_name_is_refused(page: Page) -> None:
    for host in ("evil.example", f"evil.example:{page.port}", "127.0.0.1", ""):
        assert ask(page, "/status.json", host=host or "x")[0] == 421
    assert ask(page, "/status.json", host=f"localhost:{page.port}")[0] == 200


def test_status_as_json_has_what_joining_was_worth(page: Page) -> None:
    told = json.loads(ask(page, "/status.json")[1])
    (study,) = told["studies"]
    (row,) = study["worth"]
    assert row["own"] == pytest.approx(0.8)
    assert row["alone"] == pytest.approx(0.7)
    assert study["serves"] == {"personal": 1, "local": 1}
    assert told["sent_bytes"] == 2048


def test_health_is_told(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(page, "/livez") == (200, "ok\n")
    assert ask(page, "/readyz")[0] == 200
    monkeypatch.setitem(STATUS, "state", "unreachable")
    assert ask(page, "/readyz")[0] == 503
    assert ask(page, "/elsewhere")[0] == 404
    assert ask(page, "/", method="POST")[0] == 501


def test_a_port_that_is_taken_is_an_error(page: Page, tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="cannot listen"):
        Page(page.port, lambda: STATUS, tmp_path)


def test_a_node_without_studies_shows_none(tmp_path: Path) -> None:
    assert studies_of(tmp_path) == []


def test_what_runs_without_a_sandbox_is_said_in_red() -> None:
    assert '<p class="error">Training code runs without a sandbox' in html({**STATUS, "studies": [], "sandbox": "off"})
    assert '<p class="error">This node does not train. &lt;why&gt;' in html(
        {**STATUS, "studies": [], "sandbox": "refused: <why>"}
    )
    assert "level strict" in html({**STATUS, "studies": [], "sandbox": "strict"})
