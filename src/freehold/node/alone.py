"""A first node without a coordinator: it starts one of its own beside it, on loopback, and has sample data if it has none."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from freehold import durable
from freehold.errors import CoordinatorError, FreeholdError, NodeError, Unreachable
from freehold.wire import tether
from freehold.wire.admin import Admin, Status, TokenMade, TokenRequest
from freehold.wire.jointoken import JoinToken

START_LIMIT_S = 60.0
SAMPLE, MINE, NEXT = "heart", "cleveland", "hungary"


@dataclass(frozen=True, kw_only=True)
class Own:
    """A coordinator that this node started, and that ends with it."""

    process: subprocess.Popen[bytes]
    state: Path
    url: str

    def token(self, node: str) -> JoinToken:
        """The right to join it."""
        made = Admin(self.state / "admin.sock").post("/v1/tokens", TokenRequest(node=node, ttl_s=600.0), TokenMade)
        return JoinToken.parse(made.token)

    def end(self) -> None:
        """Stop it; studies go on where they were when it is started again."""
        tether.end([self.process])


def start(state: Path) -> Own:
    """Start the coordinator whose state is in `state`, made at the first start with a free port that it then keeps."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = state / "coordinator.toml"
    if not settings.exists():
        settings.write_text(f'federation = "freehold"\nhost = "127.0.0.1"\nport = {_free_port()}\n', encoding="utf-8")
    command = [sys.executable, "-m", "freehold.cli", "coordinator", "start", "--state", str(state)]
    process = tether.start(command, stdout=subprocess.DEVNULL, stderr=None)
    admin, deadline = Admin(state / "admin.sock"), time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return Own(process=process, state=state, url=admin.get("/v1/status", Status).url)
        except Unreachable:
            time.sleep(0.1)
        except FreeholdError:
            break
    tether.end([process])
    raise CoordinatorError("This node's own coordinator did not start.", hint="What it said stands above.")


def sample_data(folder: Path) -> dict[str, Path]:
    """The records of four hospitals, that ship with Freehold, as one file each; the first is this node's."""
    if not (folder / f"{MINE}.csv").exists():
        command = [sys.executable, "-m", "freehold.cli", "data", "get", SAMPLE, str(folder)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise NodeError("The sample data could not be written.", hint="Give your own with --data NAME=FILE.")
    return {SAMPLE: folder / f"{MINE}.csv"}


def sample_rules(state: Path) -> None:
    """Have the node's owner allow what studies do with the sample data, unless there is a policy already."""
    from freehold.policy.template import sample_policy
    from freehold.policy.text import FILE

    if not (state / FILE).exists():
        durable.write(state / FILE, sample_policy(SAMPLE).encode(), point="node.sample-policy")


def welcome(own: Own, *, name: str, page: str, samples: Path | None) -> str:
    """What can be done next."""
    other = "bob" if name != "bob" else "carol"
    data = f"{SAMPLE}={samples / f'{NEXT}.csv'} --policy {samples.parent / 'policy.toml'}" if samples else "NAME=FILE"
    lines = [f"Node {name}, with a coordinator of its own at {own.url}"]
    if page:
        lines.append(f"Its page: {page}")
    lines += [
        f"Add {other}:",
        f"  freehold token create --node {other} --state {own.state} > {other}.token",
        f"  freehold node start --name {other} --port 8081 --coordinator {own.url} --join-file {other}.token --data {data}",
    ]
    if samples:
        plan = samples / "study.toml"
        lines += [
            f"What may be done with the sample data says {samples.parent / 'policy.toml'}; other plans wait for you.",
            "Then run a sample study:",
            f"  freehold study new {SAMPLE} --output {plan} && freehold study run {plan} --wait --state {own.state}",
        ]
    return "\n".join([*lines, "Stop with Ctrl-C.", ""])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
