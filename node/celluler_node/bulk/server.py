"""Who is served: tickets out, connections in, and the thread of each connection.

Knows nothing of sockets that listen (`lobby`), nor who may ask for a ticket: the node does.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

from celluler.content.bulk_frames import (
    ABSENT,
    MAX_HAVE_BYTES,
    MAX_IN_FLIGHT,
    REFUSED_BUSY,
    REQUEST_BYTES,
    Request,
    Server,
    Status,
    encode_head,
)
from celluler.content.digest import Digest
from celluler.content.reader import OpenContent, StoreReader
from celluler.content.tickets import Holder, Tickets
from celluler.errors import BlockAbsent, Busy, CellulerError, ProtocolViolation
from celluler_node.bulk.news import Bulletin
from celluler_node.bulk.throttle import Throttle
from celluler_node.bulk.wire import Wire
from celluler_node.bulk.words import MAX_SERVED, MAX_SERVED_A_PEER, Admitted, Declined, Patience

SPARE_IDLE_S = 1.0
"""When all places are taken, a connection that was asked nothing for so long makes room."""
AHEAD = 4
"""Chunks read while earlier ones are sent."""


class Serving:
    """The book and the connections. Called from the threads of the channel and of the lobby."""

    def __init__(self, store: StoreReader, bulletin: Bulletin, throttle: Throttle, patience: Patience) -> None:
        self._store, self._bulletin, self._throttle, self._patience = store, bulletin, throttle, patience
        self._tickets = Tickets()
        self._connections: dict[int, Connection] = {}
        self._lock = threading.Lock()

    def admit(self, peer: str, root: bytes) -> Admitted | Declined:
        """A ticket for this peer, if the content is here, wholly or in part, and there is room."""
        try:
            with self._store.open_content(root) as content:
                have = content.have()
        except BlockAbsent:
            return Declined(ABSENT)
        if have and not any(have):  # begun, and nothing came yet
            return Declined(ABSENT)
        self.expire()
        with self._lock:
            if self._held(peer) >= MAX_SERVED_A_PEER:
                return Declined(REFUSED_BUSY)
            try:
                ticket, holder = self._tickets.issue(peer, Digest(root), time.monotonic())
            except Busy:
                return Declined(REFUSED_BUSY)
        return Admitted(holder.number, ticket, have if len(have) <= MAX_HAVE_BYTES else b"")

    def expire(self) -> None:
        """Forget tickets whose time is over."""
        with self._lock:
            late = self._tickets.expire(time.monotonic())
        for holder in late:
            self._bulletin.released(holder.number)

    def redeem(self, ticket: bytes, wire: Wire) -> bool:
        """Take a connection in. False when the ticket is none, or nobody can make room for it."""
        with self._lock:
            holder = self._tickets.redeem(ticket, time.monotonic())
            if holder is None:
                return False
            if self._held(holder.peer) >= MAX_SERVED_A_PEER or not self._make_room():
                self._bulletin.released(holder.number)
                return False
            connection = Connection(holder, wire, self._bulletin, self._throttle, self._patience)
            self._connections[holder.number] = connection
        threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        return True

    def _serve(self, connection: Connection) -> None:
        holder = connection.holder
        try:
            with self._store.open_content(holder.root) as content:
                connection.run(content)
        except (CellulerError, OSError) as error:
            print(f"{holder.peer[-8:]}: {error}", flush=True)
        finally:
            connection.wire.close()
            with self._lock:
                del self._connections[holder.number]
            self._bulletin.released(holder.number)

    def _held(self, peer: str) -> int:
        return sum(connection.holder.peer == peer for connection in self._connections.values())

    def _make_room(self) -> bool:
        """Its thread ends soon, and the bound is passed by one until then."""
        if len(self._connections) < MAX_SERVED:
            return True
        idlest = min(self._connections.values(), key=lambda connection: connection.idle_since_s)
        idle = time.monotonic() - idlest.idle_since_s
        if idle < SPARE_IDLE_S or len(self._connections) > MAX_SERVED:
            return False
        idlest.wire.cut()
        return True


class Connection:
    """One client with a ticket. One thread of it receives requests and reads the disk, another sends (`run`)."""

    def __init__(self, holder: Holder, wire: Wire, bulletin: Bulletin, throttle: Throttle, patience: Patience) -> None:
        self.holder, self.wire = holder, wire
        self._idle_since_s = time.monotonic()
        self._bulletin, self._throttle, self._patience = bulletin, throttle, patience
        self._machine = Server()
        self._loaded: queue.Queue[_Loaded | None] = queue.Queue(AHEAD)
        self._sending = False
        self._failure: CellulerError | OSError | None = None
        self._never = threading.Event()

    @property
    def idle_since_s(self) -> float:
        """When it was owed an answer last; infinite while it is."""
        return float("inf") if self._machine.owes or self._sending else self._idle_since_s

    def run(self, content: OpenContent) -> None:
        """Answer until the client closes. Raises OSError when it falls silent, ProtocolViolation."""
        loader = threading.Thread(target=self._load, args=(content,), daemon=True)
        loader.start()
        answer = self._loaded.get()
        try:
            while answer is not None:
                self._answer(answer)
                answer = self._loaded.get()
        finally:
            self.wire.cut()
            while answer is not None:  # it may wait for room
                answer = self._loaded.get()
            loader.join()
        if self._failure is not None:
            raise self._failure

    # --- the thread that reads -------------------------------------------------------------------------------------

    def _load(self, content: OpenContent) -> None:
        try:
            inbox = memoryview(bytearray(MAX_IN_FLIGHT * REQUEST_BYTES))
            while requests := self._receive(inbox):
                for request in requests:
                    self._loaded.put(_read(request, content))
        except (CellulerError, OSError) as error:
            self._failure = error
        finally:
            self._loaded.put(None)

    def _receive(self, inbox: memoryview) -> list[Request]:
        """None of them when the client closed. A request that comes in drops is a whole one in time, or none."""
        requests: list[Request] = []
        while not requests:
            try:
                count = self.wire.receive_into(inbox, min(self.idle_since_s, time.monotonic()) + self._patience.idle_s)
            except TimeoutError:
                if self.idle_since_s < float("inf"):
                    raise
                continue  # it waits for us
            if not count:
                if not self._machine.idle:
                    raise ProtocolViolation("closed inside a request")
                return []
            requests = self._machine.feed(inbox[:count])
        return requests

    # --- the thread that sends -------------------------------------------------------------------------------------

    def _answer(self, loaded: _Loaded) -> None:
        self._sending = True
        self._machine.answered(loaded.number)
        self._send(encode_head(loaded.status, loaded.number, len(loaded.data)), loaded.data)
        self._idle_since_s, self._sending = time.monotonic(), False
        self._bulletin.carried(self.holder.peer, len(loaded.data))

    def _send(self, head: bytes, data: bytes) -> None:
        """At the pace that the limit allows."""
        size = self._throttle.slice_bytes(max(1, len(data)))
        self._throttle.wait(min(size, len(data)), self._never)
        self.wire.send(head, memoryview(data)[:size])
        for at in range(size, len(data), size):
            part = memoryview(data)[at : at + size]
            self._throttle.wait(len(part), self._never)
            self.wire.send(part)


@dataclass(frozen=True, slots=True)
class _Loaded:
    number: int
    status: Status
    data: bytes


def _read(request: Request, content: OpenContent) -> _Loaded:
    try:
        data = content.read(request.digest)
    except CellulerError as error:  # our disk or index: not the client's business
        print(f"cannot read: {error}", flush=True)
        return _Loaded(request.number, Status.BUSY, b"")
    return _Loaded(request.number, Status.OK if data is not None else Status.NOT_FOUND, data or b"")
