"""`freehold study`: plans, their signatures, and the studies that a coordinator runs, here or elsewhere."""

from __future__ import annotations

import json
import math
import sys
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freehold.cli.console import errors
from freehold.cli.invocation import command
from freehold.cli.options import ResultOptions, grouped, listed
from freehold.cli.places import AsJson, CoordinatorOptions, admin, flags
from freehold.cli.token import seconds
from freehold.errors import StudyRefused, UsageError

if TYPE_CHECKING:
    from freehold.wire.admin import Administrator, Results, StudyInfo

study = typer.Typer(no_args_is_help=True, help="Write and sign plans; run studies.")

COMPANIONS = ("fedavg", "fedavg-finetuned", "fedavg-intercept")
POLL_S = 0.5
MOST_CYCLES = 10  # that are shown

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN.toml", help="The plan.")]
BundleFile = Annotated[
    Path | None, typer.Option("--bundle", metavar="FILE", help="The code that the plan names, as `freehold bundle` wrote it.")
]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Its name, or its plan's digest or the beginning of it.")]


@study.callback()
def _start() -> None:
    pass


@study.command()
def new(
    task: Annotated[str, typer.Argument(metavar="TASK", help="heart, or another installed task.")],
    output: Annotated[Path, typer.Option("--output", metavar="PLAN.toml", help="Where the plan goes.")],
    algorithm: Annotated[
        str, typer.Option("--algorithm", metavar="NAME", help="Which. NAME+bfloat16 rounds contributions.")
    ] = "ditto",
    companions: Annotated[
        list[str] | None,
        typer.Option("--companions", metavar="A,B", help="To compare with, or none; FedAvg and its kin if not given."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The study's name; TASK-ALGORITHM if not given.")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, metavar="N", help="The task's own if not given.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, metavar="N", help="With other splits; 5 tell gain from luck.")] = 5,
    least_nodes: Annotated[int, typer.Option("--least-nodes", min=1, metavar="N", help="How many nodes it waits for.")] = 1,
    compress: Annotated[bool, typer.Option("--compress", help="Contributions travel compressed with zstd.")] = False,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="FILE", help="The code of TASK, which comes with the plan; it runs here, as you."),
    ] = None,
) -> None:
    """Write a plan with the task's own settings, and in it all that may leave a node."""
    from freehold.cli.output import check_writable, write
    from freehold.coordinator.specification import specified
    from freehold.plan import dumps
    from freehold.study.federated import federated_plan

    check_writable(output)
    chosen = COMPANIONS if companions is None else listed(companions)
    if chosen == ("none",):
        chosen = ()
    plan = federated_plan(
        task,
        algorithm,
        companions=chosen,
        name=name,
        rounds=rounds,
        repeats=repeats,
        least_nodes=least_nodes,
        compression="zstd" if compress else "none",
        bundle=(code := _bundle(bundle)),
    )
    write(output, dumps(specified(plan, code)))
    more = "" if bundle is None else f" --bundle {bundle}"
    sys.stdout.write(f"Written: {output}\nNext: freehold study run {output}{more} --wait\n")


@study.command()
def spec(
    plan: PlanFile,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where it goes; into the plan itself if not given.")
    ] = None,
    bundle: BundleFile = None,
) -> None:
    """Write into a plan what its algorithm and companions send: the tensors that may leave a node, and no others."""
    from freehold.cli.output import check_writable, write
    from freehold.coordinator.specification import specified
    from freehold.plan import digest, dumps, load_plan

    check_writable(output or plan)
    made = specified(load_plan(plan), _bundle(bundle))
    write(output or plan, dumps(made))
    for name, tensors in ((made.algorithm.name, made.contribution.tensors), *((c.name, c.tensors) for c in made.companions)):
        sys.stdout.write(f"{name}: {len(tensors)} tensors, {_numbers(tensors)} numbers a round\n")
    sys.stdout.write(f"Plan {digest(made)}\n")


@study.command()
def keygen(
    key: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes; the public one goes to FILE.pub.")],
) -> None:
    """Make a study key. Who holds it may start studies on coordinators that were started with --study-key FILE.pub."""
    from freehold.signing import make_key

    public = key.with_name(key.name + ".pub")
    made = make_key(key, public)
    sys.stdout.write(
        f"Key {made}\n  {key}      sign with it, and keep it to yourself: freehold study sign PLAN.toml --key {key}\n"
        f"  {public}  for coordinators: freehold coordinator start --study-key {public}\n"
    )


@study.command()
def sign(
    plan: PlanFile,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The private study key.")],
) -> None:
    """Sign a plan, everything in it: PLAN.toml.sig beside it, which `study run` sends along."""
    from freehold.cli.output import check_writable, write
    from freehold.plan import digest, load_plan
    from freehold.signing import sign

    identity = digest(load_plan(plan))
    where = _signature_of(plan)
    check_writable(where)
    write(where, sign(identity, key) + "\n")
    sys.stdout.write(f"Written: {where}\nPlan {identity}\n")


@study.command()
@grouped
def run(
    plan: PlanFile,
    results: ResultOptions,
    where: CoordinatorOptions,
    bundle: BundleFile = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it ends, with progress, and show the report.")] = False,
    every: Annotated[
        str | None, typer.Option("--every", metavar="TIME", help="Go on training and measure again so often: 12h, 7d.")
    ] = None,
    times: Annotated[int | None, typer.Option("--times", min=1, metavar="N", help="With --every: so often in all.")] = None,
) -> None:
    """Start a study; starting it again changes nothing. Exit code 1 if it is refused, or ends otherwise than finished."""
    from msgspec import UNSET

    from freehold.cli.live import told_state
    from freehold.cli.output import check_writable
    from freehold.wire.admin import StudyRequest, StudyStarted

    if not wait and (results.json or results.report):
        raise UsageError("There is no report before the study ends.", hint="Add --wait, or use `freehold study show` later.")
    if times is not None and every is None:
        raise UsageError("--times needs --every.", hint="For instance --every 24h --times 7.")
    if wait and every is not None and times is None:
        raise UsageError("A study with --every has no end to wait for.", hint="Add --times, or leave out --wait.")
    check_writable(results.json, results.report)
    coordinator, signed = admin(where), _signature_of(plan)
    signature = signed.read_text(encoding="utf-8").strip() if signed.exists() else None
    every_s = None if every is None else seconds(every)
    code = _bundle(bundle)
    request = StudyRequest(
        plan=_text(plan), signature=signature, bundle=UNSET if code is None else code, every_s=every_s, times=times
    )
    digest = coordinator.post("/v1/studies", request, StudyStarted).digest
    if not wait:
        info = find(coordinator, digest)
        told = "under way" if told_state(info) == "running" else told_state(info)
        told = told if info.state == "running" else f"over: it has run before, and is {info.state}"
        sys.stdout.write(f"Study {digest} is {told}.\nLook at it: freehold study show {digest[7:19]}{flags(where)}\n")
        return
    from freehold.cli.live import following

    try:
        with following() as follow:
            while (info := find(coordinator, digest)).state == "running":
                follow(info)
                time.sleep(POLL_S)
            follow(info)
    except KeyboardInterrupt:
        again = digest[7:19] + flags(where)
        errors().print("The study goes on without you.")
        errors().print(f"Watch it: freehold study show {again}\nEnd it: freehold study stop {again}")
        raise typer.Exit(130) from None
    _end(info)
    tell(coordinator, digest, results)


@study.command("list")
@grouped
def list_(where: CoordinatorOptions, as_json: AsJson = False) -> None:
    """List all studies."""
    from freehold.cli.live import list_of
    from freehold.cli.show import table
    from freehold.wire.admin import Studies

    found = admin(where).get("/v1/studies", Studies).studies
    if as_json:
        sys.stdout.write(json.dumps([_info(each) for each in found], indent=1) + "\n")
        return
    table(list_of(found), empty="No studies. `freehold study new` writes a plan, `freehold study run` starts it.")


@study.command()
@grouped
def show(
    name: StudyName,
    results: ResultOptions,
    where: CoordinatorOptions,
    cycle: Annotated[
        int | None, typer.Option("--cycle", min=1, metavar="N", help="Of a study with --every: the report of this cycle.")
    ] = None,
) -> None:
    """Show where a study is: its runs, round times and bytes, and once it is measured, the report."""
    from freehold.cli.live import print_cycles, print_runs
    from freehold.cli.output import STDOUT, check_writable
    from freehold.wire.admin import Results

    check_writable(results.json, results.report)
    coordinator = admin(where)
    path = f"/v1/studies/{urllib.parse.quote(name, safe='')}"
    found = coordinator.get(path + (f"?cycle={cycle - 1}" if cycle else ""), Results)
    info = _info_of(coordinator, found)
    if STDOUT not in (results.json, results.report):
        print_runs(info, found)
        if info.schedule:
            print_cycles(found, by_cycle(coordinator, found))
    if found.measures:
        tell(coordinator, info.digest, results, cycle=found.cycle)
    elif cycle:
        raise UsageError(
            f"Cycle {cycle} of this study is not measured.", hint="`freehold study show` without --cycle lists them."
        )
    elif results.json or results.report:
        raise UsageError("Nothing of this study is measured yet.", hint="Wait until its first runs are finished.")


@study.command()
@grouped
def stop(
    name: StudyName,
    where: CoordinatorOptions,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with the study.")] = "",
) -> None:
    """End a study; a researcher: one of their own. What was trained stays where it is; the nodes are asked no more."""
    from freehold.wire.admin import Done, Subject

    admin(where).post("/v1/studies/stop", Subject(name=name, reason=reason), Done)
    sys.stdout.write(f"Study {name} is stopped.\n")


def find(coordinator: Administrator, digest: str) -> StudyInfo:
    """A study by its plan's digest."""
    from freehold.wire.admin import Studies

    return next(each for each in coordinator.get("/v1/studies", Studies).studies if each.digest == digest)


def by_cycle(coordinator: Administrator, found: Results) -> dict[int, Results]:
    """What the last cycles found, by their index."""
    from freehold.plan import digest, parse
    from freehold.wire.admin import Results

    study = digest(parse(found.plan))
    last = [each.index for each in found.cycles[-MOST_CYCLES:]]
    return {i: found if i == found.cycle else coordinator.get(f"/v1/studies/{study}?cycle={i}", Results) for i in last}


def tell(coordinator: Administrator, digest: str, options: ResultOptions, *, cycle: int | None = None) -> None:
    """The report of what is measured, on the terminal and in files; of the last cycle if none is given."""
    from freehold.cli.running import tell
    from freehold.plan import parse
    from freehold.study.federated import KEPT, comparison_of
    from freehold.wire.admin import Results

    found = coordinator.get(f"/v1/studies/{digest}" + ("" if cycle is None else f"?cycle={cycle}"), Results)
    if parse(found.plan).privacy.unit != "none" and not (options.json or options.report):
        errors().print(KEPT)
        return
    tell(comparison_of(found, command=command(), notes=(privacy_note(found),)), options)


def privacy_note(results: Results) -> str:
    """Which promise of privacy held."""
    from freehold.plan import parse
    from freehold.policy import promises

    plan = parse(results.plan)
    if plan.privacy.unit == "none":
        return f"Privacy: {promises.NOTHING}"
    if plan.privacy.unit == "record":
        return f"Privacy: {promises.RECORD.format(delta=f'{plan.privacy.delta:g}')} {promises.MEASURES}"
    from freehold.privacy import planned_epsilon

    _, epsilon = planned_epsilon(plan, 1)  # of a node: how many records it has does not matter
    if not math.isfinite(epsilon):  # noise that is too narrow for its grid hides nothing
        return f"Privacy: {promises.NOTHING}"
    said = promises.CLIENT.format(epsilon=f"{math.ceil(epsilon * 100) / 100:g}", delta=f"{plan.privacy.delta:g}")
    return f"Privacy: {said} {promises.MEASURES}"


def _end(info: StudyInfo) -> None:
    if info.state != "finished":
        raise StudyRefused(
            f"The study {info.name} is {info.state}: {info.reason or 'no reason is known'}.",
            hint="`freehold study show` has what was measured before.",
        )


def _info_of(coordinator: Administrator, found: Results) -> StudyInfo:
    from freehold.plan import digest, parse

    return find(coordinator, digest(parse(found.plan)))


def _info(info: StudyInfo) -> dict[str, object]:
    from freehold.wire.messages import encode

    told: dict[str, object] = json.loads(encode(info))
    return told


def _signature_of(plan: Path) -> Path:
    return plan.with_name(plan.name + ".sig")


def _bundle(path: Path | None) -> bytes | None:
    from freehold.plan.bundle import read_bundle

    return None if path is None else read_bundle(path)


def _text(plan: Path) -> str:
    from freehold.plan import dumps, load_plan

    return dumps(load_plan(plan))


def _numbers(tensors: object) -> int:
    import math

    return sum(math.prod(each.shape) for each in tensors)  # type: ignore[attr-defined]
