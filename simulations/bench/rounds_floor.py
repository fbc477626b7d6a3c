"""One peer of the floor in `simulations.bench.rounds`: the bytes of a stock round over bare TCP, and nothing else.

A float32 part to and from everybody, twice: as parts go to their reducers, and aggregates come back.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from simulations.bench.rounds_peers import hear, say

VALUE_BYTES = 4


def serve(place: int, count: int, size: int) -> None:
    part = bytes(VALUE_BYTES * size // count)
    listener = socket.create_server(("127.0.0.1", 0), backlog=count)
    say({"port": listener.getsockname()[1]})
    roster = hear()
    dialled = [socket.create_connection(("127.0.0.1", r["port"])) for i, r in enumerate(roster) if i != place]
    accepted = [listener.accept()[0] for _ in range(count - 1)]
    say({})
    while hear() is not None:
        say({})
        hear()
        began = time.perf_counter()
        for _ in ("parts", "aggregates"):
            work: list[Callable[[], Any]] = [*(lambda s=s: s.sendall(part) for s in dialled)]
            work += [*(lambda s=s: _swallow(s, len(part)) for s in accepted)]
            threads = [threading.Thread(target=each) for each in work]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        say({"seconds": time.perf_counter() - began})


def _swallow(sock: socket.socket, size: int) -> None:
    space = memoryview(bytearray(size))
    while space:
        space = space[sock.recv_into(space) :]


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
