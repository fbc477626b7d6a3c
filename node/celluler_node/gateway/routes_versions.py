"""What became of a model's name: versions, aliases, differences, log, lineage."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celluler.errors import InvalidSpec
from celluler_node.gateway.documents import check_keys, document, read_json
from celluler_node.gateway.references import REFERENCE
from celluler_node.operations import Operations

MAX_QUESTION_BYTES = 4096


def version_routes(operations: Operations) -> list[Route]:
    async def versions(request: Request) -> Response:
        return document(await operations.versions(request.path_params["ref"]))

    async def log(request: Request) -> Response:
        return document(await operations.model_log(request.path_params["ref"]))

    async def lineage(request: Request) -> Response:
        return document(await operations.lineage(request.path_params["ref"]))

    async def diff(request: Request) -> Response:
        old, new = (request.query_params.get(name, "") for name in ("old", "new"))
        if not old or not new:
            raise InvalidSpec("new" if old else "old", "missing")
        return document(await operations.diff_models(old, new))

    async def alias(request: Request) -> Response:
        body = await _body(request, "model", "alias")
        return document(await operations.alias_model(body["model"], body["alias"]))

    async def drop_alias(request: Request) -> Response:
        return document(await operations.drop_alias((await _body(request, "model"))["model"]))

    async def rollback(request: Request) -> Response:
        return document(await operations.rollback_model((await _body(request, "model"))["model"]))

    async def retract(request: Request) -> Response:
        body = await _body(request, "model", "reason")
        return document(await operations.retract_model(body["model"], body["reason"]))

    return [
        Route("/api/v1/models/diff", diff),
        Route("/api/v1/models/alias", alias, methods=["POST"]),
        Route("/api/v1/models/drop-alias", drop_alias, methods=["POST"]),
        Route("/api/v1/models/rollback", rollback, methods=["POST"]),
        Route("/api/v1/models/retract", retract, methods=["POST"]),
        Route(f"/api/v1/models/{REFERENCE}/versions", versions),
        Route(f"/api/v1/models/{REFERENCE}/log", log),
        Route(f"/api/v1/models/{REFERENCE}/lineage", lineage),
    ]


async def _body(request: Request, *keys: str) -> dict[str, str]:
    """An object of these texts, all of them."""
    body = await read_json(request, limit=MAX_QUESTION_BYTES)
    check_keys(body, dict.fromkeys(keys, str), *keys)
    return body
