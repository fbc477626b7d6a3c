"""The port of what moves chunks past the node: another process that verifies them and writes them into the file.

The node decides which chunk comes from whom (`download.py`) and keeps the index; a mover carries the bytes of one
source from its socket into `Store.part`, and tells what became of each. What it says it placed, it has hashed before
writing.

Knows nothing of sockets, tickets or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from celluler.content.digest import Digest


@dataclass(frozen=True, slots=True)
class Chunk:
    """One to bring. length: what its bytes must have. places: offsets in the file to write it at, at least one."""

    digest: Digest
    length: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """Hashed, and written at each of its places."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Lacking:
    """The source has not got it."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Falsified:
    """The source sent something else under this digest, or of another length; nothing was written. It is left."""

    digest: Digest


Moved = Placed | Lacking | Falsified


class Mover(Protocol):
    """One source. One task asks, another receives."""

    async def ask(self, chunks: Sequence[Chunk]) -> None:
        """Want these. Raises Unavailable when the source has gone, LocalError when our disk fails."""
        ...

    async def receive(self) -> Sequence[Moved]:
        """What became of some of them, in any order; empty when the source went away. Raises as `ask`;
        Busy when the source has no time, PeerViolation naming it when it broke the protocol."""
        ...


OpenMover = Callable[[str, bytes, Path], AbstractAsyncContextManager[Mover]]
"""(peer id, root, file to write into). Raises Unavailable: then the source is asked over its stream."""


class Meter(Protocol):
    """Bandwidth limits of the whole peer: waits until so many bytes may pass."""

    async def send(self, count: int) -> None: ...

    async def receive(self, count: int) -> None: ...
