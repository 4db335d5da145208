"""`python -m freehold.node`: runs a node. Small on purpose: `freehold node start` becomes this process, which then stays."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold import durable, logs
from freehold.errors import FreeholdError, NotJoined, UsageError
from freehold.node import credentials
from freehold.node.join import read_token
from freehold.node.rest import Rules, rules_of
from freehold.node.service import Service, Settings, Stopped, stop_when_told
from freehold.settings import Setting, only_one, read_settings, state_home
from freehold.wire.messages import NAME_PATTERN

if TYPE_CHECKING:
    from freehold.node.alone import Own
    from freehold.node.outside import Files

FILE = "node.toml"
KEYS: Mapping[str, type] = {
    "name": str,
    "port": int,
    "coordinator": str,
    "join_file": str,
    "federation": str,
    "cert": str,
    "key": str,
    "ca": str,
    "data": dict,
    "policy": str,
    "vault_key": str,
    "vault_tpm": str,
    "hours": str,
    "metered": str,
    "log": str,
}
"""What the settings file may say; docs/reference/settings.md explains each."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line and the settings file together."""

    name: str
    state: Path
    port: int | None
    coordinator: str
    join_file: str
    federation: str | None
    data: Mapping[str, Path]
    log: str
    rules: Rules
    insecure_no_sandbox: bool = False
    tpm: str = ""
    policy: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None


def parser() -> argparse.ArgumentParser:
    """The command line; `freehold node start --help` says the same."""
    made = argparse.ArgumentParser(prog="python -m freehold.node", description="Run a node until SIGTERM or Ctrl-C.")
    made.add_argument("--name", default="", help="The node's name in the federation.")
    made.add_argument("--port", type=int, help="Of the node's own page, on loopback; 0 is any free one. No page if not given.")
    made.add_argument("--coordinator", default="", metavar="URL", help="Where to join; not needed afterwards.")
    made.add_argument("--join-file", default="", metavar="FILE", help="The join token; - is standard input.")
    made.add_argument("--federation", help="Its name; the node joins no other one.")
    made.add_argument("--cert", type=Path, metavar="FILE", help="A certificate of your own CA, in place of a token.")
    made.add_argument("--key", type=Path, metavar="FILE", help="Its key.")
    made.add_argument("--ca", type=Path, metavar="FILE", help="Roots of the coordinator's certificate.")
    made.add_argument("--data", action="append", default=[], metavar="NAME=FILE", help="A table, by the name that plans call it.")
    made.add_argument(
        "--policy", type=Path, metavar="FILE", help="The owner's policy; policy.toml in the state folder if not given."
    )
    made.add_argument("--state", type=Path, metavar="FOLDER", help="~/.local/state/freehold/node-NAME if not given.")
    made.add_argument("--insecure-no-sandbox", action="store_true", help="Run training code without a sandbox.")
    made.add_argument("--log", choices=("json", "plain"), default="", help="Form of the log on standard error.")
    return made


def options_of(arguments: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Read the command line, then node.toml in the state folder for what it does not say."""
    given = parser().parse_args(arguments)
    if given.state is None and not given.name:
        raise UsageError("The node has no name.", hint="Give --name NAME, or --state FOLDER with a node.toml that says it.")
    state: Path = (given.state or state_home(environ) / f"node-{given.name}").absolute()
    said = read_settings(state / FILE, KEYS)
    name = given.name or _text(said, "name") or _member(state)
    if not name:
        raise UsageError("The node has no name.", hint="Give --name NAME, or write it to node.toml.")
    tables = said.get("data", {})
    data = {_name(key): state / path for key, path in tables.items()} if isinstance(tables, dict) else {}
    data |= {_name(key): Path(path).absolute() for key, path in map(_pair, given.data)}
    port = given.port if given.port is not None else said.get("port")
    if port is not None and not (isinstance(port, int) and 0 <= port <= 65535):
        raise UsageError(f"The port is {port}, but lies between 0 and 65535.", hint="For example --port 8080.")
    return Options(
        name=_name(name),
        state=state,
        port=port,
        coordinator=given.coordinator or _text(said, "coordinator"),
        join_file=given.join_file or _text(said, "join_file"),
        federation=given.federation or _text(said, "federation") or None,
        data=data,
        log=given.log or _text(said, "log"),
        rules=rules_of(_text(said, "hours"), _text(said, "metered")),
        insecure_no_sandbox=given.insecure_no_sandbox,
        tpm=_tpm(_text(said, "vault_key") or "file", _text(said, "vault_tpm")),
        **{kind: _file(getattr(given, kind), said, kind, state) for kind in ("policy", "cert", "key", "ca")},
    )


def run(options: Options) -> None:
    """Run the node until it is told to stop."""
    form = logs.form_for(sys.stderr, os.environ, wanted=options.log)
    color = form == "plain" and sys.stderr.isatty() and "NO_COLOR" not in os.environ
    with ExitStack() as stack:
        stack.enter_context(only_one(options.state, "node"))
        own, settings = _settings(options, stack)
        ruled = _check_policy(options)
        service = Service(settings, listener=logs.listener(sys.stderr, form, color=color))
        stop_when_told()
        page = ""
        if options.port is not None:
            page = _page(options, service, stack)
        if own is not None:
            from freehold.node.alone import welcome

            samples = None if options.data else options.state / "sample"
            _say(welcome(own, name=options.name, page=page, samples=samples))
        elif page:
            _say(f"Node {options.name}; its page: {page}\n")
        if not settings.datasets:
            _say(f"Node {options.name} has no data, so no study can ask it: give --data NAME=FILE, or write it to {FILE}.\n")
        service.identity()
        _remember(options)  # not before it has joined: who corrects a slip of the first attempt means what is said then
        if lacking := sorted(set(settings.datasets) - ruled):
            _say(f"No rule covers {', '.join(lacking)}: plans wait for you (freehold node pending, policy new).\n")
        service.run()


def _check_policy(options: Options) -> set[str]:
    """The data sets that the policy has rules for; raises PolicyError, so that a node does not start with a broken one."""
    from freehold.policy.text import FILE, load_policy

    if options.policy is not None and not options.policy.is_file():
        raise UsageError(
            f"There is no policy {options.policy}.", hint="`freehold node policy new NAME --output FILE` writes one."
        )
    return set(load_policy(options.policy or options.state / FILE).data)


def _remember(options: Options) -> None:
    """Write what the node joined with, for starts that say only its name; nothing that is there is changed."""
    if (options.state / FILE).exists() or not options.data:
        return
    lines = [f"name = {json.dumps(options.name)}"]
    lines += [] if options.port is None else [f"port = {options.port}"]
    lines += ["", "[data]", *(f"{name} = {json.dumps(str(path), ensure_ascii=False)}" for name, path in options.data.items())]
    text = "\n".join(["# See docs/reference/settings.md.", *lines, ""])
    durable.write(options.state / FILE, text.encode(), point="node.settings")


def _settings(options: Options, stack: ExitStack) -> tuple[Own | None, Settings]:
    """The node's settings; where there is no coordinator to go to, one of its own, that is ended with the stack."""
    own, token, data, url = None, None, options.data, options.coordinator
    files = _outside(options)
    beside = options.state / "coordinator"
    try:
        found = credentials.load(options.state)
    except NotJoined:
        found = None
    joined = found is not None and found.not_after > time.time()
    if options.join_file and not joined and files is None:
        token = read_token(options.join_file)
    # Not where a certificate has merely expired: that node belongs to somebody else's coordinator.
    if not url and not options.join_file and files is None and (beside.exists() or found is None):
        from freehold.node import alone

        if (options.state / "left.json").exists():
            raise UsageError(
                f"{options.name} has left its federation.",
                hint="Give --coordinator and --join-file to join again, or another --name to start one of its own.",
            )
        if not beside.exists() and any((options.state / "identity").glob("joining-*.key")):
            raise UsageError(
                f"{options.name} has begun to join a federation, and is in none yet.",
                hint=f"Give --coordinator and --join-file again; or remove {options.state} to start one of its own.",
            )
        own = alone.start(beside)
        stack.callback(own.end)
        url, token = own.url, None if joined else own.token(options.name)
        if not data:
            data = alone.sample_data(options.state / "sample")
            if options.policy is None:
                alone.sample_rules(options.state)
    settings = Settings(
        name=options.name,
        state=options.state,
        datasets=data,
        coordinator=url,
        token=token,
        federation=options.federation,
        rules=options.rules,
        policy=options.policy,
        tpm=options.tpm,
        outside=files,
        sandbox="off" if options.insecure_no_sandbox else "required",
    )
    return own, settings


def _outside(options: Options) -> Files | None:
    """Where a certificate of the organisation's own CA lies, as it is said now or was said before."""
    given = (options.cert, options.key, options.ca)
    cert, key, ca = given
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None or ca is None:
        raise UsageError("--cert, --key and --ca belong together.", hint="Give all three, or none.")
    if options.join_file:
        raise UsageError("A node joins with a token or with a certificate.", hint="Give --join-file or --cert, not both.")
    url = options.coordinator or _url(options.state)
    if not url:
        raise UsageError("Where is the coordinator?", hint="Give --coordinator URL.")
    from freehold.node.outside import Files

    return Files(cert=cert, key=key, ca=ca, url=url)


def _url(state: Path) -> str:
    try:
        return credentials.load(state).membership.url
    except FreeholdError:
        return ""


def _page(options: Options, service: Service, stack: ExitStack) -> str:
    from freehold.node.page import Page

    page = Page(options.port or 0, lambda: facts(options, service), options.state)
    stack.callback(page.close)
    note = options.state / "page.json"
    note.write_text(json.dumps({"url": page.url, "pid": os.getpid()}) + "\n", encoding="utf-8")
    stack.callback(lambda: note.unlink(missing_ok=True))
    return page.url


def facts(options: Options, service: Service) -> dict[str, Any]:
    """What the node is and does, for its page."""
    agent = service.agent
    told: dict[str, Any] = {
        "node": options.name,
        "federation": None,
        "coordinator": service.settings.coordinator,
        "state": "joining" if agent is None else agent.status.state,
        "rest": None,
        "since": 0.0 if agent is None else agent.status.since,
        "rounds": 0 if agent is None else agent.status.rounds,
        "sent_bytes": 0 if agent is None else agent.status.sent_bytes,
        "received_bytes": 0 if agent is None else agent.status.received_bytes,
        "sandbox": "" if agent is None else agent.status.sandbox,
        "escapes_held": 0 if agent is None else agent.status.held,
        "last_error": "" if agent is None else agent.status.last_error,
        "last_choice": "" if agent is None else agent.status.last_choice,
        "datasets": {name: str(path) for name, path in service.settings.datasets.items()},
        "certificate": None,
    }
    if agent is not None and agent.status.rest is not None:
        told["rest"] = {"why": agent.status.rest.why, "until": agent.status.rest.until}
        if told["state"] == "connected":
            told["state"] = "resting"
    try:
        found = credentials.load(options.state)
    except FreeholdError:
        return told
    told |= {"federation": found.membership.federation, "coordinator": found.membership.url}
    told["certificate"] = {"not_before": found.not_before, "not_after": found.not_after}
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code."""
    try:
        run(options_of(sys.argv[1:] if arguments is None else arguments, os.environ))
    except FreeholdError as error:
        text = f"error {error.code}: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else "")
        text += f"see: docs/reference/errors.md, {error.code}\n"
        sys.stderr.write("".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text))
        return error.exit_code
    except (Stopped, KeyboardInterrupt):
        pass
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _text(said: Mapping[str, Setting], key: str) -> str:
    return str(said.get(key, ""))


def _tpm(kind: str, tcti: str) -> str:
    """TCTI of the TPM that seals the vault's key; "" where none does."""
    if kind not in ("file", "tpm"):
        raise UsageError(f"{FILE}: vault_key is {kind!r}.", hint='It is "file" or "tpm".')
    if kind == "file":
        if tcti:
            raise UsageError(f"{FILE}: vault_tpm says which TPM, but no key is with one.", hint='Say vault_key = "tpm".')
        return ""
    return tcti or "device:/dev/tpmrm0"


def _file(given: Path | None, said: Mapping[str, Setting], key: str, state: Path) -> Path | None:
    if given is not None:
        return given.absolute()
    return state / str(said[key]) if key in said else None


def _member(state: Path) -> str:
    try:
        return credentials.load(state).membership.node
    except NotJoined:
        return ""


def _name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise UsageError(
            f"{text!r} is not a name.",
            hint="Use 1 to 63 lower-case letters, digits and hyphens, a letter or digit first and last.",
        )
    return text


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (equals and name and path):
        raise UsageError(f"--data {text} has not the form NAME=FILE.", hint="For example --data heart=/srv/heart.csv")
    return name, path


if __name__ == "__main__":
    sys.exit(main())
