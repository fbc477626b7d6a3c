"""/celluler/rounds/1: direct streams among the members of a run. Spec: docs/reference/protocols/rounds.md

Every member keeps one stream open to every other and says on it what its machine wants said; whoever is said something
reads it at once. Losing a message is allowed everywhere (a queue that is full, a stream that breaks): the machine tells
its peers what it lacks and is sent it again. What to pass on is the machine's decision too.

On other streams members ask each other for reduced parts, by digest; the bytes are the asker's to check.

Knows nothing of what a message means. One `RoundsHub` a host; one `open_rounds` a run.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Protocol

import trio

from celluler.errors import BlockAbsent, LocalError, PeerViolation, ProtocolViolation, TimedOut, Unavailable
from celluler.identity import PeerId, short
from celluler_protocols.nursery import own_nursery
from celluler_protocols.rounds_messages import (
    MAX_ENVELOPE_BYTES,
    MAX_PIECE_BYTES,
    PROTOCOL_ID,
    Absent,
    Have,
    Piece,
    Say,
    Talk,
    Want,
    frames,
)

QUEUE_MESSAGES = 512
"""Messages waiting for one member, or from one; beyond that the oldest outgoing or the newest incoming is lost."""
FIRST_WORD_S = 10.0
"""A stream must say what it is for within this."""
WRITE_S = 10.0
"""A member that does not take a message within this is dropped and called again."""
IDLE_S = 120.0
"""A stream on which nothing was said for so long is closed; its opener opens another."""
RETRY_S = (0.1, 5.0)
"""Back-off before a member is called again: from, to, doubling."""
MAX_ASKS_A_PART = 4
"""How often one member is given one part: its own retries, no more."""
PARTS_AT_ONCE = 4
"""Parts being served at once, to all members together."""
PART_S = 120.0
"""Longest that serving one part may take."""

CLOSE_S = 1.0

_RECEIVE_BYTES = 1 << 18
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)

PartSource = Callable[[bytes], bytes | bytearray | memoryview | None]
"""A reduced part by digest, from memory; None when it is not held (any more)."""


class StreamHost(Protocol):
    """The part of a host used here."""

    @property
    def peer_id(self) -> PeerId: ...

    async def open_stream(self, peer: PeerId, protocol: str, /) -> trio.abc.Stream: ...

    def serve(self, protocol: str, handler: Callable[[PeerId, Any], Awaitable[None]], /) -> None: ...


class RoundsHub:
    """Answers the protocol on one host and hands each stream to the run it names."""

    def __init__(self, host: StreamHost) -> None:
        self.host = host
        self.runs: dict[bytes, Rounds] = {}
        host.serve(PROTOCOL_ID, self._answer)

    async def _answer(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        """Raises ProtocolViolation for anything outside the protocol. A run that is not open here is no violation, nor
        is a caller that is no member of it: it may have been admitted, and we not know yet. Both will call again."""
        incoming = frames()
        words: list[Any] = []
        with trio.move_on_after(FIRST_WORD_S):
            words = await _next(stream, incoming)
        if not words:
            return
        first = words[0]
        if not isinstance(first, Talk | Want):
            raise ProtocolViolation("a stream that does not say what it is for", peer=peer)
        rounds = self.runs.get(first.run)
        if rounds is None or peer not in rounds.members:
            return
        with rounds.within():
            if isinstance(first, Talk):
                await rounds.listen(peer, stream, incoming, words[1:])
            elif len(words) > 1:
                raise ProtocolViolation("more than one part asked for on one stream", peer=peer)
            else:
                await rounds.serve_part(peer, stream, first.digest)


@asynccontextmanager
async def open_rounds(
    hub: RoundsHub, run: bytes, members: Iterable[PeerId], *, parts: PartSource
) -> AsyncIterator[Rounds]:
    """Talk to the other members of a run until the block ends. Raises LocalError when that run is open already.

    parts: looks a reduced part up; called in the event loop, so it must not touch a disk.
    """
    if run in hub.runs:
        raise LocalError("this run is open already")
    rounds = Rounds(hub.host, run, members, parts)
    hub.runs[run] = rounds
    try:
        async with own_nursery() as nursery:
            rounds.start(nursery)
            yield rounds
    finally:
        del hub.runs[run]
        rounds.close()


class Rounds:
    """The other members of one run, and what goes to and fro. Made by `open_rounds`."""

    def __init__(self, host: StreamHost, run: bytes, members: Iterable[PeerId], parts: PartSource) -> None:
        self.members = tuple(dict.fromkeys(peer for peer in members if peer != host.peer_id))
        self.connected: set[PeerId] = set()
        """Members on whose stream we can speak at this moment."""
        self.lost = 0
        """Messages dropped because a queue was full."""
        self._host, self._run, self._parts = host, run, parts
        self._outboxes = {peer: _Outbox() for peer in self.members}
        self._inbox: dict[PeerId, deque[bytes]] = {}  # only members with something waiting, in order of their turn
        self._arrived = trio.Event()
        self._scopes: set[trio.CancelScope] = set()
        self._nursery: trio.Nursery | None = None
        self._asked: Counter[tuple[PeerId, bytes]] = Counter()
        self._serving = trio.CapacityLimiter(PARTS_AT_ONCE)

    def start(self, nursery: trio.Nursery) -> None:
        """Call every member, from tasks of this nursery."""
        self._nursery = nursery
        for peer in self.members:
            nursery.start_soon(self.talk, peer)

    def add(self, peers: Iterable[PeerId]) -> None:
        """Members that came later. Those that are here already stay as they are."""
        for peer in peers:
            if peer not in self._outboxes and peer != self._host.peer_id:
                self._outboxes[peer] = _Outbox()
                self.members += (peer,)
                if self._nursery is not None:
                    self._nursery.start_soon(self.talk, peer)

    # --- speaking ---

    def broadcast(self, data: bytes, skip: Iterable[PeerId] = ()) -> None:
        """Say it to every member but those in `skip`. Never waits."""
        for peer in self.members:
            if peer not in skip:
                self.send(peer, data)

    def send(self, peer: PeerId, data: bytes) -> None:
        """Say it to one member. Never waits; a member that is away loses its oldest messages."""
        if not 0 < len(data) <= MAX_ENVELOPE_BYTES:
            raise LocalError(f"a message of {len(data)} bytes, limit {MAX_ENVELOPE_BYTES}")
        outbox = self._outboxes.get(peer)
        if outbox is None:
            raise LocalError(f"{short(peer)} is no other member of this run")
        self.lost += outbox.put(data)

    async def talk(self, peer: PeerId) -> None:
        """Keep a stream open to one member, for ever."""
        low, high = RETRY_S
        wait_s = low
        while True:
            try:
                stream = await self._host.open_stream(peer, PROTOCOL_ID)
            except (Unavailable, PeerViolation):
                pass
            else:
                began = trio.current_time()
                await self._speak(peer, stream)
                if trio.current_time() - began > high:
                    wait_s = low
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, high)

    async def _speak(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        """Returns when the stream breaks, stalls, or is closed by the other side."""
        outgoing, outbox = frames(), self._outboxes[peer]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_closed, stream, nursery.cancel_scope)
            try:
                with trio.fail_after(WRITE_S):
                    await stream.send_all(outgoing.encode(Talk(self._run)))
                self.connected.add(peer)
                while True:
                    data = await outbox.get()
                    with trio.fail_after(WRITE_S):
                        await stream.send_all(outgoing.encode(Say(data)))
            except (*_BROKEN, Unavailable, trio.TooSlowError):
                nursery.cancel_scope.cancel()
            finally:
                self.connected.discard(peer)
                await _close(stream)

    # --- hearing ---

    async def receive(self) -> tuple[PeerId, bytes]:
        """The next message and the member whose stream brought it. Members take turns: one cannot crowd out another."""
        await trio.lowlevel.checkpoint()  # a caller in a loop lets the others run
        while not self._inbox:
            self._arrived = trio.Event()
            await self._arrived.wait()
        peer, waiting = next(iter(self._inbox.items()))
        del self._inbox[peer]
        data = waiting.popleft()
        if waiting:
            self._inbox[peer] = waiting
        return peer, data

    def __aiter__(self) -> Rounds:
        return self

    async def __anext__(self) -> tuple[PeerId, bytes]:
        return await self.receive()

    async def listen(self, peer: PeerId, stream: trio.abc.Stream, incoming: Any, words: list[Any]) -> None:
        """Drain a member's stream until it ends. Raises ProtocolViolation for any word but Say."""
        while True:
            for word in words:
                if not isinstance(word, Say):
                    raise ProtocolViolation("not a message of a round", peer=peer)
                self._hear(peer, word.envelope)
            words = []
            with trio.move_on_after(IDLE_S):
                words = await _next(stream, incoming)
            if not words:
                return

    def _hear(self, peer: PeerId, data: bytes) -> None:
        waiting = self._inbox.setdefault(peer, deque())
        if len(waiting) < QUEUE_MESSAGES:
            waiting.append(data)
            self._arrived.set()
        else:
            self.lost += 1

    # --- parts ---

    async def fetch_part(self, peer: PeerId, digest: bytes, *, length: int) -> bytearray:
        """A reduced part of exactly `length` bytes from one member. The caller compares it with the digest.

        Raises BlockAbsent when it has not got it, Unavailable, or ProtocolViolation for another length.
        The deadline is the caller's.
        """
        stream = await self._host.open_stream(peer, PROTOCOL_ID)
        try:
            await stream.send_all(frames().encode(Want(self._run, digest)))
            return await _read_part(peer, stream, digest, length)
        except _BROKEN as error:
            raise Unavailable(f"{short(peer)} broke off", peer=peer) from error
        finally:
            await _close(stream)

    async def serve_part(self, peer: PeerId, stream: trio.abc.Stream, digest: bytes) -> None:
        outgoing = frames()
        self._asked[peer, digest] += 1
        data = self._parts(digest) if self._asked[peer, digest] <= MAX_ASKS_A_PART else None
        with trio.move_on_after(PART_S), suppress(*_BROKEN):
            if data is None:
                await stream.send_all(outgoing.encode(Absent()))
                return
            async with self._serving:
                view = memoryview(data).cast("B")
                await stream.send_all(outgoing.encode(Have(len(view))))
                for start in range(0, len(view), MAX_PIECE_BYTES):
                    await stream.send_all(outgoing.encode(Piece(bytes(view[start : start + MAX_PIECE_BYTES]))))

    # --- ending ---

    @contextmanager
    def within(self) -> Iterator[None]:
        """For what the host's handlers do on behalf of this run: it ends with the run."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)

    def close(self) -> None:
        for scope in self._scopes:
            scope.cancel()


class _Outbox:
    """What waits for one member; when full, the oldest goes: the newest says more."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._filled = trio.Event()

    def put(self, data: bytes) -> int:
        """How many messages were lost for it."""
        self._waiting.append(data)
        self._filled.set()
        if len(self._waiting) <= QUEUE_MESSAGES:
            return 0
        self._waiting.popleft()
        return 1

    async def get(self) -> bytes:
        while not self._waiting:
            self._filled = trio.Event()
            await self._filled.wait()
        return self._waiting.popleft()


async def _next(stream: trio.abc.Stream, incoming: Any) -> list[Any]:
    """The next words of a stream, at least one; none at its end. Raises ProtocolViolation."""
    while True:
        try:
            chunk = await stream.receive_some(_RECEIVE_BYTES)
        except (*_BROKEN, Unavailable):
            return []
        if not chunk:
            return []
        words: list[Any] = incoming.feed(bytes(chunk))
        if words:
            return words


async def _read_part(peer: PeerId, stream: trio.abc.Stream, digest: bytes, length: int) -> bytearray:
    incoming, data, announced = frames(), bytearray(), False
    while not announced or len(data) < length:
        words = await _next(stream, incoming)
        if not words:
            raise TimedOut(f"{short(peer)} ended the stream before the part", peer=peer)
        for word in words:
            match word:
                case Absent() if not announced:
                    raise BlockAbsent(digest, peer=peer)
                case Have(size) if not announced and size == length:
                    announced = True
                case Piece(piece) if announced and len(data) + len(piece) <= length:
                    data += piece
                case _:
                    raise ProtocolViolation("a part of another length than the round's", peer=peer)
    return data


async def _until_closed(stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
    """The listener says nothing on a Talk stream: whatever comes from there is its end."""
    with suppress(*_BROKEN, Unavailable):
        await stream.receive_some(1)
    scope.cancel()


async def _close(stream: trio.abc.Stream) -> None:
    with trio.CancelScope(deadline=trio.current_time() + CLOSE_S, shield=True), suppress(*_BROKEN, Unavailable):
        await stream.aclose()
