"""Membership over a host: moves the machine's messages, decides nothing.

Messages to a peer travel on one stream, opened when there is something to say and kept while there is: an exchange
on a fresh stream costs five times the processor time of one on a kept one (docs/explanation/membership.md), which in
a crowded machine made probes late and lateness made more probes. At most `MAX_LINES` are kept, so in a large swarm
most are fresh and what a node spends stays the same. A peer answers on the stream that the question came by.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import trio

from celluler.errors import Busy, LocalError, PeerViolation, ProtocolViolation, Unavailable
from celluler.identity import Identity, PeerId, short

from ..nursery import own_nursery
from .limits import Buckets
from .machine import Joined, Left, Output, Profile, Send, Swim, SwimConfig, Synced, Updated
from .messages import PROTOCOL_ID, Ack, Message, Nack, Page, PeerRecord, Ping, Sync, frames, read_page
from .table import Entry, Member

log = logging.getLogger(__name__)

Change: TypeAlias = Joined | Updated | Left

OPEN_S = 5.0
"""Longest wait for a stream, dialling included, and for a message to be taken."""
STALE_S = 2.0
"""A question unanswered for so long: the next message gets a fresh stream, in case the old one leads nowhere."""
LINE_IDLE_S = 45.0
"""How long a stream of ours is kept without a message."""
IDLE_S = 120.0
"""How long a stream that a peer opened may bring nothing: longer than any peer keeps its own."""
MAX_LINES = 48
MAX_UNSENT = 16
"""Messages waiting for one stream; beyond it they are lost, which the protocol bears."""
MAX_PAGES = 1024
"""Pages read from one peer by `ask_members`."""
MAX_KNOWN = 64
CHANGES_WAITING = 1024
REJOIN_S = (1.0, 30.0)
"""First and longest pause between two tries to rejoin."""
JOIN_S = 30.0
"""Longest attempt of the rejoining task."""
FAREWELL_S = 2.0
CHUNK_BYTES = 16 << 10


class MembershipHost(Protocol):
    """What membership needs of a host."""

    @property
    def addresses(self) -> tuple[str, ...]: ...

    def connected(self) -> frozenset[PeerId]: ...

    async def connect(self, address: str) -> PeerId: ...

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None: ...

    async def open_stream(self, peer: PeerId, protocol: str) -> trio.abc.Stream: ...

    def serve(self, protocol: str, handler: Callable[[PeerId, trio.abc.Stream], Awaitable[None]]) -> None: ...

    def penalise(self, peer: PeerId, error: Exception) -> None: ...


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a node keeps to come back after a restart. addresses: full, of members, best first."""

    incarnation: int
    addresses: tuple[str, ...]


@asynccontextmanager
async def open_membership(
    host: MembershipHost,
    identity: Identity,
    profile: Profile,
    *,
    known: Sequence[str] = (),
    last_incarnation: int = 0,
    config: SwimConfig | None = None,
) -> AsyncIterator[Membership]:
    """Be a member for the length of the block.

    known: full addresses to try, in the background and for as long as we are alone. last_incarnation: of the life
    before. Leaving the block says nothing to the others; `leave` does.
    Raises LocalError when the host has no address: a member must be reachable, a client asks with `ask_members`.
    """
    if not host.addresses:
        raise LocalError("a host that does not listen cannot be a member")
    machine = Swim(
        identity,
        profile,
        host.addresses[:8],
        incarnation=max(last_incarnation + 1, int(time.time())),
        now=trio.current_time(),
        rng=random.SystemRandom(),
        config=config or SwimConfig(),
    )
    async with own_nursery() as nursery:
        membership = Membership(host, machine, nursery, known)
        host.serve(PROTOCOL_ID, membership._answer)
        nursery.start_soon(membership._keep_time)
        nursery.start_soon(membership._keep_joined)
        try:
            yield membership
        finally:
            membership._close()


class Membership:
    """Made by `open_membership`."""

    def __init__(self, host: MembershipHost, machine: Swim, nursery: trio.Nursery, known: Sequence[str]) -> None:
        self._host, self._machine, self._nursery = host, machine, nursery
        self._known = list(dict.fromkeys(known))[:MAX_KNOWN]
        self._wake, self._alone = trio.Event(), trio.Event()
        self._synced: dict[PeerId, _Waiting] = {}
        self._subscribers: list[trio.MemorySendChannel[Change]] = []
        self._lines: dict[PeerId, _Line] = {}  # least recently used first
        self._unsent, self._all_sent = 0, trio.Event()
        self._inbound = Buckets(burst=512.0, rate=64.0)
        self._closed = False
        self.dropped = 0  # messages not sent because too many waited for one stream

    # --- what is known ---

    def members(self) -> tuple[Member, ...]:
        """All members but ourselves, suspects included."""
        return self._machine.members()

    def member(self, peer: str) -> Member | None:
        return self._machine.member(peer)

    @property
    def own(self) -> PeerRecord:
        """What we tell about ourselves at present."""
        return self._machine.own.record

    def dump(self) -> Remembered:
        """What to keep for `known` and `last_incarnation` of the next life."""
        present = [member.addresses[0] for member in self.members()]
        return Remembered(self._machine.incarnation, tuple(dict.fromkeys(present + self._known))[:MAX_KNOWN])

    def changes(self) -> trio.MemoryReceiveChannel[Change]:
        """What changes from now on. A reader who lags by `CHANGES_WAITING` misses the newest: ask `members` then."""
        send, receive = trio.open_memory_channel[Change](CHANGES_WAITING)
        self._subscribers.append(send)
        return receive

    # --- what can be done ---

    async def join(self, address: str) -> PeerId:
        """Connect to a member, read its list, and become known there. The deadline is the caller's.

        The address is remembered either way: while we are alone it is tried again in the background.
        Raises InvalidSpec for an address that is none, Unavailable when nobody there speaks this protocol.
        """
        try:
            peer = await self._host.connect(address)
        except Unavailable:
            self._remember(address)
            raise
        self._remember(address)
        waiting = self._synced.setdefault(peer, _Waiting())
        self._do(self._machine.join(peer, trio.current_time()))
        await waiting.over.wait()
        if not waiting.complete:
            raise Unavailable(f"peer {short(peer)} does not tell its members", peer=peer)
        return peer

    def update(self, profile: Profile) -> None:
        """Tell the swarm about new capabilities, and the host's present addresses."""
        addresses = self._host.addresses[:8] or self.own.addresses
        self._do(self._machine.update(addresses, profile, trio.current_time()))

    async def leave(self) -> None:
        """Say goodbye; bounded. Afterwards we are no member, and the others know."""
        self._do(self._machine.leave(trio.current_time()))
        with trio.move_on_after(FAREWELL_S):
            while self._unsent:
                self._all_sent = trio.Event()
                await self._all_sent.wait()

    # --- time and messages ---

    async def _keep_time(self) -> None:
        connected = self._host.connected()
        doubted_at = -math.inf
        while True:
            now = trio.current_time()
            self._do(self._machine.tick(now))
            if now - doubted_at >= 1.0:  # a closed connection hints at a death; one question a second, not a storm
                before, connected, doubted_at = connected, self._host.connected(), now
                for peer in sorted(before - connected)[:1]:
                    self._do(self._machine.doubt(peer, now))
            self._wake = trio.Event()
            deadline = self._machine.next_deadline()
            with trio.move_on_at(math.inf if deadline is None else deadline):
                await self._wake.wait()

    def _do(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            match output:
                case Send(peer, message):
                    self._post(peer, message)
                case Synced(peer, complete):
                    if (waiting := self._synced.pop(peer, None)) is not None:
                        waiting.complete = complete
                        waiting.over.set()
                case Joined(member) | Updated(member):
                    self._learn(member)
                    self._tell(output)
                case Left(peer, left):
                    log.info("member_left peer=%s said_so=%s", short(peer), left)
                    self._tell(output)
        if not len(self._machine):
            self._alone.set()
        self._wake.set()

    def _learn(self, member: Member) -> None:
        self._remember(member.addresses[0])
        try:
            self._host.learn(member.peer, member.addresses)
        except ProtocolViolation as error:
            log.info("address_unusable peer=%s error=%s", short(member.peer), error)

    def _remember(self, address: str) -> None:
        """The latest heard of come first: they are the likeliest to live when we are alone one day."""
        if address in self._known:
            self._known.remove(address)
        self._known.insert(0, address)
        del self._known[MAX_KNOWN:]

    def _tell(self, change: Change) -> None:
        for subscriber in tuple(self._subscribers):
            try:
                subscriber.send_nowait(change)
            except trio.WouldBlock:
                log.info("membership_reader_lags")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._subscribers.remove(subscriber)

    def _post(self, peer: PeerId, message: Message) -> None:
        """Queue a message on the stream to `peer`; losing one is the machine's to bear."""
        line = self._lines.pop(peer, None)
        if line is not None and line.is_stale(trio.current_time()):
            line.scope.cancel()
            line = None
        if line is None:
            line = self._new_line(peer)
        self._lines[peer] = line  # last in the order of use
        try:
            line.unsent.send_nowait(message)
            self._unsent += 1
        except trio.WouldBlock:
            self.dropped += 1

    def _new_line(self, peer: PeerId) -> _Line:
        if len(self._lines) >= MAX_LINES:
            self._lines.pop(next(iter(self._lines))).finish()
        line = _Line()
        self._nursery.start_soon(self._hold, peer, line)
        return line

    async def _hold(self, peer: PeerId, line: _Line) -> None:
        """One stream's life. What goes wrong is the machine's to judge, except a violation."""
        lost = False
        try:
            with line.scope:
                with trio.fail_after(OPEN_S):
                    stream = await self._host.open_stream(peer, PROTOCOL_ID)
                async with stream:
                    self._nursery.start_soon(self._read_answers, peer, line, stream)
                    await self._write(line, stream)
        except (Unavailable, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("member_unreachable peer=%s error=%r", short(peer), error)
            lost = True
        finally:
            if self._lines.get(peer) is line:
                del self._lines[peer]
            self._written(line.unsent.statistics().current_buffer_used)
            line.scope.cancel()
        if lost or line.lost:
            self._do(self._machine.unreachable(peer, trio.current_time()))

    async def _write(self, line: _Line, stream: trio.abc.SendStream) -> None:
        """Send what is queued, until nothing came for a while."""
        words = frames()
        while True:
            with trio.move_on_after(LINE_IDLE_S):
                try:
                    message = await line.queue.receive()
                except trio.EndOfChannel:
                    return
                try:
                    with trio.fail_after(OPEN_S):
                        await stream.send_all(words.encode(message))
                finally:
                    self._written(1)
                if line.asked_at is None and isinstance(message, Ping | Sync):
                    line.asked_at = trio.current_time()
                continue
            return

    def _written(self, count: int) -> None:
        self._unsent -= count
        if not self._unsent:
            self._all_sent.set()

    async def _read_answers(self, peer: PeerId, line: _Line, stream: trio.abc.ReceiveStream) -> None:
        """The other direction of `_hold`; its end is the end of both."""
        words = frames()
        try:
            while chunk := await stream.receive_some(CHUNK_BYTES):
                line.asked_at = None
                for message in words.feed(bytes(chunk)):
                    if not self._inbound.take(peer, trio.current_time()):
                        raise ProtocolViolation("more answers than questions", peer=peer)
                    self._do(self._machine.receive(peer, message, trio.current_time()))
        except PeerViolation as error:
            self._host.penalise(peer, error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        line.lost = line.asked_at is not None
        line.scope.cancel()

    async def _answer(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        """A stream that a peer opened: its messages in, our direct answers back, until it ends."""
        words = frames()
        while chunk := await self._next_chunk(stream):
            for message in words.feed(chunk):
                if self._closed or not self._inbound.take(peer, trio.current_time()):
                    raise Busy("too many messages", peer=peer)
                for answer in self._take_in(peer, message):
                    await stream.send_all(words.encode(answer.message))
        if not words.idle:
            raise ProtocolViolation("stream ended inside a message", peer=peer)

    async def _next_chunk(self, stream: trio.abc.Stream) -> bytes:
        with trio.move_on_after(IDLE_S):
            return bytes(await stream.receive_some(CHUNK_BYTES))
        raise Busy("nothing came")

    def _take_in(self, peer: PeerId, message: Message) -> list[Send]:
        """Give a message to the machine, do what it wants, and return what goes back on the same stream."""
        outputs = self._machine.receive(peer, message, trio.current_time())
        self._do([output for output in outputs if not _answers(output, peer)])
        return [output for output in outputs if isinstance(output, Send) and _answers(output, peer)]

    # --- staying in touch ---

    async def _keep_joined(self) -> None:
        """While we are alone, try whom we knew."""
        pause_s = REJOIN_S[0]
        while True:
            if len(self._machine):
                pause_s = REJOIN_S[0]
                self._alone = trio.Event()
                await self._alone.wait()
            for address in tuple(self._known):
                if len(self._machine):
                    break
                try:
                    with trio.move_on_after(JOIN_S):
                        await self.join(address)
                except (Unavailable, LocalError) as error:
                    log.debug("rejoin_failed address=%s error=%s", address, error)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, REJOIN_S[1])

    def _close(self) -> None:
        self._closed = True
        for subscriber in self._subscribers:
            subscriber.close()


class _Line:
    """Our stream to one peer: what waits to be sent, and since when a question is open."""

    def __init__(self) -> None:
        self.unsent, self.queue = trio.open_memory_channel[Message](MAX_UNSENT)
        self.scope = trio.CancelScope()
        self.asked_at: float | None = None
        self.lost = False

    def is_stale(self, now: float) -> bool:
        return self.asked_at is not None and now - self.asked_at > STALE_S

    def finish(self) -> None:
        """Send what waits, then end."""
        self.unsent.close()


class _Waiting:
    """Who waits for the end of a join, and how it ended."""

    def __init__(self) -> None:
        self.over, self.complete = trio.Event(), False


def _answers(output: Output, peer: PeerId) -> bool:
    """Whether this goes back on the stream that `peer` opened."""
    return isinstance(output, Send) and output.peer == peer and isinstance(output.message, Ack | Nack | Page)


async def ask_members(host: MembershipHost, peer: PeerId) -> tuple[Member, ...]:
    """The members that `peer` tells of, itself included, without becoming one. The deadline is the caller's.

    Raises Unavailable when it does not answer, PeerViolation (and penalises) when its answer is none.
    """
    found: list[Member] = []
    words = frames()
    stream = await host.open_stream(peer, PROTOCOL_ID)
    async with stream:
        try:
            after = ""
            for _ in range(MAX_PAGES):
                await stream.send_all(words.encode(Sync(after)))
                page = await _next_page(stream, words, peer)
                records = read_page(page, after, peer)
                found += [Entry(signed).member() for signed in records]
                if not page.more:
                    return tuple(found)
                after = records[-1].signer
        except PeerViolation as error:
            host.penalise(peer, error)
            raise
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unavailable(f"peer {short(peer)} ended the stream", peer=peer) from error
    return tuple(found)


async def _next_page(stream: trio.abc.Stream, words: Any, peer: PeerId) -> Page:
    while chunk := await stream.receive_some(CHUNK_BYTES):
        match words.feed(bytes(chunk)):
            case []:
                continue
            case [Page() as page]:
                return page
            case _:
                raise ProtocolViolation("not a page", peer=peer)
    raise Unavailable(f"peer {short(peer)} did not answer", peer=peer)
