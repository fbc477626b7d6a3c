"""/celluler/lease/1: ask a peer to load a model and keep it loaded. Spec: docs/reference/protocols/leases.md

Participants: an *asker*, which sends requests there later, and a *lessor*, which grants what its own policy allows. One
stream carries one word and its answer. A lease ends by itself unless it is asked for anew: an asker that dies leaves
nobody with its models. Not promised: that the model is there as long as was said; a lessor may lose its worker.
Knows nothing of policies and memory: they are the lessor's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import trio

from celluler.content.digest import Codec, Digest, cid_of
from celluler.errors import CellulerError, ProtocolViolation, Unavailable
from celluler.identity import PeerId
from celluler.wire import Bytes32, Frames, Range
from celluler_protocols.inference import Refusal, Refused, error_of, refusal_of, refuse

PROTOCOL_ID = "/celluler/lease/1"
MAX_LEASE_S = 600
MAX_WAIT_MS = 20_000
MAX_FRAME_BYTES = 2048
OPEN_S = 10.0
"""How long a word may take to come whole."""
SEND_S = 10.0
GRACE_S = 5.0
"""Beyond the wait that was asked for, for a lessor that does not keep it."""


@dataclass(frozen=True, slots=True)
class Keep:
    """model: digest of a manifest. for_s: from now; a later word counts instead. wait_ms: how long the answer may wait
    for the model to be loaded."""

    model: Bytes32
    for_s: Annotated[int, Range(1, MAX_LEASE_S)]
    wait_ms: Annotated[int, Range(0, MAX_WAIT_MS)]


@dataclass(frozen=True, slots=True)
class Release:
    """The asker needs it no more."""

    model: Bytes32


@dataclass(frozen=True, slots=True)
class Kept:
    """for_s: what is granted, at most what was asked for. ready: it is loaded; else it is on its way."""

    for_s: Annotated[int, Range(1, MAX_LEASE_S)]
    ready: bool


@dataclass(frozen=True, slots=True)
class Released:
    """There is no lease of this asker on it, any more or ever."""


Asked = Keep | Release
Answered = Kept | Released | Refused


class Lessor(Protocol):
    """Who grants. Raises a CellulerError, which becomes a Refused."""

    async def keep(self, asker: PeerId, model: Digest, for_s: int, wait_s: float) -> Kept: ...

    def release(self, asker: PeerId, model: Digest) -> None: ...


def frames() -> Frames:
    return Frames((Keep, Release, Kept, Released, Refused), limit=MAX_FRAME_BYTES)  # wire tag = position


class Ask:
    """Asker's half, sans-IO: bytes in, a checked answer out."""

    def __init__(self, asked: Asked) -> None:
        self._asked, self._frames = asked, frames()

    def opening(self) -> bytes:
        return self._frames.encode(self._asked)

    def receive(self, chunk: bytes) -> Kept | Released | None:
        """None while incomplete; an empty chunk means end of stream.

        Raises ProtocolViolation for what is no answer to this, and for a Refused what it stands for.
        """
        if not chunk:
            raise Unavailable("the stream ended before the answer")
        match self._frames.feed(chunk), self._asked:
            case [], _:
                return None
            case [Kept() as kept], Keep(for_s=most) if self._frames.idle and kept.for_s <= most:
                return kept
            case [Released() as released], Release() if self._frames.idle:
                return released
            case [Refused(code, message)], _ if self._frames.idle and code < len(Refusal):
                raise error_of(Refusal(code), message, cid_of(self._asked.model, Codec.MANIFEST))
            case _:
                raise ProtocolViolation("no answer to what was asked")


# --- adapters --------------------------------------------------------------------------------------------------------


async def keep(stream: trio.abc.Stream, model: Digest, for_s: int, wait_s: float = 0.0) -> Kept:
    """Ask once. Closes the stream; the deadline is the caller's, and must be later than `wait_s`."""
    answer = await _ask(stream, Keep(model, for_s, min(MAX_WAIT_MS, int(wait_s * 1000))))
    assert isinstance(answer, Kept)
    return answer


async def release(stream: trio.abc.Stream, model: Digest) -> None:
    """Ask once. Closes the stream; the deadline is the caller's."""
    await _ask(stream, Release(model))


async def _ask(stream: trio.abc.Stream, asked: Asked) -> Kept | Released:
    ask = Ask(asked)
    async with stream:
        await stream.send_all(ask.opening())
        while (answer := ask.receive(await stream.receive_some())) is None:
            pass
    return answer


async def serve_leases(stream: trio.abc.Stream, asker: PeerId, lessor: Lessor) -> None:
    """Answer one word and close the stream. Raises ProtocolViolation for what no honest peer sends."""
    words = frames()
    async with stream:
        asked = await _read(stream, words)
        if asked is not None:
            answer = await _answer(lessor, asker, asked)
            with trio.move_on_after(SEND_S):
                await stream.send_all(words.encode(answer))


async def turn_away(stream: trio.abc.Stream) -> None:
    """Tell an asker that there is no room for it, and close the stream."""
    async with stream:
        with trio.move_on_after(SEND_S):
            await stream.send_all(frames().encode(refuse(Refusal.BUSY, "too many ask at once")))


async def _read(stream: trio.abc.Stream, words: Frames) -> Asked | None:
    """None when the asker has gone, in order or by silence."""
    with trio.move_on_after(OPEN_S):
        while chunk := await stream.receive_some():
            match words.feed(chunk):
                case []:
                    continue
                case [Keep() | Release() as asked] if words.idle:
                    return asked
                case _:
                    raise ProtocolViolation("not one thing asked for")
        if not words.idle:
            raise ProtocolViolation("stream ended inside a word")
    return None


async def _answer(lessor: Lessor, asker: PeerId, asked: Asked) -> Answered:
    try:
        if isinstance(asked, Release):
            lessor.release(asker, Digest(asked.model))
            return Released()
        with trio.move_on_after(asked.wait_ms / 1000 + GRACE_S):
            return await lessor.keep(asker, Digest(asked.model), asked.for_s, asked.wait_ms / 1000)
    except CellulerError as error:
        return refusal_of(error)
    return refuse(Refusal.BUSY, "no answer in time")
