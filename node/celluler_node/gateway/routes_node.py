"""The node itself and its peers."""

from __future__ import annotations

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from celluler.views import SCHEMA, to_json
from celluler_node.gateway.documents import document, listing
from celluler_node.operations import Operations


def node_routes(operations: Operations) -> list[Route]:
    async def status(_request: Request) -> Response:
        return document(await operations.status())

    async def doctor(_request: Request) -> Response:
        return listing("checks", await operations.doctor())

    async def violations(_request: Request) -> Response:
        return listing("violations", await operations.violations())

    async def peers(_request: Request) -> Response:
        return listing("peers", await operations.peers())

    async def peer(request: Request) -> Response:
        return document(await operations.peer(request.path_params["peer"]))

    async def ping(request: Request) -> Response:
        return document(await operations.ping(request.path_params["peer"]))

    async def shutdown(_request: Request) -> Response:
        # Answer first: the node closes this endpoint among the first things.
        return JSONResponse({"schema": SCHEMA, "ending": True}, 202, background=BackgroundTask(operations.shutdown))

    return [
        Route("/api/v1/status", status),
        Route("/api/v1/doctor", doctor),
        Route("/api/v1/violations", violations),
        Route("/api/v1/peers", peers),
        Route("/api/v1/peers/{peer}", peer),
        Route("/api/v1/peers/{peer}/ping", ping, methods=["POST"]),
        Route("/api/v1/shutdown", shutdown, methods=["POST"]),
    ]


def health_routes(operations: Operations) -> list[Route]:
    """For whoever watches the node; no token."""

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        readiness = await operations.readiness()
        return JSONResponse({"schema": SCHEMA, **to_json(readiness)}, 200 if readiness.ready else 503)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]
