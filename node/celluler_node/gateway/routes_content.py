"""Contents: raw bytes in and out, by CID; what is on its way here; what may go. A body goes to a file as it arrives,
never whole into memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import trio
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from celluler.errors import InvalidSpec, LocalError, QuotaExceeded
from celluler.quantities import format_bytes
from celluler_node.gateway.documents import check_keys, document, listing, number, read_json
from celluler_node.operations import Operations

KINDS = ("blob", "dataset", "model")
MAX_QUESTION_BYTES = 4096
MAX_CONTENT_BYTES = 1 << 50


def content_routes(operations: Operations, *, spool: Path | None, max_upload_bytes: int) -> list[Route]:
    """spool: folder for uploads on their way into the store; by default the system's temporary one."""

    async def add(request: Request) -> Response:
        kind = request.query_params.get("kind", "blob")
        if kind not in KINDS:
            raise InvalidSpec("kind", f"{kind!r} is not one of {', '.join(KINDS)}")
        announce = request.query_params.get("announce", "yes")
        if announce not in ("yes", "no"):
            raise InvalidSpec("announce", f"{announce!r} is neither yes nor no")
        async with _spooled(request, spool, max_upload_bytes) as path:
            blob = await operations.add_blob(path, kind, move=True, announce=announce == "yes")
        return document(blob, status=201)

    async def get(request: Request) -> Response:
        at_most = int(number(request, "at_most", default=MAX_CONTENT_BYTES, most=MAX_CONTENT_BYTES))
        limit = at_most if "at_most" in request.query_params else None
        path = await operations.read_blob(request.path_params["cid"], at_most=limit)
        return _File(path, media_type="application/octet-stream")

    async def stat(request: Request) -> Response:
        return document(await operations.blob_stat(request.path_params["cid"]))

    async def transfers(_request: Request) -> Response:
        return listing("transfers", await operations.transfers())

    async def pin(request: Request) -> Response:
        return document(await operations.pin(await _ref(request)))

    async def unpin(request: Request) -> Response:
        return document(await operations.unpin(await _ref(request)))

    async def collect(request: Request) -> Response:
        body = await read_json(request, limit=MAX_QUESTION_BYTES)
        check_keys(body, {"target_bytes": int, "dry_run": bool})
        target, dry_run = body.get("target_bytes"), body.get("dry_run") or False
        if target is not None and target < 0:
            raise InvalidSpec("target_bytes", "is less than nothing")
        return document(await operations.collect(target_bytes=target, dry_run=dry_run))

    async def check(request: Request) -> Response:
        body = await read_json(request, limit=MAX_QUESTION_BYTES)
        check_keys(body, {"repair": bool})
        return document(await operations.check_store(repair=body.get("repair") or False))

    return [
        Route("/api/v1/blobs", add, methods=["POST"]),
        Route("/api/v1/blobs/{cid}", get),
        Route("/api/v1/blobs/{cid}/stat", stat),
        Route("/api/v1/transfers", transfers),
        Route("/api/v1/pin", pin, methods=["POST"]),
        Route("/api/v1/unpin", unpin, methods=["POST"]),
        Route("/api/v1/store/gc", collect, methods=["POST"]),
        Route("/api/v1/store/check", check, methods=["POST"]),
    ]


async def _ref(request: Request) -> str:
    body = await read_json(request, limit=MAX_QUESTION_BYTES)
    check_keys(body, {"ref": str}, "ref")
    return str(body["ref"])


class _File(FileResponse):
    chunk_size = 1 << 20  # each is read in a thread: with 64 KiB the hand-over costs more than the reading


@asynccontextmanager
async def _spooled(request: Request, spool: Path | None, limit: int) -> AsyncIterator[Path]:
    """The body as a file, until left. It may have been renamed away by then."""
    try:
        descriptor, name = await trio.to_thread.run_sync(lambda: tempfile.mkstemp(prefix="upload-", dir=spool))
    except OSError as error:
        raise LocalError(f"cannot keep an upload: {error.strerror}", hint="celluler doctor") from None
    try:
        await _fill(descriptor, request, limit)
        yield Path(name)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


async def _fill(descriptor: int, request: Request, limit: int) -> None:
    """Write the body. Raises QuotaExceeded above the limit, and when the disk is full: that is not a bug.

    What comes after that is read all the same, and dropped: a client listens to the answer when it has sent everything.
    """
    written, failure = 0, None
    with os.fdopen(descriptor, "wb") as file:
        async for chunk in request.stream():
            written += len(chunk)
            if failure is None and written > limit:
                failure = QuotaExceeded(f"an upload has at most {format_bytes(limit)}", hint="celluler blob gc")
            if failure is None:
                failure = await trio.to_thread.run_sync(_write, file, chunk)
        if failure is not None:
            raise failure


def _write(file: BinaryIO, chunk: bytes) -> QuotaExceeded | None:
    """Flushed at once: so that a full disk shows here, and not when the file is closed."""
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        return QuotaExceeded(f"cannot keep an upload: {error.strerror}", hint="celluler blob gc")
    return None
