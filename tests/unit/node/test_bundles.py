"""Code that came with plans, as a node keeps it: only what the plan names, whole after a kill, and never for a weak sandbox."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from freehold import failpoints
from freehold.errors import ApprovalError, BenefitKept, BundleRefused, BundleUnguarded, PolicyRefused
from freehold.node.bundles import MOST_KEPT, Bundles, check_guarded
from freehold.node.errands import OutgoingMeasures
from freehold.plan import Plan, TaskRef
from freehold.plan.bundle import LIMIT_BYTES, digest_of, pack
from freehold.policy import DataRules, decide, parse_policy
from freehold.policy.words import summary
from freehold.wire.local import close, sealed
from tests.unit.node.test_admission import Owner
from tests.unit.policy.plans import FOREIGN, facts, heart, noised

POINTS = ["node.bundle.writing", "node.bundle.written", "node.bundle.named"]
BODY = pack({"task.py": "raise SystemExit('it was run')\n"})
SCRIPT = """
import sys
from pathlib import Path
from freehold.node.bundles import Bundles
from tests.unit.node.test_bundles import BODY, naming, sealed
Bundles(Path(sys.argv[1])).take(naming(BODY), [sealed(BODY, "bundle")])
"""


def naming(body: bytes) -> Plan:
    return heart(task=TaskRef(name="heart", bundle=digest_of(body)))


def take(bundles: Bundles, plan: Plan, body: bytes) -> bytes | None:
    fd = sealed(body, "bundle")
    try:
        return bundles.take(plan, [fd])
    finally:
        close([fd])


def test_what_the_plan_names_is_kept_and_found_again(tmp_path: Path) -> None:
    bundles, plan = Bundles(tmp_path), naming(BODY)
    assert take(bundles, plan, BODY) == BODY
    assert bundles.take(plan, []) == BODY
    assert Bundles(tmp_path).files(digest_of(BODY)) == {"task.py": "raise SystemExit('it was run')\n"}
    assert bundles.take(heart(), []) is None


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b" ", pack({"task.py": ""}), b"", b"x" * (LIMIT_BYTES + 1)])
def test_other_bytes_are_refused_and_not_kept(body: bytes, tmp_path: Path) -> None:
    bundles = Bundles(tmp_path)
    with pytest.raises(BundleRefused) as refused:
        take(bundles, naming(BODY), body)
    assert refused.value.code == 337 and not bundles.folder.exists()
    with pytest.raises(BundleRefused):
        bundles.take(naming(BODY), [])


def test_bytes_with_the_right_digest_that_are_no_bundle_are_refused(tmp_path: Path) -> None:
    for body in (b"{}", b"import os", BODY.replace(b"task.py", b"../t.py")):
        with pytest.raises(BundleRefused):
            take(Bundles(tmp_path), naming(body), body)


def test_a_file_that_was_changed_on_the_disk_counts_as_none(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path)
    take(bundles, naming(BODY), BODY)
    [kept] = bundles.folder.iterdir()
    kept.write_bytes(BODY.replace(b"it was", b"it is"))
    with pytest.raises(BundleRefused):
        bundles.take(naming(BODY), [])
    assert bundles.files(digest_of(BODY)) is None
    assert take(bundles, naming(BODY), BODY) == BODY and kept.read_bytes() == BODY


def test_a_coordinator_cannot_fill_the_disk(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path)
    bodies = [pack({"task.py": f"x = {number}\n"}) for number in range(MOST_KEPT + 2)]
    for number, body in enumerate(bodies):
        take(bundles, naming(body), body)
        kept = bundles.folder / f"{digest_of(body).removeprefix('sha256:')}.json"
        os.utime(kept, (number, number))
    assert len(list(bundles.folder.iterdir())) == MOST_KEPT
    assert bundles.files(digest_of(bodies[0])) is None and bundles.files(digest_of(bodies[-1])) is not None


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_it_whole_or_not_there(point: str, tmp_path: Path) -> None:
    command, root = [sys.executable, "-c", SCRIPT, str(tmp_path)], Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, env={**os.environ, failpoints.VARIABLE: f"{point}=kill"}, check=False)
    assert done.returncode == -9
    assert Bundles(tmp_path).files(digest_of(BODY)) is None or point == "node.bundle.named"
    subprocess.run(command, cwd=root, env={**os.environ, failpoints.VARIABLE: ""}, check=True)
    assert Bundles(tmp_path).files(digest_of(BODY)) is not None


def test_a_full_disk_refuses_it(tmp_path: Path) -> None:
    failpoints.arm("node.bundle.writing=full")
    try:
        with pytest.raises(ApprovalError):
            take(Bundles(tmp_path), naming(BODY), BODY)
    finally:
        failpoints.arm("")


def test_no_weak_sandbox_will_do() -> None:
    for level in ("strict", "standard"):
        check_guarded(naming(BODY), level)  # type: ignore[arg-type]
    for level in ("basic", "none"):
        check_guarded(heart(), level)  # type: ignore[arg-type]
        with pytest.raises(BundleUnguarded) as refused:
            check_guarded(naming(BODY), level)  # type: ignore[arg-type]
        assert refused.value.code == 338


# What the owner's policy says to it.

BROUGHT = TaskRef(name="heart", bundle=FOREIGN)


def rules(text: str) -> str:
    return f"[data.heart]\n{text}"


@pytest.mark.parametrize(
    ("said", "plan", "verdict", "failed"),
    [
        ('release = "noised"\ntasks = ["heart"]', noised("client", task=BROUGHT), "waits", "code"),
        (f'release = "noised"\ncode = ["{FOREIGN}"]', noised("client", task=BROUGHT), "allowed", ""),
        (f'release = "noised"\ncode = ["{FOREIGN}"]', noised("record", task=BROUGHT), "denied", "release"),
        (f'release = "trusted-code"\ncode = ["{FOREIGN}"]', heart(task=BROUGHT), "denied", "release"),
        (f'release = "trusted-code"\ntrusted_code = ["{FOREIGN}"]', heart(task=BROUGHT), "allowed", ""),
        (f'release = "noised"\ntrusted_code = ["{FOREIGN}"]', heart(task=BROUGHT), "denied", "release"),
        (f'trusted_code = ["{FOREIGN}"]', heart(task=BROUGHT), "denied", "release"),
        (f'release = "noised"\nsandbox = "strict"\ncode = ["{FOREIGN}"]', noised("client", task=BROUGHT), "denied", "sandbox"),
    ],
)
def test_rules_for_code_that_comes_with_a_plan(said: str, plan: Plan, verdict: str, failed: str) -> None:
    found = decide(parse_policy(rules(said)), plan, facts(sandbox="standard", counted=True))
    assert found.says == verdict, found.failed
    assert [each.rule for each in found.failed] == ([failed] if failed else [])


def test_the_line_that_is_offered_to_an_owner_who_trusts_it_allows_it() -> None:
    said = f'release = "trusted-code"\ncode = ["{FOREIGN}"]\n'
    [release] = decide(parse_policy(rules(said)), heart(task=BROUGHT), facts(sandbox="strict")).failed
    assert "read it" in release.line
    assert decide(parse_policy(rules(said + release.line)), heart(task=BROUGHT), facts(sandbox="strict")).says == "allowed"


def test_no_policy_lets_it_run_without_a_sandbox() -> None:
    said = parse_policy(rules(f'release = "noised"\nsandbox = "none"\ncode = ["{FOREIGN}"]'))
    found = decide(said, noised("client", task=BROUGHT), facts(sandbox="basic"))
    assert [(each.rule, each.line) for each in found.failed] == [("sandbox", "")]


def test_of_code_that_the_owner_does_not_trust_no_figures_leave(tmp_path: Path) -> None:
    """They are not noised: they could say anything."""
    owner, measured = Owner(tmp_path), OutgoingMeasures(splits={})
    shares = {"release": "trusted-code", "share_benefit": "named"}
    plan = naming(BODY)
    with pytest.raises(BenefitKept):
        owner.admission.share(DataRules(code=(digest_of(BODY),), **shares), plan, measured)  # type: ignore[arg-type]
    trusting = DataRules(trusted_code=(digest_of(BODY),), **shares)  # type: ignore[arg-type]
    assert owner.admission.share(trusting, plan, measured) is measured


@pytest.mark.parametrize(
    ("more", "told"),
    [("", "do not leave: they have no noise"), (f'trusted_code = ["{FOREIGN}"]\n', "leave as they are"), (None, "is never")],
)
def test_the_owner_reads_what_the_code_is_and_what_leaves(more: str | None, told: str) -> None:
    said = "" if more is None else f'share_benefit = "named"\n{more}'
    plan, files = noised("client", task=BROUGHT), {"task.py": "import os\nimport pack\n", "pack.py": ""}
    words = dict(summary(plan, columns=None, installed=False, rules=parse_policy(rules(said)).data["heart"], files=files))
    assert told in words["measures"] and "not known" in words["data"]
    assert FOREIGN in words["code"] and words["code"].endswith("2 files with 2 lines, which import os")


def test_an_approval_does_not_lift_the_noise(tmp_path: Path) -> None:
    owner, plan = Owner(tmp_path, rules('release = "trusted-code"\n')), naming(BODY)
    from freehold.node.approvals import Approvals

    Approvals(tmp_path).say(Approvals(tmp_path).keep(plan, None), "approved")
    with pytest.raises(PolicyRefused) as refused:
        owner.ask(plan)
    assert "release" in refused.value.hint
