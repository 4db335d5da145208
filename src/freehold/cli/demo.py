"""`freehold demo`: four hospitals, their real records, and a page that shows who gains; as processes, or simulated."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.invocation import command
from freehold.cli.options import RESULT, RUN, STUDY, ResultOptions, RunOptions, grouped
from freehold.cli.output import check_writable
from freehold.cli.running import run, tell
from freehold.errors import StudyRefused, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from freehold.cli.beside import Federation
    from freehold.plan import Plan
    from freehold.report import Comparison
    from freehold.study import Settings
    from freehold.wire.admin import NodeInfo, Results, StudyInfo

ROWS = ("local", "fedavg", "fedavg-finetuned", "fedavg-intercept", "ditto")
PAGE = Path("freehold-report.html")
REPEATS = 5  # about a minute on two cores; fewer would leave intervals that say nothing
SIMULATED_SEEDS = 10
LOOK_S = 0.5


@grouped
def demo(
    options: RunOptions,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="In one process, without a network: faster.", rich_help_panel=RUN)
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="FOLDER", help="Keep the federation's files there.", rich_help_panel=RUN),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, metavar="N", help="With other splits; 5, or 10 simulated.", rich_help_panel=STUDY),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=1, metavar="N", help="Rounds of training; 20 if not given.", rich_help_panel=STUDY),
    ] = None,
    report: Annotated[
        Path, typer.Option("--report", metavar="FILE.html", help="Where the page goes.", rich_help_panel=RESULT)
    ] = PAGE,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the report as JSON; - is standard output.", rich_help_panel=RESULT),
    ] = None,
) -> None:
    """Run a federation here: a coordinator, and Cleveland, Hungary, Switzerland and VA Long Beach as nodes. Who gains?"""
    results = ResultOptions(json=json, report=report)
    if not simulated:
        if options != RunOptions():
            raise UsageError("How to run is for the simulation.", hint="Add --simulated, or leave the option out.")
        _federated(results, rounds=rounds, repeats=seeds or REPEATS, keep=keep)
        return
    if keep is not None:
        raise UsageError("A simulation has no files of a federation.", hint="Leave out --keep or --simulated.")

    def study(settings: Settings) -> Comparison:
        from freehold import study

        return study.compare(
            "heart", algorithms=ROWS, rounds=rounds, seeds=seeds or SIMULATED_SEEDS, settings=settings, command=command()
        )

    run(study, options, results)


def _federated(results: ResultOptions, *, rounds: int | None, repeats: int, keep: Path | None) -> None:
    from freehold.cli.beside import federation

    check_writable(results.json, results.report)
    begun = time.monotonic()
    with _folder(keep) as folder, _terminated_like_interrupted(), federation(folder) as running:
        started = time.monotonic()
        status = running.start_coordinator("demo")
        paths = _start_hospitals(running, status.url)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_joined, running, len(paths))
            _say_what_is_odd(paths)
            plan = _plan(rounds, repeats, len(paths))
            nodes, joined = waiting.result()
        _say(f"\nCoordinator {status.url}, federation demo; each hospital is a node of its own, with processes of its own:")
        for node in nodes:
            _say(f"  {node.name:<14} joined, mutual TLS; its page: {running.page(node.name)}")
        _say(_sandboxes(running, nodes))
        _say("The policy of each (policy.toml): the installed task heart only, and it may tell how good its models are.")
        _say(f"{len(nodes)} nodes joined within {joined - started:.1f} s of the coordinator's start.")
        info, found = _study(running, plan)
        _report(info, found, results)
        _say_who_was_stopped(running, nodes[-1].name)
        _say_what_left(running, [node.name for node in nodes])
        _say_what_happened(found, time.monotonic() - begun, keep)


def _start_hospitals(running: Federation, url: str) -> list[Path]:
    """Write each hospital's file, and start its node with it."""
    from freehold.cli.data import write_hospitals
    from freehold.policy import FILE, sample_policy

    paths = write_hospitals(running.folder / "hospitals")
    for path in paths:
        path.chmod(0o600)
        state = running.folder / path.stem
        state.mkdir(mode=0o700)
        (state / FILE).write_text(sample_policy("heart"), encoding="utf-8")
        running.start_node(path.stem, {"heart": path}, url)
    return paths


def _joined(running: Federation, count: int) -> tuple[list[NodeInfo], float]:
    return running.wait_for_nodes(count), time.monotonic()


def _say_what_is_odd(paths: list[Path]) -> None:
    from freehold.data import check, from_files
    from freehold.data.heart import SCHEMA

    _say("Four hospitals, their own patients, each in a file that only its own node reads:")
    for path in paths:
        population = from_files({path.stem: path}, schema=SCHEMA)
        findings = sorted(check(population), key=lambda finding: finding.level == "note")
        _say(f"  {path.stem:<14} {len(population.target)} patients")
        for finding in findings[:3]:
            _say(f"      {finding.text}")
        if len(findings) > 3:
            _say(f"      and {len(findings) - 3} more: freehold data check heart")


def _plan(rounds: int | None, repeats: int, nodes: int) -> Plan:
    from freehold.coordinator.specification import specified
    from freehold.study.federated import federated_plan

    companions = [name for name in ROWS if name not in ("local", "ditto")]
    return specified(
        federated_plan("heart", "ditto", companions=companions, name="demo", rounds=rounds, repeats=repeats, least_nodes=nodes)
    )


def _study(running: Federation, plan: Plan) -> tuple[StudyInfo, Results]:
    """Run the plan to its end, with a table of who does what."""
    from freehold.cli.live import following, progress_of
    from freehold.cli.study import find
    from freehold.plan import dumps
    from freehold.wire.admin import Results, StudyRequest, StudyStarted

    admin = running.admin
    digest = admin.post("/v1/studies", StudyRequest(plan=dumps(plan)), StudyStarted).digest
    begun = time.monotonic()
    _say(
        f"\nStudy {digest[:19]}…: ditto, and to compare with fedavg, fedavg-finetuned and fedavg-intercept; each with "
        f"{plan.repeats} different splits of {plan.training.rounds} rounds. Each hospital trains alone, too."
    )
    with following(lambda: _table(running, digest)) as follow:
        while (info := find(admin, digest)).state == "running":
            running.check()
            follow(info)
            time.sleep(LOOK_S)
        follow(info)
    if info.state != "finished":
        raise StudyRefused(f"The study is {info.state}: {info.reason}.", hint="See the log of the coordinator with --keep.")
    _say(f"{progress_of(info)[0]} rounds in {time.monotonic() - begun:.1f} s.\n")
    return info, admin.get(f"/v1/studies/{digest}", Results)


def _table(running: Federation, digest: str) -> Table:
    """A line for each hospital: what it does, and what left it so far."""
    from rich import box
    from rich.table import Table

    from freehold.node.page import size
    from freehold.wire.admin import Results, Status

    sent = running.admin.get(f"/v1/studies/{digest}", Results).sent_bytes
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("hospital", min_width=16)
    table.add_column("node")
    table.add_column("left it: contributions", justify="right")
    for node in running.admin.get("/v1/status", Status).nodes:
        table.add_row(node.name, "connected" if node.connected else "silent", size(sent.get(node.name, 0)))
    return table


def _report(info: StudyInfo, found: Results, results: ResultOptions) -> None:
    from freehold.cli.study import privacy_note
    from freehold.study.federated import comparison_of

    tell(comparison_of(found, command=command(), notes=(privacy_note(found),)), results)


def _sandboxes(running: Federation, nodes: list[NodeInfo]) -> str:
    """In what training code runs, by the nodes' own word."""
    told = [running.told(node.name) for node in nodes]
    levels = {str(each["sandbox"]) for each in told}
    held = [int(each["escapes_held"]) for each in told]
    if len(levels) > 1 or not min(held):
        return "\n".join(f"  {each['node']:<14} sandbox: {each['sandbox']}" for each in told)
    return (
        f"Training code runs in the kernel's sandbox, level {levels.pop()}. At its start each node tried {min(held)} ways out: "
        f"{min(held)} of {min(held)} held. See freehold doctor --sandbox."
    )


def _say_who_was_stopped(running: Federation, node: str) -> None:
    """A study whose code cheats."""
    from freehold.cli.cheat import cheat, walled

    if not walled(running, node):
        _say("Code that comes with a plan is refused on this machine: its sandbox has no namespaces.")
        return
    found = cheat(running, node)
    line, told = found.refusal, str(running.told(node)["last_error"]).partition(". ")[0]
    _say("\nThen a study that brings training code of its own. The code opens a socket to carry records away.")
    _say(f"  {node}: its owner had allowed it. Stopped: {told}.")
    _say(f"      Nothing left the hospital but the number {line.code}, for an error: line {line.n} of its ledger.")
    _say(f"  {', '.join(found.waiting)}: nobody has allowed that code, so it waits for the owner (freehold node pending).")


def _say_what_left(running: Federation, names: list[str]) -> None:
    from freehold.cli.console import output
    from freehold.cli.what_left import leaving, shown

    found = [leaving(name, running.folder / name) for name in names]
    _say("\nWhat left, by each node's own ledger. Every byte of it was checked just now: chained, signed, whole.")
    output().print(shown(found))


def _say_what_happened(found: Results, seconds: float, keep: Path | None) -> None:
    from freehold.cli.live import median_round
    from freehold.policy.promises import NOTHING

    _say(f"A round took {median_round(found) or 0.0:.3g} s (median); the whole demo {seconds:.0f} s.")
    _say("Left: contributions, and sums over test and validation patients. Stayed: the records, and each personal model.")
    _say(f"Release level trusted-code. {NOTHING}")
    if keep is not None:
        _say(f"Kept: {keep}. To go on: freehold coordinator start --state {keep / 'coordinator'}")
    _say("Next: freehold node start --name alice --port 8080     # a node and a coordinator of your own")


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where the federation's files are: a temporary folder, gone afterwards, or one that is kept and was empty."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="freehold-", ignore_cleanup_errors=True) as name:
            yield Path(name)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UsageError(f"{keep} is not empty.", hint="Give --keep a new folder.")
    keep.mkdir(mode=0o700, parents=True, exist_ok=True)
    yield keep.absolute()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, so that it can clear up."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    from freehold.cli.console import output, visible

    console = output()
    console.print(visible(text), soft_wrap=not console.is_terminal)
