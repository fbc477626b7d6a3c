"""/celluler/infer/1: ask a peer what a model makes of an array. Spec: docs/reference/protocols/inference.md

Participants: a *requester* and a *server*, which holds the model or gets it first. One stream carries one exchange
after another, each a Predict and its answer; the requester ends the stream between two of them.
Not promised: that the answer is right. Whoever must know asks several peers, or loads the model.
Knows nothing of how a name is resolved or a model run: that is the predictor's.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import trio

from celluler.errors import (
    Busy,
    CellulerError,
    Denied,
    InvalidSpec,
    LocalError,
    NotFound,
    ProtocolViolation,
    TimedOut,
    Unavailable,
)
from celluler.models.names import ModelName, parse_reference
from celluler.wire import U8, U32, Bytes32, Frames, Length, Range, Text

PROTOCOL_ID = "/celluler/infer/1"
MAX_DATA_BYTES = 8 << 20
MAX_RECEIPT_BYTES = 1024
STREAMS_A_PEER = 8
"""Taken at once of one peer, each of which may hold a request and an answer: who asks opens no more."""
IDLE_S = 60.0
"""How long a server waits for a request to come whole, or for the next one."""
ANSWER_S = 30.0
"""How long a server tries to send an answer."""

ITEM_BYTES = {"float32": 4, "int64": 8, "uint8": 1}
"""Every dtype there is on this wire; arrays are little-endian and row-major."""

Dtype = Annotated[str, Length(1, 16)]
Shape = Annotated[tuple[Annotated[int, Range(1, 1 << 31)], ...], Length(1, 8)]
Data = Annotated[bytes, Length(1, MAX_DATA_BYTES)]


class Refusal(IntEnum):
    """Why a server does not answer."""

    NOT_FOUND = 0
    """It neither has the model nor finds it."""
    BAD_REQUEST = 1
    """Another shape, dtype or output than the model's, or an answer over the limit. Ask differently."""
    BUSY = 2
    DENIED = 3
    FAILED = 4
    """It could not; another peer might."""


@dataclass(frozen=True, slots=True)
class Predict:
    """model: `author/name[:version|@alias]`, or the CID of a manifest. shape: with the batch axis first.

    output: one of those that the model has itself, such as raw, or one that its postprocess names.
    """

    model: Annotated[str, Length(1, 256)]
    output: Annotated[str, Length(1, 16)]
    dtype: Dtype
    shape: Shape
    data: Data


@dataclass(frozen=True, slots=True)
class Predicted:
    """model: digest of the manifest of the model that answered. served_ms: from the request's arrival, by its clock.
    receipt: what the server signs of the answer (`receipts`), empty where it signs nothing."""

    dtype: Dtype
    shape: Shape
    data: Data
    model: Bytes32
    served_ms: U32
    receipt: Annotated[bytes, Length(0, MAX_RECEIPT_BYTES)] = b""


@dataclass(frozen=True, slots=True)
class Refused:
    """code: a Refusal. message: for a person."""

    code: U8
    message: Text


PredictRequest = Predict
PredictReply = Predicted | Refused
Predictor = Callable[[Predict], Awaitable[PredictReply]]
"""Answers, or raises a CellulerError, which becomes a Refused."""


def frames() -> Frames:
    return Frames((Predict, Predicted, Refused), limit=MAX_DATA_BYTES + 4096)  # wire tag = position


class Ask:
    """Requester's half of one exchange, sans-IO: bytes in, a checked answer out."""

    def __init__(self, request: Predict) -> None:
        """Raises LocalError, InvalidSpec when no server could take the request."""
        self._request, self._frames = request, frames()
        self._wanted = parse_reference(request.model)
        try:
            check_array(request.dtype, request.shape, request.data)
        except ProtocolViolation as error:
            raise LocalError(str(error)) from error

    def opening(self) -> bytes:
        return self._frames.encode(self._request)

    def receive(self, chunk: bytes) -> Predicted | None:
        """None while incomplete; an empty chunk means end of stream.

        Raises ProtocolViolation for what is no answer to this request, and for a Refused what it stands for.
        """
        if not chunk:
            raise Unavailable("the stream ended before the answer")
        match self._frames.feed(chunk):
            case []:
                return None
            case [Predicted() as answer] if self._frames.idle:
                self._check(answer)
                return answer
            case [Refused(code, message)] if code < len(Refusal):
                raise error_of(Refusal(code), message, self._request.model)
            case _:
                raise ProtocolViolation("no answer to a prediction")

    def _check(self, answer: Predicted) -> None:
        check_array(answer.dtype, answer.shape, answer.data)
        if answer.shape[0] != self._request.shape[0]:
            raise ProtocolViolation(f"{answer.shape[0]} predictions for {self._request.shape[0]} samples")
        if not isinstance(self._wanted, ModelName) and answer.model != self._wanted:
            raise ProtocolViolation("answered by another model than the one asked for")


def check_array(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    """The bytes are what dtype and shape say. Raises ProtocolViolation."""
    if dtype not in ITEM_BYTES:
        raise ProtocolViolation(f"dtype {dtype!r}")
    if math.prod(shape) * ITEM_BYTES[dtype] != len(data):
        raise ProtocolViolation(f"{len(data)} bytes for {dtype} of shape {shape}")


# --- adapters --------------------------------------------------------------------------------------------------------


async def predict(stream: trio.abc.Stream, request: Predict) -> Predicted:
    """Ask once. Closes the stream; the deadline is the caller's."""
    async with stream:
        return await exchange(stream, request)


async def exchange(stream: trio.abc.Stream, request: Predict) -> Predicted:
    """Ask, and leave the stream open for the next request: five times faster than a fresh stream.

    After NotFound, LocalError, Busy or Unavailable the stream may be used again, after anything else not.
    """
    ask = Ask(request)
    await stream.send_all(ask.opening())
    while (answer := ask.receive(await stream.receive_some())) is None:
        pass
    return answer


async def serve_inference(stream: trio.abc.Stream, predictor: Predictor) -> None:
    """Answer requests until the requester ends the stream, is idle too long, or stops reading.

    Raises ProtocolViolation for what no honest peer sends. Errors of ours that the predictor raises are answered.
    How long it may take is the predictor's own to bound.
    """
    words = frames()
    async with stream:
        while (request := await _next_request(stream, words)) is not None:
            answer = await _answer(predictor, request)
            with trio.move_on_after(ANSWER_S) as sending:
                await stream.send_all(words.encode(answer))
            if sending.cancelled_caught:
                return


async def turn_away(stream: trio.abc.Stream) -> None:
    """Tell a requester that there is no room for it, and close the stream."""
    async with stream:
        with trio.move_on_after(ANSWER_S):
            await stream.send_all(frames().encode(refuse(Refusal.BUSY, "too many requests at once")))


async def _next_request(stream: trio.abc.Stream, words: Frames) -> Predict | None:
    """None when the requester has gone, in order or by silence."""
    with trio.move_on_after(IDLE_S):
        while chunk := await stream.receive_some():
            match words.feed(chunk):
                case []:
                    continue
                case [Predict() as request] if words.idle:
                    check_array(request.dtype, request.shape, request.data)
                    return request
                case _:
                    raise ProtocolViolation("not a request, or a second one before the answer")
        if not words.idle:
            raise ProtocolViolation("stream ended inside a request")
    return None


async def _answer(predictor: Predictor, request: Predict) -> PredictReply:
    try:
        parse_reference(request.model)
        answer = await predictor(request)
    except CellulerError as error:
        return refusal_of(error)
    if isinstance(answer, Predicted) and len(answer.data) > MAX_DATA_BYTES:
        return refuse(Refusal.BAD_REQUEST, f"the answer has {len(answer.data)} bytes, limit {MAX_DATA_BYTES}")
    return answer


def refuse(code: Refusal, message: str) -> Refused:
    """message: cut to 1024 bytes of UTF-8, between characters."""
    return Refused(code.value, message.encode("utf-8", "replace")[:1024].decode("utf-8", "ignore"))


def refusal_of(error: CellulerError) -> Refused:
    """What a requester is told about an error of ours. Of a failure inside, only its kind and its text."""
    match error:
        case NotFound():
            code = Refusal.NOT_FOUND
        case Denied():
            code = Refusal.DENIED
        case LocalError():
            code = Refusal.BAD_REQUEST
        case Busy() | TimedOut():
            code = Refusal.BUSY
        case _:  # a failed worker, or a third peer that lied to us: not the requester's doing
            code = Refusal.FAILED
    return refuse(code, str(error))


def error_of(code: Refusal, message: str, model: str) -> CellulerError:
    """What a Refused stands for, to whoever asked."""
    match code:
        case Refusal.NOT_FOUND:
            return NotFound(model)
        case Refusal.BAD_REQUEST:
            return InvalidSpec("", message)
        case Refusal.BUSY:
            return Busy(message)
        case Refusal.DENIED:
            return Denied(message)
        case Refusal.FAILED:
            return Unavailable(message)
