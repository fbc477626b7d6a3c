"""Models and predictions."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from celluler.errors import InvalidSpec
from celluler.tensors import tensor_from_json, tensor_of
from celluler.views import SCHEMA, NewModel, to_json
from celluler_node.gateway.documents import check_keys, document, listing, read_json
from celluler_node.operations import Operations

MAX_MODEL_BYTES = 1 << 20
_NEW_MODEL: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "spec": dict,
    "weights": str,
    "seed": int,
    "labels": list,
    "metrics": dict,
    "parents": list,
    "dataset": str,
}


def model_routes(operations: Operations) -> list[Route]:
    async def models(_request: Request) -> Response:
        return listing("models", await operations.list_models())

    async def add(request: Request) -> Response:
        return document(await operations.add_model(_new_model(await read_json(request, limit=MAX_MODEL_BYTES))), status=201)  # fmt: skip  # noqa: E501

    async def show(request: Request) -> Response:
        return document(await operations.show_model(request.path_params["ref"]))

    async def pull(request: Request) -> Response:
        body = await read_json(request, limit=4096)
        check_keys(body, {"model": str}, "model")
        return document(await operations.pull_model(body["model"]))

    async def predict(request: Request) -> Response:
        """Answers in the form it was asked in: nested lists for nested lists, base64 for base64."""
        body = await read_json(request)
        check_keys(body, {"model": str, "inputs": (list, dict, int, float), "dtype": str}, "model", "inputs")
        given = body["inputs"]
        in_lists = not isinstance(given, dict)
        inputs = tensor_of(given, body.get("dtype")) if in_lists else tensor_from_json(given)
        prediction = await operations.predict(body["model"], inputs)
        told = to_json(prediction)
        if in_lists:
            told["outputs"] = prediction.outputs.lists()
        return JSONResponse({"schema": SCHEMA, **told})

    return [
        Route("/api/v1/models", models),
        Route("/api/v1/models", add, methods=["POST"]),
        Route("/api/v1/models/pull", pull, methods=["POST"]),
        Route("/api/v1/models/{ref:path}", show),
        Route("/api/v1/predict", predict, methods=["POST"]),
    ]


def _new_model(body: dict[str, Any]) -> NewModel:
    check_keys(body, _NEW_MODEL, "name", "spec")
    for key in ("labels", "parents"):
        if not all(isinstance(item, str) for item in body.get(key) or ()):
            raise InvalidSpec(key, "not a list of texts")
    metrics = body.get("metrics") or {}
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in metrics.values()):
        raise InvalidSpec("metrics", "not numbers by name")
    return NewModel(
        name=body["name"],
        spec=body["spec"],
        weights=body.get("weights"),
        seed=body.get("seed") or 0,
        labels=tuple(body.get("labels") or ()),
        metrics={name: float(value) for name, value in metrics.items()},
        parents=tuple(body.get("parents") or ()),
        dataset=body.get("dataset"),
    )
