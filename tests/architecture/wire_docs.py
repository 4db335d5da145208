"""Writes docs/reference/wire.md from the table of routes and the messages (`make regold`)."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from freehold.wire.messages import VERSION, Message
from freehold.wire.openapi import ALL_ROUTES, document
from freehold.wire.routes import Route

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "wire.md"

HEAD = f"""# The wire

Version {VERSION} of what coordinator, nodes and people say to each other. HTTP/1.1 over TLS 1.3 on one port; nodes ask, the
coordinator answers, and so do operators and researchers from elsewhere, under `/v1/admin`. But for enrolment each request comes
with a certificate; its role (last column), its dates and its place on the deny list are checked each time. Control messages are
JSON, typed and strict: another version, an unknown field or a wrong type is refused. Tensors are safetensors, named by their
SHA-256; a contribution is one zstd frame with its length where the plan says `contribution.compression = "zstd"`, and nowhere
else. A refusal is a `Problem` with an [error number](errors.md). `GET /v1/openapi.json` gives the same as OpenAPI 3.1.

The routes under `/v1/admin` are there on the coordinator's Unix socket, too, as `/v1/...` and without a certificate: who can open
the socket is an operator. A researcher stops only studies that they started.

This page is made from the code (`make regold`).

## Routes

| route | what | request | reply | certificate |
|---|---|---|---|---|
"""


def render() -> str:
    """The whole page."""
    rows = "".join(map(_row, ALL_ROUTES))
    fields = "".join(_fields(route) for route in ALL_ROUTES if route.fields)
    return f"{HEAD}{rows}{fields}\n## Messages\n{''.join(_messages())}"


def _row(route: Route) -> str:
    cells = (
        f"`{route.method} {route.path}`",
        route.summary,
        _kind(route.request),
        _kind(route.reply),
        ", ".join(route.roles) or "none",
    )
    return f"| {' | '.join(cells)} |\n"


def _fields(route: Route) -> str:
    operation: Any = document([route])["paths"]
    (operation,) = operation[route.path].values()
    head = "| name | in | required | meaning |\n|---|---|---|---|\n"
    lines = [f"\n`{route.method} {route.path}` has, in its path or as headers:\n\n{head}"]
    for each in operation["parameters"]:
        meaning = each["schema"].get("description", "")
        lines.append(f"| `{each['name']}` | {each['in']} | {'yes' if each['required'] else 'no'} | {meaning} |\n")
    return "".join(lines)


def _messages() -> list[str]:
    schemas: Any = document()["components"]
    found = []
    for name, schema in sorted(schemas["schemas"].items()):
        said = inspect.cleandoc(schema.get("description", "")).replace("\n", " ")
        found.append(f"\n### `{name}`\n\n{said}\n\n| field | type | required |\n|---|---|---|\n")
        required = set(schema.get("required", []))
        for field, kind in schema["properties"].items():
            found.append(f"| `{field}` | {_type(kind)} | {'yes' if field in required else 'no'} |\n")
    return found


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value!r}`" for value in schema["enum"]).replace("'", '"')
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    if kind == "object":
        return f"object of {_type(schema.get('additionalProperties', {}))}"
    limits = ", ".join(
        f"{words} {schema[key]}" for key, words in (("minimum", "at least"), ("maximum", "at most")) if key in schema
    )
    pattern = f", `{schema['pattern']}`".replace("|", "\\|") if "pattern" in schema else ""
    return kind + (f", {limits}" if limits else "") + pattern


def _kind(kind: type[Message] | str | None) -> str:
    if kind is None:
        return "–"
    return f"[`{kind.__name__}`](#{kind.__name__.lower()})" if isinstance(kind, type) else kind


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
