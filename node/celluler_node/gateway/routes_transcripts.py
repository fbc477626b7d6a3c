"""Runs that were written down: who has a transcript."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celluler.errors import InvalidSpec
from celluler_node.gateway.documents import check_keys, listing, read_json
from celluler_node.operations import Operations

MAX_QUESTION_BYTES = 1 << 14


def transcript_routes(operations: Operations) -> list[Route]:
    async def find(request: Request) -> Response:
        body = await read_json(request, limit=MAX_QUESTION_BYTES)
        check_keys(body, {"job": str, "peers": list}, "job", "peers")
        if not all(isinstance(peer, str) for peer in body["peers"]):
            raise InvalidSpec("peers", "not a list of peer ids")
        return listing("transcripts", await operations.transcripts(body["job"], tuple(body["peers"])))

    return [Route("/api/v1/transcripts", find, methods=["POST"])]
