"""Requests in, JSON documents out, errors with the right status. Every body is bounded before it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse

from celluler import errors
from celluler.errors import CellulerError, InvalidSpec, LocalError, ProtocolViolation
from celluler.failures import describe_error
from celluler.views import SCHEMA, from_json, to_json

MAX_JSON_BYTES = 64 << 20
"""A batch to predict is the largest."""

T = TypeVar("T")

_STATUS: tuple[tuple[type[CellulerError], int], ...] = (  # the first that fits
    (errors.InvalidSpec, 422),
    (errors.Denied, 403),
    (errors.NotSupported, 501),
    (errors.QuotaExceeded, 507),
    (errors.IntegrityError, 500),
    (errors.LocalError, 400),
    (errors.PeerViolation, 502),
    (errors.NotFound, 404),
    (errors.TimedOut, 504),
    (errors.WorkerFailed, 500),
    (errors.Unavailable, 503),
    (CellulerError, 500),
)


def document(record: Any, *, status: int = 200) -> JSONResponse:
    """A record as an object with the schema beside its fields."""
    return JSONResponse({"schema": SCHEMA, **to_json(record)}, status_code=status)


def listing(name: str, records: Any) -> JSONResponse:
    return JSONResponse({"schema": SCHEMA, name: to_json(records)})


def exact_json(document: Any) -> JSONResponse:
    """Of what a model answered. Raises WorkerFailed for numbers that JSON does not have."""
    try:
        return JSONResponse(document)
    except ValueError:
        raise errors.WorkerFailed("the model answered with infinities or NaN, which JSON does not have") from None


def status_of(error: CellulerError) -> int:
    return next(code for cls, code in _STATUS if isinstance(error, cls))


def failure(error: CellulerError, *, status: int | None = None) -> JSONResponse:
    return JSONResponse({"schema": SCHEMA, "error": describe_error(error)}, status_code=status or status_of(error))


async def read_body(request: Request, *, limit: int = MAX_JSON_BYTES) -> bytes:
    """Raises LocalError above the limit, before the rest is read."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise LocalError(f"the body is longer than {limit} bytes")
    return bytes(body)


async def read_json(request: Request, *, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The body as an object. Raises InvalidSpec, or LocalError above the limit."""
    return read_object(await read_body(request, limit=limit))


def read_object(body: bytes) -> dict[str, Any]:
    """JSON as an object. Raises InvalidSpec."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec("", f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidSpec("", "the body is not a JSON object")
    return value


def check_keys(body: Mapping[str, Any], allowed: Mapping[str, type | tuple[type, ...]], *required: str) -> None:
    """Raise InvalidSpec for an unknown key, one of another type, or one that is missing."""
    for key, value in body.items():
        if key not in allowed:
            raise InvalidSpec(key, "unknown key", hint=f"known keys: {', '.join(allowed)}")
        if value is not None and (
            not isinstance(value, allowed[key]) or isinstance(value, bool) != (allowed[key] is bool)
        ):
            raise InvalidSpec(key, f"is of another type than expected: {type(value).__name__}")
    for key in required:
        if body.get(key) is None:
            raise InvalidSpec(key, "missing")


def read_record(cls: type[T], body: Mapping[str, Any]) -> T:
    """The record of these fields; null is as good as absent. Raises InvalidSpec for an unknown, missing or odd one."""
    known = [item.name for item in fields(cls)]  # type: ignore[arg-type]  # a record of celluler.views
    for key in body:
        if key not in known:
            raise InvalidSpec(key, "unknown key", hint=f"known keys: {', '.join(known)}")
    try:
        return from_json(cls, {key: value for key, value in body.items() if value is not None})
    except ProtocolViolation as error:
        path, _, problem = str(error).partition(": ")
        raise InvalidSpec(path.partition(".")[2], problem) from None


def number(request: Request, name: str, *, default: float, most: float) -> float:
    """A query parameter. Raises InvalidSpec."""
    text = request.query_params.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise InvalidSpec(name, f"{text!r} is not a number in 0..{most:g}")
    return value
