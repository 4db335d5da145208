"""`freehold doctor`: what most often keeps a node or a coordinator from working, looked at one by one."""

from __future__ import annotations

import email.utils
import json
import os
import shutil
import socket
import ssl
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPSConnection
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from freehold.cli.places import AsJson
from freehold.errors import FreeholdError
from freehold.settings import state_home

if TYPE_CHECKING:
    from freehold.node.credentials import Credentials

SKEW_S = 60.0
DISK_BYTES, MEMORY_BYTES = 1_000_000_000, 1_500_000_000
TIMEOUT_S = 10.0

Level = Literal["good", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    what: str
    level: Level
    found: str
    hint: str = ""


def doctor(
    coordinator: Annotated[
        str | None, typer.Option("--coordinator", metavar="URL", help="To ask; the one that the node joined if not given.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Of a node on this machine.")] = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="FOLDER", help="State of a node or a coordinator; all that are found if not given."),
    ] = None,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Try to get out of the sandbox that training code runs in, and say what came of it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at clock, DNS, TLS, disk, memory, state folders and versions. Exit code 1 if something is wrong."""
    if sandbox:
        from freehold.cli.escapes import show

        raise typer.Exit(show(as_json=as_json))
    folders = _folders(name, state)
    url = coordinator or next((found.membership.url for folder in folders if (found := _joined(folder))), None)
    checks = [*_machine(folders), *(check for folder in folders for check in _folder(folder))]
    checks += _network(url, folders) if url else []
    if as_json:
        sys.stdout.write(json.dumps([asdict(check) for check in checks], indent=1) + "\n")
    else:
        _show(checks)
    if any(check.level == "error" for check in checks):
        raise typer.Exit(1)


def _folders(name: str | None, state: Path | None) -> list[Path]:
    if state is not None:
        return [state.absolute()]
    home = state_home(os.environ)
    if name is not None:
        return [home / f"node-{name}"]
    return [path for path in sorted(home.glob("*")) if path.name == "coordinator" or path.name.startswith("node-")]


def _machine(folders: list[Path]) -> Iterator[Check]:
    yield Check(
        what="versions",
        level="good",
        found=f"Freehold {version('freehold')}, Python {sys.version.split()[0]}, {ssl.OPENSSL_VERSION}",
    )
    if not folders:
        yield Check(
            what="state",
            level="warning",
            found=f"no node and no coordinator in {state_home(os.environ)}",
            hint="`freehold node start` or `freehold coordinator start` makes one; --state looks elsewhere.",
        )
    place = next((folder for folder in folders if folder.exists()), Path.home())
    free = shutil.disk_usage(place).free
    yield _least("disk", free, DISK_BYTES, f"free at {place}", "Make room: states and contributions are written there.")
    memory = _available_memory()
    if memory is not None:
        yield _least("memory", memory, MEMORY_BYTES, "available", "A trainer needs about 0.5 GB, and more for larger models.")


def _least(what: str, found: int, least: int, where: str, hint: str) -> Check:
    said = f"{found / 1e9:.1f} GB {where}"
    return Check(what=what, level="good" if found >= least else "warning", found=said, hint="" if found >= least else hint)


def _available_memory() -> int | None:
    """Of the machine, or of this process' control group if that is less."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        return free if limit == "max" else min(free, max(int(limit) - used, 0))
    except (OSError, ValueError):
        return free


def _folder(folder: Path) -> Iterator[Check]:
    what = f"state {folder.name}"
    if not folder.is_dir():
        yield Check(what=what, level="error", found=f"there is no {folder}", hint="Check --state or --name.")
        return
    open_to = [path for path in _secret(folder) if path.lstat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)]
    if open_to:
        listed = ", ".join(str(path.relative_to(folder)) or "." for path in open_to[:5])
        yield Check(what=what, level="error", found=f"open to others: {listed}", hint=f"chmod -R go-rwx {folder}")
    else:
        yield Check(what=what, level="good", found=f"{folder}, closed to others")
    yield from _certificate(folder)


def _certificate(folder: Path) -> Iterator[Check]:
    from freehold.node import credentials

    what = f"certificate {folder.name}"
    if not any((folder / "identity" / name).exists() for name in ("current.pem", "outside.json")):
        if (folder / "identity").is_dir():
            hint = f"Start the node again with its token: --join-file FILE; or remove {folder}."
            yield Check(what=what, level="warning", found="joining has begun, and did not come to its end", hint=hint)
        elif (folder / "left.json").exists():
            yield Check(what=what, level="good", found="none: the node has left, see left.json")
        elif folder.name.startswith("node-"):
            hint = "Start the node with --coordinator URL and --join-file FILE."
            yield Check(what=what, level="warning", found="none: the node has not joined", hint=hint)
    else:
        try:
            left = credentials.load(folder).not_after - time.time()
        except FreeholdError as error:
            yield Check(what=what, level="error", found=error.message, hint=error.hint)
        else:
            hours = f"{abs(left) / 3600:.1f} h"
            yield Check(
                what=what,
                level="good" if left > 0 else "error",
                found=f"valid for {hours}" if left > 0 else f"expired {hours} ago",
                hint="" if left > 0 else "Start the node with a new token: --join-file FILE.",
            )


def _secret(folder: Path) -> Iterator[Path]:
    """What holds keys, personal models or contributions."""
    for part in ("identity", "vault", "authority", "ca", "blobs"):
        yield from (path for path in (folder / part,) if path.is_dir())
    yield from (folder / "identity").glob("*.pem")
    keys = ("vault.key", "vault.tpm", "authority/issuer.pem", "ca/root.key", "server.pem")
    yield from (path for path in (folder / key for key in keys) if path.exists())


def _joined(folder: Path) -> Credentials | None:
    from freehold.node import credentials

    try:
        return credentials.load(folder)
    except FreeholdError:
        return None


def _network(url: str, folders: list[Path]) -> Iterator[Check]:
    from freehold.wire.client import parts_of

    try:
        host, port = parts_of(url)
    except FreeholdError as error:
        yield Check(what="address", level="error", found=error.message, hint=error.hint)
        return
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    except OSError as error:
        yield Check(what="DNS", level="error", found=f"{host}: {error}", hint="Check the name, /etc/hosts and /etc/resolv.conf.")
        return
    yield Check(what="DNS", level="good", found=f"{host} is {', '.join(addresses)}")
    joined = [found for folder in folders if (found := _joined(folder))]
    yield from _asked(url, host, port, [found.roots for found in joined if found.membership.url == url])


def _asked(url: str, host: str, port: int, roots: list[Path]) -> Iterator[Check]:
    """TLS and the clock, by one request that needs no certificate."""
    from freehold.wire.client import OTHER_NAME

    context = ssl.create_default_context() if not roots else ssl.create_default_context(cafile=str(roots[0]))
    if not roots:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing secret is sent; joining checks the pin
    connection = HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    before = time.time()
    try:
        connection.request("GET", "/v1/ca")
        answer = connection.getresponse()
        answer.read()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in OTHER_NAME:
            found = f"the certificate that {url} shows is for another name: {error.verify_message}"
            yield Check(
                what="TLS", level="error", found=found, hint="Use an address that is in it: the one that the node joined."
            )
            return
        yield Check(
            what="TLS",
            level="error",
            found=f"{url} shows a certificate that the pinned root did not sign: {error.verify_message}",
            hint="Check the address; if it is right, tell the operator: somebody may be in between.",
        )
        return
    except (OSError, HTTPException) as error:
        yield Check(what="coordinator", level="error", found=f"{url}: {error}", hint="Is it running, and is the port open?")
        return
    finally:
        connection.close()
    if roots:
        yield Check(what="TLS", level="good", found="signed by the root that was pinned when joining, and for this name")
    else:
        yield Check(
            what="TLS",
            level="warning",
            found="reachable; neither its key nor its name was checked: no node here has joined by this address",
            hint="A node checks both when it joins. To check them here, give the address that a node on this machine joined by.",
        )
    date = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp() if answer.headers["Date"] else before
    skew = (before + time.time()) / 2 - (date + 0.5)  # the coordinator tells whole seconds
    apart = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the coordinator"
    yield Check(
        what="clock",
        level="good" if abs(skew) < SKEW_S else "error",
        found=apart if abs(skew) > 1.0 else "within a second of the coordinator's",
        hint="" if abs(skew) < SKEW_S else "Set the clock: timedatectl set-ntp true",
    )


def _show(checks: list[Check]) -> None:
    from rich.text import Text

    from freehold.cli.console import output, visible

    console, styles = output(), {"good": "green", "warning": "yellow", "error": "red"}
    for check in checks:
        line = Text.assemble((f"{check.level:<8}", styles[check.level]), f"{check.what:<22} ", visible(check.found))
        console.print(line, soft_wrap=True)
        if check.hint:
            console.print(Text(f"{'':<31}{visible(check.hint)}", "dim"), soft_wrap=True)
