import hashlib
from importlib import resources

import numpy as np
import pytest
import torch

from freehold.data import Prepared, heart, heart_flamby
from freehold.data.heart import HOSPITALS, SCHEMA

SHA256 = {
    "processed.cleveland.data": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "processed.hungarian.data": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "processed.switzerland.data": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "processed.va.data": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}


@pytest.fixture(scope="module")
def protocol() -> tuple[Prepared, Prepared]:
    return heart_flamby()


@pytest.mark.parametrize("file", HOSPITALS.values())
def test_shipped_files_are_the_published_ones(file: str) -> None:
    content = (resources.files("freehold.data") / "heart" / file).read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256[file]


def test_the_attribution_names_license_and_creators() -> None:
    text = (resources.files("freehold.data") / "heart" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for said in ("CC BY 4.0", "Janosi", "Steinbrunn", "Pfisterer", "Detrano", "Changes: none"):
        assert said in text


def test_heart_has_all_patients_of_four_hospitals() -> None:
    population = heart()
    assert dict(population.sizes) == {"Cleveland": 303, "Hungary": 294, "Switzerland": 123, "VA Long Beach": 200}
    assert population.classes == ("healthy", "ill")
    ill = {client: int(population.target[rows].sum()) for client, rows in population.rows.items()}
    assert ill == {"Cleveland": 139, "Hungary": 106, "Switzerland": 115, "VA Long Beach": 149}


def test_zero_cholesterol_and_question_marks_are_missing() -> None:
    population = heart()
    missing = {name: population.features[name].null_count() for name in SCHEMA.names}
    assert missing == {
        "age": 0, "sex": 0, "cp": 0, "trestbps": 60, "chol": 202, "fbs": 90, "restecg": 2, "thalach": 55, "exang": 55,
        "oldpeak": 62, "slope": 309, "ca": 611, "thal": 486,
    }  # fmt: skip
    assert population.coded["Switzerland"]["chol"] == {"0": 123}


def test_the_published_protocol_splits_as_published(protocol: tuple[Prepared, Prepared]) -> None:
    counts = {client: (len(rows["train"]), len(rows["test"])) for client, rows in protocol[0].rows.items()}
    assert counts == {"Cleveland": (199, 104), "Hungary": (172, 89), "Switzerland": (30, 16), "VA Long Beach": (85, 45)}
    assert protocol[0].y[protocol[0].rows["Switzerland"]["train"]].tolist() == [1] * 30


def test_the_published_protocol_has_thirteen_features(protocol: tuple[Prepared, Prepared]) -> None:
    assert protocol[0].x.shape == (740, 13) and protocol[0].x.dtype == torch.float32
    assert protocol[0].feature_names[8:] == ("cp=2", "cp=3", "cp=4", "restecg=1", "restecg=2")


def test_each_hospital_is_standardized_by_its_own_train_rows(protocol: tuple[Prepared, Prepared]) -> None:
    own, pooled = protocol
    for rows in own.rows.values():
        train = own.x[rows["train"]]
        spread = train.std(dim=0)
        torch.testing.assert_close(train.mean(dim=0), torch.zeros(13), atol=1e-5, rtol=0)
        assert torch.all((spread - 1).abs().lt(1e-4) | spread.eq(0))
    everyone = pooled.x[torch.cat([rows["train"] for rows in pooled.rows.values()])]
    torch.testing.assert_close(everyone.mean(dim=0), torch.zeros(13), atol=1e-5, rtol=0)
    torch.testing.assert_close(everyone.std(dim=0), torch.ones(13), atol=1e-4, rtol=0)


def test_splits_of_the_protocol_cover_each_hospital_once(protocol: tuple[Prepared, Prepared]) -> None:
    rows = np.concatenate([each.numpy() for splits in protocol[0].rows.values() for each in splits.values()])
    assert sorted(rows.tolist()) == list(range(740))
