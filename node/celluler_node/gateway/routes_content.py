"""Contents: raw bytes in and out, by CID. A body goes to a file as it arrives, never whole into memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from celluler.errors import InvalidSpec, QuotaExceeded
from celluler.quantities import format_bytes
from celluler_node.gateway.documents import document
from celluler_node.operations import Operations

KINDS = ("blob", "dataset", "model")


def content_routes(operations: Operations, *, spool: Path | None, max_upload_bytes: int) -> list[Route]:
    """spool: folder for uploads on their way into the store; by default the system's temporary one."""

    async def add(request: Request) -> Response:
        kind = request.query_params.get("kind", "blob")
        if kind not in KINDS:
            raise InvalidSpec("kind", f"{kind!r} is not one of {', '.join(KINDS)}")
        with tempfile.NamedTemporaryFile(dir=spool, prefix="upload-") as file:
            written = 0
            async for chunk in request.stream():
                written += len(chunk)
                if written > max_upload_bytes:
                    raise QuotaExceeded(f"an upload has at most {format_bytes(max_upload_bytes)}")
                await trio.to_thread.run_sync(file.write, chunk)
            await trio.to_thread.run_sync(file.flush)
            return document(await operations.add_blob(Path(file.name), kind), status=201)

    async def get(request: Request) -> Response:
        path = await operations.read_blob(request.path_params["cid"])
        return FileResponse(path, media_type="application/octet-stream")

    async def stat(request: Request) -> Response:
        return document(await operations.blob_stat(request.path_params["cid"]))

    return [
        Route("/api/v1/blobs", add, methods=["POST"]),
        Route("/api/v1/blobs/{cid}", get),
        Route("/api/v1/blobs/{cid}/stat", stat),
    ]
