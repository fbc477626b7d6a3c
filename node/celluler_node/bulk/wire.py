"""A TLS connection over a blocking socket: one thread receives, any may send.

Waits are the kernel's own (`SO_RCVTIMEO`, `SO_SNDTIMEO`), so that a read that finds bytes is one call. They bound a
silence, not a trickle: who receives also looks at its deadline. Every failure is an OSError, and so is `cut`, by which
another thread ends whatever waits here.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

from celluler_node.bulk.tls import Tls, slices

RECEIVE_BYTES = 1 << 18
"""Received at once: fewer calls, and it still fits the processor's cache."""
SEND_BYTES = 1 << 19
"""Encrypted before it is sent: the other end has something to do meanwhile."""


class Wire:
    """Owns the socket. See `wait_at_most`."""

    def __init__(self, sock: socket.socket, tls: Tls, *, silence_s: float, send_s: float) -> None:
        self._sock, self._tls = sock, tls
        self._lock = threading.Lock()
        self._raw = memoryview(bytearray(RECEIVE_BYTES))
        self._closed = False
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wait_at_most(silence_s, send_s)

    def wait_at_most(self, silence_s: float, send_s: float) -> None:
        """silence_s: for any bytes of the other end. send_s: until it has taken what is sent at once, 512 KiB."""
        self._send_s = send_s
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(silence_s))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(send_s))

    def handshake(self, deadline_s: float) -> bytes:
        """Go through with it; the other end's pin. deadline_s: on the monotonic clock."""
        while not self._tls.handshake():
            self._flush()
            self._pull(deadline_s)
        self._flush()
        return self._tls.pin()

    def receive_into(self, view: memoryview, deadline_s: float) -> int:
        """As many bytes as are here, at least one; 0 when the other end has closed.

        What TLS itself has to say to them (a change of keys) goes out before what is sent next: were it sent here, it
        could overtake what another thread has encrypted and not sent yet.
        """
        while True:
            with self._lock:
                count = self._tls.read_into(view)
            if count is not None:
                return count
            self._pull(deadline_s)

    def send(self, *pieces: bytes | memoryview) -> None:
        """Send it all, waiting for the other end to take it. One thread may do so, and then no other sends."""
        held = 0
        for piece in slices(pieces, SEND_BYTES):
            with self._lock:
                self._tls.encrypt(piece)
            held += len(piece)
            if held >= SEND_BYTES:
                self._flush()
                held = 0
        self._flush()

    def send_now(self, data: bytes) -> None:
        """Send a little without ever waiting. Raises OSError when the other end takes nothing any more."""
        with self._lock:
            self._tls.encrypt(data)
            sealed = self._tls.to_send()
            if self._sock.send(sealed, socket.MSG_DONTWAIT) != len(sealed):
                raise TimeoutError("the other end reads nothing")

    def cut(self) -> None:
        """End every wait on it, in whatever thread; the socket stays until its owner closes it."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self._sock.close()

    def _flush(self) -> None:
        """The kernel's limit is of one call, which may end with a little progress; ours is of all of it."""
        with self._lock:
            data = memoryview(self._tls.to_send())
        deadline_s = time.monotonic() + self._send_s
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError as error:
                raise TimeoutError("the other end takes nothing") from error
            if data and time.monotonic() > deadline_s:
                raise TimeoutError("the other end takes too little")

    def _pull(self, deadline_s: float) -> None:
        """Wait for bytes of the other end. A close without TLS's goodbye is a close: lengths are known from heads."""
        if time.monotonic() > deadline_s:
            raise TimeoutError("too slow")
        try:
            count = self._sock.recv_into(self._raw)
        except BlockingIOError as error:
            raise TimeoutError("silent") from error
        with self._lock:
            self._tls.received(self._raw[:count])


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", *divmod(max(1, int(seconds * 1e6)), 10**6))  # zero would mean no limit
