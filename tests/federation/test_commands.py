"""Coordinator, tokens, nodes and studies as commands: one federation, in the order in which it lives."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from freehold.policy import promises, sample_policy
from tests.federation.programs import Running, freehold, left_behind, short_folder

PLAN = ("study", "new", "heart", "--algorithm", "fedavg", "--companions", "", "--rounds", "2", "--repeats", "1")


@dataclass(kw_only=True)
class World:
    home: Path
    url: str

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        done = freehold(self.home, *arguments)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr + done.stdout


@pytest.fixture(scope="module")
def world(fork: Path) -> Iterator[World]:
    """A coordinator that takes signed studies only, two nodes, and a finished study."""
    with short_folder() as home, ExitStack() as running:
        for arguments in (
            ("study", "keygen", home / "key"),
            ("data", "get", "heart", home / "data"),
            ("coordinator", "init", "--federation", "trial", "--port", "0", "--study-key", home / "key.pub"),
        ):
            assert freehold(home, *arguments).returncode == 0
        coordinator = Running(home, "coordinator", "start", "--log", "plain")
        running.callback(coordinator.stop)
        url = coordinator.wait_for("Coordinator of federation").split()[-1]
        world, nodes = World(home=home, url=url), []
        for name in ("cleveland", "hungary"):
            token = home / f"{name}.token"
            token.write_text(world.run("token", "create", "--node", name))
            given = ("--name", name, "--coordinator", url, "--join-file", token, "--data", f"heart={home / 'data' / name}.csv")
            rules = home / f"{name}.policy.toml"
            rules.write_text(sample_policy("heart"))
            nodes.append(Running(home, "node", "start", *given, "--policy", rules, "--port", "0", "--log", "json"))
            running.callback(nodes[-1].stop)
        for node in nodes:
            node.wait_for("coordinator.connected")
        world.run(*PLAN, "--least-nodes", "2", "--output", home / "plan.toml")
        world.run("study", "sign", home / "plan.toml", "--key", home / "key")
        world.run("study", "run", home / "plan.toml", "--wait", "--json", home / "report.json")
        yield world
        running.close()
        assert [process.popen.returncode for process in (*nodes, coordinator)] == [0, 0, 0]
        assert left_behind(home) == []


def test_the_report_compares_with_training_alone(world: World) -> None:
    told = json.loads((world.home / "report.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in told["rows"]][:2] == ["local", "fedavg"]
    assert told["title"] == "Heart disease, 2 hospitals took part"
    assert any(promises.NOTHING in note for note in told["notes"])


def test_an_unsigned_plan_is_refused(world: World) -> None:
    world.run(*PLAN, "--name", "other", "--output", world.home / "other.toml")
    said = world.run("study", "run", world.home / "other.toml", code=1)
    assert "409" in said
    assert "not signed" in said


def test_a_plan_whose_spec_is_missing_can_be_completed(world: World) -> None:
    path = world.home / "bare.toml"
    text = (world.home / "plan.toml").read_text(encoding="utf-8")
    path.write_text(text.partition("[contribution]")[0] + "[contribution]\nscale = 24\n", encoding="utf-8")
    assert "fedavg: " in world.run("study", "spec", path)
    assert "tensors" in path.read_text(encoding="utf-8")


def test_studies_are_listed_and_shown(world: World) -> None:
    (study,) = json.loads(world.run("study", "list", "--json"))
    assert (study["name"], study["state"]) == ("heart-fedavg", "finished")
    assert "2 of 2" in world.run("study", "list")
    shown = world.run("study", "show", "heart-fedavg")
    assert "cleveland has sent" in shown
    assert "Alone" in shown
    assert "406" in world.run("study", "show", "nothing", code=1)


def test_tokens_are_listed_without_secrets_and_revoked(world: World) -> None:
    made = json.loads(world.run("token", "create", "--ttl", "30m", "--uses", "2", "--json"))
    number, secret = made["token"].split(".")[2:]
    assert secret not in world.run("token", "list", "--json")
    world.run("token", "revoke", number)
    assert f"{number}  any" in world.run("token", "list")
    assert "revoked" in world.run("token", "list")
    world.run("token", "create", "--ttl", "soon", code=2)


def test_people_log_in_and_work_from_elsewhere(world: World) -> None:
    """`elsewhere` has no coordinator; whoever works there has a token."""
    elsewhere, token = world.home / "elsewhere", world.home / "person.token"

    def run(*arguments: str | Path, code: int = 0) -> str:
        done = freehold(elsewhere, *arguments, "--coordinator", world.url)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr + done.stdout

    assert "301" in run("status", code=2)
    token.write_text(world.run("token", "create", "--role", "researcher", "--name", "carol"))
    assert "You are researcher carol in trial" in run("login", "--join-file", token)
    assert "401" in run("login", "--join-file", token, code=1), "it is used"
    assert json.loads(run("status", "--json"))["federation"] == "trial"
    assert "cleveland" in run("node", "list")
    assert "420" in run("token", "create", code=1)
    world.run(*PLAN, "--name", "hers", "--least-nodes", "3", "--output", world.home / "hers.toml")
    assert "409" in run("study", "run", world.home / "hers.toml", code=1)
    world.run("study", "sign", world.home / "hers.toml", "--key", world.home / "key")
    assert "waiting for nodes, 2 of 3 here" in run("study", "run", world.home / "hers.toml")
    assert "researcher/carol" in run("study", "list")
    assert "420" in run("study", "stop", "heart-fedavg", code=1)
    assert "stopped" in run("study", "stop", "hers")
    assert "cleveland has sent" in run("study", "show", "heart-fedavg")
    token.write_text(world.run("token", "create", "--role", "operator", "--name", "olga"))
    own = ("--identity", world.home / "olga")
    run("login", "--join-file", token, *own)
    run("coordinator", "deny", "researcher/carol", *own)
    assert "404" in run("status", code=1)
    run("coordinator", "allow", "researcher/carol", *own)
    run("status")
    assert "researcher/carol" in run("token", "list", *own)
    assert "100" in run("status", "--state", world.home, code=2)
    world.run("token", "create", "--role", "operator", code=2)
    world.run("token", "create", "--role", "operator", "--node", "olga", code=2)


def test_status_is_for_people_and_for_monitoring(world: World) -> None:
    assert "2 of 2 connected" in world.run("status")
    told = json.loads(world.run("status", "--json"))
    assert (told["federation"], told["amiss"]) == ("trial", [])
    assert {"declined", "needs"} <= told["studies"][0]["runs"][0].keys()
    assert "cleveland" in world.run("node", "list")
    world.run("status", "--state", world.home / "nowhere", code=2)


def test_a_node_shows_what_joining_was_worth(world: World) -> None:
    told = json.loads(world.run("node", "status", "--name", "cleveland", "--json"))
    assert (told["state"], told["rounds"], told["federation"]) == ("connected", 2, "trial")
    assert told["studies"][0]["worth"][0]["algorithm"] == "fedavg"
    url = json.loads((world.home / "freehold" / "node-cleveland" / "page.json").read_text())["url"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as page:
        assert "heart-fedavg" in page.read().decode()


def test_a_study_that_keeps_learning(world: World) -> None:
    plan, report = world.home / "daily.toml", world.home / "daily.json"
    world.run(*PLAN, "--name", "daily", "--output", plan)
    world.run("study", "sign", plan, "--key", world.home / "key")
    assert "no end" in world.run("study", "run", plan, "--every", "1s", "--wait", code=2)
    assert "needs --every" in world.run("study", "run", plan, "--times", "2", code=2)
    world.run("study", "run", plan, "--every", "1s", "--times", "2", "--wait", "--json", report)
    last = json.loads(report.read_text(encoding="utf-8"))
    (told,) = [each for each in json.loads(world.run("study", "list", "--json")) if each["name"] == "daily"]
    assert (told["state"], told["schedule"]["cycle"], told["schedule"]["times"]) == ("finished", 1, 2)
    assert [run["round"] for run in told["runs"]] == [5], "two rounds and one that measures, twice"
    assert "2 of 2" in world.run("study", "list")
    shown = world.run("study", "show", "daily")
    assert "cycle 2 of 2, the last" in shown and "mean of the metric" in shown
    first = json.loads(world.run("study", "show", "daily", "--cycle", "1", "--json", "-"))
    assert [row["name"] for row in first["rows"]] == [row["name"] for row in last["rows"]]
    assert first["rows"] != last["rows"], "it trained on"
    assert "another schedule" in world.run("study", "run", plan, "--every", "2s", code=1)


def test_a_state_folder_has_one_node(world: World) -> None:
    assert "runs in" in world.run("node", "start", "--name", "cleveland", code=2)
    assert "runs in" in world.run("node", "leave", "--name", "cleveland", code=2)


def test_a_state_folder_has_one_coordinator(world: World) -> None:
    """Another one, on another port, would take the socket away that commands use."""
    assert "runs in" in world.run("coordinator", "start", "--port", "0", code=2)
    world.run("token", "list")


def test_a_name_that_two_studies_have_is_ambiguous(world: World) -> None:
    plan = world.home / "again.toml"
    new = ("study", "new", "heart", "--algorithm", "fedavg", "--companions", "none", "--rounds", "3", "--repeats", "1")
    world.run(*new, "--least-nodes", "3", "--name", "heart-fedavg", "--output", plan)
    assert "companions = []" in plan.read_text(encoding="utf-8")
    world.run("study", "sign", plan, "--key", world.home / "key")
    said = world.run("study", "run", plan)
    assert "waiting for nodes, 2 of 3 here" in said
    said = world.run("study", "show", "heart-fedavg", code=1)
    assert "2 studies are called 'heart-fedavg'" in said and "give a digest" in said
    (digest,) = [each["digest"] for each in json.loads(world.run("study", "list", "--json")) if each["state"] == "running"]
    assert "waiting for nodes, 2 of 3 here" in world.run("status")
    world.run("study", "stop", digest)
    assert "No study is called 'nothing'" in world.run("study", "show", "nothing", code=1)


def test_an_address_that_is_none_has_a_hint(world: World) -> None:
    bare = world.url.removeprefix("https://")
    assert f"Say {world.url}." in world.run("status", "--coordinator", bare, code=2)


def test_the_doctor_finds_nothing(world: World) -> None:
    said = world.run("doctor", "--name", "cleveland")
    assert "signed by the root that was pinned when joining, and for this name" in said
    assert "error" not in said


def test_the_doctor_says_what_it_did_not_check(world: World) -> None:
    done = freehold(world.home / "elsewhere", "doctor", "--coordinator", world.url)
    assert done.returncode == 0, done.stderr
    assert "neither its key nor its name was checked" in done.stdout and "signed by" not in done.stdout


def test_the_doctor_finds_a_key_that_others_can_read(world: World) -> None:
    key = world.home / "freehold" / "coordinator" / "server.pem"
    key.chmod(0o644)
    try:
        assert "open to others: server.pem" in world.run("doctor", "--state", key.parent, code=1)
    finally:
        key.chmod(0o600)


def test_a_node_that_is_denied_says_so(world: World) -> None:
    token = world.home / "dora.token"
    token.write_text(world.run("token", "create", "--node", "dora"))
    given = ("--name", "dora", "--coordinator", world.url, "--join-file", token, "--port", "0", "--log", "json")
    dora = Running(world.home, "node", "start", *given)
    dora.wait_for("coordinator.connected")
    said = world.run("coordinator", "deny", "node/dorra", code=2)
    assert "error 101" in said and "Did you mean 'node/dora'?" in said
    assert "Nobody is denied" in world.run("coordinator", "denied")
    world.run("coordinator", "deny", "node/dora", "--reason", "lost")
    assert "lost" in world.run("coordinator", "denied")
    (entry,) = json.loads(world.run("coordinator", "denied", "--json"))
    assert (entry["name"], entry["reason"], entry["identity"]) == ("node/dora", "lost", None)
    dora.wait_for("coordinator.refused")
    said = world.run("node", "status", "--name", "dora", code=1)
    assert "dora: refused" in said and "deny list" in said
    world.run("coordinator", "allow", "node/dora")
    assert json.loads(world.run("coordinator", "denied", "--json")) == []
    dora.wait_for("coordinator.connected")
    assert "dora: connected" in world.run("node", "status", "--name", "dora")
    assert dora.stop(signal.SIGINT) == 0
    assert "Traceback" not in "".join(dora.seen)
    world.run("coordinator", "deny", "node/dora")
    world.run("node", "leave", "--name", "dora", "--erase")  # as after a kill on the way
    assert not (world.home / "freehold" / "node-dora" / "vault.key").exists()
    assert "has left" in world.run("doctor", "--name", "dora")


def test_a_node_leaves_with_a_receipt(world: World) -> None:
    home = world.home
    token = home / "carol.token"
    token.write_text(world.run("token", "create", "--node", "carol"))
    carol = Running(
        home, "--name", "carol", "--coordinator", world.url, "--join-file", token, "--log", "json", module="freehold.node"
    )
    carol.wait_for("coordinator.connected")
    memory = next(line for line in Path(f"/proc/{carol.popen.pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    assert int(memory.split()[1]) < 30_000  # kB, of an idle agent
    assert carol.stop() == 0
    copied = home / "freehold" / "node-carol" / "columns" / "heart.csv"
    copied.parent.mkdir(exist_ok=True)
    copied.write_text("age\n63\n")
    receipt = json.loads(world.run("node", "leave", "--name", "carol", "--erase", "--json"))
    assert not copied.exists()
    assert (receipt["node"], receipt["federation"], receipt["erased_states"]) == ("carol", "trial", 0)
    last = json.loads(world.run("ledger", "show", "--name", "carol", "--lines", "1", "--json"))
    assert last["kind"] == "erased" and last["text"].startswith("0 personal states")
    assert not (home / "freehold" / "node-carol" / "identity").exists()
    assert "carol" not in world.run("node", "list")
    world.run("node", "leave", "--name", "carol", code=2)


def test_a_settings_file_with_a_slip_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "coordinator.toml").write_text("prot = 1\n")
    assert "port" in world.run("coordinator", "start", "--state", tmp_path, code=2)
    (tmp_path / "node.toml").write_text('name = "x"\ncoordinatr = "y"\n')
    assert "coordinator" in world.run("node", "start", "--state", tmp_path, code=2)
