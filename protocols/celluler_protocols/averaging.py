"""The network's half of /celluler/averaging/1, over hivemind's P2P: the only module that imports hivemind. asyncio.

hivemind gives us authenticated streams between averagers through its p2pd and nothing else: no DHT, no matchmaking,
no trusted leader, no protobuf. Who takes part and who reduces what comes in a `Plan`; what the bytes are worth is
decided by `averaging_exchange.Exchange`.

A sender announces (`Part`, `Reduced`) and waits for `Ready` before it sends bytes, so that a peer ahead of us waits
in its own memory, not in ours. Never imported into a process that imports libp2p: both register the same protobuf
symbols.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import itertools
import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from celluler.aggregation.digests import part_hash, wire_bytes
from celluler.aggregation.wires import unpack
from celluler.errors import Busy, LocalError, PeerViolation, ProtocolViolation, TimedOut, Unavailable
from celluler.identity import Identity, public_key_of, short
from celluler_protocols import p2pd_guard
from celluler_protocols.averaging_exchange import Delivery, Exchange, Sealed, Slot
from celluler_protocols.averaging_gathering import Late, check_aggregate, is_committed, used_in
from celluler_protocols.averaging_messages import (
    MAX_MEMBERS,
    OWN,
    PROTOCOL_ID,
    FaultKind,
    Have,
    Member,
    Outcome,
    Part,
    PartOutcome,
    Plan,
    Ready,
    Reduced,
    Refused,
    Taken,
    Update,
    Want,
)
from celluler_protocols.averaging_own import OwnWires
from celluler_protocols.averaging_stream import Meter, Stream


def _enter_without_running(*packages: str) -> None:
    """Make packages importable from, without their `__init__`, unless somebody imported them whole before.

    Those of hivemind import torch and everything that averages with it, of which its P2P needs nothing: measured
    0.08 s and 36 MiB against 2.3 s and 280 MiB, in every averager.
    """
    for name in packages:
        spec = importlib.util.find_spec(name) if name not in sys.modules else None
        if spec is not None:
            sys.modules[name] = importlib.util.module_from_spec(spec)


_enter_without_running("hivemind", "hivemind.utils")

from hivemind.p2p import P2P, PeerID  # noqa: E402
from hivemind.p2p.p2p_daemon_bindings.utils import (  # noqa: E402
    P2PDaemonError,
    raise_if_failed,
    read_pbmsg_safe,
    write_pbmsg,
)
from hivemind.proto import p2pd_pb2  # noqa: E402
from hivemind.utils.multiaddr import Multiaddr  # noqa: E402

DEFAULT_LISTEN = ("/ip4/127.0.0.1/tcp/0",)
START_S = 20.0
CONNECT_S = 10.0
ANNOUNCE_S = 10.0
"""For the first message of a stream."""
HOLD_S = 60.0
"""How long an announcement may wait for an exchange that we have not begun."""
DRAIN_S = 1.0
"""At the end, for aggregates that others still lack, when nobody drained before."""
MAX_HELD_PER_PEER = 2 * MAX_MEMBERS
MAX_STREAMS_PER_PEER = 4 * MAX_MEMBERS
MAX_VIOLATIONS = 16
"""Then a peer is not listened to any more in this run."""
KEPT_ROUNDS = 2
"""Exchanges whose inputs are kept for those who check."""
RETRY_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.0)

_LONGEST_FOLDER = 107 - len("/p2pclient-0123456789a.sock")

_STREAM_ERRORS = (OSError, EOFError, RuntimeError, P2PDaemonError, PeerViolation)
"""What one attempt to speak to a peer may end with. RuntimeError is uvloop's for a transport that was closed."""

Key = tuple[bytes, int, int]
_log = logging.getLogger("celluler.averaging")


@asynccontextmanager
async def open_averager(
    seed: bytes, *, listen: Sequence[str] = DEFAULT_LISTEN, scratch: Path | None = None
) -> AsyncIterator[Averager]:
    """An averager that listens; on exit its p2pd and its files are gone.

    seed: 32 bytes of the averager's own key. scratch: an existing folder for its files; its sockets lie in /tmp when
    their paths would become too long there. Raises Unavailable when p2pd does not start.
    """
    identity = Identity(seed)
    scratch = scratch or Path(tempfile.gettempdir())
    folder = _socket_folder(scratch)
    daemon = await _start_daemon(identity, listen, scratch, folder)
    averager = Averager(daemon, tuple(str(address) for address in await daemon.get_visible_maddrs()))
    try:
        if averager.peer_id != identity.peer_id:
            raise Unavailable("p2pd runs under another identity")
        await daemon.add_binary_stream_handler(PROTOCOL_ID, averager._handle)
        yield averager
    finally:
        await averager._close()
        await daemon.shutdown()
        shutil.rmtree(folder, ignore_errors=True)  # should the guard have been killed


@dataclass(slots=True)
class _Running:
    """foreseen: of each part whose inputs go to all, what we find by ourselves once they are there."""

    exchange: Exchange
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    foreseen: dict[int, asyncio.Task[Sealed | None]] = field(default_factory=dict)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


@dataclass(slots=True)
class _Waiting:
    """Announcements of an exchange that we have not begun."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    count: int = 0


class Averager:
    """One member of a run. `admit` says whom to listen to; `exchange` does one exchange; `check` redoes a part."""

    def __init__(self, daemon: P2P, addresses: tuple[str, ...]) -> None:
        self.peer_id: str = daemon.peer_id.to_base58()
        self.addresses = addresses
        self._daemon = daemon
        self._admitted: dict[str, tuple[str, ...]] = {}
        self._running: dict[Key, _Running] = {}
        self._kept: OrderedDict[Key, Exchange] = OrderedDict()
        self._own = OwnWires()
        self.moved = Meter()
        self._found: dict[tuple[Key, int], Sealed] = {}
        self._salvaged: dict[tuple[bytes, int, int, int], bytes | bytearray | memoryview] = {}
        self._waiting: dict[Key, _Waiting] = {}
        self._newest: Key | None = None
        self._held: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._served: Counter[tuple[str, Key, int, int]] = Counter()
        self._violations: Counter[str] = Counter()
        self._background: set[asyncio.Task[Any]] = set()
        self._handlers: set[asyncio.Task[Any]] = set()

    async def admit(self, members: Sequence[Member]) -> None:
        """Listen to these peers and to no others, and connect to them in advance, as far as they can be reached.

        Again when there are more of them, or addresses have changed: those as before are left as they are.
        """
        for member in members:
            public_key_of(member.peer)
        before = self._admitted
        self._admitted = {m.peer: m.addresses for m in members if m.peer != self.peer_id}
        for peer, addresses in self._admitted.items():
            if before.get(peer) != addresses:
                self._spawn(self._connect(peer))

    async def exchange(self, plan: Plan, own: bytes | bytearray | memoryview) -> tuple[Outcome, bytearray]:
        """Send our parts, reduce those assigned to us, receive all; (what came of it, the reduced mantissas).

        Returns when every aggregate is here, or at the deadline with what there is. Aggregates that others still
        lack are sent on in the background until the deadline. Raises LocalError for a plan that contradicts itself.
        """
        if self._newest is not None and (plan.run != self._newest[0] or plan.key <= self._newest):
            raise LocalError(f"round {plan.round} view {plan.view} does not follow on what was begun before")
        if plan.members[plan.me].peer != self.peer_id:
            raise LocalError("the plan gives our place to somebody else")
        running = _Running(await asyncio.to_thread(Exchange, plan, own))
        for member in plan.members:
            if member.peer != self.peer_id:
                self._admitted[member.peer] = member.addresses
        until = asyncio.get_running_loop().time() + plan.deadline_s
        self._running[plan.key] = running
        self._newest = plan.key
        if plan.members[plan.me].hashes:
            self._own.keep(plan.round, {each.part: running.exchange.own(each.part) for each in plan.assignments})
        if plan.key in self._waiting:
            self._waiting[plan.key].begun.set()
        try:
            self._start(running, until)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    while not running.exchange.complete:
                        running.changed.clear()
                        await running.changed.wait()
        finally:
            await self._end(running)
        return running.exchange.outcome(), running.exchange.aggregate

    def offer(self, run: bytes, round_number: int, parts: Mapping[int, memoryview]) -> None:
        """Serve these parts of ours to whoever asks for them by `inputs`, without an exchange of that round.

        Raises LocalError where another run was begun.
        """
        if self._newest is not None and run != self._newest[0]:
            raise LocalError("an averager serves one run")
        self._newest = max(self._newest or (run, 0, 0), (run, round_number, 0))
        self._own.keep(round_number, parts)

    async def check(self, plan: Plan, result: PartOutcome) -> bool:
        """Reduce a part anew from the inputs that its reducer says it used: whether every bit is the same.

        What an exchange gave us counts, where inputs went to all even what we found in it; other inputs come from the
        reducer, else from the member itself. One that is not what its member committed to counts as not had. Raises
        Unavailable when one cannot be had; the caller sets the deadline.
        """
        found = self._found.get((plan.key, result.part))
        if found is not None and found.result.used == result.used and self._is_same(plan):
            return found.result == result
        reducer = next(each.reducer for each in plan.assignments if each.part == result.part)
        inputs: dict[int, bytes | bytearray | memoryview] = {}
        try:
            for member in used_in(plan, result):
                key = (plan.run, plan.round, result.part, member)
                had = self._salvaged.pop(key) if key in self._salvaged else self._here(plan, result.part, member)
                inputs[member] = had or await self._input(plan, result.part, member, reducer)
        except Unavailable:
            self._salvage(plan, result.part, inputs)
            raise
        return await asyncio.to_thread(check_aggregate, plan, result, inputs)

    def _is_same(self, plan: Plan) -> bool:
        """Whether the exchange that we know by this name is this one: the same members, bytes and rule."""
        known = next((each.plan for key, each in self._known() if key == plan.key), None)
        return known is not None and replace(known, gather_s=0, deadline_s=0, quorum=0) == replace(
            plan, gather_s=0, deadline_s=0, quorum=0
        )

    def _here(self, plan: Plan, part: int, member: int) -> memoryview | None:
        """An input that an exchange of this round has brought us."""
        who = plan.members[member]
        for key, exchange in self._known():
            places = [place for place, each in enumerate(exchange.plan.members) if each.author == who.author]
            if key[:2] == (plan.run, plan.round) and places and exchange.plan.members[places[0]].hashes == who.hashes:
                held = exchange.input_of(part, places[0])
                if held is not None:
                    return held
        return None

    async def inputs(self, run: bytes, round_number: int, member: Member, sizes: Mapping[int, int]) -> bytearray:
        """Parts of a member's update of a past round, from itself, each what it committed to; one after another.

        member: with hashes and exponents of the whole update. sizes: bytes of each part wanted. Raises Unavailable.
        """
        whole = bytearray(sum(sizes.values()))
        place = 0
        for part, size in sizes.items():
            target = memoryview(whole)[place : place + size]
            if not await self._ask(member.peer, Want(run, round_number, part, OWN), target):
                raise Unavailable(f"{short(member.peer)} does not serve part {part} of round {round_number}")
            exponent, wanted = member.exponents[part], member.hashes[part]
            hashing = partial(part_hash, run, round_number, member.author, part=part, exponent=exponent)
            if await asyncio.to_thread(hashing, mantissas=target) != wanted:
                raise Unavailable(f"{short(member.peer)} serves another part {part} than it committed to")
            place += size
        return whole

    def _salvage(self, plan: Plan, part: int, inputs: Mapping[int, bytes | bytearray | memoryview]) -> None:
        """What was had for a check that could not be finished: it may come again, and no input is served for ever."""
        for old in [key for key in self._salvaged if key[:2] != (plan.run, plan.round)]:
            del self._salvaged[old]
        self._salvaged |= {(plan.run, plan.round, part, member): data for member, data in inputs.items()}

    # --- sending ---

    def _start(self, running: _Running, until: float) -> None:
        for delivery in running.exchange.parts_to_send():
            if running.exchange.plan.to_all:  # we may be complete before the others have all that we sent
                self._spawn(self._deliver(running, delivery, until))
            else:
                self._attach(running, self._deliver(running, delivery, until))
        for part in running.exchange.mine:
            self._attach(running, self._reduce(running, part, until))
        for part in running.exchange.gatherings.keys() - set(running.exchange.mine):
            running.foreseen[part] = self._attach(running, self._foresee(running, part))

    async def _gathered(self, running: _Running, part: int) -> None:
        """Until all inputs of a part are there, or the gathering time is over."""
        gathering = running.exchange.gatherings[part]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(running.exchange.plan.gather_s):
                while not gathering.complete:
                    running.changed.clear()
                    await running.changed.wait()

    async def _foresee(self, running: _Running, part: int) -> Sealed | None:
        """Compute beside its reducer what it will tell us. None when inputs are missing: then we must be told."""
        exchange = running.exchange
        gathering = exchange.gatherings[part]
        await self._gathered(running, part)
        if not gathering.complete:
            return None
        gathering.closed = True
        used = sum(1 << member for member in gathering.there)
        sealed = await asyncio.to_thread(exchange.foresee, part, used)
        if sealed is not None:
            self._found[exchange.plan.key, part] = sealed
        return sealed

    async def _reduce(self, running: _Running, part: int, until: float) -> None:
        exchange = running.exchange
        gathering = exchange.gatherings[part]
        await self._gathered(running, part)
        if not gathering.complete:
            _log.info("averaging.inputs_missing part=%d there=%s", part, gathering.there)
        if not exchange.close_gathering(part):
            _log.info("averaging.too_few part=%d", part)
            return
        sealed = await asyncio.to_thread(lambda: exchange.seal(part, *gathering.reduce()))
        # No await from here on: `publish` may complete the exchange, and its end cancels this task.
        for delivery in exchange.publish(sealed):
            self._spawn(self._deliver(running, delivery, until))
        running.changed.set()

    async def _deliver(self, running: _Running, delivery: Delivery, until: float) -> None:
        """Try until it is taken, refused for good, or the exchange is over. What was not taken is noted as a fault."""
        member = running.exchange.plan.members[delivery.member]
        problem = "no answer"
        try:
            async with asyncio.timeout_at(until):
                for pause_s in itertools.chain(RETRY_S, itertools.repeat(RETRY_S[-1])):
                    try:
                        answer = await self._send(member.peer, delivery)
                    except _STREAM_ERRORS as error:
                        problem = f"{type(error).__name__}: {error}"
                    else:
                        problem = "" if isinstance(answer, Taken) else answer.reason
                        if isinstance(answer, Taken) or answer.final:
                            break
                    _log.info("averaging.retry peer=%s problem=%s", short(member.peer), problem[:200])
                    await asyncio.sleep(pause_s)
        except TimeoutError:
            pass
        finally:
            if problem:
                _log.info("averaging.undelivered peer=%s problem=%s", short(member.peer), problem[:200])
                running.exchange.fault(FaultKind.UNREACHABLE, delivery.member, delivery.part, problem)

    async def _send(self, peer: str, delivery: Delivery) -> Taken | Refused:
        async with self._open(peer) as stream:
            await stream.say(delivery.message)
            match await stream.hear():
                case Ready():
                    await stream.send_bytes(delivery.body)
                case Refused() as refused:
                    return refused
                case Taken() as taken if isinstance(delivery.message, Reduced):
                    return taken
                case _:
                    raise ProtocolViolation("neither Ready nor Refused")
            match await stream.hear():
                case Taken() | Refused() as answer:
                    return answer
                case _:
                    raise ProtocolViolation("neither Taken nor Refused")

    async def _input(self, plan: Plan, part: int, member: int, reducer: int) -> bytes | bytearray | memoryview:
        size, want = plan.bytes_of(part), Want(plan.run, plan.round, part, member)
        for place in dict.fromkeys((reducer, member)):
            if plan.members[place].peer == self.peer_id:
                continue
            data = bytearray(size)
            if not await self._ask(plan.members[place].peer, want, memoryview(data)):
                continue
            with contextlib.suppress(ProtocolViolation):
                mantissas = await asyncio.to_thread(unpack, plan.wire, data, plan.values_in(part))
                if await asyncio.to_thread(is_committed, plan, part, member, wire_bytes(mantissas)):
                    return memoryview(wire_bytes(mantissas))
        raise Unavailable(f"the input of member {member} for part {part}")

    async def _ask(self, peer: str, want: Want, target: memoryview) -> bool:
        """Whether the peer has sent as many bytes as we expect; what they are worth is not known yet."""
        with contextlib.suppress(OSError, EOFError, RuntimeError, P2PDaemonError, Unavailable):
            async with self._open(peer) as stream:
                await stream.say(want)
                match await stream.hear():
                    case Have(found) if found == len(target):
                        await stream.receive_into(target)
                        return True
        return False

    @asynccontextmanager
    async def _open(self, peer: str) -> AsyncIterator[Stream]:
        if peer not in self._admitted:
            raise LocalError(f"{short(peer)} is not of this run")
        await self._connect(peer)
        async with asyncio.timeout(CONNECT_S):
            stream = Stream(*await self._open_stream(peer), self.moved)
        try:
            yield stream
        finally:
            stream.close()

    async def _open_stream(self, peer: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As hivemind's `call_binary_stream_handler`, which leaves the socket open when the peer cannot be reached."""
        reader, writer = await self._daemon._client.control.daemon_connector.open_connection()
        opening = p2pd_pb2.StreamOpenRequest(peer=PeerID.from_base58(peer).to_bytes(), proto=[PROTOCOL_ID])
        try:
            await write_pbmsg(writer, p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=opening))
            response = p2pd_pb2.Response()
            await read_pbmsg_safe(reader, response)
            raise_if_failed(response)
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def _connect(self, peer: str) -> None:
        # hivemind connects to given addresses only when it starts; its daemon can at any time.
        addresses = _dialable(self._admitted.get(peer, ()), peer)
        if addresses:
            async with asyncio.timeout(CONNECT_S):
                await self._daemon._client.connect(PeerID.from_base58(peer), addresses)

    # --- receiving ---

    async def _handle(self, info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The boundary: nothing that a remote does escapes from here."""
        peer, stream = info.peer_id.to_base58(), Stream(reader, writer, self.moved)
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self._streams[peer] += 1
        try:
            await self._answer(peer, stream)
        except (OSError, EOFError, RuntimeError):
            pass  # the remote's connection; what it cost is noted where it was awaited
        except PeerViolation as error:
            self._violations[peer] += 1
            _log.info("averaging.violation peer=%s reason=%s", short(peer), error)
        except Exception:
            _log.exception("averaging.handler_failed peer=%s", short(peer))
        finally:
            self._handlers.discard(task)
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]
            stream.close()

    async def _answer(self, peer: str, stream: Stream) -> None:
        if self._violations[peer] >= MAX_VIOLATIONS or self._streams[peer] > MAX_STREAMS_PER_PEER:
            return None
        async with asyncio.timeout(ANNOUNCE_S):
            message = await stream.hear()
        if peer not in self._admitted:  # it may know the roster before we do, so it may ask again
            return await stream.refuse("not admitted", final=False)
        match message:
            case Part() | Reduced() | Update():
                await self._take(peer, stream, message)
            case Want():
                await self._serve(peer, stream, message)
            case _:
                raise ProtocolViolation(f"{type(message).__name__} begins no stream", peer=peer)
        return None

    async def _take(self, peer: str, stream: Stream, message: Part | Reduced | Update) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            running = await self._exchange_of(peer, (message.run, message.round, message.view))
            running.tasks.add(task)
            try:
                await self._take_in(running, peer, stream, message)
            finally:
                running.tasks.discard(task)
                running.changed.set()
        except PeerViolation as error:
            with contextlib.suppress(OSError):
                await stream.refuse(str(error), final=True)
            raise
        except Unavailable as error:
            await stream.refuse(str(error), final=isinstance(error, Late))

    async def _take_in(self, running: _Running, peer: str, stream: Stream, message: Part | Reduced | Update) -> None:
        exchange = running.exchange
        if isinstance(message, Update):
            await self._receive(running, stream, exchange.begin_update(peer, message))
        elif isinstance(message, Reduced) and await self._is_found(running, peer, message):
            await stream.say(Taken())
        else:
            await self._receive(running, stream, [exchange.begin(peer, message)])

    async def _is_found(self, running: _Running, peer: str, message: Reduced) -> bool:
        """Whether we have found by ourselves what a reducer announces; what it used may be less than what we have."""
        exchange = running.exchange
        if not exchange.plan.to_all:
            return False
        exchange.is_announced(peer, message)
        sealed = await asyncio.shield(running.foreseen[message.part])
        if sealed is None or sealed.result.used != message.used:
            exchange.gatherings[message.part].closed = True
            sealed = await asyncio.to_thread(exchange.foresee, message.part, message.used)
        exchange.is_announced(peer, message)  # another stream may have brought it meanwhile
        return sealed is not None and exchange.settle(message, sealed)

    async def _receive(self, running: _Running, stream: Stream, slots: Sequence[Slot]) -> None:
        """One after another. What is wrong with one is told at the end: the others count."""
        wrong: PeerViolation | None = None
        left = list(slots)
        try:
            await stream.say(Ready())
            while left:
                await stream.receive_into(left[0].target)
                try:
                    running.exchange.finish(left.pop(0))
                except PeerViolation as error:
                    wrong = wrong or error
                running.changed.set()
        except BaseException:
            for slot in left:
                running.exchange.broken(slot)
            raise
        if wrong is not None:
            raise wrong
        await stream.say(Taken())

    async def _exchange_of(self, peer: str, key: Key) -> _Running:
        """The exchange a message belongs to, awaited for a while when the peer is ahead of us.

        Raises Late when it is over, TimedOut when we did not begin it, ProtocolViolation for another run's.
        """
        if self._newest is not None and key[0] != self._newest[0]:
            raise ProtocolViolation("of another run", peer=peer)
        if key not in self._running:
            if self._newest is not None and key <= self._newest:
                raise Late("the exchange is over")
            await self._hold(peer, key)
        if key not in self._running:
            raise Late("the exchange is over")
        return self._running[key]

    async def _hold(self, peer: str, key: Key) -> None:
        if self._held[peer] >= MAX_HELD_PER_PEER:
            raise Busy("too many announcements ahead of time")
        waiting = self._waiting.setdefault(key, _Waiting())
        waiting.count += 1
        self._held[peer] += 1
        try:
            async with asyncio.timeout(HOLD_S):
                await waiting.begun.wait()
        except TimeoutError:
            raise TimedOut("not begun here") from None
        finally:
            self._held[peer] -= 1
            waiting.count -= 1
            if not waiting.count:
                self._waiting.pop(key, None)

    async def _serve(self, peer: str, stream: Stream, want: Want) -> None:
        if want.member == OWN:
            return await self._serve_own(peer, stream, want)
        for key, exchange in self._known():
            if key[:2] != (want.run, want.round):
                continue
            held = exchange.input_packed(want.part, want.member) if want.member < len(exchange.plan.members) else None
            if held is None:
                continue
            self._served[peer, key, want.part, want.member] += 1
            if self._served[peer, key, want.part, want.member] > 2:
                raise ProtocolViolation("asks for the same input again and again", peer=peer)
            await stream.say(Have(len(held)))
            return await stream.send_bytes(held)
        return await stream.refuse("not here", final=True)

    def _known(self) -> list[tuple[Key, Exchange]]:
        """The exchanges whose inputs we can serve, the newest first; what came of one that runs is there already."""
        return [*((key, each.exchange) for key, each in self._running.items()), *reversed(self._kept.items())]

    async def _serve_own(self, peer: str, stream: Stream, want: Want) -> None:
        if self._newest is None or want.run != self._newest[0]:
            return await stream.refuse("not here", final=True)
        try:
            held = self._own.serve(peer, want.round, want.part)
        except Unavailable as error:
            return await stream.refuse(str(error), final=True)
        if held is None:
            return await stream.refuse("not here", final=True)
        await stream.say(Have(len(held)))
        return await stream.send_bytes(held)

    # --- the end of things ---

    async def _end(self, running: _Running) -> None:
        key = running.exchange.plan.key
        del self._running[key]
        self._kept[key] = running.exchange
        for task in list(running.tasks):
            task.cancel()
        await asyncio.gather(*running.tasks, return_exceptions=True)
        while len(self._kept) > KEPT_ROUNDS:
            forgotten, _ = self._kept.popitem(last=False)
            self._found = {place: sealed for place, sealed in self._found.items() if place[0] != forgotten}
            self._served = Counter({place: count for place, count in self._served.items() if place[1] != forgotten})

    async def ended(self) -> int:
        """Wait until p2pd has ended, which it should not; its exit status. Nothing works afterwards."""
        return int(await self._daemon._child.wait())

    async def drain(self, wait_s: float) -> None:
        """Wait until everybody has what we owe them, or for so long."""
        if self._background:
            await asyncio.wait(self._background, timeout=wait_s)

    async def _close(self) -> None:
        await self.drain(DRAIN_S)
        tasks = [*self._background, *self._handlers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _attach(self, running: _Running, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of an exchange: it ends with it."""
        task = asyncio.create_task(work)
        running.tasks.add(task)
        task.add_done_callback(running.tasks.discard)
        task.add_done_callback(_report)
        return task

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """A task of the averager: bounded by its own deadline, or by our end."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_report)


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        if isinstance(error, (OSError, P2PDaemonError)):
            _log.info("averaging.unreachable reason=%s", error)
        else:
            _log.error("averaging.task_failed", exc_info=error)


def _dialable(addresses: Sequence[str], peer: str) -> list[Multiaddr]:
    """Those that p2pd can dial; a peer wrote them, so nothing but `/ip4|ip6|dns…/…/tcp/…` gets as far as a parser.

    Without `/p2p/…` at the end: hivemind writes it in a form that p2pd does not read, and names the peer beside it.
    """
    plain = (address.removesuffix(f"/p2p/{peer}") for address in addresses)
    return [Multiaddr(address) for address in plain if _is_dialable(address)]


def _is_dialable(address: str) -> bool:
    match address.split("/"):
        case ["", "ip4" | "ip6" as family, host, "tcp", port]:
            kind = ipaddress.IPv4Address if family == "ip4" else ipaddress.IPv6Address
            with contextlib.suppress(ValueError):
                return str(kind(host)) == host.lower() and _is_port(port)
        case ["", "dns" | "dns4" | "dns6", host, "tcp", port]:
            return re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,250}[A-Za-z0-9])?", host) is not None and _is_port(port)
    return False


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,4}", text) is not None and int(text) < 1 << 16


# --- p2pd ----------------------------------------------------------------------------------------------------------


async def _start_daemon(identity: Identity, listen: Sequence[str], scratch: Path, folder: Path) -> P2P:
    descriptor, key = tempfile.mkstemp(prefix="averager-key-", dir=scratch)  # readable by us alone
    with os.fdopen(descriptor, "wb") as file:
        file.write(b"\x08\x01\x12\x40" + identity.seed + identity.public_key)  # libp2p's protobuf of a private key
    try:
        return await _daemon_class(folder).create(
            host_maddrs=list(listen),
            identity_path=key,
            dht_mode="none",
            check_if_identity_free=False,
            nat_port_map=False,
            auto_nat=False,
            use_relay=False,
            use_auto_relay=False,
            use_ipfs=False,
            startup_timeout=START_S,
        )
    except (P2PDaemonError, OSError) as error:
        raise Unavailable(f"p2pd does not start: {error}") from error
    finally:
        os.unlink(key)


def _daemon_class(folder: Path) -> type[P2P]:
    """hivemind's P2P with its sockets in our own folder, no DHT, TLS 1.3 alone, and our guard in front of p2pd.

    Where Noise is offered too it is taken, and costs a third more than AES does on a processor that knows it.
    """

    class Daemon(P2P):  # type: ignore[misc]  # hivemind ships no types
        _UNIX_SOCKET_PREFIX = f"/unix{folder}/"
        DHT_MODE_MAPPING: dict[str, dict[str, int]] = {"none": {"noise": 0}}  # noqa: RUF012  its own name and type

        @staticmethod
        def _make_process_args(*args: Any, **kwargs: Any) -> list[str]:
            guard = [sys.executable, "-I", "-S", p2pd_guard.__file__, str(os.getpid()), str(folder)]
            return guard + list(P2P._make_process_args(*args, **kwargs))

    return Daemon


def _socket_folder(scratch: Path) -> Path:
    """A name for a folder that the guard makes, and removes; the path of a Unix socket has at most 107 bytes."""
    folder = scratch.resolve() / f"p2pd-{secrets.token_hex(8)}"
    if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
        return folder
    return Path("/tmp") / f"celluler-{folder.name}"  # noqa: S108  the name cannot be guessed
