"""The OpenAPI 3.1 document: made of the routes that there are, and of what `described` says of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import celluler
from celluler_node.gateway.described import JSON, OCTETS, OWN, Many, Says
from celluler_node.gateway.described_standards import STANDARD
from celluler_node.gateway.described_text import EVENTS
from celluler_node.gateway.guard import OPEN_PATHS, needed_scope
from celluler_node.gateway.references import plain_path
from celluler_node.gateway.schemas import BYTES, TEXT, WHOLE, Records, Schema, answered, document, either, list_of

SAID: dict[tuple[str, str], Says] = OWN | STANDARD
"""Of every route, by method and path."""
PATH = "/openapi.json"
_STREAMS: dict[str, Schema] = {OCTETS: BYTES, EVENTS: answered(data=TEXT)}
"""Media that are no document: bytes, and events, of each of which something is said."""
_NULL: Schema = {"type": "null"}
_ERRORS: dict[str, Schema] = {
    "Error": document(error=answered(type=TEXT, message=TEXT, hint=either(TEXT, _NULL), exit_code=WHOLE)),
    "OpenAIError": answered(
        error=answered(message=TEXT, type=TEXT, param=either(TEXT, _NULL), code=either(TEXT, _NULL))
    ),
    "KServeError": answered(error=TEXT),
}
_PARAMETERS = {
    "ref": "A model or dataset: `author/name`, `author/name:1.0.0`, `author/name@alias` or a CID; its slash may be "
    "escaped.",
    "version": "Of an `author/name`.",
    "peer": "A peer id, its last eight characters, or a nickname that only one member bears.",
    "cid": "Of a content.",
    "job": "A job's id, or its last six characters or more.",
    "name": "Of a deployment.",
}


def openapi_route(routes: Callable[[], Sequence[Route]]) -> Route:
    """routes: all that there are, this one among them."""

    @cache
    def made() -> dict[str, Any]:
        return openapi_document(routes())

    async def openapi(_request: Request) -> Response:
        return JSONResponse(made())

    return Route(PATH, openapi)


def openapi_document(routes: Sequence[Route]) -> dict[str, Any]:
    """Raises KeyError for a route of which nothing is said."""
    records, paths = Records(), dict[str, dict[str, Any]]()
    for route in routes:
        path = plain_path(route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            operation = _operation(method, path, SAID[method, path], records)
            paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "celluler",
            "version": celluler.__version__,
            "description": "A node of a swarm that trains, stores and serves models: its own API, and what clients of "
            "OpenAI and KServe v2 ask.",
        },
        "paths": paths,
        "components": {
            "schemas": records.components | _ERRORS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(method: str, path: str, says: Says, records: Records) -> dict[str, Any]:
    error: Schema = {"$ref": f"#/components/schemas/{_error(path)}"}
    schema = error if says.status >= 400 else _answer(says.answer, records)
    answer = {"description": says.summary, "content": _content(schema, says.media)}
    told: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "summary": says.summary,
        "tags": [_surface(path)],
        "security": _security(method, path),
        "parameters": [*_path_parameters(path), *_query_parameters(says)],
        "responses": {
            **{str(status): answer for status in (says.status, *says.more)},
            "default": {"description": "What is wrong", "content": _content(error, (JSON,))},
        },
    }
    if says.body is not None:
        body = records.asked(says.body) if isinstance(says.body, type) else says.body
        told["requestBody"] = {"required": True, "content": _content(body, says.body_media)}
    return told


def _answer(answer: type | Many | Schema, records: Records) -> Schema:
    if isinstance(answer, Many):
        return document(**{answer.name: list_of(records.answered(answer.record))})
    if isinstance(answer, type):
        return {"allOf": [document(), records.answered(answer)]}
    return answer


def _content(schema: Schema, media: Sequence[str]) -> dict[str, Any]:
    return {one: {"schema": _STREAMS.get(one, schema)} for one in media}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "description": _PARAMETERS[name], "schema": TEXT}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _query_parameters(says: Says) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": name in says.needs, "schema": schema}
        for name, schema in says.query.items()
    ]


def _security(method: str, path: str) -> list[dict[str, list[str]]]:
    """Nothing, nothing on the node's own machine, or a key of that scope."""
    if path in OPEN_PATHS:
        return []
    key: dict[str, list[str]] = {"bearer": [needed_scope(method, path)]}
    return [key] if path.startswith("/api/") else [{}, key]


def _surface(path: str) -> str:
    return {"v1": "OpenAI", "v2": "KServe v2", "api": "celluler"}.get(path.split("/")[1], "health")


def _error(path: str) -> str:
    return {"OpenAI": "OpenAIError", "KServe v2": "KServeError"}.get(_surface(path), "Error")
