"""Ends of a bulk connection that do what no honest one does, over real TLS."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from celluler.content.bulk_frames import REQUEST_BYTES, TICKET_BYTES
from celluler_node.bulk.tls import client_context, server_context

WAIT_S = 10.0

Behaviour = Callable[[ssl.SSLSocket], None]
"""What a server does with a connection once it was shown a ticket."""


class FalseServer:
    """Shows a certificate of its own; `tickets` are those it was shown. Every connection has its thread."""

    def __init__(self, folder: Path, behave: Behaviour) -> None:
        folder.mkdir()
        self._behave = behave
        self._context, self.pin = server_context(folder)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.tickets: list[bytes] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                self._open.append(sock)
                self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(WAIT_S)
        with suppress(OSError), self._context.wrap_socket(sock, server_side=True) as tls:
            self._open.append(tls)
            if ticket := exactly(tls, TICKET_BYTES):
                self.tickets.append(ticket)
                self._behave(tls)


@contextmanager
def false_server(folder: Path, behave: Behaviour) -> Iterator[FalseServer]:
    server = FalseServer(folder, behave)
    try:
        yield server
    finally:
        server.close()


def exactly(tls: ssl.SSLSocket, count: int) -> bytes:
    """So many bytes, or none when the other end closed before."""
    data = b""
    while len(data) < count and (part := tls.recv(count - len(data))):
        data += part
    return data if len(data) == count else b""


def request(tls: ssl.SSLSocket) -> tuple[int, bytes]:
    """The next one: (number, digest)."""
    data = exactly(tls, REQUEST_BYTES)
    if not data:
        raise OSError("closed")
    return int.from_bytes(data[1:5], "big"), data[5:]


def until_closed(tls: ssl.SSLSocket) -> None:
    """Say nothing until the other end goes."""
    while tls.recv(1 << 16):
        pass


def connect(port: int) -> ssl.SSLSocket:
    """A client through its handshake, which has shown no ticket."""
    sock = socket.create_connection(("127.0.0.1", port), WAIT_S)
    try:
        return client_context().wrap_socket(sock)
    except BaseException:
        sock.close()
        raise


def is_closed(sock: socket.socket) -> bool:
    """Waits until the other end has closed, or sends something; True when it closed."""
    try:
        return sock.recv(1) == b""
    except (ConnectionError, ssl.SSLError):
        return True
