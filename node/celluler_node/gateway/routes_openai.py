"""What OpenAI's clients ask of models that do not write: which there are, and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from celluler.errors import NotFound
from celluler.inference.deployments import deployment_named
from celluler.tensors import Tensor
from celluler_node.gateway.asking import Answer, Asking, while_wanted
from celluler_node.gateway.callers import note_body
from celluler_node.gateway.documents import exact_json, read_json
from celluler_node.gateway.openai import (
    EMBEDDING,
    calls_of,
    deployment_document,
    embeddings_document,
    model_document,
    read_question,
    vectors_of,
)
from celluler_node.operations import Operations

MAX_QUESTION_BYTES = 16 << 20


def openai_routes(operations: Operations, asking: Asking) -> list[Route]:
    async def models(_request: Request) -> Response:
        known = [model for model in await operations.list_models() if not model.retracted]
        listed = [model_document(model) for model in known]
        listed += [deployment_document(one) for one in await operations.deployments()]
        return JSONResponse({"object": "list", "data": listed})

    async def model(request: Request) -> Response:
        name = deployment_named(request.path_params["ref"])
        if name is not None:
            return JSONResponse(deployment_document(await operations.deployment(name)))
        found = await operations.show_model(request.path_params["ref"])
        if found.retracted:
            raise NotFound(f"model {found.reference}, which its author took back")
        return JSONResponse(model_document(found))

    async def ask(cid: str, calls: Sequence[tuple[list[int], Tensor]], *, binary: bool) -> list[bytes]:
        """A vector for each row, in the order of the rows."""
        gathered, vectors = Answer(asking), dict[int, bytes]()
        for places, batch in calls:
            answer = await gathered.predict(cid, batch, EMBEDDING, binary=binary)
            vectors.update(zip(places, vectors_of(answer.outputs), strict=True))
        return [vectors[place] for place in sorted(vectors)]

    async def embeddings(request: Request) -> Response:
        body = await read_json(request, limit=MAX_QUESTION_BYTES)
        note_body(body)
        question = read_question(body)
        ports = await operations.model_ports(question.model)
        calls = calls_of(question, ports)
        vectors = await while_wanted(request, partial(ask, ports.reference, calls, binary=question.base64))
        return exact_json(embeddings_document(question, ports.model, vectors))

    return [
        Route("/v1/models", models),
        Route("/v1/models/{ref:path}", model),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
    ]
