"""`freehold coordinator`: sets one up, and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.deny import allow, denied, deny
from freehold.cli.options import grouped
from freehold.cli.places import CoordinatorState, coordinator_state
from freehold.errors import FreeholdError, UsageError
from freehold.settings import Setting, only_one, read_settings

if TYPE_CHECKING:
    from freehold.coordinator.ownca import OwnCertificates
    from freehold.coordinator.quotas import Quotas
    from freehold.coordinator.service import Service, Settings
    from freehold.systemd import Notifier

coordinator = typer.Typer(no_args_is_help=True, help="Run the coordinator of a federation.")

FILE = "coordinator.toml"
LONGEST_SOCKET = 107
"""Bytes in the path of a Unix socket, by the kernel."""
KEYS: Mapping[str, type] = {
    "federation": str,
    "host": str,
    "port": int,
    "names": list,
    "database": str,
    "blobs": str,
    "ca_dir": str,
    "metrics_port": int,
    "study_keys": list,
    "server_cert": str,
    "server_key": str,
    "issuer_cert": str,
    "issuer_key": str,
    "client_ca": str,
    "root_ca": str,
    "researcher_studies": int,
    "researcher_bundles_mb": int,
    "log": str,
}
"""What the settings file may say; docs/reference/settings.md explains each."""
OWN = ("server_cert", "server_key", "issuer_cert", "issuer_key", "client_ca", "root_ca")


class LogForm(StrEnum):
    """How events are written."""

    json = "json"
    plain = "plain"


LogOption = Annotated[
    LogForm | None,
    typer.Option("--log", help="Form of the log on standard error; plain on a terminal, else json or the journal."),
]


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """What coordinator.toml may say, too; the command line counts."""

    federation: Annotated[str | None, typer.Option("--federation", metavar="NAME", help="Its name; freehold if not given.")] = (
        None
    )
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Where it listens; 127.0.0.1 if not given, 0.0.0.0 for all.")
    ] = None
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, metavar="PORT", help="8443 if not given; 0 is any free one.")
    ] = None
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name", metavar="NAME", help="DNS name or address in its certificate; repeatable. The first is in its URL."
        ),
    ] = None
    database: Annotated[
        str | None, typer.Option("--database", metavar="URL", help="Of its store; SQLite in the state folder if not given.")
    ] = None
    blobs: Annotated[
        str | None,
        typer.Option("--blobs", metavar="URL", help="Of the bucket for large states; a folder in the state folder if not given."),
    ] = None
    ca_dir: Annotated[
        Path | None, typer.Option("--ca-dir", metavar="FOLDER", help="Where the root's key is; in the state folder if not given.")
    ] = None
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", min=0, max=65535, metavar="PORT", help="Prometheus metrics on loopback; 0, the default: none."
        ),
    ] = None
    study_keys: Annotated[
        list[Path] | None,
        typer.Option("--study-key", metavar="FILE", help="Public key whose studies are taken, and no others; repeatable."),
    ] = None
    server_cert: Annotated[
        Path | None, typer.Option("--server-cert", metavar="FILE", help="Its own certificate, of your CA: that, then its chain.")
    ] = None
    server_key: Annotated[Path | None, typer.Option("--server-key", metavar="FILE", help="The key of --server-cert.")] = None
    issuer_cert: Annotated[
        Path | None, typer.Option("--issuer-cert", metavar="FILE", help="A CA below yours, under which it signs for nodes.")
    ] = None
    issuer_key: Annotated[Path | None, typer.Option("--issuer-key", metavar="FILE", help="The key of --issuer-cert.")] = None
    client_ca: Annotated[
        Path | None, typer.Option("--client-ca", metavar="FILE", help="CAs whose certificates are those of nodes as they are.")
    ] = None
    root_ca: Annotated[
        Path | None, typer.Option("--root-ca", metavar="FILE", help="Roots, where the files above do not end with them.")
    ] = None


@coordinator.callback()
def _start() -> None:
    pass


coordinator.command()(deny)
coordinator.command()(allow)
coordinator.command()(denied)


@coordinator.command()
@grouped
def init(options: ServiceOptions, state: CoordinatorState = None) -> None:
    """Make the state folder, the federation's root of trust and coordinator.toml, and start nothing."""
    from freehold.coordinator.ownca import open_authority

    folder = coordinator_state(state)
    if (folder / FILE).exists() or (folder / "authority").exists():
        raise UsageError(
            f"{folder} has a coordinator already.", hint="`freehold coordinator start` runs it; or give another --state."
        )
    settings = _settings(folder, options)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own, now, ca_dir = settings.own, time.time(), settings.ca_dir or folder / "ca"
    authority = open_authority(
        own, folder / "authority", federation=settings.federation, now=now, ca_dir=ca_dir, names=settings.names
    )
    _write_settings(folder, options, settings.federation)
    keep = "Keep a copy of the root's key, elsewhere if you like: it is needed once a year.\n"
    sys.stdout.write(
        f"Federation {settings.federation}, in {folder}\n"
        f"  root pin    {authority.pin()}\n"
        f"  root's key  {ca_dir if own.issuer_cert is None else 'with your own CA'}\n"
        f"  settings    {folder / FILE}\n"
        f"{keep if own.issuer_cert is None else ''}"
        f"Next: freehold coordinator start{_flag(state)}\n"
    )


@coordinator.command()
@grouped
def start(
    options: ServiceOptions,
    state: CoordinatorState = None,
    log: LogOption = None,
    print_token: Annotated[
        bool, typer.Option("--print-token", help="Make a join token for one node, and print it with the command that uses it.")
    ] = False,
) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C, and print how a node joins."""
    from freehold.coordinator.service import Service
    from freehold.logs import form_for, listener
    from freehold.systemd import Notifier

    folder = coordinator_state(state)
    settings = _settings(folder, options)
    wanted = log.value if log else str(read_settings(folder / FILE, KEYS).get("log", ""))
    if wanted not in ("", "json", "plain"):
        raise UsageError(f"{folder / FILE}: log is {wanted!r}.", hint='It is "json" or "plain".')
    form = form_for(sys.stderr, os.environ, wanted=wanted)
    service = Service(settings=settings, listener=listener(sys.stderr, form, color=_colorful(form)))

    def announce() -> None:
        sys.stdout.write(welcome(service, state, token=print_token))
        sys.stdout.flush()

    with only_one(folder, "coordinator"):  # another one would take its socket and its rounds
        asyncio.run(_until_signaled(service, options, Notifier(os.environ, os.getpid()), announce))


async def _started(service: Service, options: ServiceOptions) -> None:
    """Start it, with its options written down first: a later start must not found another federation, nor take unsigned plans.

    Where the first start fails they are forgotten, as they may be what was wrong.
    """
    file = service.settings.state / FILE
    first = not file.exists()
    if first:
        _write_settings(file.parent, options, service.settings.federation)
    try:
        await service.start()
    except FreeholdError:
        if first:
            file.unlink()
        raise


async def _until_signaled(service: Service, options: ServiceOptions, notifier: Notifier, announce: Callable[[], None]) -> None:
    told, loop = asyncio.Event(), asyncio.get_running_loop()

    def stop() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):  # the second one ends it at once
            loop.remove_signal_handler(number)
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await _started(service, options)
    watching = asyncio.create_task(notifier.watch())
    await asyncio.to_thread(announce)
    notifier.ready(f"coordinator of {service.settings.federation} at {service.url}")
    await told.wait()
    notifier.stopping()
    watching.cancel()
    await service.stop()


def welcome(service: Service, state: Path | None, *, token: bool) -> str:
    """Where it is, and how a first node joins; with a new token where one was asked for."""
    url, name = service.url, "alice"
    lines = [
        f'Coordinator of federation "{service.settings.federation}" at {url}',
        f"Root pin {service.enrolment.authority.pin()}",
    ]
    there = f"freehold node start --name {name} --coordinator {url} --join-file {{file}} --data heart=FILE.csv"
    if token:
        made = service.enrolment.create_token(creator="operator", ttl_s=86400.0).format()
        lines += [
            "A node joins with this token, once, within 24 hours. Pass it on with care:",
            f"  {made}",
            "  " + there.format(file="-") + "     # then paste the token",
        ]
    else:
        lines += [
            "A node joins with a token, made here and passed on over a way that you trust:",
            f"  freehold token create --node {name}{_flag(state)} > {name}.token",
            "  " + there.format(file=f"{name}.token"),
        ]
    return "\n".join([*lines, "Stop with Ctrl-C or SIGTERM; studies go on where they were.", ""])


def _settings(folder: Path, options: ServiceOptions) -> Settings:
    from freehold.coordinator.certificates import check_name
    from freehold.coordinator.service import Settings

    if len(os.fsencode(folder / "admin.sock")) > LONGEST_SOCKET:
        raise UsageError(f"The path {folder} is too long: its socket could not be opened.", hint="Give a shorter --state.")
    said = read_settings(folder / FILE, KEYS)
    if options.federation and options.federation != said.get("federation", options.federation):
        raise UsageError(
            f"The coordinator in {folder} is that of federation {said['federation']}, not {options.federation}.",
            hint="A federation keeps its name; give another one another --state.",
        )
    ca_dir = options.ca_dir or (Path(str(said["ca_dir"])) if "ca_dir" in said else None)
    keys = options.study_keys or [folder / str(key) for key in _texts(said.get("study_keys"))]
    return Settings(
        state=folder,
        federation=check_name(options.federation or str(said.get("federation", "freehold"))),
        host=options.host or str(said.get("host", "127.0.0.1")),
        port=_number(options.port, said, "port", 8443),
        names=tuple(options.names or _texts(said.get("names"))),
        database=options.database or str(said.get("database", "")),
        blobs=options.blobs or str(said.get("blobs", "")),
        ca_dir=ca_dir if ca_dir is None else folder / ca_dir,
        metrics_port=_number(options.metrics_port, said, "metrics_port", 0),
        study_keys=tuple(keys),
        own=_own(options, said, folder),
        quotas=_quotas(said),
    )


def _own(options: ServiceOptions, said: Mapping[str, Setting], folder: Path) -> OwnCertificates:
    from freehold.coordinator.ownca import OwnCertificates

    given = {key: getattr(options, key) or (folder / str(said[key]) if key in said else None) for key in OWN}
    return OwnCertificates(**given)


def _quotas(said: Mapping[str, Setting]) -> Quotas:
    from freehold.coordinator.quotas import Quotas

    found = {}
    for key, name in (("researcher_studies", "studies"), ("researcher_bundles_mb", "bundles_mb")):
        value = said.get(key, getattr(Quotas(), name))
        if not isinstance(value, int) or value < 0:
            raise UsageError(f"{FILE}: {key} is {value}, but is 0 or more.", hint=f"For example {key} = 50; 0 is no limit.")
        found[name] = value
    return Quotas(**found)


def _number(given: int | None, said: Mapping[str, Setting], key: str, default: int) -> int:
    found = given if given is not None else said.get(key, default)
    if not isinstance(found, int) or not 0 <= found <= 65535:
        raise UsageError(
            f"{FILE}: {key} is {found}, but ports lie between 0 and 65535.", hint=f"For example {key} = {default or 9464}"
        )
    return found


def _texts(found: object) -> list[str]:
    return [str(item) for item in found] if isinstance(found, list) else []


def _write_settings(folder: Path, options: ServiceOptions, federation: str) -> None:
    from freehold import durable

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable.write(folder / FILE, _toml(options, federation).encode(), point="coordinator.settings")


def _toml(options: ServiceOptions, federation: str) -> str:
    """The options that were given, and the federation's name, which must never change; JSON's texts and lists are TOML's too."""
    given: dict[str, object] = {
        "federation": federation,
        "host": options.host,
        "port": options.port,
        "names": options.names,
        "database": options.database,
        "blobs": options.blobs,
        "ca_dir": None if options.ca_dir is None else str(options.ca_dir.absolute()),
        "metrics_port": options.metrics_port,
        "study_keys": [str(key.absolute()) for key in options.study_keys or ()] or None,
        **{key: None if getattr(options, key) is None else str(getattr(options, key).absolute()) for key in OWN},
    }
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value is not None]
    return "\n".join(["# See docs/reference/settings.md.", *lines, ""])


def _flag(state: Path | None) -> str:
    return f" --state {state}" if state else ""


def _colorful(form: str) -> bool:
    return form == "plain" and sys.stderr.isatty() and "NO_COLOR" not in os.environ
