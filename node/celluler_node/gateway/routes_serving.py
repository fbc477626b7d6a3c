"""Models at work in this node."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celluler_node.gateway.documents import check_keys, document, read_json
from celluler_node.operations_serving import ServingOperations

MAX_QUESTION_BYTES = 4096


def serving_routes(operations: ServingOperations) -> list[Route]:
    async def serving(_request: Request) -> Response:
        return document(await operations.serving())

    async def load(request: Request) -> Response:
        return document(await operations.load_model(await _model(request)))

    async def unload(request: Request) -> Response:
        return document(await operations.unload_model(await _model(request)))

    return [
        Route("/api/v1/serving", serving),
        Route("/api/v1/serving/load", load, methods=["POST"]),
        Route("/api/v1/serving/unload", unload, methods=["POST"]),
    ]


async def _model(request: Request) -> str:
    body = await read_json(request, limit=MAX_QUESTION_BYTES)
    check_keys(body, {"model": str}, "model")
    return str(body["model"])
