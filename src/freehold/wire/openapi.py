"""The OpenAPI 3.1 description of the protocol, written from the table of routes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from freehold.wire.adminroutes import ADMIN_ROUTES
from freehold.wire.messages import VERSION, Message, Problem
from freehold.wire.routes import ROUTES, Field, Route

Json = dict[str, object]

_SCHEMAS = "#/components/schemas/{name}"


ALL_ROUTES = (*ROUTES, *ADMIN_ROUTES)


def document(routes: Iterable[Route] = ALL_ROUTES) -> Json:
    """The document, ready for `msgspec.json.encode`."""
    table = tuple(routes)
    kinds = {kind for route in table for kind in (route.request, route.reply) if isinstance(kind, type)} | {Problem}
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    references, components = msgspec.json.schema_components(ordered, ref_template=_SCHEMAS)
    schemas = dict(zip(ordered, references, strict=True))
    paths: dict[str, Json] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Freehold",
            "version": str(VERSION),
            "summary": "Between a coordinator, its nodes and its people.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"certificate": {"type": "mutualTLS"}}},
    }


def _operation(route: Route, schemas: dict[type[Message], Json]) -> Json:
    operation: Json = {
        "operationId": f"{route.method.lower()}{''.join(map(_titled, route.path.split('/')[2:]))}",
        "summary": route.summary,
        "parameters": [_parameter(route, field) for field in route.fields],
        "security": [{"certificate": []}] if route.roles else [],
        "responses": {
            "200": {"description": "Done.", "content": _content(route.reply, schemas)},
            "default": {"description": "Refused, with the reason.", "content": _content(Problem, schemas)},
        },
    }
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": _content(route.request, schemas)}
    return operation


def _titled(part: str) -> str:
    return f"By{part[1:-1].title()}" if part.startswith("{") else part.title()


def _parameter(route: Route, field: Field) -> Json:
    place = "path" if f"{{{field.name}}}" in route.path else "header"
    return {"name": field.name, "in": place, "required": field.required, "schema": msgspec.json.schema(field.type)}


def _content(kind: type[Message] | str, schemas: dict[type[Message], Json]) -> Json:
    if isinstance(kind, type):
        return {"application/json": {"schema": schemas[kind]}}
    return {kind: {"schema": {} if kind == "application/json" else {"type": "string", "format": "binary"}}}
