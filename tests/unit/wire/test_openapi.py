from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from freehold.wire import messages, openapi
from freehold.wire.openapi import ALL_ROUTES
from freehold.wire.routes import BLOB, CONTRIBUTE, DATASETS_HEADER, ROUTES, Datasets, Route


def operation(route: Route) -> Any:
    document: Any = msgspec.json.decode(msgspec.json.encode(openapi.document()))
    return document["paths"][route.path][route.method.lower()]


def test_every_message_with_a_route_in_its_docstring_has_that_route() -> None:
    promised = {}
    for kind in vars(messages).values():
        if isinstance(kind, type) and issubclass(kind, messages.Message):
            for method, path in re.findall(r"(GET|POST|PUT) (/v1/\w+)", (kind.__doc__ or "").split(".")[0].split(":")[0]):
                promised[method, path] = kind
    del promised["POST", "/v1/work"]
    found = {(route.method, route.path): route.request for route in ROUTES}
    assert {key: found[key] for key in promised} == promised


def test_the_document_has_every_route_once_and_its_references_lead_somewhere() -> None:
    text = msgspec.json.encode(openapi.document()).decode()
    document: Any = msgspec.json.decode(text)
    assert sum(len(path) for path in document["paths"].values()) == len(ALL_ROUTES)
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= document["components"]["schemas"].keys()
    names = [operation(route)["operationId"] for route in ALL_ROUTES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("route", ALL_ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_an_operation_says_what_the_route_says(route: Route) -> None:
    found = operation(route)
    assert bool(found["security"]) == bool(route.roles)
    assert ("requestBody" in found) == (route.request is not None)
    in_path = {field["name"] for field in found["parameters"] if field["in"] == "path"}
    assert in_path == set(re.findall(r"{(\w+)}", route.path))


def test_paths_are_filled_in() -> None:
    assert CONTRIBUTE.at(run="0123456789abcdef-1", round=3) == "/v1/contributions/0123456789abcdef-1/3"
    assert BLOB.at(sha256="ab") == "/v1/blobs/ab"


@pytest.mark.parametrize(
    ("text", "fits"),
    [("", True), ("a", True), ("heart,lungs-2", True), (",", False), ("a,", False), ("A", False), ("a b", False)],
)
def test_the_header_of_data_sets_is_a_list_of_names(text: str, fits: bool) -> None:
    assert DATASETS_HEADER == "Freehold-Datasets"
    if fits:
        assert msgspec.convert(text, Datasets) == text
    else:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text, Datasets)
