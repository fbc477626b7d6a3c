"""Datasets."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celluler.views import NewDataset
from celluler_node.gateway.documents import check_keys, document, listing, read_json, read_record
from celluler_node.operations import Operations

MAX_DATASET_BYTES = 2 << 20
"""What is told of it: the file is uploaded as a content."""


def dataset_routes(operations: Operations) -> list[Route]:
    async def datasets(_request: Request) -> Response:
        return listing("datasets", await operations.list_datasets())

    async def add(request: Request) -> Response:
        new = read_record(NewDataset, await read_json(request, limit=MAX_DATASET_BYTES))
        return document(await operations.add_dataset(new), status=201)

    async def show(request: Request) -> Response:
        return document(await operations.show_dataset(request.path_params["ref"]))

    async def pull(request: Request) -> Response:
        body = await read_json(request, limit=4096)
        check_keys(body, {"dataset": str}, "dataset")
        return document(await operations.pull_dataset(body["dataset"]))

    return [
        Route("/api/v1/datasets", datasets),
        Route("/api/v1/datasets", add, methods=["POST"]),
        Route("/api/v1/datasets/pull", pull, methods=["POST"]),
        Route("/api/v1/datasets/{ref:path}", show),
    ]
