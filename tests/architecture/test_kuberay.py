"""The manifest for KubeRay: fields that exist, versions that fit, and nothing open to others."""

from __future__ import annotations

import copy
import re
from typing import Any

import jsonschema
import pytest
import yaml

from tests.architecture.imports import ROOT
from tests.architecture.kuberay import RAY_CLUSTER

FOLDER = ROOT / "deploy" / "kuberay"
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((FOLDER / "raycluster.yaml").read_text(encoding="utf-8")))
CLUSTER = next(each for each in DOCUMENTS if each["kind"] == "RayCluster")


def test_the_manifest_has_only_fields_that_kuberay_documents() -> None:
    jsonschema.Draft202012Validator.check_schema(RAY_CLUSTER)
    jsonschema.validate(CLUSTER, RAY_CLUSTER)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "headGroupSpecs"), {}),
        (("spec", "workerGroupSpecs", 0, "replica"), 2),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "automountServiceAccountToken"), True),
        (("apiVersion",), "ray.io/v1alpha1"),
    ],
)
def test_the_schema_finds_what_is_wrong(place: tuple[str | int, ...], value: object) -> None:
    wrong: Any = copy.deepcopy(CLUSTER)
    at = wrong
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, RAY_CLUSTER)


def test_image_manifest_and_constraints_have_one_version_of_ray() -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-", (FOLDER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert pinned and base
    groups = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
    images = {c["image"].rpartition(":")[2] for group in groups for c in group["template"]["spec"]["containers"]}
    assert {pinned[1], base[1], CLUSTER["spec"]["rayVersion"]} == images and len(images) == 1


def test_nobody_else_reaches_the_pods_and_ray_tells_nobody() -> None:
    policy = next(each for each in DOCUMENTS if each["kind"] == "NetworkPolicy")
    own = {"matchLabels": {"ray.io/cluster": CLUSTER["metadata"]["name"]}}
    assert policy["spec"] == {"podSelector": own, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": own}]}]}
    groups = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
    for container in (c for group in groups for c in group["template"]["spec"]["containers"]):
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
    claims = {each["metadata"]["name"] for each in DOCUMENTS if each["kind"] == "PersistentVolumeClaim"}
    volumes = [v for group in groups for v in group["template"]["spec"].get("volumes", [])]
    assert {v["persistentVolumeClaim"]["claimName"] for v in volumes} == claims
