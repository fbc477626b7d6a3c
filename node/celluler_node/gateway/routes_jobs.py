"""Jobs: submit once for each client id, watch by cursor, cancel."""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celluler.errors import InvalidSpec
from celluler.views import JobChange, NewJob
from celluler_node.gateway.documents import check_keys, document, listing, number, read_json
from celluler_node.operations import Operations

MAX_SUBMISSION_BYTES = 1 << 18
MAX_WAIT_S = 30.0
MAX_ATTACHMENTS = 64
MAX_CHANGE_BYTES = 1 << 12
INVITE_S = 3600


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

    async def spec(request: Request) -> Response:
        return document(await operations.job_spec(request.path_params["job"]))

    async def checkpoint(request: Request) -> Response:
        return document(await operations.checkpoint_job(request.path_params["job"]))

    async def stop(request: Request) -> Response:
        return document(await operations.stop_job(request.path_params["job"]))

    async def update(request: Request) -> Response:
        body = await read_json(request, limit=MAX_CHANGE_BYTES)
        check_keys(body, {"deadline_s": int, "priority": int, "max_peers": int})
        change = JobChange(body.get("deadline_s"), body.get("priority"), body.get("max_peers"))
        if change == JobChange():
            raise InvalidSpec("", "nothing to change: deadline_s, priority or max_peers")
        return document(await operations.update_job(request.path_params["job"], change))

    async def invite(request: Request) -> Response:
        body = await read_json(request, limit=MAX_CHANGE_BYTES)
        check_keys(body, {"peer": str, "for_s": int}, "peer")
        told = await operations.invite_to_job(request.path_params["job"], body["peer"], body.get("for_s", INVITE_S))
        return document(told, status=201)

    async def join(request: Request) -> Response:
        body = await read_json(request, limit=MAX_CHANGE_BYTES)
        check_keys(body, {"invite": str}, "invite")
        return document(await operations.join_job(body["invite"]), status=201)

    return [
        Route("/api/v1/jobs", jobs),
        Route("/api/v1/jobs", submit, methods=["POST"]),
        Route("/api/v1/jobs/join", join, methods=["POST"]),
        Route("/api/v1/jobs/{job}", show),
        Route("/api/v1/jobs/{job}", update, methods=["PATCH"]),
        Route("/api/v1/jobs/{job}/spec", spec),
        Route("/api/v1/jobs/{job}/checkpoint", checkpoint, methods=["POST"]),
        Route("/api/v1/jobs/{job}/stop", stop, methods=["POST"]),
        Route("/api/v1/jobs/{job}/events", events),
        Route("/api/v1/jobs/{job}/cancel", cancel, methods=["POST"]),
        Route("/api/v1/jobs/{job}/invites", invite, methods=["POST"]),
    ]
