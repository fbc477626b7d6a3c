"""Bulk transfer as the rest of the node knows it: movers for fetches, grants for peers, a meter, and who got how much.

Nothing runs until the first transfer. A peer is dialled only at addresses where it has proven its key to the host, and
whoever answers there must show the certificate that the peer has named over its authenticated stream; else the
fetch goes over libp2p. What is served is held in the store as long as a ticket or a connection for it lives.

Knows nothing of TLS and files: the process does.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import structlog
import trio

from celluler.content.bulk_frames import ABSENT, MAX_IN_FLIGHT, OFF, REFUSED_BUSY
from celluler.content.digest import Digest
from celluler.content.movers import Mover
from celluler.content.rate import Bucket
from celluler.content.tickets import LIFE_S
from celluler.errors import Unavailable, WorkerFailed
from celluler.identity import PeerId
from celluler_node.bounded import bounded
from celluler_node.bulk.engine import Engine, Running
from celluler_node.bulk.mover import BulkMover
from celluler_node.bulk.words import (
    MAX_SERVED_A_PEER,
    Admit,
    Admitted,
    Declined,
    Dial,
    Dialled,
    Hang,
    Open,
    Patience,
    Spend,
    Spent,
)
from celluler_protocols.bulk import PROTOCOL_ID, Grant, Refused, ask_grant, serve_grants
from celluler_protocols.nursery import own_nursery

GRANT_S = 5.0
"""For a peer to answer whether we may."""
ANSWER_S = 10.0
"""For a peer to ask, and to take the answer; our process may have to start meanwhile."""
HANG_S = 5.0
MAX_DIALLED = 8
PATIENCE = Patience()
MAX_PEERS = 1024
"""Whose traffic is remembered: those that moved something last."""

log = structlog.get_logger("celluler.bulk")

OpenStream = Callable[[PeerId, str], Awaitable[trio.abc.Stream]]


@asynccontextmanager
async def open_bulk(
    *,
    store_folder: Path,
    listen_hosts: Sequence[str],
    port: int,
    up_bytes_s: int,
    down_bytes_s: int,
    scratch: Callable[[str], AbstractAsyncContextManager[Path]],
    serves: Callable[[bytes], bool],
    hold: Callable[[bytes], AbstractContextManager[None]],
    hosts_of: Callable[[PeerId], Sequence[str]],
    open_stream: OpenStream,
    patience: Patience = PATIENCE,
) -> AsyncIterator[Bulk]:
    """Ready on entry; on exit the process has gone and nothing is written any more.

    store_folder: absolute. listen_hosts: literal addresses of this machine; none serves nobody. port: 0 for any.
    Rates: bytes of content a second, 0 for no limit. serves: whether a root may be given to peers. hold: keeps it in
    the store meanwhile. hosts_of: literal addresses at which a peer is known to be.
    """
    async with own_nursery() as nursery:
        order = Open(str(store_folder), tuple(listen_hosts), port, up_bytes_s, down_bytes_s, patience)
        yield Bulk(order, scratch, nursery, serves=serves, hold=hold, hosts_of=hosts_of, open_stream=open_stream)


class Bulk:
    """See `open_bulk`."""

    def __init__(
        self,
        order: Open,
        scratch: Callable[[str], AbstractAsyncContextManager[Path]],
        nursery: trio.Nursery,
        *,
        serves: Callable[[bytes], bool],
        hold: Callable[[bytes], AbstractContextManager[None]],
        hosts_of: Callable[[PeerId], Sequence[str]],
        open_stream: OpenStream,
    ) -> None:
        self._traffic = _Traffic()
        self._engine = Engine(order, scratch, nursery, self._traffic.sent)
        self._nursery, self._patience = nursery, order.patience
        self._serves, self._hold, self._hosts_of, self._open_stream = serves, hold, hosts_of, open_stream
        self._numbers = itertools.count(1)
        self.meter = BulkMeter(self._engine, order.up_bytes_s, order.down_bytes_s)

    @property
    def traffic(self) -> Mapping[PeerId, tuple[int, int]]:
        """(bytes sent, bytes received) of content, by peer."""
        return self._traffic.all()

    @property
    def process_id(self) -> int | None:
        """Of the process while it runs."""
        running = self._engine.running
        return running.child.pid if running is not None else None

    # --- fetching --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open_mover(self, peer: str, root: bytes, path: Path) -> AsyncIterator[Mover]:
        """Implements `OpenMover`. On exit nothing is written to `path` any more.

        Raises Unavailable, Busy and NotFound among it, and ProtocolViolation for an answer that is none.
        """
        source = PeerId(peer)
        hosts = tuple(dict.fromkeys(self._hosts_of(source)))[:MAX_DIALLED]
        if not hosts:
            raise Unavailable("no address is known at which to reach it", peer=peer)
        running = await self._engine.start()
        with bounded(GRANT_S, "bulk grant", peer=peer):
            grant = await ask_grant(await self._open_stream(source, PROTOCOL_ID), root, peer=source)
        mover = BulkMover(
            next(self._numbers), peer, running.child.call, lambda count: self._traffic.received(source, count)
        )
        order = Dial(mover.transfer, hosts, grant.port, grant.pin, grant.ticket, str(path), grant.max_inflight)
        async with self._transfer(running, mover):
            await self._dial(running, order, source)
            yield mover

    @asynccontextmanager
    async def _transfer(self, running: Running, mover: BulkMover) -> AsyncIterator[None]:
        running.movers[mover.transfer] = mover
        if running.failure is not None:
            mover.fail(running.failure)
        try:
            yield
        finally:
            del running.movers[mover.transfer]
            with trio.CancelScope(shield=True, deadline=trio.current_time() + HANG_S):
                await self._hang(running, mover.transfer)

    async def _dial(self, running: Running, order: Dial, source: PeerId) -> None:
        with bounded(self._patience.connect_s + GRANT_S, "bulk connection", peer=source):
            dialled = (await running.child.call(order)).record
        if not isinstance(dialled, Dialled):
            raise WorkerFailed("bulk: another answer than the one due")
        if dialled.impostor:
            log.info("bulk.impostor", peer=source[-8:], reason=dialled.reason)
        if dialled.reason:
            raise Unavailable(f"bulk connection: {dialled.reason}", peer=source)

    async def _hang(self, running: Running, transfer: int) -> None:
        try:
            await running.child.call(Hang(transfer))
        except WorkerFailed:
            return

    # --- serving ---------------------------------------------------------------------------------------------------

    async def answer(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        """Serve `/celluler/bulk/1` on one stream, and close it. Raises ProtocolViolation naming the peer."""
        with trio.move_on_after(ANSWER_S):
            await serve_grants(stream, peer, lambda root: self._admit(peer, root))

    async def _admit(self, peer: PeerId, root: Digest) -> Grant | Refused:
        if not self._serves(root):
            return Refused(ABSENT)
        try:
            running = await self._engine.start()
            if not running.opened.port:
                return Refused(OFF)
            return await self._grant(running, peer, root)
        except Unavailable as error:
            log.info("bulk.not_granted", peer=peer[-8:], reason=str(error))
            return Refused(REFUSED_BUSY)

    async def _grant(self, running: Running, peer: PeerId, root: Digest) -> Grant | Refused:
        """Held before it is asked for, so that the content cannot go in between."""
        with ExitStack() as held:
            held.enter_context(self._hold(root))
            admitted = (await running.child.call(Admit(peer, root))).record
            if isinstance(admitted, Declined):
                return Refused(ABSENT if admitted.reason == ABSENT else REFUSED_BUSY)
            if not isinstance(admitted, Admitted):
                raise WorkerFailed("bulk: another answer than the one due")
            running.hold(admitted.number, held.pop_all())
            return Grant(
                running.opened.port,
                running.opened.pin,
                admitted.ticket,
                int(LIFE_S),
                MAX_SERVED_A_PEER,
                MAX_IN_FLIGHT,
                admitted.have,
            )
        raise AssertionError("unreachable: a hold swallows nothing")


class BulkMeter:
    """Implements `Meter`: the limits count what passes by either way, so the process keeps them while it runs."""

    def __init__(self, engine: Engine, up_bytes_s: int, down_bytes_s: int) -> None:
        self._engine = engine
        self._up, self._down = Bucket(up_bytes_s), Bucket(down_bytes_s)

    async def send(self, count: int) -> None:
        await self._pass(self._up, count, up=True)

    async def receive(self, count: int) -> None:
        await self._pass(self._down, count, up=False)

    async def _pass(self, bucket: Bucket, count: int, *, up: bool) -> None:
        if bucket.limited:
            await trio.sleep(await self._wait_s(bucket, count, up=up))

    async def _wait_s(self, bucket: Bucket, count: int, *, up: bool) -> float:
        running = self._engine.running
        if running is not None:
            try:
                spent = (await running.child.call(Spend(count if up else 0, 0 if up else count))).record
            except WorkerFailed:
                pass  # it died: the limit holds without it
            else:
                if isinstance(spent, Spent):
                    return max(0.0, spent.up_s if up else spent.down_s)
        return bucket.take(count, trio.current_time())


class _Traffic:
    """Who got how much, of a bounded number of peers."""

    def __init__(self) -> None:
        self._peers: OrderedDict[PeerId, tuple[int, int]] = OrderedDict()

    def all(self) -> Mapping[PeerId, tuple[int, int]]:
        return MappingProxyType(dict(self._peers))

    def sent(self, peer: str, count: int) -> None:
        self._add(PeerId(peer), count, 0)

    def received(self, peer: str, count: int) -> None:
        self._add(PeerId(peer), 0, count)

    def _add(self, peer: PeerId, sent: int, received: int) -> None:
        before = self._peers.pop(peer, (0, 0))
        self._peers[peer] = before[0] + sent, before[1] + received
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
