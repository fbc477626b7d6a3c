"""KServe v2: health, metadata and inference.

A model's name has a slash, `author/name`: it stands in a path as it is, or escaped as `author%2Fname`, which a server
cannot tell apart. Every name has one slash, or is a CID, so that what follows it is no part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import celluler
from celluler.errors import CellulerError, InvalidSpec, NotFound
from celluler.tensors import Tensor
from celluler.views import Prediction
from celluler_node.gateway.asking import Answer, Asking, while_wanted
from celluler_node.gateway.documents import read_body
from celluler_node.gateway.kserve import Wanted, metadata, outputs_for, read_inference, write_answer
from celluler_node.gateway.references import REFERENCE
from celluler_node.operations import Operations

HEADER = "Inference-Header-Content-Length"
_MODEL = f"/v2/models/{REFERENCE}"
_VERSION = f"{_MODEL}/versions/{{version}}"


def kserve_routes(operations: Operations, asking: Asking) -> list[Route]:
    async def server(_request: Request) -> Response:
        extensions = ["binary_tensor_data"]
        return JSONResponse({"name": "celluler", "version": celluler.__version__, "extensions": extensions})

    async def live(_request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_request: Request) -> Response:
        told = await operations.readiness()
        return JSONResponse({"ready": True}) if told.ready else _not_ready({}, told.reason)

    async def model(request: Request) -> Response:
        ref = _reference(request)
        ports = await operations.model_ports(ref)
        try:
            known = [one.version for one in (await operations.versions(ref)).versions if not one.retracted]
        except CellulerError:  # nobody to ask: the version that we have is one
            known = []
        return JSONResponse(metadata(ports, known or [ports.version]))

    async def model_ready(request: Request) -> Response:
        """Whether it can be asked: here, or by somebody who has it."""
        ref = _reference(request)
        try:
            found = await operations.show_model(ref)
        except NotFound as error:
            return _not_ready({"name": ref}, str(error), 404)
        if found.local or found.providers:
            return JSONResponse({"name": ref, "ready": True})
        return _not_ready({"name": ref}, "nobody who has it can be reached")

    async def ask(cid: str, inputs: Tensor, outputs: Sequence[Wanted]) -> list[tuple[Wanted, Prediction]]:
        gathered = Answer(asking)
        return [(one, await gathered.predict(cid, inputs, one.name, binary=one.binary)) for one in outputs]

    async def infer(request: Request) -> Response:
        ref = _reference(request)
        inference = read_inference(await read_body(request), _header_bytes(request))
        ports = await operations.model_ports(ref)
        wanted = outputs_for(inference, ports)
        answers = await while_wanted(request, partial(ask, ports.reference, inference.inputs, wanted))
        body, head = write_answer(inference, request.path_params["ref"], ports.version, answers)
        if head is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={HEADER: str(head)})

    each = [("/ready", model_ready, "GET"), ("/infer", infer, "POST"), ("", model, "GET")]
    return [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        *(Route(f"{base}{end}", asked, methods=[method]) for base in (_VERSION, _MODEL) for end, asked, method in each),
    ]


def _not_ready(told: dict[str, str], reason: str, status: int = 400) -> JSONResponse:
    return JSONResponse({**told, "ready": False, "error": reason}, status)


def _reference(request: Request) -> str:
    """What a path names. Raises InvalidSpec for a version beside a CID, or beside another version."""
    ref, version = request.path_params["ref"], request.path_params.get("version")
    if version is None:
        return str(ref)
    if "/" not in ref or ":" in ref or "@" in ref:
        raise InvalidSpec("version", f"{ref[:80]} says which version it is")
    return f"{ref}:{version}"


def _header_bytes(request: Request) -> int | None:
    text = request.headers.get(HEADER)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InvalidSpec(HEADER, "is no number of bytes")
    return int(text)
