"""Deployments: versions behind one name."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celluler.views import DeploymentChange, NewDeployment
from celluler_node.gateway.documents import (
    check_keys,
    document,
    listing,
    read_body,
    read_json,
    read_object,
    read_record,
)
from celluler_node.operations import Operations

MAX_DEPLOYMENT_BYTES = 1 << 16


def deployment_routes(operations: Operations) -> list[Route]:
    async def deployments(_request: Request) -> Response:
        return listing("deployments", await operations.deployments())

    async def create(request: Request) -> Response:
        new = read_record(NewDeployment, await read_json(request, limit=MAX_DEPLOYMENT_BYTES))
        return document(await operations.create_deployment(new), status=201)

    async def show(request: Request) -> Response:
        return document(await operations.deployment(request.path_params["name"]))

    async def update(request: Request) -> Response:
        change = read_record(DeploymentChange, await read_json(request, limit=MAX_DEPLOYMENT_BYTES))
        return document(await operations.update_deployment(request.path_params["name"], change))

    async def promote(request: Request) -> Response:
        given = await read_body(request, limit=MAX_DEPLOYMENT_BYTES)
        body = read_object(given) if given else {}
        check_keys(body, {"arm": str})
        return document(await operations.promote_deployment(request.path_params["name"], body.get("arm") or ""))

    async def rollback(request: Request) -> Response:
        return document(await operations.rollback_deployment(request.path_params["name"]))

    async def remove(request: Request) -> Response:
        name = request.path_params["name"]
        await operations.remove_deployment(name)
        return document({"removed": name})

    async def cache(_request: Request) -> Response:
        return document(await operations.answer_cache())

    return [
        Route("/api/v1/deployments", deployments),
        Route("/api/v1/deployments", create, methods=["POST"]),
        Route("/api/v1/deployments/{name}", show),
        Route("/api/v1/deployments/{name}", update, methods=["PATCH"]),
        Route("/api/v1/deployments/{name}", remove, methods=["DELETE"]),
        Route("/api/v1/deployments/{name}/promote", promote, methods=["POST"]),
        Route("/api/v1/deployments/{name}/rollback", rollback, methods=["POST"]),
        Route("/api/v1/answer-cache", cache),
    ]
