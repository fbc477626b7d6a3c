"""/celluler/rounds/1: the members of a run speak directly, each to each. Spec: docs/reference/protocols/rounds.md

A member keeps one stream to every other on which it only sends, and serves the one that the other keeps to it: there
is no question of who dials. What travels are the signed messages of `celluler.learning`, opaque here; losing one is
allowed, since members tell each other again and again what they hold. A second use of the protocol hands reduced
parts to a member that was left behind.

Guaranteed: what `incoming` gives came from the member it names, whole. Not guaranteed: that it came once, or in order.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Protocol

import trio

from celluler.errors import CellulerError, LocalError, ProtocolViolation, Unavailable
from celluler.identity import PeerId
from celluler.learning.messages import MAX_MESSAGE_BYTES, Part
from celluler.learning.roster import MAX_PARTS, MAX_ROUNDS
from celluler.wire import Bytes32, Frames, Length, Range
from celluler_protocols.nursery import own_nursery

PROTOCOL_ID = "/celluler/rounds/1"
MAX_ENVELOPE_BYTES = MAX_MESSAGE_BYTES + 512
MAX_PART_BYTES = 1 << 28
PIECE_BYTES = 1 << 18
QUEUE = 256
"""Messages that wait for one member; what comes to a full queue is lost."""
INCOMING = 1024
SEND_S = 10.0
HELLO_S = 10.0
OPEN_S = 10.0
BACK_OFF_S = (0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Hello:
    """First on a stream of messages."""

    run: Bytes32


@dataclass(frozen=True, slots=True)
class Carry:
    """One signed message, the sender's own or passed on."""

    data: Annotated[bytes, Length(1, MAX_ENVELOPE_BYTES)]


@dataclass(frozen=True, slots=True)
class WantPart:
    """First on a stream of its own: send me the reduced part of this digest."""

    run: Bytes32
    round: Annotated[int, Range(0, MAX_ROUNDS)]
    part: Annotated[int, Range(0, MAX_PARTS - 1)]
    digest: Bytes32


@dataclass(frozen=True, slots=True)
class HavePart:
    """`size` bytes follow in pieces. The receiver hashes everything to the digest it asked for."""

    set_hash: Bytes32
    result: Part
    size: Annotated[int, Range(2, MAX_PART_BYTES)]


@dataclass(frozen=True, slots=True)
class Piece:
    data: Annotated[bytes, Length(1, PIECE_BYTES)]


@dataclass(frozen=True, slots=True)
class AbsentPart:
    """It is not here, or not any more."""


def frames() -> Frames:
    return Frames((Hello, Carry, WantPart, HavePart, Piece, AbsentPart), limit=PIECE_BYTES + 1024)


@dataclass(frozen=True, slots=True)
class HeldPart:
    """A reduced part as one member hands it to another. mantissas: little-endian int16."""

    set_hash: bytes
    result: Part
    mantissas: bytes


PartSource = Callable[[int, bytes], HeldPart | None]
"""The part of a round and a digest, if it is here."""


class RoundsHost(Protocol):
    """What is needed of a host."""

    peer_id: PeerId

    async def open_stream(self, peer: PeerId, protocol: str) -> trio.abc.Stream: ...

    def serve(self, protocol: str, handler: Callable[[PeerId, trio.abc.Stream], Awaitable[None]]) -> None: ...

    def penalise(self, peer: PeerId, error: Exception) -> None: ...


class Switchboard:
    """Hands the streams that peers open to the run they belong to. One a node."""

    def __init__(self, host: RoundsHost) -> None:
        self._host = host
        self._runs: dict[bytes, RunStreams] = {}
        host.serve(PROTOCOL_ID, self._answer)

    @asynccontextmanager
    async def open_run(self, run: bytes, members: Sequence[PeerId], parts: PartSource) -> AsyncIterator[RunStreams]:
        """The streams of one run for the length of the block. members: all, ourselves included."""
        if run in self._runs:
            raise LocalError("this run is open already")
        streams = self._runs[run] = RunStreams(self._host, run, members, parts)
        try:
            async with own_nursery() as nursery:
                for peer in streams.others:
                    nursery.start_soon(streams._keep_sending, peer)
                yield streams
        finally:
            del self._runs[run]

    async def _answer(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        """Raises ProtocolViolation for what no honest peer sends; a run that is not open here ends the stream."""
        async with stream:
            words, first = frames(), None
            with trio.move_on_after(HELLO_S):
                first, *rest = await _read(stream, words)
            if first is None:
                return
            match first:
                case Hello(run) | WantPart(run, _, _, _) if run in self._runs:
                    if peer not in self._runs[run].others:
                        raise ProtocolViolation("not a member of this run", peer=peer)
                case Hello() | WantPart():
                    return
                case _:
                    raise ProtocolViolation("neither Hello nor WantPart first", peer=peer)
            if isinstance(first, Hello):
                await self._runs[first.run]._take(peer, stream, words, rest)
            elif not rest:
                await self._runs[first.run]._hand_out(first, stream, words)


class RunStreams:
    """Made by `Switchboard.open_run`."""

    def __init__(self, host: RoundsHost, run: bytes, members: Sequence[PeerId], parts: PartSource) -> None:
        self._host, self._run, self._parts = host, run, parts
        self.others = tuple(peer for peer in members if peer != host.peer_id)
        self._queues = {peer: trio.open_memory_channel[bytes](QUEUE) for peer in self.others}
        self._arrived, self.incoming = trio.open_memory_channel[tuple[PeerId, bytes]](INCOMING)

    def send(self, to: PeerId, data: bytes) -> None:
        """Queue a message for one member; lost when its queue is full."""
        if to in self._queues:
            with suppress(trio.WouldBlock):
                self._queues[to][0].send_nowait(data)

    def broadcast(self, data: bytes, *, skip: Sequence[PeerId] = ()) -> None:
        """Queue a message for every other member but those."""
        for peer in self.others:
            if peer not in skip:
                self.send(peer, data)

    async def fetch(self, holder: PeerId, round_number: int, part: int, digest: bytes) -> HeldPart:
        """A reduced part from a member that holds it, unchecked: the caller hashes it. The deadline is the caller's.

        Raises Unavailable when it has not got it, ProtocolViolation for an answer that is none.
        """
        words = frames()
        stream = await self._host.open_stream(holder, PROTOCOL_ID)
        async with stream:
            await stream.send_all(words.encode(WantPart(self._run, round_number, part, digest)))
            have: HavePart | None = None
            data = bytearray()
            while have is None or len(data) < have.size:
                for message in await _read(stream, words):
                    match message:
                        case AbsentPart() if have is None:
                            raise Unavailable("that part is not there", peer=holder)
                        case HavePart() if have is None:
                            have = message
                        case Piece(piece) if have is not None and len(data) + len(piece) <= have.size:
                            data += piece
                        case _:
                            raise ProtocolViolation("no answer to WantPart", peer=holder)
        return HeldPart(have.set_hash, have.result, bytes(data))

    # --- inside ------------------------------------------------------------------------------------------------

    async def _keep_sending(self, peer: PeerId) -> None:
        """One stream after the other, for as long as the run is open."""
        failures = 0
        while True:
            try:
                await self._send_on_one_stream(peer)
                failures = 0
            except (CellulerError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
                await trio.sleep(BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)])
                failures += 1

    async def _send_on_one_stream(self, peer: PeerId) -> None:
        words, queue = frames(), self._queues[peer][1]
        with trio.fail_after(OPEN_S):
            stream = await self._host.open_stream(peer, PROTOCOL_ID)
        async with stream:
            await stream.send_all(words.encode(Hello(self._run)))
            async for data in queue:
                with trio.fail_after(SEND_S):
                    await stream.send_all(words.encode(Carry(data)))

    async def _take(self, peer: PeerId, stream: trio.abc.Stream, words: Frames, first: list[object]) -> None:
        """Drain what a member sends. A reader that lags loses the newest: they are sent again."""
        messages: Sequence[object] = first
        while True:
            for message in messages:
                if not isinstance(message, Carry):
                    raise ProtocolViolation(f"{type(message).__name__} among messages", peer=peer)
                with suppress(trio.WouldBlock, trio.BrokenResourceError):
                    self._arrived.send_nowait((peer, message.data))
            chunk = await stream.receive_some()
            if not chunk:
                return
            messages = words.feed(chunk)

    async def _hand_out(self, want: WantPart, stream: trio.abc.Stream, words: Frames) -> None:
        held = self._parts(want.round, want.digest)
        with trio.move_on_after(SEND_S * max(1, math.log2(2 + (len(held.mantissas) if held else 0) / PIECE_BYTES))):
            if held is None:
                await stream.send_all(words.encode(AbsentPart()))
                return
            await stream.send_all(words.encode(HavePart(held.set_hash, held.result, len(held.mantissas))))
            for start in range(0, len(held.mantissas), PIECE_BYTES):
                await stream.send_all(words.encode(Piece(held.mantissas[start : start + PIECE_BYTES])))


async def _read(stream: trio.abc.Stream, words: Frames) -> list[object]:
    """At least one message. Raises Unavailable at the end of the stream."""
    while chunk := await stream.receive_some():
        if messages := words.feed(chunk):
            return messages
    raise Unavailable("the stream ended")
