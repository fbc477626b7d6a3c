"""Jobs: submit once for each client id, watch by cursor, cancel."""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celluler.errors import InvalidSpec
from celluler.views import NewJob
from celluler_node.gateway.documents import check_keys, document, listing, number, read_json
from celluler_node.operations import Operations

MAX_SUBMISSION_BYTES = 1 << 18
MAX_WAIT_S = 30.0
MAX_ATTACHMENTS = 64


def job_routes(operations: Operations) -> list[Route]:
    async def jobs(_request: Request) -> Response:
        return listing("jobs", await operations.jobs())

    async def submit(request: Request) -> Response:
        body = await read_json(request, limit=MAX_SUBMISSION_BYTES)
        check_keys(body, {"client_id": str, "spec": (str, dict), "attachments": list}, "client_id", "spec")
        spec, attachments = body["spec"], body.get("attachments") or []
        if not all(isinstance(cid, str) for cid in attachments) or len(attachments) > MAX_ATTACHMENTS:
            raise InvalidSpec("attachments", f"not a list of at most {MAX_ATTACHMENTS} CIDs")
        if not 1 <= len(body["client_id"].encode("utf-8", "replace")) <= 128:
            raise InvalidSpec("client_id", "1 to 128 bytes")
        text = spec if isinstance(spec, str) else json.dumps(spec)
        return document(await operations.submit_job(NewJob(body["client_id"], text, tuple(attachments))), status=201)

    async def show(request: Request) -> Response:
        return document((await operations.job(request.path_params["job"])).job)

    async def events(request: Request) -> Response:
        since = int(number(request, "since", default=0, most=2**53))
        wait_s = number(request, "wait_s", default=0, most=MAX_WAIT_S)
        return document(await operations.job(request.path_params["job"], since=since, wait_s=wait_s))

    async def cancel(request: Request) -> Response:
        return document(await operations.cancel_job(request.path_params["job"]))

    return [
        Route("/api/v1/jobs", jobs),
        Route("/api/v1/jobs", submit, methods=["POST"]),
        Route("/api/v1/jobs/{job}", show),
        Route("/api/v1/jobs/{job}/events", events),
        Route("/api/v1/jobs/{job}/cancel", cancel, methods=["POST"]),
    ]
