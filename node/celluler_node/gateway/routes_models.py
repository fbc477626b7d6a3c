"""Models and predictions."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celluler.errors import InvalidSpec
from celluler.inference.ensemble import VOTE
from celluler.tensors import Tensor, tensor_from_json, tensor_of
from celluler.views import SCHEMA, ModelQuery, NewModel, Prediction, to_json
from celluler_node.gateway.asking import Asking, while_wanted
from celluler_node.gateway.documents import check_keys, document, exact_json, listing, read_json, read_record
from celluler_node.gateway.references import REFERENCE
from celluler_node.operations import Operations

MAX_MODEL_BYTES = 4 << 20
"""A spec of a mebibyte, and a card of 256 KiB with all its characters escaped."""
MAX_QUESTION_BYTES = 4096
_PREDICT: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "inputs": (list, dict, int, float, str),
    "dtype": str,
    "output": str,
    "ensemble": int,
    "models": list,
    "aggregate": str,
    "peer": str,
}
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def model_routes(operations: Operations, asking: Asking) -> list[Route]:
    async def models(request: Request) -> Response:
        return listing("models", await operations.list_models(_query(request) if request.query_params else None))

    async def search(request: Request) -> Response:
        return listing("models", await operations.search_models(_query(request)))

    async def add(request: Request) -> Response:
        new = read_record(NewModel, await read_json(request, limit=MAX_MODEL_BYTES))
        return document(await operations.add_model(new), status=201)

    async def show(request: Request) -> Response:
        return document(await operations.show_model(request.path_params["ref"]))

    async def card(request: Request) -> Response:
        return document({"card": await operations.model_card(request.path_params["ref"])})

    async def remove(request: Request) -> Response:
        return document(await operations.remove_model(request.path_params["ref"]))

    async def pull(request: Request) -> Response:
        body = await read_json(request, limit=MAX_QUESTION_BYTES)
        check_keys(body, {"model": str, "layers": str}, "model")
        return document(await operations.pull_model(body["model"], layers=body.get("layers")))

    async def verify(request: Request) -> Response:
        body = await read_json(request, limit=MAX_QUESTION_BYTES)
        check_keys(body, {"model": str}, "model")
        return document(await operations.verify_model(body["model"]))

    async def predict(request: Request) -> Response:
        """Answers in the form it was asked in: nested lists for nested lists, base64 for base64."""
        body = await read_json(request)
        check_keys(body, _PREDICT, "model", "inputs")
        given = body["inputs"]
        in_lists = not isinstance(given, dict)
        output = body.get("output", "")
        dtype = body.get("dtype", "int64" if output == "sample" else None)
        inputs = tensor_of(given, dtype) if in_lists else tensor_from_json(given)
        prediction = await while_wanted(request, partial(_predicted, asking, body, inputs, output))
        told = to_json(prediction)
        if in_lists:
            told["outputs"] = prediction.lists()
        return exact_json({"schema": SCHEMA, **told})

    return [
        Route("/api/v1/models", models),
        Route("/api/v1/models", add, methods=["POST"]),
        Route("/api/v1/models/search", search),
        Route("/api/v1/models/pull", pull, methods=["POST"]),
        Route("/api/v1/models/verify", verify, methods=["POST"]),
        Route(f"/api/v1/models/{REFERENCE}/card", card),
        Route(f"/api/v1/models/{REFERENCE}", remove, methods=["DELETE"]),
        Route("/api/v1/models/{ref:path}", show),  # any text: what is no reference is told so
        Route("/api/v1/predict", predict, methods=["POST"]),
    ]


async def _predicted(asking: Asking, body: dict[str, Any], inputs: Tensor, output: str) -> Prediction:
    """By one, or by an ensemble. Raises InvalidSpec for what goes with an ensemble only."""
    members, more, aggregate = body.get("ensemble") or 1, body.get("models") or [], body.get("aggregate") or ""
    if not all(isinstance(one, str) for one in more):
        raise InvalidSpec("models", "must be names or CIDs of models")
    if members == 1 and not more:
        if aggregate:
            raise InvalidSpec("aggregate", "goes with an ensemble")
        return await asking.predict(body["model"], inputs, output, peer=body.get("peer") or "")
    if body.get("peer"):
        raise InvalidSpec("peer", "does not go with an ensemble")
    refs = (body["model"], *more)
    return await asking.ensemble(refs, inputs, output, members=members, aggregate=aggregate or VOTE)


def _query(request: Request) -> ModelQuery:
    """The query parameters as a record. Raises InvalidSpec for one there is not, or one said twice."""
    given: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name in given:
            raise InvalidSpec(name, "said twice")
        given[name] = text
    if "local" in given:
        given["local"] = _TRUTHS.get(given["local"], given["local"])
    return read_record(ModelQuery, given)
