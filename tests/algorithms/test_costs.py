"""The measured costs are those that the papers and common sense give."""

from __future__ import annotations

from functools import cache

import pytest

from freehold.algorithms import Costs, costs
from freehold.core import Algorithm, Rate, Task, algorithm_entry, entry_of
from freehold.core.registry import Value

MODEL = 64 * 256 + 256 + 2 * 256 + 256 * 64 + 64 + 64 * 10 + 10
HEAD = (64 * 10 + 10) / MODEL
NORM = 2 * 256 / MODEL
PROTOTYPES = (10 * 64 + 10) / MODEL


@cache
def cost(name: str) -> Costs:
    return costs(algorithm_entry(name))


@pytest.mark.parametrize(
    ("name", "download", "upload", "server", "personal"),
    [
        ("local", 0, 0, 0, 1),
        ("fedavg", 1, 1, 1, 0),
        ("fedprox", 1, 1, 1, 0),
        ("scaffold", 2, 2, 2, 1),
        ("fedadam", 1, 1, 3, 0),
        ("ditto", 1, 1, 1, 1),
        ("apfl", 1, 1, 1, 1),
        ("fedper", 1 - HEAD, 1 - HEAD, 1 - HEAD, HEAD),
        ("fedrep", 1 - HEAD, 1 - HEAD, 1 - HEAD, HEAD),
        ("lg-fedavg", HEAD, HEAD, HEAD, 1 - HEAD),
        ("fedbn", 1 - NORM, 1 - NORM, 1 - NORM, NORM),
        ("fedbabu", 1, 1 - HEAD, 1, 0),
        ("fedala", 1, 1, 1, 1 + HEAD),
        ("ifca", 2, 2, 2, 0),
        ("fedrod", 1, 1, 1, HEAD),
        ("fedproto", PROTOTYPES, PROTOTYPES, PROTOTYPES, 1),
        ("knn-per", 1, 1, 1, 0),
    ],
)
def test_traffic_and_memory_in_models(name: str, download: float, upload: float, server: float, personal: float) -> None:
    found = cost(name)
    assert found.download == pytest.approx(download, abs=1e-3)
    assert found.upload == pytest.approx(upload, abs=1e-3)
    assert found.server == pytest.approx(server, abs=1e-3)
    assert found.personal == pytest.approx(personal, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "gradients"),
    [
        ("fedavg", 1),
        ("scaffold", 1),
        ("ditto", 2),
        ("apfl", 2),
        ("fedrep", 2),  # half of them of the head alone
        ("fedrod", 1),
        ("fedproto", 1),
        ("feddbe", 1),
        ("ifca", 1),
        ("fedala", 1.5),  # five more in a round of ten steps
        ("pfedme", 5),
        ("per-fedavg", 2),
        ("per-fedavg-hf", 4),
    ],
)
def test_gradients_per_local_step(name: str, gradients: float) -> None:
    assert cost(name).gradients == gradients


def test_arithmetic_is_what_gradients_and_passes_forward_cost() -> None:
    assert cost("fedavg").compute == cost("scaffold").compute == 1
    assert cost("ditto").compute == 2
    assert 1 < cost("fedrep").compute < 1.5, "a gradient of the head alone is a pass forward and a little"
    assert 1.7 < cost("ifca").compute < 1.9, "both centers are tried on all training data first"
    assert 1 < cost("fedrod").compute < 1.05


def test_work_before_predicting() -> None:
    assert cost("fedavg").adapting == cost("ditto").adapting == 0
    assert cost("fedavg-finetuned").adapting == cost("per-fedavg").adapting == 1
    assert 0 < cost("fedavg-intercept").adapting < cost("fedbabu").adapting < 0.5
    assert 0 < cost("knn-per").adapting < 1


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("fedavg", set()),
        ("scaffold", set()),
        ("fedrod", set()),
        ("fedproto", {"sums", "counts"}),
        ("feddbe", {"consensus", "known"}),
        ("ifca", {"members"}),
    ],
)
def test_what_is_sent_beside_differences(name: str, sent: set[str]) -> None:
    assert set(cost(name).statistics) == sent


def test_what_can_be_promised() -> None:
    assert all(cost(name).secure_aggregation for name in ("fedavg", "scaffold", "fedproto", "ifca"))
    assert cost("fedavg").record_privacy and cost("ditto").record_privacy
    assert not cost("fedproto").record_privacy and not cost("ifca").record_privacy


def test_hyperparameters_change_costs() -> None:
    entry = algorithm_entry("ifca")
    assert costs(entry, clusters=3).upload == pytest.approx(3, abs=1e-3)
    assert costs(algorithm_entry("pfedme"), inner_steps=2).gradients == 2


def test_an_algorithm_from_a_notebook_can_be_measured_and_its_need_for_single_contributions_shows() -> None:
    def robust(task: Task, *, lr: Rate) -> Algorithm:
        """FedAvg whose server would want each contribution."""
        settings: dict[str, Value] = {"lr": lr}
        fedavg = algorithm_entry("fedavg").build(task, **settings)
        return Algorithm(name="robust", task=task, init=fedavg.init, client_update=fedavg.client_update, associative=False)

    found = costs(entry_of("robust", robust), lr=0.1)
    assert not found.secure_aggregation
    assert found.upload == 1
