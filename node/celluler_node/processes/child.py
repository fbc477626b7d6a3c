"""The first lines of every process: `python -P -s -m celluler_node.processes.child FD PARENT NAME`.

Order: die with the parent, close every wall the node asked for, and only then import the program's own module, since
that import runs the largest body of code (torch) and threads it starts would stand outside the walls.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys

from celluler.errors import ProtocolViolation
from celluler.wire import unpack
from celluler_node.processes import limits
from celluler_node.processes.frames import FrameReader
from celluler_node.processes.serving import Link, receive
from celluler_node.processes.words import MAX_RECORD_BYTES, Boot, Isolation, Kind


def main(arguments: list[str]) -> None:
    descriptor, parent, name = int(arguments[0]), int(arguments[1]), arguments[2]
    dies_with_node = limits.die_with_parent(parent)
    if sys.platform == "linux":
        _show_name(name)
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=descriptor)
    boot = _boot(sock)
    isolation = _close_walls(boot, dies_with_node)
    importlib.import_module(boot.module).main(Link(sock, boot, isolation))


def _boot(sock: socket.socket) -> Boot:
    """The first frame. The node sends no other before it has read our `Ready`."""
    reader = FrameReader(0)
    while (frames := receive(sock, reader)) is not None:
        for frame in frames:
            if frame.kind != Kind.BOOT or len(frames) != 1 or not reader.idle:
                raise ProtocolViolation("the first frame must be Boot, alone")
            return unpack(Boot, frame.record, limit=MAX_RECORD_BYTES)
    sys.exit(0)


def _close_walls(boot: Boot, dies_with_node: bool) -> Isolation:
    limits.apply(boot.limits)
    if boot.confined:
        from celluler_node.processes import sandbox  # noqa: PLC0415  an averager needs none of it

        return sandbox.enter(boot, dies_with_node)
    return Isolation(dies_with_node, True, False, 0, False, ("not confined: this program is our own",))


def _show_name(name: str) -> None:
    import ctypes  # noqa: PLC0415

    ctypes.CDLL(None).prctl(limits.PR_SET_NAME, f"celluler-{name}"[:15].encode(), 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
