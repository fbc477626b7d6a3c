"""Getting through to a peer of whom several addresses are known: the first one behind which its certificate stands."""

from __future__ import annotations

import ipaddress
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from celluler_node.bulk.tls import Tls
from celluler_node.bulk.wire import Wire

STOP_S = 0.05
"""How soon it is noticed that no connection is wanted any more, while none is made."""


class Impostor(OSError):
    """Somebody answered, and did not show the certificate of the grant."""


def dial(
    hosts: Sequence[str],
    port: int,
    pin: bytes,
    context: ssl.SSLContext,
    *,
    connect_s: float,
    stuck_s: float,
    stopping: threading.Event,
    on_wire: Callable[[Wire], None],
) -> Wire:
    """A connection whose other end has proven the pin; nothing has been sent over it yet. Raises OSError.

    All addresses are tried at once. A host is an address and never a name: nobody is asked what it means.
    stopping: another thread wants no connection any more. on_wire: told of each that is tried, to be cut then.
    """
    deadline_s = time.monotonic() + connect_s
    failure: OSError = TimeoutError(f"no connection within {connect_s:g} s")
    waiting = selectors.DefaultSelector()
    try:
        for host in dict.fromkeys(hosts):
            try:
                waiting.register(_begin(host, port), selectors.EVENT_WRITE)
            except (OSError, ValueError) as error:
                failure = error if isinstance(error, OSError) else OSError(f"{host} is no address")
        for sock in _connected(waiting, deadline_s, stopping):
            until_s = _share(deadline_s, others=len(waiting.get_map()))
            silence_s = max(0.01, until_s - time.monotonic())
            wire = Wire(sock, Tls(context, server=False), silence_s=silence_s, send_s=silence_s)
            on_wire(wire)
            try:
                if (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) != 0:
                    raise OSError(code, "cannot connect")
                if wire.handshake(until_s) != pin:
                    raise Impostor(f"{sock.getpeername()[0]} port {port}: another certificate than the granted one")
                wire.wait_at_most(stuck_s, stuck_s)
            except OSError as error:
                failure = failure if isinstance(failure, Impostor) else error
                wire.close()
            else:
                return wire
        raise failure
    finally:
        for key in list(waiting.get_map().values()):
            with suppress(OSError):
                key.fileobj.close()  # type: ignore[union-attr]
        waiting.close()


def _share(deadline_s: float, others: int) -> float:
    """Until when one of them may take its time: half of what is left when others wait behind it."""
    now = time.monotonic()
    return deadline_s if not others else now + (deadline_s - now) / 2


def _begin(host: str, port: int) -> socket.socket:
    address = ipaddress.ip_address(host)
    sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        with suppress(BlockingIOError):
            sock.connect((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _connected(
    waiting: selectors.BaseSelector, deadline_s: float, stopping: threading.Event
) -> Iterator[socket.socket]:
    """Sockets as their attempts end, well or not; each is the caller's from then on."""
    while waiting.get_map() and not stopping.is_set() and (left_s := deadline_s - time.monotonic()) > 0:
        for key, _ in waiting.select(min(left_s, STOP_S)):
            if stopping.is_set():
                return
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            waiting.unregister(sock)
            yield sock
