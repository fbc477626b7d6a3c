"""Where strangers wait: connections that have not shown a ticket yet, all in one thread.

A stranger costs a socket, and from its first bytes on a TLS machine; never a thread. There are `MAX_WAITING` places,
`MAX_WAITING_AN_ADDRESS` for one address; when they are taken the one that has waited longest leaves, since an honest
client shows its ticket within milliseconds. So a crowd that only waits takes nobody's place for long.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from celluler.content.bulk_frames import TICKET_BYTES
from celluler_node.bulk.tls import RECORD_BYTES, Tls
from celluler_node.bulk.wire import Wire
from celluler_node.bulk.words import Patience

MAX_WAITING = 256
MAX_WAITING_AN_ADDRESS = 64
BACKLOG = 512
TICK_S = 1.0

_ACCEPTED_A_TURN = 64


@dataclass(slots=True, eq=False)
class _Stranger:
    sock: socket.socket
    address: str
    until_s: float
    tls: Tls | None = None
    greeted: bool = False
    ticket: bytearray = field(default_factory=bytearray)


class Lobby:
    """Owns the listening sockets. on_tick: called about every second, in the lobby's thread."""

    def __init__(
        self,
        listeners: list[socket.socket],
        context: ssl.SSLContext,
        redeem: Callable[[bytes, Wire], bool],
        on_tick: Callable[[], None],
        patience: Patience,
    ) -> None:
        self._context, self._redeem, self._on_tick, self._patience = context, redeem, on_tick, patience
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[socket.socket, _Stranger] = {}  # who has waited longest first
        self._of_address: Counter[str] = Counter()
        for listener in listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """For ever."""
        ticked_s = time.monotonic()
        while True:
            for key, _ in self._selector.select(TICK_S):
                if key.data is None:
                    assert isinstance(key.fileobj, socket.socket)
                    self._accept(key.fileobj)
                elif key.data.sock in self._waiting:  # else it has made room in this very turn
                    self._hear(key.data)
            if (now := time.monotonic()) - ticked_s >= TICK_S:
                ticked_s = now
                self._expire(now)
                self._on_tick()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTED_A_TURN):
            try:
                sock, peer = listener.accept()
            except OSError:  # nobody there any more, or no descriptor left: those who wait will leave
                return
            sock.setblocking(False)
            stranger = _Stranger(sock, peer[0], time.monotonic() + self._patience.handshake_s)
            self._make_room(stranger.address)
            self._waiting[sock] = stranger
            self._of_address[stranger.address] += 1
            self._selector.register(sock, selectors.EVENT_READ, data=stranger)

    def _make_room(self, address: str) -> None:
        if self._of_address[address] >= MAX_WAITING_AN_ADDRESS:
            self._dismiss(next(one for one in self._waiting.values() if one.address == address))
        elif len(self._waiting) >= MAX_WAITING:
            self._dismiss(next(iter(self._waiting.values())))

    def _hear(self, stranger: _Stranger) -> None:
        try:
            data = stranger.sock.recv(RECORD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            if not data:
                raise OSError("closed")
            stranger.tls = tls = stranger.tls or Tls(self._context, server=True)
            tls.received(data)
            complete = self._advance(stranger, tls)
            answer = tls.to_send()
            if answer and stranger.sock.send(answer) != len(answer):
                raise OSError("takes nothing")
        except OSError:
            self._dismiss(stranger)
        else:
            if complete:
                self._show_in(stranger, tls)

    def _advance(self, stranger: _Stranger, tls: Tls) -> bool:
        """True when the ticket is whole."""
        stranger.greeted = stranger.greeted or tls.handshake()
        if not stranger.greeted:
            return False
        rest = memoryview(bytearray(TICKET_BYTES - len(stranger.ticket)))
        if (count := tls.read_into(rest)) == 0:
            raise OSError("closed before it showed a ticket")
        stranger.ticket += rest[: count or 0]
        return len(stranger.ticket) == TICKET_BYTES

    def _show_in(self, stranger: _Stranger, tls: Tls) -> None:
        self._forget(stranger)
        wire = Wire(stranger.sock, tls, silence_s=self._patience.idle_s, send_s=self._patience.stuck_s)
        if not self._redeem(bytes(stranger.ticket), wire):
            wire.close()

    def _expire(self, now: float) -> None:
        for stranger in [one for one in self._waiting.values() if now >= one.until_s]:
            self._dismiss(stranger)

    def _dismiss(self, stranger: _Stranger) -> None:
        self._forget(stranger)
        with suppress(OSError):
            stranger.sock.close()

    def _forget(self, stranger: _Stranger) -> None:
        self._selector.unregister(stranger.sock)
        del self._waiting[stranger.sock]
        self._of_address[stranger.address] -= 1
        if not self._of_address[stranger.address]:
            del self._of_address[stranger.address]


def listen(hosts: tuple[str, ...], port: int) -> list[socket.socket]:
    """One socket an address, all at one port: with 0 the first one's choice. Raises OSError."""
    sockets: list[socket.socket] = []
    try:
        for host in dict.fromkeys(hosts):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sockets.append(socket.create_server((host, port), family=family, backlog=BACKLOG))
            port = sockets[0].getsockname()[1]
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets
