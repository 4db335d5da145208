"""Every attempt is held by the jail and by each of its layers alone, and gets through where all that stop it are left out."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest

from freehold.sandbox import escapes
from freehold.sandbox.jail import LAYERS, Jail
from freehold.sandbox.limits import usual
from freehold.sandbox.trainer_user import trainer_uid

KERNEL = {"bpf", "perf", "socket-vsock"}
"""What many kernels refuse on their own, or do not have."""

BY_ITSELF = {"never-end", "socket-packet", "mount", "chroot"}
"""What an unprivileged process without namespaces never could: outlive itself, or use capabilities that it does not have."""

JAILS = {
    "bwrap": Jail(bwrap=shutil.which("bwrap"), limits=usual(), uid=trainer_uid("test")),
    "alone": Jail(bwrap=None, limits=usual(), uid=trainer_uid("test")),
}
CASES = [
    pytest.param(kind, name, id=f"{kind}-{name}")
    for kind, jail in JAILS.items()
    for name in escapes.LAYERS_OF
    if kind == "bwrap" or name not in BY_ITSELF
]


@pytest.mark.parametrize("kind", JAILS)
def test_every_attempt_is_held(kind: str) -> None:
    found = escapes.run(JAILS[kind])
    assert [outcome.name for outcome in found] == list(escapes.LAYERS_OF)
    assert not [outcome for outcome in found if outcome.result != "held"]
    assert all(outcome.layer for outcome in found)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_it_gets_through_without_the_layers_that_stop_it(kind: str, name: str) -> None:
    jail = JAILS[kind]
    (found,) = escapes.run(replace(jail, layers=LAYERS - set(escapes.layers_of(name, jail))), [name])
    if name in KERNEL and found.why in ("EPERM", "EACCES", "EAFNOSUPPORT", "ENOSYS"):
        return  # the kernel itself refuses it, to this user
    assert found.result == "escaped", found


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if len(escapes.LAYERS_OF[case.values[1]]) > 1])
def test_each_of_its_layers_alone_holds_it(kind: str, name: str) -> None:
    jail = JAILS[kind]
    stopping = escapes.layers_of(name, jail)
    for layer in stopping:
        (found,) = escapes.run(replace(jail, layers=LAYERS - (set(stopping) - {layer})), [name])
        assert (found.result, found.layer) == ("held", layer), found


def test_an_attempt_that_was_not_made_counts_as_an_escape() -> None:
    broken = replace(JAILS["alone"], code=["/nonexistent"])
    assert {outcome.result for outcome in escapes.run(broken, ["fork", "signal"])} == {"escaped"}


def test_a_node_of_an_ordinary_user_reaches_the_same() -> None:
    if os.getuid() == 0:
        assert trainer_uid("test") not in (None, 0)
    else:
        assert trainer_uid("test") is None
