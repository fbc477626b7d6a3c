"""An error in the shape that the caller of a path expects: OpenAI's below /v1, KServe's below /v2, else our own."""

from __future__ import annotations

import math
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from celluler import errors
from celluler.errors import CellulerError, InvalidSpec, LocalError, NotFound
from celluler.failures import describe_error
from celluler_node.gateway.counted import ERROR_KIND
from celluler_node.gateway.documents import failure, status_of

NO_PATH = "this path"
RETRY_S = 1.0
"""When to come back after being turned away for want of room."""

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 501: "not_implemented"}
_OPENAI_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded", 501: "not_implemented"}

log = structlog.get_logger()


def failure_at(
    path: str, error: CellulerError, *, status: int | None = None, retry_s: float | None = None
) -> JSONResponse:
    """The answer to a request for `path`. retry_s: when to come back, where the status is 429."""
    if path.startswith("/v1/"):
        answer = _openai(error, status or _standard_status(error))
    elif path == "/v2" or path.startswith("/v2/"):
        answer = JSONResponse({"error": _text(error)}, status or _standard_status(error))
    else:
        answer = failure(error, status=status)
    if answer.status_code == 429:
        answer.headers["Retry-After"] = str(math.ceil(RETRY_S if retry_s is None else retry_s))
    return answer


def _standard_status(error: CellulerError) -> int:
    """Both standards say 400 for whatever is wrong in a request, and 429 for a server that is busy."""
    if isinstance(error, errors.Busy):
        return 429
    return 400 if isinstance(error, InvalidSpec) else status_of(error)


def openai_error(error: CellulerError, status: int | None = None) -> dict[str, Any]:
    """OpenAI's document of an error. `celluler` in it is what our own clients raise."""
    status = status or _standard_status(error)
    told: dict[str, Any] = {
        "message": _text(error),
        "type": _OPENAI_TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error"),
        "param": (error.path or None) if isinstance(error, InvalidSpec) else None,
        "code": "model_not_found"
        if isinstance(error, NotFound) and error.what != NO_PATH
        else _OPENAI_CODES.get(status),
        "celluler": describe_error(error),
    }
    return {"error": told}


def _openai(error: CellulerError, status: int) -> JSONResponse:
    answer = JSONResponse(openai_error(error, status), status)
    if status == 501:
        answer.headers["x-should-retry"] = "false"  # OpenAI's own clients repeat what is answered 5xx unless told
    return answer


def kind_of(error: CellulerError) -> str:
    """The nearest of `celluler.errors`, as clients are told."""
    return str(describe_error(error)["type"])


def _text(error: CellulerError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


async def on_celluler_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CellulerError)
    request.scope[ERROR_KIND] = kind_of(error)
    return failure_at(request.url.path, error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """No such path, or not this method."""
    assert isinstance(error, HTTPException)
    told = NotFound(NO_PATH) if error.status_code == 404 else LocalError(error.detail)
    request.scope[ERROR_KIND] = kind_of(told)
    return failure_at(request.url.path, told, status=error.status_code)


async def on_fault(request: Request, error: Exception) -> Response:
    """A bug of ours: the person learns that it is one, the log learns which."""
    log.error("gateway.fault", path=request.url.path, error=repr(error), exc_info=error)
    return failure_at(request.url.path, errors.WorkerFailed("internal error; the node's log says more"))
