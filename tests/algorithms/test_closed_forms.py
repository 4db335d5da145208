"""Numbers that can be had with pencil and paper: one parameter w, and clients whose loss is a parabola.

Client i has n_i equal examples, so its loss is `h_i/2 (w - b_i)^2` and a step of SGD takes w to `w - lr h_i (w - b_i)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from freehold.core import Tree, algorithm_entry, task_from, train
from freehold.core.registry import Value
from freehold.engines import Feed, LoopEngine, Work

COUNTS = {"a": 1, "b": 2, "c": 5}
BEST = {"a": 3.0, "b": -1.0, "c": 0.5}
MEAN = (1 * 3.0 + 2 * -1.0 + 5 * 0.5) / 8
START = 2.0


def parabolas(curvature: Mapping[str, float]) -> Feed:
    """x = sqrt(h) and y = sqrt(h) b, so that (w x - y)^2 = h (w - b)^2."""
    roots = torch.cat([torch.full((n,), math.sqrt(curvature[c]), dtype=torch.float64) for c, n in COUNTS.items()])
    best = torch.cat([torch.full((n,), BEST[c], dtype=torch.float64) for c, n in COUNTS.items()])
    rows = dict(zip(COUNTS, torch.arange(8).split(list(COUNTS.values())), strict=True))
    none = torch.arange(0)
    return Feed(x=roots[:, None], y=roots * best, rows={c: {"train": r, "validation": none, "test": r} for c, r in rows.items()})


FLAT = parabolas(dict.fromkeys(COUNTS, 1.0))


def half_square(outputs: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (outputs[:, 0] - y) ** 2


def run(
    name: str, *, feed: Feed = FLAT, steps: int, rounds: int, server: Tree | None = None, **settings: Value
) -> tuple[Tree, Mapping[str, Tree], LoopEngine]:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, START)
    algorithm = algorithm_entry(name).build(task_from(model, half_square), **settings)
    engine = LoopEngine(algorithm, feed, Work(batch_size=8, steps=steps))
    *_, last = train(algorithm, engine, list(COUNTS), rounds=rounds, server=server)
    return last.server, engine.store.committed(), engine


def near(value: Tensor, number: float) -> None:
    assert float(value) == pytest.approx(number, rel=0, abs=1e-10)


def test_fedavg_comes_nearer_to_the_mean_by_the_power_of_its_steps() -> None:
    server, _, _ = run("fedavg", lr=0.1, steps=4, rounds=3)
    near(server["weight"], MEAN + 0.9**12 * (START - MEAN))


def test_fedprox_steps_towards_a_point_between_data_and_shared_model() -> None:
    """Locally the fixed point is (b + mu w) / (1 + mu); many steps reach it, so a round shrinks the distance by mu / (1 + mu)."""
    server, _, _ = run("fedprox", lr=0.2, mu=1.5, steps=150, rounds=3)
    near(server["weight"], MEAN + (1.5 / 2.5) ** 3 * (START - MEAN))


CURVED = {"a": 4.0, "b": 1.0, "c": 0.25}


def test_fedavg_settles_beside_the_optimum_where_clients_curve_differently() -> None:
    server, _, _ = run("fedavg", feed=parabolas(CURVED), lr=0.2, steps=10, rounds=50)
    pull = {c: n * (1 - (1 - 0.2 * CURVED[c]) ** 10) for c, n in COUNTS.items()}
    near(server["weight"], sum(pull[c] * BEST[c] for c in COUNTS) / sum(pull.values()))


@pytest.mark.parametrize(("name", "counts"), [("scaffold", COUNTS), ("scaffold-uniform", dict.fromkeys(COUNTS, 1))])
def test_scaffold_settles_on_the_optimum_and_its_controls_on_the_slopes_there(name: str, counts: dict[str, int]) -> None:
    server, personal, _ = run(name, feed=parabolas(CURVED), lr=0.2, steps=5, rounds=100)
    weight = {c: counts[c] * CURVED[c] for c in COUNTS}
    optimum = sum(weight[c] * BEST[c] for c in COUNTS) / sum(weight.values())
    near(server["model"]["weight"], optimum)
    near(server["control"]["weight"], 0.0)
    for client, control in personal.items():
        near(control["weight"], CURVED[client] * (optimum - BEST[client]))


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_the_first_step_of_fedopt_without_memory_has_the_length_of_its_rate(name: str) -> None:
    forget = {} if name == "fedadagrad" else {"beta2": 0.0}
    server, _, _ = run(name, lr=0.1, server_lr=0.25, beta1=0.0, tau=1e-13, steps=4, rounds=1, **forget)
    near(server["model"]["weight"], START - 0.25)


def test_fedadagrad_sums_squares() -> None:
    """beta1 = 0, tau = 0: after differences d1 and d2, w has moved by eta (sign d1 + d2 / sqrt(d1^2 + d2^2))."""
    server, _, _ = run("fedadagrad", lr=0.1, server_lr=0.25, beta1=0.0, tau=1e-13, steps=1, rounds=2)
    first = -0.1 * (START - MEAN)
    second = -0.1 * (START - 0.25 - MEAN)
    near(server["model"]["weight"], START - 0.25 + 0.25 * second / math.hypot(first, second))


def test_dittos_personal_model_settles_between_its_data_and_the_shared_model() -> None:
    server, personal, _ = run("ditto", lr=0.2, lam=0.5, steps=5, rounds=60)
    near(server["weight"], MEAN)
    for client, own in personal.items():
        near(own["weight"], (BEST[client] + 0.5 * MEAN) / 1.5)


def test_pfedme_is_a_moreau_envelope() -> None:
    """theta = (b + lam w) / (1 + lam), so w goes to the mean, at the rate of the envelope's curvature lam / (1 + lam)."""
    inner = {"inner_steps": 45, "inner_lr": 0.1}  # 0.5 ** 45 of the way is left
    server, _, _ = run("pfedme", lr=0.05, lam=4.0, steps=3, rounds=2, **inner)
    near(server["weight"], MEAN + (1 - 0.05 * 4 / 5) ** 6 * (START - MEAN))
    before, _, _ = run("pfedme", lr=0.05, lam=4.0, steps=1, rounds=1, **inner)
    _, personal, _ = run("pfedme", lr=0.05, lam=4.0, steps=1, rounds=2, **inner)
    for client, theta in personal.items():
        assert float(theta["weight"]) == pytest.approx((BEST[client] + 4 * float(before["weight"])) / 5, abs=1e-8)


@pytest.mark.parametrize(("name", "power"), [("per-fedavg", 1), ("per-fedavg-hf", 2)])
def test_per_fedavg_knows_its_hessian_or_not(name: str, power: int) -> None:
    """The meta-gradient is (1 - alpha h)^2 h (w - b); first-order leaves one of the two factors out."""
    server, _, engine = run(name, lr=0.2, inner_lr=0.3, steps=2, rounds=2)
    near(server["weight"], MEAN + (1 - 0.2 * 0.7**power) ** 4 * (START - MEAN))
    adapted = engine.adapted(server, "a")
    near(adapted["weight"], 3.0 + 0.7**2 * (float(server["weight"]) - 3.0))


def test_a_finetuned_client_walks_from_the_shared_model_towards_its_own_optimum() -> None:
    server, _, engine = run("fedavg-finetuned", lr=0.1, tune_lr=0.4, steps=4, rounds=3)
    for client, best in BEST.items():
        near(engine.adapted(server, client)["weight"], best + 0.6**4 * (float(server["weight"]) - best))


def test_apfl_moves_alpha_by_the_slope_along_the_difference() -> None:
    """From v = w: step 1 moves w by the gradient and v by alpha times it; step 2 sees v - w = (1 - alpha) lr g."""
    _, personal, _ = run("apfl", lr=0.1, alpha=0.25, steps=2, rounds=1)
    for client, best in BEST.items():
        g = START - best
        w, v = START - 0.1 * g, START - 0.1 * 0.25 * g
        slope = 0.25 * v + 0.75 * w - best
        near(personal[client]["alpha"], min(max(0.25 - 0.1 * slope * (v - w), 0), 1))
        near(personal[client]["v"]["weight"], v - 0.1 * 0.25 * slope)


def test_fedala_learns_how_much_of_the_news_to_take() -> None:
    """At the second round old = w_i and new = the mean; dL/dW = (start - b)(new - old), and W starts at 1."""
    server, personal, _ = run("fedala", lr=0.1, weight_lr=0.02, weight_steps=1, steps=1, rounds=2)
    first = {c: START - 0.1 * (START - b) for c, b in BEST.items()}
    shared = START - 0.1 * (START - MEAN)
    after = {}
    for client, best in BEST.items():
        step = shared - first[client]
        weight = min(max(1 - 0.02 * (shared - best) * step, 0), 1)
        near(personal[client]["weights"]["weight"], weight)
        start = first[client] + step * weight
        after[client] = start - 0.1 * (start - best)
    near(server["weight"], sum(n * after[c] for c, n in COUNTS.items()) / 8)


def test_ifcas_centers_settle_on_the_means_of_their_clients() -> None:
    begin = {"weight": torch.tensor([[[2.0]], [[-2.0]]], dtype=torch.float64)}
    server, personal, _ = run("ifca", lr=0.2, clusters=2, steps=5, rounds=40, server=begin)
    assert [personal[c]["pick"].tolist() for c in COUNTS] == [[1, 0], [0, 1], [1, 0]]
    near(server["weight"][0], (1 * 3.0 + 5 * 0.5) / 6)
    near(server["weight"][1], -1.0)


def test_an_intercept_finds_each_clients_base_rate() -> None:
    """Features that say nothing: FedAvg's bias is the mean of all, and each client's own comes to its mean by (1 - lr)^K."""
    model = nn.Linear(1, 1).double()
    nn.init.zeros_(model.bias)
    blank = Feed(x=torch.zeros_like(FLAT.x), y=FLAT.y, rows=FLAT.rows)
    algorithm = algorithm_entry("fedavg-intercept").build(task_from(model, half_square), lr=0.2)
    engine = LoopEngine(algorithm, blank, Work(batch_size=8, steps=5))
    *_, last = train(algorithm, engine, list(COUNTS), rounds=40)
    near(last.server["bias"], MEAN)
    for client, best in BEST.items():
        near(engine.adapted(last.server, client)["bias"], best + 0.8**5 * (MEAN - best))


def test_a_local_model_walks_to_its_own_optimum() -> None:
    _, personal, _ = run("local", lr=0.1, steps=4, rounds=3)
    for client, best in BEST.items():
        near(personal[client]["model"]["weight"], best + 0.9**12 * (START - best))


def test_a_personal_head_of_fedper_and_fedrep_fits_its_client_whatever_the_others_have() -> None:
    """Here the head is the whole model, so nothing is shared, and both are local training."""
    for name in ("fedper", "fedrep"):
        server, personal, _ = run(name, lr=0.1, steps=4, rounds=3)
        assert not server
        for client, best in BEST.items():
            near(personal[client]["weight"], best + 0.9**12 * (START - best))


def test_fedproto_holds_a_feature_near_its_class_mean() -> None:
    """Two clients with one class each in common, features that are a bias: without a loss of the head, they meet."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2)).double()
    for parameter in model[1].parameters():
        nn.init.zeros_(parameter)  # a head of zeros passes no slope on to the features
    x = torch.zeros(4, 1, dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 1])
    none = torch.arange(0)
    feed = Feed(x=x, y=y, rows={c: {"train": r, "validation": none, "test": r} for c, r in
                                (("a", torch.arange(0, 1)), ("b", torch.arange(1, 4)))})  # fmt: skip
    algorithm = algorithm_entry("fedproto").build(task_from(model, nn.CrossEntropyLoss(), classes=2), lr=1e-9)
    engine = LoopEngine(algorithm, feed, Work(batch_size=8, steps=1))
    *_, last = train(algorithm, engine, ["a", "b"], rounds=1)
    bias = float(model[0].bias.detach())
    assert last.server["known"].tolist() == [1, 1]
    assert float(last.server["prototypes"][0, 0]) == pytest.approx(bias, abs=1e-8)
    assert float(last.server["prototypes"][1, 0]) == pytest.approx(bias, abs=1e-8)
