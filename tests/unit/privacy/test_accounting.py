"""ε against what others computed: closed forms, published figures, integrals done by hand, and a second accountant."""

from __future__ import annotations

import math
import subprocess
import sys
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp
from scipy.stats import norm

from freehold.errors import PlanError
from freehold.plan import AlgorithmRef, Companion, Plan, Privacy, TaskRef, Training
from freehold.plan.tables import MOST_RECORD_NOISE
from freehold.privacy.accounting import Mechanism, epsilon, epsilon_by_rdp, epsilon_of, mechanism_of, planned_epsilon


def analytic_epsilon(sigma: float, delta: float) -> float:
    """The analytic Gaussian mechanism: Balle and Wang 2018, Theorem 8, for sensitivity 1."""

    def excess(eps: float) -> float:
        return float(norm.cdf(0.5 / sigma - eps * sigma) - math.exp(eps) * norm.cdf(-0.5 / sigma - eps * sigma)) - delta

    return float(brentq(excess, 0.0, 700.0)) if excess(0.0) > 0 else 0.0


@pytest.mark.parametrize("sigma", [0.7, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("count", [1, 20, 100])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_unsampled_noise_has_the_closed_form(sigma: float, count: int, delta: float) -> None:
    exact = analytic_epsilon(sigma / math.sqrt(count), delta)
    found = epsilon([Mechanism(noise_multiplier=sigma, count=count)], delta)
    assert exact - 1e-9 <= found <= exact + max(2e-3, 2e-4 * exact)


@pytest.mark.parametrize("sampling", [1.0, 0.3])
@pytest.mark.parametrize("sigma", [1e-200, 1e-150, 1e-9, 0.002, 0.3])
def test_hardly_any_noise_costs_a_lot_and_is_told_at_once(sigma: float, sampling: float) -> None:
    """The 0.01-quantile of the loss of N(1, σ²) against N(0, σ²), which is N(μ²/2, μ²), is less than ε at that δ."""
    mu = 1 / sigma if sigma > 1e-151 else math.inf
    found = epsilon([Mechanism(noise_multiplier=sigma, sampling=sampling)], 1e-5)
    if math.isinf(mu):
        assert math.isinf(found)
        return
    assert (
        (mu**2 / 2 - 3 * mu) * (1 - 1e-9) + math.log(sampling) - 1
        < found
        <= (mu**2 / 2 + mu * math.sqrt(2 * math.log(1e5))) * (1 + 1e-9)
    )


def test_noise_of_several_studies_composes_to_the_closed_form() -> None:
    parts = [Mechanism(noise_multiplier=s, count=n) for s, n in ((2.0, 3), (5.0, 40), (9.0, 7))]
    joined = 1 / math.sqrt(3 / 4 + 40 / 25 + 7 / 81)
    assert epsilon(parts, 1e-5) == pytest.approx(analytic_epsilon(joined, 1e-5), abs=2e-3)
    assert epsilon(parts, 1e-5) == epsilon(reversed(parts), 1e-5)
    assert epsilon([*parts, Mechanism(noise_multiplier=1.0, count=0)], 1e-5) == epsilon(parts, 1e-5)


def test_one_sampled_step_is_what_the_integral_says() -> None:
    """δ(ε) of (1 - q) N(0, σ²) + q N(1, σ²) against N(0, σ²), the worse of both directions, by quadrature."""
    q, sigma, eps = 0.2, 1.3, 0.6

    def mixed(x: float) -> float:
        return (1 - q) * float(norm.pdf(x, 0, sigma)) + q * float(norm.pdf(x, 1, sigma))

    def alone(x: float) -> float:
        return float(norm.pdf(x, 0, sigma))

    deltas = [
        quad(lambda x, p=p, r=r: max(p(x) - math.exp(eps) * r(x), 0.0), -20, 21, limit=2000, points=[-2, 0, 1, 2, 4])[0]
        for p, r in ((mixed, alone), (alone, mixed))
    ]
    found = epsilon([Mechanism(noise_multiplier=sigma, sampling=q)], max(deltas))
    assert found == pytest.approx(eps, abs=1e-3)


def classical_rdp_epsilon(q: float, sigma: float, count: int, delta: float) -> float:
    """ε as papers of 2016 to 2019 gave it: moments at integer orders (Mironov, Talwar and Zhang 2019, equation 6), and Mironov's
    conversion."""

    def rdp(order: int) -> float:
        terms = [
            gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
            + (order - k) * math.log1p(-q) + k * math.log(q) + (k * k - k) / (2 * sigma**2)
            for k in range(order + 1)
        ]  # fmt: skip
        return float(logsumexp(terms)) / (order - 1)

    return min(count * rdp(a) + math.log(1 / delta) / (a - 1) for a in range(2, 256))


@pytest.mark.parametrize(
    ("noise", "epochs", "published"),
    [(1.3, 20, 1.34), (1.1, 60, 3.0)],
    ids=["sigma 1.3", "sigma 1.1"],
)
def test_dp_sgd_on_mnist_has_the_published_figures(noise: float, epochs: int, published: float) -> None:
    """Batches of 256 of 60,000 images, δ = 1e-5: Bu, Dong, Long and Su 2020, figure 4, and TensorFlow Privacy's tutorial (3.0).

    They were made by the moments accountant; what is known since is a little less.
    """
    count = epochs * 60_000 // 256
    assert classical_rdp_epsilon(256 / 60_000, noise, count, 1e-5) == pytest.approx(published, abs=0.03)
    step = Mechanism(noise_multiplier=noise, sampling=256 / 60_000, count=count)
    tight = epsilon([step], 1e-5)
    assert 0.65 * published < tight < epsilon_by_rdp([step], 1e-5) < published


def test_the_moments_accountant_paper_has_its_figure() -> None:
    """Abadi et al. 2016, section 3.2: q = 0.01, σ = 4, δ = 1e-5, 10,000 steps: 1.26, where strong composition has 9.34."""
    assert classical_rdp_epsilon(0.01, 4.0, 10_000, 1e-5) == pytest.approx(1.26, abs=0.005)
    steps = [Mechanism(noise_multiplier=4.0, sampling=0.01, count=10_000)]
    assert 0.9 < epsilon(steps, 1e-5) < epsilon_by_rdp(steps, 1e-5) < 1.26


@pytest.mark.parametrize(
    ("examples", "batch", "noise", "epochs", "delta", "published"),
    [(60_000, 150, 1.3, 15, 1e-5, 0.7242234026109595), (100_000, 100, 1.0, 30, 1e-7, 1.4154988495444845)],
)
def test_renyi_has_the_figures_of_tensorflow_privacys_own_tests(
    examples: int, batch: int, noise: float, epochs: int, delta: float, published: float
) -> None:
    """compute_dp_sgd_privacy_test.py."""
    steps = [Mechanism(noise_multiplier=noise, sampling=batch / examples, count=epochs * examples // batch)]
    assert epsilon_by_rdp(steps, delta) == pytest.approx(published, rel=1e-6)
    assert 0.7 * published < epsilon(steps, delta) < published


@settings(max_examples=8, deadline=None)
@given(
    sigma=st.floats(0.8, 8),
    sampling=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    count=st.integers(1, 300),
    delta=st.sampled_from([1e-7, 1e-5, 1e-3]),
)
def test_privacy_loss_distributions_never_say_more_than_renyi(sigma: float, sampling: float, count: int, delta: float) -> None:
    step = Mechanism(noise_multiplier=sigma, sampling=sampling, count=count)
    assert epsilon([step], delta) <= epsilon_by_rdp([step], delta) + 2e-3


@pytest.mark.parametrize("sigma", [0.5, 1.0, 100.0])
@pytest.mark.parametrize("sampling", [0.5, 0.01, 1e-6])
@pytest.mark.parametrize("count", [10**7, 10**10, 10**14, 10**30])
def test_a_plan_of_endless_rounds_is_accounted_for_without_gigabytes(sigma: float, sampling: float, count: int) -> None:
    """Who writes a plan must not be able to end a node with it; Renyi's bound is one, too, and grows with the rounds."""
    steps = Mechanism(noise_multiplier=sigma, sampling=sampling, count=count)
    with mock.patch.dict(sys.modules, {"dp_accounting.pld": None}):
        found = epsilon([steps], 1e-5)
    assert found == epsilon_by_rdp([steps], 1e-5) >= epsilon_by_rdp([steps.times(count // 10)], 1e-5)


@pytest.mark.parametrize("delta", [5e-324, 1e-310, 1e-100, 1 - 2**-53])
@pytest.mark.parametrize("sigma", [1e-4, 1.0, 1e8, 1e300])
@pytest.mark.parametrize("sampling", [5e-324, 0.1, 1.0])
def test_every_delta_that_a_plan_may_name_has_its_epsilon(delta: float, sigma: float, sampling: float) -> None:
    """1 / 5e-324 is infinite: whoever halves what lies below that is never done."""
    found = epsilon([Mechanism(noise_multiplier=sigma, sampling=sampling)], delta)
    assert found >= epsilon([Mechanism(noise_multiplier=sigma, sampling=sampling)], max(delta, 1e-5)) - 1e-9 >= -1e-9


@pytest.mark.parametrize("noise", [5e-324, 1e-300, MOST_RECORD_NOISE])
def test_the_narrowest_and_the_widest_noise_of_a_plan_are_accounted_for(noise: float) -> None:
    found = mechanism_of(plan_with(Privacy(unit="record", max_norm=1.0, noise_multiplier=noise, expected_batch=8.0)), 100)
    assert (found is None) == (noise < 1)


def test_discrete_noise_costs_a_hair_more_and_never_less() -> None:
    plain = epsilon([Mechanism(noise_multiplier=1.0, count=10)], 1e-5)
    fine = epsilon([Mechanism(noise_multiplier=1.0, count=10, lattice=2.0**20)], 1e-5)
    coarse = epsilon([Mechanism(noise_multiplier=1.0, count=10, lattice=16.0)], 1e-5)
    assert plain <= fine <= plain + 1e-6
    assert plain < coarse < 1.02 * plain


def test_one_discrete_number_keeps_its_promise_when_it_is_summed_out() -> None:
    """δ of a discrete Gaussian itself, term by term (Canonne, Kamath and Steinke 2020), is at most that of the bound."""
    steps, shift, eps = 32.0, 20, 2.0  # noise of 32 steps of the grid; one client moves the number by 20 of them
    at = range(-400, 421)
    p = [math.exp(-(x**2) / (2 * steps**2)) for x in at]
    q = [math.exp(-((x - shift) ** 2) / (2 * steps**2)) for x in at]
    delta = sum(max(a / sum(p) - math.exp(eps) * b / sum(q), 0.0) for a, b in zip(p, q, strict=True))
    assert eps <= epsilon([Mechanism(noise_multiplier=steps / shift, lattice=steps)], delta) < 1.02 * eps


def test_a_grid_that_is_too_coarse_is_not_accounted_for() -> None:
    with pytest.raises(ValueError, match="coarse"):
        Mechanism(noise_multiplier=1.0, lattice=4.0)
    with pytest.raises(ValueError, match="no such mechanism"):
        Mechanism(noise_multiplier=0.0)


def plan_with(privacy: Privacy, **training: object) -> Plan:
    given: dict[str, object] = {"rounds": 10, "batch_size": 32, "epochs": 1, "weighting": "uniform", **training}
    return Plan(
        name="p",
        task=TaskRef(name="heart"),
        algorithm=AlgorithmRef(name="ditto"),
        training=Training(**given),  # type: ignore[arg-type]
        privacy=privacy,
        companions=(Companion(name="fedavg"),),
        repeats=2,
    )


RECORD = Privacy(unit="record", max_norm=1.0, noise_multiplier=1.2, expected_batch=32.0)
CLIENT = Privacy(unit="client", max_norm=1.0, noise_multiplier=3.0)


def test_a_plan_without_noise_promises_nothing() -> None:
    assert epsilon_of(plan_with(Privacy()), 1, 100) == math.inf
    assert mechanism_of(plan_with(Privacy()), 100) is None


def test_records_are_sampled_in_secret_and_clients_are_not() -> None:
    record, client = mechanism_of(plan_with(RECORD), 100), mechanism_of(plan_with(CLIENT), 100)
    steps = Mechanism(noise_multiplier=1.2, sampling=0.32, count=4, lattice=1.2 * 2**28)
    assert record == steps, "four steps to a pass of 100 in 32s; a grid of 2^28 steps to the norm"
    assert client == Mechanism(noise_multiplier=3.0, lattice=3.0 * 2**24), "the plan's fixed point"
    assert mechanism_of(plan_with(RECORD, epochs=None, steps=7), 100).count == 7  # type: ignore[union-attr]
    assert mechanism_of(plan_with(RECORD), 20).sampling == 1.0  # type: ignore[union-attr]
    assert mechanism_of(plan_with(RECORD, batch_size=50), 100).sampling == 0.5, "what is drawn, not what it is divided by"  # type: ignore[union-attr]
    with pytest.raises(PlanError, match="without training examples"):
        mechanism_of(plan_with(RECORD), 0)


def test_noise_narrower_than_its_grid_promises_nothing() -> None:
    for narrow, wide in ((15 * 2.0**-24, 17 * 2.0**-24), (15 * 2.0**-28, 17 * 2.0**-28)):
        unit = CLIENT if narrow > 2.0**-21 else RECORD
        told = [mechanism_of(plan_with(msgspec.structs.replace(unit, noise_multiplier=nm)), 100) for nm in (narrow, wide)]
        assert told[0] is None and told[1] is not None
    assert epsilon_of(plan_with(msgspec.structs.replace(CLIENT, noise_multiplier=2.0**-24)), 1, 100) == math.inf


@pytest.mark.parametrize("privacy", [RECORD, CLIENT], ids=["record", "client"])
def test_epsilon_grows_with_rounds_and_falls_with_examples_and_noise(privacy: Privacy) -> None:
    plan = plan_with(privacy)
    found = [epsilon_of(plan, rounds, 100) for rounds in (0, 1, 2, 10, 50)]
    assert found[0] == 0.0 and found == sorted(set(found))
    assert epsilon_of(plan, 10, 1000) <= epsilon_of(plan, 10, 100)
    more = plan_with(msgspec.structs.replace(privacy, noise_multiplier=9.0))
    assert epsilon_of(more, 10, 100) < epsilon_of(plan, 10, 100)
    with pytest.raises(ValueError, match="-1 rounds"):
        epsilon_of(plan, -1, 100)


def test_companions_and_repeats_count() -> None:
    one, all_runs = planned_epsilon(plan_with(RECORD), 100)
    assert one == epsilon_of(plan_with(RECORD), 10, 100)
    assert all_runs == pytest.approx(epsilon_of(plan_with(RECORD), 40, 100)), "two algorithms, twice"


def test_dp_accounting_is_loaded_when_it_is_needed_and_no_sooner() -> None:
    code = "import sys, freehold.privacy.accounting; print('dp_accounting' in sys.modules, 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
