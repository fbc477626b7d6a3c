"""The network's half of /celluler/averaging/1: streams of p2pd on one side, `Exchange` on the other. asyncio.

Who takes part and who reduces what comes in a `Plan`; what the bytes are worth is decided by `averaging_exchange`.
A sender announces (`Part`, `Update`, `Reduced`) and waits for `Ready` before it sends bytes, so that a peer ahead of us
waits in its own memory, not in ours. Imports hivemind by way of `averaging_daemon`: see there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celluler.errors import Busy, LocalError, PeerViolation, ProtocolViolation, TimedOut, Unavailable
from celluler.identity import public_key_of, short
from celluler_protocols.averaging_checks import Checker, Key, Rechecked, Server
from celluler_protocols.averaging_daemon import CONNECT_S, Daemon, DaemonError, Pair, open_daemon
from celluler_protocols.averaging_exchange import Delivery, Exchange, Sealed
from celluler_protocols.averaging_gathering import Late
from celluler_protocols.averaging_messages import (
    MAX_MEMBERS,
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
from celluler_protocols.averaging_running import Running
from celluler_protocols.averaging_stream import Meter, Stream

DEFAULT_LISTEN = ("/ip4/127.0.0.1/tcp/0",)
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

_STREAM_ERRORS = (OSError, EOFError, RuntimeError, DaemonError, PeerViolation)
"""What one attempt to speak to a peer may end with. RuntimeError is uvloop's for a transport that was closed."""

_log = logging.getLogger("celluler.averaging")


@asynccontextmanager
async def open_averager(
    seed: bytes, *, listen: Sequence[str] = DEFAULT_LISTEN, scratch: Path | None = None
) -> AsyncIterator[Averager]:
    """An averager that listens; on exit its p2pd and its files are gone.

    seed: 32 bytes of the averager's own key. scratch: an existing folder for its files; its sockets lie in /tmp when
    their paths would become too long there. Raises Unavailable when p2pd does not start.
    """
    async with open_daemon(seed, listen, scratch) as daemon:
        averager = Averager(daemon)
        try:
            await daemon.serve(PROTOCOL_ID, averager._handle)
            yield averager
        finally:
            await averager._close()


@dataclass(slots=True)
class _Waiting:
    """Announcements of an exchange that we have not begun."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    count: int = 0


class Averager:
    """One member of a run. `admit` says whom to listen to; `exchange` does one exchange; `check` redoes a part."""

    def __init__(self, daemon: Daemon) -> None:
        self.peer_id, self.addresses = daemon.peer_id, daemon.addresses
        self._daemon = daemon
        self._admitted: dict[str, tuple[str, ...]] = {}
        self._running: dict[Key, Running] = {}
        self._kept: OrderedDict[Key, Exchange] = OrderedDict()
        self._own = OwnWires()
        self.moved = Meter()
        self._checker = Checker(self.peer_id, self._known, self._ask)
        self._server = Server(self._known, self._own)
        self._waiting: dict[Key, _Waiting] = {}
        self._newest: Key | None = None
        self._held: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
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
        running = Running(await asyncio.to_thread(Exchange, plan, own))
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

    async def check(self, plan: Plan, result: PartOutcome) -> Rechecked:
        """See `Checker.check`."""
        return await self._checker.check(plan, result)

    async def inputs(self, run: bytes, round_number: int, member: Member, sizes: Mapping[int, int]) -> bytearray:
        """See `Checker.inputs`."""
        return await self._checker.inputs(run, round_number, member, sizes)

    # --- sending ---

    def _start(self, running: Running, until: float) -> None:
        for delivery in running.exchange.parts_to_send():
            if running.exchange.plan.to_all:  # we may be complete before the others have all that we sent
                self._spawn(self._deliver(running, delivery, until))
            else:
                self._attach(running, self._deliver(running, delivery, until))
        for part in running.exchange.mine:
            self._attach(running, self._reduce(running, part, until))
        for part in running.exchange.gatherings.keys() - set(running.exchange.mine):
            running.foreseen[part] = self._attach(running, self._foresee(running, part))

    async def _foresee(self, running: Running, part: int) -> Sealed | None:
        sealed = await running.foresee(part)
        if sealed is not None:
            self._checker.note(running.exchange.plan.key, sealed)
        return sealed

    async def _reduce(self, running: Running, part: int, until: float) -> None:
        exchange = running.exchange
        gathering = exchange.gatherings[part]
        await running.gathered(part)
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

    async def _deliver(self, running: Running, delivery: Delivery, until: float) -> None:
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

    async def _ask(self, peer: str, want: Want, target: memoryview) -> bool:
        """Whether the peer has sent as many bytes as we expect; what they are worth is not known yet."""
        with contextlib.suppress(OSError, EOFError, RuntimeError, DaemonError, Unavailable):
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

    async def _open_stream(self, peer: str) -> Pair:
        return await self._daemon.open_stream(peer, PROTOCOL_ID)

    async def _connect(self, peer: str) -> None:
        await self._daemon.connect(peer, self._admitted.get(peer, ()))

    # --- receiving ---

    async def _handle(self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The boundary: nothing that a remote does escapes from here."""
        stream = Stream(reader, writer, self.moved)
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

    async def _take_in(self, running: Running, peer: str, stream: Stream, message: Part | Reduced | Update) -> None:
        exchange = running.exchange
        if isinstance(message, Update):
            await running.receive(stream, exchange.begin_update(peer, message))
        elif isinstance(message, Reduced) and await running.is_found(peer, message):
            await stream.say(Taken())
        else:
            await running.receive(stream, [exchange.begin(peer, message)])

    async def _exchange_of(self, peer: str, key: Key) -> Running:
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
        try:
            held = self._server.find(peer, want, self._newest[0] if self._newest else None)
        except Unavailable as error:
            return await stream.refuse(str(error), final=True)
        if held is None:
            return await stream.refuse("not here", final=True)
        await stream.say(Have(len(held)))
        return await stream.send_bytes(held)

    def _known(self) -> list[tuple[Key, Exchange]]:
        """The exchanges whose inputs we can serve, the newest first; what came of one that runs is there already."""
        return [*((key, each.exchange) for key, each in self._running.items()), *reversed(self._kept.items())]

    # --- the end of things ---

    async def _end(self, running: Running) -> None:
        key = running.exchange.plan.key
        del self._running[key]
        self._kept[key] = running.exchange
        for task in list(running.tasks):
            task.cancel()
        await asyncio.gather(*running.tasks, return_exceptions=True)
        while len(self._kept) > KEPT_ROUNDS:
            forgotten, _ = self._kept.popitem(last=False)
            self._checker.forget(forgotten)
            self._server.forget(forgotten)

    async def ended(self) -> int:
        """Wait until p2pd has ended, which it should not; its exit status. Nothing works afterwards."""
        return await self._daemon.ended()

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

    def _attach(self, running: Running, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
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
        if isinstance(error, (OSError, DaemonError)):
            _log.info("averaging.unreachable reason=%s", error)
        else:
            _log.error("averaging.task_failed", exc_info=error)
