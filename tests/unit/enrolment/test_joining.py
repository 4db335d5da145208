from __future__ import annotations

import io
import os
import signal
import ssl
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from freehold.errors import JoinTokenError, NodeError, NotJoined, PinMismatch, TokenRefused, Unreachable, UsageError
from freehold.failpoints import VARIABLE
from freehold.node import credentials
from freehold.node.credentials import Credentials, Membership
from freehold.node.join import join, read_token, renew
from freehold.wire import jointoken
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import Certificate
from freehold.wire.server import Identity
from tests.unit.enrolment.world import FEDERATION, HOST, Loopback, World, csr, handshake, pem_of

URL = f"https://{HOST}"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "node"


def token_of(world: World, node: str | None = "alice") -> JoinToken:
    return world.enrolment.create_token(creator="root", node=node)


def joined(world: World, state: Path) -> Credentials:
    return join(state, token_of(world), url=URL, node="alice", network=Loopback(world))


def accepted(world: World, state: Path) -> Identity:
    """The node as the coordinator sees it, after a handshake with what is installed."""
    installed = credentials.load(state)
    peer = handshake(world.server, world.authority.roots_pem, installed.roots.read_text(), installed.pair)
    assert peer is not None
    world.enrolment.admit(peer)
    return peer


def files(state: Path) -> set[str]:
    return {path.name for path in (state / "identity").iterdir()}


def test_a_node_joins_and_is_known(world: World, state: Path) -> None:
    client = Loopback(world)
    made = join(state, token_of(world), url=URL, node="alice", network=client)
    assert client.calls == ["roots", "/v1/enroll"]
    assert made.membership == Membership(federation=FEDERATION, node="alice", url=URL)
    assert made.not_before < world.clock() < made.not_after
    peer = accepted(world, state)
    assert peer.name == "alice"
    with world.enrolment.reading() as records:
        assert records.serials("node", "alice", world.clock()) == [peer.serial]  # as the deny list will have it


def test_only_its_owner_can_read_what_a_node_keeps(world: World, state: Path) -> None:
    joined(world, state)
    assert files(state) == {"current.pem", "roots.pem", "federation.json"}
    assert {path.stat().st_mode & 0o777 for path in (state / "identity").iterdir()} == {0o600}
    assert (state / "identity").stat().st_mode & 0o777 == 0o700


def test_nothing_is_sent_to_a_coordinator_that_the_pin_does_not_name(world: World, state: Path) -> None:
    client = Loopback(world)
    wrong = JoinToken(pin="0" * 64, id="00000000", secret=jointoken.encode(bytes(24)))
    with pytest.raises(PinMismatch):
        join(state, wrong, url=URL, node="alice", network=client)
    assert client.calls == ["roots"] and not state.exists()


def test_a_root_that_somebody_put_beside_the_right_one_is_not_trusted(world: World, state: Path, tmp_path: Path) -> None:
    """Whoever sits between sends the true root, to satisfy the pin, and their own, to be trusted."""
    between = World(tmp_path / "between")
    client = Loopback(between)
    client.roots = between.authority.roots_pem + world.authority.roots_pem
    with pytest.raises(ssl.SSLCertVerificationError):
        join(state, token_of(world), url=URL, node="alice", network=client)
    assert client.calls == ["roots"]
    between.engine.dispose()


def test_after_a_lost_answer_the_same_token_gets_the_same_certificate(world: World, state: Path) -> None:
    client, token = Loopback(world), token_of(world)
    client.lose_answer = True
    with pytest.raises(Unreachable):
        join(state, token, url=URL, node="alice", network=client)
    with pytest.raises(NotJoined):
        credentials.load(state)
    client.lose_answer = False
    join(state, token, url=URL, node="alice", network=client)
    assert [node.name for node in world.enrolment.nodes()] == ["alice"]
    accepted(world, state)


def test_a_new_token_means_a_new_key(world: World, state: Path) -> None:
    client = Loopback(world)
    client.lose_answer = True
    with pytest.raises(Unreachable):
        join(state, token_of(world), url=URL, node="alice", network=client)
    joined(world, state)
    accepted(world, state)
    assert files(state) == {"current.pem", "roots.pem", "federation.json"}


def test_a_refused_token_leaves_the_node_as_it_was(world: World, state: Path) -> None:
    before = joined(world, state).pair.read_bytes()
    with pytest.raises(TokenRefused):
        join(state, token_of(world, node=None), url=URL, node="alice", network=Loopback(world))
    assert credentials.load(state).pair.read_bytes() == before
    accepted(world, state)


def test_a_node_is_one_node_of_one_federation(world: World, state: Path) -> None:
    joined(world, state)
    for node, federation in (("bob", None), ("alice", "others")):
        with pytest.raises(UsageError, match="already 'alice'"):
            join(state, token_of(world), url=URL, node=node, network=Loopback(world), federation=federation)


def test_renewal_has_a_new_key_and_the_old_pair_stays_until_then(world: World, state: Path) -> None:
    old = joined(world, state).pair.read_text()
    was = accepted(world, state)
    client = Loopback(world)
    client.lose_answer = True
    with pytest.raises(Unreachable):
        renew(state, client)
    assert credentials.load(state).pair.read_text() == old
    client.lose_answer = False
    renew(state, client)
    now = accepted(world, state)
    assert now.name == was.name and now.serial != was.serial and credentials.load(state).pair.read_text()[:200] != old[:200]
    assert files(state) == {"current.pem", "roots.pem", "federation.json"}


@pytest.mark.parametrize("what", ["another key", "another node", "nonsense"])
def test_a_certificate_that_does_not_fit_changes_nothing(world: World, state: Path, tmp_path: Path, what: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    before = joined(world, state).pair.read_bytes()
    key = ec.generate_private_key(ec.SECP256R1())
    issued = world.authority.sign(csr(key if what == "another node" else None), role="node", name="alice", now=world.clock())
    (tmp_path / "some.key").write_text(pem_of(key))
    answer = Certificate(
        federation=FEDERATION,
        node="bob" if what == "another node" else "alice",
        chain="nonsense" if what == "nonsense" else issued.chain,
        roots=world.authority.roots_pem,
        not_after=issued.not_after,
    )
    with pytest.raises(NodeError):
        credentials.install(state, tmp_path / "some.key", answer, Membership(federation=FEDERATION, node="alice", url=URL))
    assert credentials.load(state).pair.read_bytes() == before
    assert files(state) == {"current.pem", "roots.pem", "federation.json"}


@pytest.mark.parametrize("random", [0.0, 0.999])
def test_a_certificate_is_renewed_between_two_thirds_and_four_fifths_of_its_life(random: float) -> None:
    assert 2 / 3 * 86400 <= credentials.renew_at(0, 86400, random) < 0.8 * 86400


def test_a_token_is_read_from_a_file_or_from_standard_input(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_of(world)
    (tmp_path / "join").write_text(token.format() + "\n")
    assert read_token(tmp_path / "join") == token
    monkeypatch.setattr(sys, "stdin", io.StringIO(token.format()))
    assert read_token("-") == token
    with pytest.raises(JoinTokenError, match="No such file"):
        read_token(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(JoinTokenError, match="not text"):
        read_token(tmp_path / "binary")


def test_a_failed_join_shows_no_secret(world: World, state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    planted = JoinToken(pin=world.authority.pin(), id="00000000", secret=jointoken.encode(b"planted-secret-24-bytes!"))
    with pytest.raises(TokenRefused) as caught:
        join(state, planted, url=URL, node="alice", network=Loopback(world))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + "".join(capfd.readouterr())
    assert "TokenRefused" in shown and planted.secret not in shown
    assert planted.secret not in "".join(path.read_text() for path in state.rglob("*") if path.is_file())


def test_the_agent_joins_without_loading_cryptography() -> None:
    heavy = ("cryptography", "sqlalchemy", "torch", "numpy")
    code = f"import sys, freehold.node.join; print(*(name for name in {heavy!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.split()


def test_a_key_that_cannot_be_written_is_an_error_with_a_reason(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "node.identity.key.writing=full")
    with pytest.raises(NodeError, match="No space left"):
        credentials.request("new-key", credentials.folder_of(state) / "some.key", "alice")
    with pytest.raises(NodeError, match="no usable private key"):
        credentials.request("csr", credentials.folder_of(state) / "some.key", "alice")


POINTS = [
    *(f"node.identity.key.{step}" for step in ("writing", "written", "named")),
    "coordinator.enrolment.committing",
    "coordinator.enrolment.committed",
    *(f"node.identity.{file}.{step}" for file in ("next", "roots", "federation") for step in ("writing", "written", "named")),
    "node.identity.current.named",
]


def run(point: str, *arguments: str | Path) -> int:
    command = [sys.executable, "-m", "tests.unit.enrolment.crashing", *map(str, arguments)]
    environment = os.environ | {VARIABLE: f"{point}=kill"}
    return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=False, timeout=120).returncode


@pytest.mark.parametrize("point", POINTS)
def test_a_join_that_is_killed_anywhere_is_done_again_with_the_same_token(
    world: World, state: Path, tmp_path: Path, point: str
) -> None:
    token = token_of(world)
    (tmp_path / "join").write_text(token.format())
    code = run(point, "join", world.folder, state, tmp_path / "join")
    assert code == (1 if ".key." in point else -signal.SIGKILL)  # keys are made in a child of its own
    if point == "node.identity.current.named":
        accepted(world, state)
        return
    with pytest.raises(NotJoined):
        credentials.load(state)
    join(state, token, url=URL, node="alice", network=Loopback(world))
    accepted(world, state)
    assert [node.name for node in world.enrolment.nodes()] == ["alice"]
    assert files(state) == {"current.pem", "roots.pem", "federation.json"}


@pytest.mark.parametrize("point", POINTS)
def test_a_renewal_that_is_killed_anywhere_leaves_a_usable_identity(world: World, state: Path, point: str) -> None:
    joined(world, state)
    before = accepted(world, state)
    code = run(point, "renew", world.folder, state)
    assert code == (1 if ".key." in point else -signal.SIGKILL)
    after = accepted(world, state)
    assert (after != before) == (point == "node.identity.current.named")
    renew(state, Loopback(world))
    assert accepted(world, state).serial not in (before.serial, after.serial)
    assert files(state) == {"current.pem", "roots.pem", "federation.json"}
