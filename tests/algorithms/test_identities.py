"""With some settings one algorithm is another: the identities that the docstrings name, exact but for rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from freehold.algorithms import select, with_clip, with_server_momentum
from freehold.algorithms.fedper import keeping
from freehold.core import Algorithm, Round, Tree, algorithm_entry, flatten, leaves, norm, task_from, train
from freehold.core.registry import Value
from freehold.engines import LoopEngine, Work
from freehold.errors import UsageError
from tests.algorithms.problems import CLASSES, WORK, Problem, problem

TINY = 1e-300  # a learning rate that moves nothing: `Rate` is above 0


class Run(NamedTuple):
    servers: list[Tree]
    personal: Mapping[str, Tree]
    predictions: Mapping[str, Tensor]

    @property
    def server(self) -> Tree:
        return self.servers[-1]


@pytest.fixture(scope="module")
def given() -> Problem:
    return problem()


def run(given: Problem, algorithm: Algorithm, *, rounds: int = 3, cohort: int | None = 4, work: Work = WORK) -> Run:
    engine = LoopEngine(algorithm, given.feed, work)
    servers = [report.server for report in train(algorithm, engine, given.clients, rounds=rounds, cohort=cohort)]
    said = engine.predict(algorithm.broadcast(servers[-1]), given.clients, ["test"])
    return Run(servers, engine.store.committed(), {c: outputs["test"] for c, outputs in said.items()})


def build(given: Problem, name: str, **settings: Value) -> Algorithm:
    return algorithm_entry(name).build(given.task, **{"lr": 0.2, **settings})


def same(got: Mapping[str, Any], wanted: Mapping[str, Any], atol: float = 1e-12) -> None:
    flat, expected = flatten(got), flatten(wanted)
    assert flat.keys() == expected.keys()
    for path, value in expected.items():
        torch.testing.assert_close(flat[path], value, rtol=0, atol=atol, msg=lambda text, p=path: f"{p}: {text}")


# ---- FedAvg in disguise ----


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fedprox", {"mu": 0.0}),
        ("ditto", {}),
        ("apfl", {}),
        ("knn-per", {}),
        ("fedavg-finetuned", {}),
        ("fedavg-intercept", {}),
        ("fedala", {"weight_lr": TINY}),
        ("pfedme", {"lr": 0.1, "lam": 4.0, "inner_steps": 1, "inner_lr": 0.5}),  # one inner step, so lr * lam * inner_lr = 0.2
    ],
)
def test_the_shared_model_is_fedavgs(given: Problem, name: str, settings: dict[str, Value]) -> None:
    same(run(given, build(given, name, **settings)).server, run(given, build(given, "fedavg")).server)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_fedopt_without_memory_is_fedavg(given: Problem, name: str) -> None:
    """beta1 = 0 and beta2 = 1: v stays tau^2, so the step is server_lr / (2 tau) times the mean difference."""
    flat = build(given, name, beta1=0.0, beta2=1.0, tau=0.5, server_lr=1.0)
    same(run(given, flat).server["model"], run(given, build(given, "fedavg")).server)


def test_fedadam_that_keeps_v_is_server_momentum(given: Problem) -> None:
    adam = build(given, "fedadam", beta1=0.6, beta2=1.0, tau=0.5, server_lr=1 / 0.4)
    momentum = with_server_momentum(build(given, "fedavg"), momentum=0.6)
    same(run(given, adam).server["model"], run(given, momentum).server["server"])


def test_ifca_with_one_cluster_is_fedavg(given: Problem) -> None:
    ifca = run(given, build(given, "ifca", clusters=1))
    fedavg = run(given, build(given, "fedavg"))
    same({k: t[0] for k, t in ifca.server.items()}, fedavg.server)
    same(ifca.predictions, fedavg.predictions)


def test_keeping_nothing_is_fedavg_and_keeping_all_is_local(given: Problem) -> None:
    same(run(given, keeping(given.task, "none", lambda name: False, lr=0.2)).server, run(given, build(given, "fedavg")).server)
    everything = run(given, keeping(given.task, "all", lambda name: True, lr=0.2))
    assert not everything.server
    same(everything.personal, {c: p["model"] for c, p in run(given, build(given, "local")).personal.items()})


@pytest.mark.parametrize("name", ["fedper", "fedrep", "fedbabu"])
def test_a_split_by_a_head_of_nothing_is_fedavg(given: Problem, name: str) -> None:
    headless = replace(given, task=replace(given.task, head=lambda name: False))
    same(run(given, build(headless, name)).server, run(given, build(given, "fedavg")).server)


def test_scaffold_starts_as_fedavg_and_with_one_client_stays_it(given: Problem) -> None:
    fedavg, scaffold = run(given, build(given, "fedavg")), run(given, build(given, "scaffold"))
    same(scaffold.servers[0]["model"], fedavg.servers[0])
    assert not torch.allclose(scaffold.servers[1]["model"]["head.weight"], fedavg.servers[1]["head.weight"])

    alone = replace(given, feed=replace(given.feed, rows={"d": given.feed.rows["d"]}))
    same(run(alone, build(given, "scaffold"), cohort=1).server["model"], run(alone, build(given, "fedavg"), cohort=1).server)


def test_fedrod_is_fedavg_where_each_client_has_as_many_of_each_class(given: Problem) -> None:
    """The balanced loss then adds the same to each logit."""
    y = torch.arange(len(given.feed.y)) % CLASSES
    rows = {c: {"train": torch.arange(15 * i, 15 * (i + 1)), "validation": s["validation"], "test": s["test"]}
            for i, (c, s) in enumerate(given.feed.rows.items())}  # fmt: skip
    balanced = replace(given, feed=replace(given.feed, y=y, rows=rows))
    same(run(balanced, build(given, "fedrod")).server, run(balanced, build(given, "fedavg")).server)
    assert not torch.allclose(
        run(given, build(given, "fedrod")).server["head.bias"], run(given, build(given, "fedavg")).server["head.bias"]
    )


def test_feddbe_takes_its_first_step_as_fedavg(given: Problem) -> None:
    """The bias starts at 0, and the consensus is not yet known."""
    one = Work(batch_size=4, steps=1)
    dbe, fedavg = (run(given, build(given, name), rounds=1, work=one) for name in ("feddbe", "fedavg"))
    same(dbe.server["model"], fedavg.server)


def test_per_fedavg_without_an_inner_step_is_fedavg_on_the_next_batch(given: Problem) -> None:
    one = Work(batch_size=4, steps=1)  # where the next batch is the same one
    for name in ("per-fedavg", "per-fedavg-hf"):
        meta = run(given, build(given, name, inner_lr=TINY), work=one)
        same(meta.server, run(given, build(given, "fedavg"), work=one).server)


# ---- local-only in disguise ----


def test_ditto_without_a_pull_is_local_begun_at_the_shared_model(given: Problem) -> None:
    ditto, local = (run(given, build(given, name, **s), cohort=None) for name, s in (("ditto", {"lam": 0.0}), ("local", {})))
    same(ditto.personal, {c: p["model"] for c, p in local.personal.items()})
    same(ditto.predictions, local.predictions)


def test_fedproto_without_a_pull_trains_as_local(given: Problem) -> None:
    fedproto, local = (run(given, build(given, name, **s)) for name, s in (("fedproto", {"lam": 0.0}), ("local", {})))
    same(fedproto.personal, {c: p["model"] for c, p in local.personal.items()})


def test_fedrep_with_all_of_the_model_as_its_head_is_local(given: Problem) -> None:
    whole = replace(given, task=replace(given.task, head=lambda name: True))
    local = run(given, build(given, "local"))
    same(run(given, build(whole, "fedrep")).personal, {c: p["model"] for c, p in local.personal.items()})


def test_apfl_at_the_ends_of_alpha(given: Problem) -> None:
    """alpha = 1: v walks as w does in the first round, so alpha stays. alpha = 0: a first step moves neither v nor alpha."""
    personal = run(given, build(given, "apfl", alpha=1.0), rounds=1, cohort=None).personal
    local = run(given, build(given, "local"), rounds=1, cohort=None).personal
    for client, state in personal.items():
        assert state["alpha"] == 1
        same(state["v"], local[client]["model"])

    one = Work(batch_size=4, steps=1)
    apfl, fedavg = (run(given, build(given, n, **s), rounds=1, work=one) for n, s in (("apfl", {"alpha": 0.0}), ("fedavg", {})))
    same(apfl.predictions, fedavg.predictions)


# ---- what is predicted with ----


@pytest.mark.parametrize("name", ["fedavg-finetuned", "fedavg-intercept"])
def test_tuning_by_nothing_predicts_as_fedavg(given: Problem, name: str) -> None:
    same(run(given, build(given, name, tune_lr=TINY)).predictions, run(given, build(given, "fedavg")).predictions)


def test_the_intercept_moves_all_outputs_of_a_client_by_the_same(given: Problem) -> None:
    tuned, fedavg = run(given, build(given, "fedavg-intercept")), run(given, build(given, "fedavg"))
    for client, outputs in tuned.predictions.items():
        shift = outputs - fedavg.predictions[client]
        assert shift.abs().max() > 1e-3
        torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=1e-12)


def test_fedbabus_head_never_moves_and_adapting_moves_nothing_else(given: Problem) -> None:
    algorithm = build(given, "fedbabu")
    server = run(given, algorithm).server
    assert all(torch.equal(server[k], given.task.init[k]) == given.task.head(k) for k in server)
    steps = given.feed.steps("a", 0, WORK)
    adapted = algorithm.adapt(server, {}, steps, given.feed.batch("a", "validation"))
    assert set(adapted) == {"head.weight", "head.bias"}


def test_knn_per_without_neighbors_votes_is_fedavg_and_with_one_only_it_remembers() -> None:
    bare = problem(validation=0)  # so that the weight is what it was set to
    fedavg = run(bare, build(bare, "fedavg"))
    shared = run(bare, build(bare, "knn-per", weight=0.0))
    same(shared.predictions, {c: outputs.softmax(1).log() for c, outputs in fedavg.predictions.items()})

    algorithm = build(bare, "knn-per", weight=1.0, neighbors=1)
    memory = LoopEngine(algorithm, bare.feed, WORK).adapted(fedavg.server, "c")
    x, y = (bare.feed.batch("c", "train")[k] for k in ("x", "y"))
    assert torch.equal(algorithm.outputs(fedavg.server, memory, x).argmax(1), y)


def test_knn_per_finds_the_mean_target_of_the_neighbors_in_regression() -> None:
    given = problem(regression=True, validation=0)
    algorithm = build(given, "knn-per", lr=0.05, weight=1.0, neighbors=1000)
    shared = run(given, build(given, "fedavg", lr=0.05)).server
    batch = given.feed.batch("c", "train")
    outputs = algorithm.outputs(shared, LoopEngine(algorithm, given.feed, WORK).adapted(shared, "c"), batch["x"][:1])
    z = given.task.run(shared, batch).features
    votes = torch.exp(-(z - z[0]).norm(dim=1))
    torch.testing.assert_close(outputs[0, 0], (votes @ batch["y"][:, 0]) / votes.sum())


def test_fedper_and_lg_fedavg_share_what_the_other_keeps(given: Problem) -> None:
    fedper, lg = build(given, "fedper"), build(given, "lg-fedavg")
    assert fedper.init().keys() == lg.enroll({}).keys()
    assert lg.init().keys() == fedper.enroll({}).keys()
    assert fedper.init().keys() | lg.init().keys() == given.task.init.keys()


# ---- SCAFFOLD's invariant ----


@pytest.mark.parametrize(("name", "weighted"), [("scaffold", True), ("scaffold-uniform", False)])
def test_the_mean_of_the_clients_controls_is_the_servers(given: Problem, name: str, weighted: bool) -> None:
    result = run(given, build(given, name), cohort=None)
    weights = {c: float(given.feed.size(c)) if weighted else 1.0 for c in given.clients}
    for k, control in result.server["control"].items():
        mean = sum(weights[c] * p[k] for c, p in result.personal.items()) / sum(weights.values())
        torch.testing.assert_close(mean, control, rtol=0, atol=1e-12)


def test_with_part_of_the_clients_the_mean_over_all_still_is_the_servers(given: Problem) -> None:
    """A client that was never asked has control 0; `|S|/N` makes the server count it."""
    result = run(given, build(given, "scaffold-uniform"))
    assert len(result.personal) < len(given.clients)
    for k, control in result.server["control"].items():
        mean = sum(p[k] for p in result.personal.values()) / len(given.clients)
        torch.testing.assert_close(mean, control, rtol=0, atol=1e-12)


# ---- wrappers ----


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "feddbe", "fedper", "fedadam"])
def test_a_wrapper_that_does_nothing_changes_nothing(given: Problem, name: str) -> None:
    bare = build(given, name)
    plain = run(given, bare, rounds=2)
    same(run(given, with_server_momentum(bare, momentum=0.0), rounds=2).server["server"], plain.server)
    if not bare.statistics:
        same(run(given, with_clip(bare, max_norm=1e9), rounds=2).server, plain.server)


def test_under_server_momentum_scaffolds_control_stays_the_mean_of_the_clients_own(given: Problem) -> None:
    algorithm = with_server_momentum(build(given, "scaffold-uniform"), momentum=0.9, server_lr=0.5)
    ours = run(given, algorithm, rounds=6)
    kept = [ours.personal.get(c, algorithm.enroll(algorithm.broadcast(ours.server))) for c in given.clients]
    mean = {name: torch.stack([each[name] for each in kept]).mean(0) for name in kept[0]}
    same(mean, ours.server["server"]["control"])
    assert any(bool(t.abs().max() > 1e-3) for t in mean.values())
    assert set(ours.server["velocity"]) == {"model"}


@pytest.mark.parametrize("name", ["scaffold", "ifca", "fedproto"])
def test_clip_refuses_what_it_could_not_bound(given: Problem, name: str) -> None:
    with pytest.raises(UsageError, match="may not be scaled"):
        with_clip(build(given, name), max_norm=1.0)


@pytest.mark.parametrize("name", ["ifca", "fedproto"])
def test_server_momentum_refuses_what_sends_no_steps_of_a_model(given: Problem, name: str) -> None:
    with pytest.raises(UsageError, match="sends none"):
        run(given, with_server_momentum(build(given, name)), rounds=1)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_ifcas_centers_differ_where_the_initial_model_is_constant(value: float) -> None:
    net = torch.nn.Linear(1, 1).double()
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, value)
    centers = algorithm_entry("ifca").build(task_from(net, torch.nn.MSELoss()), clusters=3).init()
    assert all(len(t.flatten(1).unique(dim=0)) == 3 for t in centers.values())


def test_a_clipped_contribution_has_the_norm_it_may_have_and_its_direction(given: Problem) -> None:
    clipped = with_clip(build(given, "fedavg"), max_norm=0.01)
    steps = given.feed.steps("e", 0, WORK)
    before = build(given, "fedavg").client_update
    (whole, _, _), (short, _, _) = (
        update(Round(0, 1, 1), given.task.init, {}, steps) for update in (before, clipped.client_update)
    )
    torch.testing.assert_close(norm(short), torch.tensor(0.01, dtype=torch.float64))
    torch.testing.assert_close(norm(short) / norm(whole) * whole["head.bias"], short["head.bias"])


def test_server_momentum_pushes_parameters_and_leaves_running_statistics_between_those_of_the_clients() -> None:
    given = problem(norm=True)
    algorithm = with_server_momentum(build(given, "fedavg"), momentum=0.95, server_lr=1.5)
    server = run(given, algorithm, rounds=8).server
    assert set(flatten(server["velocity"])) == set(given.task.parameters)
    assert server["server"]["body.1.running_var"].min() > 0


def test_server_momentum_keeps_feddbes_consensus(given: Problem) -> None:
    plain = run(given, build(given, "feddbe")).server
    pushed = run(given, with_server_momentum(build(given, "feddbe"))).server["server"]
    same({k: pushed[k] for k in ("consensus", "known")}, {k: plain[k] for k in ("consensus", "known")})


def test_feddbes_consensus_is_a_sum_by_a_count_so_clipping_both_changes_nothing(given: Problem) -> None:
    algorithm = build(given, "feddbe", kappa=5.0)
    shared = run(given, algorithm, rounds=1).server
    clipped = {**shared, "consensus": 0.25 * shared["consensus"], "known": 0.25 * shared["known"]}
    steps = given.feed.steps("e", 1, WORK)
    one, other = (algorithm.client_update(Round(1, 4, 6), seen, algorithm.enroll(seen), steps) for seen in (shared, clipped))
    same(one.contribution, other.contribution)
    assert not one.contribution["known"] and not one.contribution["consensus"].any(), "it is agreed upon once"


def test_select_trains_each_candidate_as_if_it_were_alone(given: Problem) -> None:
    names = ("local", "fedavg", "scaffold", "fedper")
    together = run(given, select({name: build(given, name) for name in names}))
    for name in names:
        apart = run(given, build(given, name))
        same(together.server[name], apart.server)
        same({c: p[name] for c, p in together.personal.items()}, apart.personal)


def test_a_tree_of_momentum_has_no_leaf_but_finite_ones(given: Problem) -> None:
    server = run(given, with_server_momentum(build(given, "scaffold"))).server
    assert all(torch.isfinite(leaf).all() for leaf in leaves(server))
