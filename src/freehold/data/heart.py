"""The real records of 920 patients of four hospitals (UCI Heart Disease; see heart/ATTRIBUTION.md), shipped with Freehold.

`heart` is all of them, with what is missing marked as missing. `heart_flamby` is the published protocol of FLamby's
Fed-Heart-Disease (Ogier du Terrail et al., NeurIPS Datasets and Benchmarks 2022, arXiv:2210.04620): complete rows only.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import polars as pl
from numpy.typing import NDArray

from freehold.data.columns import Selection
from freehold.data.population import Population
from freehold.data.prepare import Prepared, tensors
from freehold.data.schema import Column, Schema, Target
from freehold.data.table import Source, read_table

HOSPITALS = {
    "Cleveland": "processed.cleveland.data",
    "Hungary": "processed.hungarian.data",
    "Switzerland": "processed.switzerland.data",
    "VA Long Beach": "processed.va.data",
}
CLASSES = ("healthy", "ill")

SCHEMA = Schema(
    columns=(
        Column(name="age", kind="number", unit="years", low=18, high=100, missing=("?",)),
        Column(name="sex", kind="flag", missing=("?",), description="1 = male, 0 = female"),
        Column(
            name="cp",
            kind="category",
            categories=("1", "2", "3", "4"),
            missing=("?",),
            description="chest pain: 1 = typical angina, 2 = atypical angina, 3 = non-anginal pain, 4 = asymptomatic",
        ),
        Column(
            name="trestbps",
            kind="number",
            unit="mmHg",
            low=60,
            high=260,
            missing=("?", 0),
            description="resting blood pressure on admission",
        ),
        Column(name="chol", kind="number", unit="mg/dl", low=80, high=700, missing=("?", 0), description="serum cholesterol"),
        Column(name="fbs", kind="flag", missing=("?",), description="1 = fasting blood sugar above 120 mg/dl"),
        Column(
            name="restecg",
            kind="category",
            categories=("0", "1", "2"),
            missing=("?",),
            description="resting ECG: 0 = normal, 1 = ST-T wave abnormality, 2 = left ventricular hypertrophy (Estes)",
        ),
        Column(
            name="thalach",
            kind="number",
            unit="beats/min",
            low=40,
            high=240,
            missing=("?",),
            description="highest heart rate reached in the exercise test",
        ),
        Column(name="exang", kind="flag", missing=("?",), description="1 = angina induced by exercise"),
        Column(
            name="oldpeak",
            kind="number",
            unit="mm",
            low=-5,
            high=10,
            missing=("?",),
            description="ST depression induced by exercise, relative to rest",
        ),
        Column(
            name="slope",
            kind="category",
            categories=("1", "2", "3"),
            missing=("?",),
            description="slope of the peak exercise ST segment: 1 = rising, 2 = flat, 3 = falling",
        ),
        Column(
            name="ca",
            kind="number",
            unit="vessels",
            low=0,
            high=3,
            missing=("?",),
            description="major vessels colored by fluoroscopy",
        ),
        Column(
            name="thal",
            kind="category",
            categories=("3", "6", "7"),
            missing=("?",),
            description="thallium scan: 3 = normal, 6 = fixed defect, 7 = reversible defect",
        ),
    ),
    target=Target(
        name="num", kind="class", classes=CLASSES, description="ill: a coronary vessel is narrowed by more than half (num > 0)"
    ),
    client="hospital",
)


def heart() -> Population:
    """All 920 patients, 13 features, target healthy or ill (num > 0), clients the four hospitals."""
    table = pl.concat([records.with_columns(pl.lit(hospital).alias("hospital")) for hospital, records in heart_records().items()])
    source = Source(name="heart", place=lambda row: f"row {row + 1}")
    notes = ("Target num: 0 is class 'healthy', 1 to 4 are class 'ill'.",)
    return read_table(table.lazy(), Selection(schema=SCHEMA), source, notes=notes)


def heart_records() -> dict[str, pl.DataFrame]:
    """Hospital -> its records as a node would hold them: text, "?" for missing, target num healthy or ill."""
    ill = pl.when(pl.col("num").cast(pl.Float64) > 0).then(pl.lit(CLASSES[1])).otherwise(pl.lit(CLASSES[0]))
    return {hospital: _raw(hospital).with_columns(ill.alias("num")) for hospital in HOSPITALS}


def heart_flamby() -> tuple[Prepared, Prepared]:
    """FLamby's protocol: (standardized by each hospital's train rows, standardized by the train rows of all).

    Columns slope, ca, thal and rows with missing values are left out (303 + 261 + 46 + 130 patients); cp and restecg are
    one-hot without their first category; train and test as FLamby splits them (seed 43, stratified where both classes have
    more than two patients). There is no validation split: its rows are empty. The second is for the pooled baseline.
    """
    tables, splits = [], {}
    start = 0
    for hospital in HOSPITALS:
        patients = _complete(_raw(hospital))
        train, test = _published_split(patients[:, -1] > 0)
        splits[hospital] = {"train": train + start, "validation": np.empty(0, dtype=np.int64), "test": test + start}
        tables.append(patients)
        start += len(patients)
    everyone = np.concatenate(tables)
    ill = (everyone[:, -1] > 0).astype(np.int64)
    x, names = _encoded(everyone[:, :-1])

    own = np.empty_like(x)
    for split in splits.values():
        here = np.concatenate(list(split.values()))
        own[here] = _standardized(x[here], x[split["train"]])
    pooled = _standardized(x, x[np.concatenate([split["train"] for split in splits.values()])])
    of_own, of_all = (tensors(each, ill, splits, feature_names=names, classes=CLASSES) for each in (own, pooled))
    return of_own, of_all


def _published_split(ill: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Train and test rows of one hospital, ascending."""
    balanced = np.bincount(ill, minlength=2).min() > 2
    from sklearn.model_selection import train_test_split  # here: it takes a second to import

    train, test = train_test_split(
        np.arange(len(ill)),
        test_size=1 - 0.66,
        train_size=0.66,
        random_state=43,
        shuffle=True,
        stratify=ill if balanced else None,
    )
    return np.sort(train), np.sort(test)


def _raw(hospital: str) -> pl.DataFrame:
    """The file of a hospital: 14 columns of text, `?` for missing."""
    names = [*SCHEMA.names, SCHEMA.target.name]
    file = resources.files("freehold.data") / "heart" / HOSPITALS[hospital]
    return pl.read_csv(file.read_bytes(), has_header=False, schema={name: pl.String() for name in names})


def _complete(raw: pl.DataFrame) -> NDArray[np.float64]:
    """The rows without missing values, columns slope, ca and thal left out; float64 [rows, 11], num last."""
    kept = raw.drop("slope", "ca", "thal")
    known = kept.filter(~pl.any_horizontal(pl.all() == "?"))
    return known.select(pl.all().cast(pl.Float64)).to_numpy()


def _encoded(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Numbers first, then the indicators of cp and restecg without the first category that occurs; [rows, 13]."""
    order = [name for name in SCHEMA.names if name not in ("slope", "ca", "thal")]
    names = [name for name in order if name not in ("cp", "restecg")]
    features = [values[:, order.index(name)] for name in names]
    for name in ("cp", "restecg"):
        cell = values[:, order.index(name)]
        for category in np.unique(cell)[1:]:
            features.append((cell == category).astype(np.float64))
            names.append(f"{name}={int(category)}")
    return np.stack(features, axis=1), tuple(names)


def _standardized(x: NDArray[np.float64], train: NDArray[np.float64]) -> NDArray[np.float64]:
    """By mean and sample standard deviation, as FLamby does."""
    scaled: NDArray[np.float64] = (x - train.mean(axis=0)) / (train.std(axis=0, ddof=1) + 1e-9)
    return scaled
