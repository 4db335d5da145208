"""Comparisons as a study would hand them over, drawn from seeds: four hospitals, many phones, one seed, a regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from freehold.report import ClientFacts, Comparison, NoisedRow, PrivacyCost, Row, SeedResult

HOSPITALS = {"Cleveland": (303, 0.46), "Hungary": (294, 0.36), "Switzerland": (123, 0.93), "VA Long Beach": (200, 0.74)}
TITLES = {
    "local": "Alone",
    "fedavg": "FedAvg",
    "fedavg-finetuned": "FedAvg + finetuning",
    "intercept": "FedAvg + local intercept",
    "ditto": "Ditto",
}
VERSIONS = {"freehold": "0.1.0", "torch": "2.13.0", "numpy": "2.4.1", "python": "3.11.7"}
# How much better than alone each row is, per client, in accuracy.
EFFECTS = {
    "local": (0.0, 0.0, 0.0, 0.0),
    "fedavg": (0.03, 0.05, -0.22, -0.06),
    "fedavg-finetuned": (0.05, 0.06, -0.01, 0.03),
    "intercept": (0.03, 0.05, 0.00, 0.02),
    "ditto": (0.11, 0.14, 0.01, 0.04),
}


def facts(name: str, examples: int, labels: Mapping[str, float], *, took_part: bool = True) -> ClientFacts:
    test, validation = round(0.25 * examples), round(0.15 * examples)
    train = examples - test - validation
    return ClientFacts(
        name=name, examples=examples, train=train, validation=validation, test=test, labels=labels, took_part=took_part
    )


def hospitals(*, seeds: int = 10, names: Sequence[str] = tuple(HOSPITALS), rows: Mapping[str, str] = TITLES) -> Comparison:
    rng = np.random.default_rng(7)
    clients = tuple(
        facts(name, size, {"healthy": 1 - ill, "ill": ill}) for name, (size, ill) in zip(names, HOSPITALS.values(), strict=True)
    )
    alone = {seed: {client.name: _right(rng, 0.76, client.test) for client in clients} for seed in range(seeds)}
    built = []
    for row, title in rows.items():
        results = []
        for seed in range(seeds):
            figures, errors = {}, {}
            for place, client in enumerate(clients):
                base = alone[seed][client.name]
                right = base.copy()
                if row != "local":
                    flips = rng.random(client.test)
                    right[(base == 0) & (flips < 0.25 + max(EFFECTS[row][place], 0) * 2.5)] = 1
                    right[(base == 1) & (flips < 0.07 + max(-EFFECTS[row][place], 0) * 1.2)] = 0
                accuracy = float(right.mean())
                figures[client.name] = {
                    "accuracy": accuracy,
                    "balanced_accuracy": accuracy - 0.05 - 0.2 * (client.name == names[2]),
                    "log_loss": 0.9 - 0.6 * accuracy,
                }
                errors[client.name] = float(np.std(right - base, ddof=1) / np.sqrt(client.test))
            level = float(np.mean([each["accuracy"] for each in figures.values()]))
            curve = tuple((at, level - 0.25 * float(np.exp(-at / 4)) + float(rng.normal(0, 0.006))) for at in range(0, 31))
            served = {name: ("personal" if rng.random() < 0.8 else "local") for name in names} if row == "ditto" else {}
            results.append(
                SeedResult(
                    seed=42 + seed, figures=figures, curve=curve, best_round=max(curve, key=lambda point: point[1])[0],
                    served=served, paired_se=errors,
                )
            )  # fmt: skip
        built.append(
            Row(
                name=row, title=title, algorithm=row.split("-")[0], results=tuple(results),
                hyperparameters={"lr": 0.1, "lam": 1.0} if row == "ditto" else {"lr": 0.1},
                published=0.685 if row == "fedavg" else None, published_std=0.028 if row == "fedavg" else None,
                seconds=3.2, sent_bytes=0 if row == "local" else 48_000,
            )
        )  # fmt: skip
    return Comparison(
        study="heart",
        title="Heart disease in four hospitals",
        problem="classification",
        metric="accuracy",
        higher_is_better=True,
        clients=clients,
        rows=tuple(built),
        test_share=25 / 60,
        seeds=tuple(range(42, 42 + seeds)),
        splits="repeated",
        command=f"freehold compare heart --seeds {seeds} --html heart.html",
        versions=VERSIONS,
        notes=("chol = 0 was read as missing in 172 rows.", "Missing values are imputed by the training mean, with a mask."),
        warnings=("Switzerland has 8 healthy patients: some test sets have only one or two.",),
        noun=("hospital", "hospitals"),
    )


def stations(*, seeds: int = 5) -> Comparison:
    """A regression, where lower is better."""
    rng = np.random.default_rng(3)
    clients = tuple(facts(name, 900, {}) for name in ("Aotizhongxin", "Changping", "Dingling", "Dongsi", "Guanyuan", "Gucheng"))
    rows = []
    for row, title, level in (("local", "Alone", 31.0), ("fedavg", "FedAvg", 33.5), ("ditto", "Ditto", 29.2)):
        results = []
        for seed in range(seeds):
            shift = rng.normal(0, 0.4, len(clients)) + np.linspace(-3, 3, len(clients))
            figures = {
                client.name: {"rmse": level + float(at), "mae": 0.7 * (level + float(at)), "r2": 1 - (level + float(at)) / 60}
                for client, at in zip(clients, shift, strict=True)
            }
            curve = tuple((at, level + 30 * float(np.exp(-at / 3))) for at in range(21))
            results.append(SeedResult(seed=seed, figures=figures, curve=curve, best_round=20))
        rows.append(Row(name=row, title=title, algorithm=row, results=tuple(results)))
    return Comparison(
        study="air", title="PM2.5 at six stations", problem="regression", metric="rmse", higher_is_better=False, clients=clients,
        rows=tuple(rows), test_share=25 / 60, seeds=tuple(range(seeds)), splits="repeated",
        command=f"freehold compare air --seeds {seeds}", versions=VERSIONS, noun=("station", "stations"),
    )  # fmt: skip


def phones(count: int = 100, *, newcomers: int = 6, seeds: int = 5) -> Comparison:
    """Many clients with few examples each, ten classes, and some that never took part."""
    rng = np.random.default_rng(11)
    digits = [str(digit) for digit in range(10)]
    clients = tuple(
        facts(
            f"phone {place:04d}", int(rng.integers(30, 160)), dict(zip(digits, rng.dirichlet([0.12] * 10).tolist(), strict=True)),
            took_part=place < count,
        )
        for place in range(count + newcomers)
    )  # fmt: skip
    skill = np.clip(rng.beta(8, 2, len(clients)), 0.3, 0.97)
    lifts = {
        "local": np.zeros(len(clients)),
        "fedavg": rng.normal(-0.05, 0.15, len(clients)),
        "ditto": rng.normal(0.07, 0.07, len(clients)),
    }
    rows = []
    for row, lift in lifts.items():
        results = []
        for seed in range(seeds):
            figures = {}
            for place, client in enumerate(clients):
                share = float(np.clip(skill[place] + lift[place] + rng.normal(0, 0.02), 0, 1))
                right = float(_right(rng, share, max(client.test, 1)).mean())
                figures[client.name] = {"accuracy": right, "balanced_accuracy": 0.9 * right, "log_loss": 1.2 - right}
            errors = {client.name: 0.3 / float(np.sqrt(client.test)) for client in clients}
            curve = tuple((at, 0.82 + float(lift.mean()) - 0.5 * float(np.exp(-at / 9))) for at in range(0, 61, 5))
            results.append(SeedResult(seed=seed, figures=figures, curve=curve, best_round=60, paired_se=errors))
        rows.append(Row(name=row, title=TITLES[row], algorithm=row, results=tuple(results), sent_bytes=2_600_000, seconds=75.0))
    return Comparison(
        study="digits", title=f"Digits on {count} phones", problem="classification", metric="accuracy", higher_is_better=True,
        clients=clients, rows=tuple(rows), test_share=25 / 60, seeds=tuple(range(seeds)), splits="repeated",
        command=f"freehold compare digits --clients {count} --partition dirichlet:0.1 --seeds {seeds}", versions=VERSIONS,
        noun=("phone", "phones"),
    )  # fmt: skip


def alone_is_best() -> Comparison:
    """The hospitals, with validation data that prefer training alone."""
    found = hospitals()
    local, *others = found.rows
    better = tuple(replace(result, curve=tuple((at, y + 0.3) for at, y in result.curve)) for result in local.results)
    return replace(found, rows=(replace(local, results=better), *others))


def many_rows(count: int) -> Comparison:
    """The hospitals, with `count` rows of unusual algorithms of which the last is the best on validation data."""
    found = hospitals(seeds=3)
    more = []
    for place in range(count):
        results = tuple(
            replace(result, curve=tuple((at, y + place / 100) for at, y in result.curve)) for result in found.rows[-1].results
        )
        more.append(replace(found.rows[-1], name=f"row{place}", title=f"Row {place}", algorithm=f"odd{place}", results=results))
    return replace(found, rows=(*found.rows, *more))


def _right(rng: np.random.Generator, share: float, examples: int) -> npt.NDArray[np.float64]:
    return (rng.random(examples) < share).astype(float)


def noised(*, seeds: int = 3, names: Sequence[str] = tuple(HOSPITALS)) -> Comparison:
    """Hospitals of which two rows stand for FedAvg under noise."""
    points = (
        NoisedRow(row="fedavg-finetuned", epsilon=0.9961, epsilon_by_rdp=1.09, noise_multiplier=11.6, asked=1.0),
        NoisedRow(row="intercept", epsilon=7.961, epsilon_by_rdp=8.67, noise_multiplier=2.02, asked=8.0),
    )
    cost = PrivacyCost(unit="record", delta=1e-5, max_norm=1.0, clear="fedavg", points=points)
    return replace(hospitals(seeds=seeds, names=names), privacy=cost)
