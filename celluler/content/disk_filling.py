"""Filling a content of the disk store: pieces come in any order, from any thread or from a process beside, and the file
and the index stay in step. The order is always data, fdatasync, index.

A piece is *written* when its bytes were handed to the kernel: the death of the process cannot take them back. It is
*synced* once fdatasync returned; that happens every `SYNC_BYTES`, when nothing wanted is missing and at completion.
An fdatasync is of the file, whoever wrote to it: so it serves for the pieces another process placed as well.

Knows nothing of quotas and of what is evicted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from celluler.content.digest import digest_of
from celluler.content.disk_files import Files, copy_piece, disk_errors, read_piece, write_at
from celluler.content.index import Content, Index, State
from celluler.content.manifest import Piece
from celluler.content.store import check_chunk
from celluler.errors import CellulerError, LocalError

SYNC_BYTES = 32 << 20
"""Bytes of one content that may be written and not yet synced: an fdatasync a piece costs more than the network."""

_ADOPTED_AT_ONCE = 16
"""Pieces taken over while the slot is held: whoever puts a piece meanwhile waits that long."""


@dataclass
class Slot:
    """One content's file. Its lock is taken before the index's, never inside it, and never two slots at once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    descriptor: int | None = None  # of data.part, kept open between pieces
    unsynced_bytes: int = 0
    filling: tuple[Content, dict[int, Piece]] | None = None  # the index's row and its missing pieces

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.descriptor, self.unsynced_bytes, self.filling = None, 0, None


class Filler:
    """What is done to incomplete contents. Methods that take a slot want it held."""

    def __init__(self, files: Files, index: Index, clock: Callable[[], float]) -> None:
        self._files, self._index, self._clock = files, index, clock
        self._slots: dict[bytes, Slot] = {}
        self._slots_lock = threading.Lock()

    @contextmanager
    def slot(self, root: bytes) -> Iterator[Slot]:
        """Held until left; forgotten when nothing of it is open and nobody waits."""
        with self._slots_lock:
            slot = self._slots.setdefault(bytes(root), Slot())
            slot.users += 1
        try:
            with slot.lock:
                yield slot
        finally:
            with self._slots_lock:
                slot.users -= 1
                if not slot.users and slot.descriptor is None:
                    del self._slots[bytes(root)]

    def put(self, root: bytes, index: int, data: bytes | memoryview) -> None:
        digest = digest_of(data)  # before anything is held
        with self.slot(root) as slot:
            content, missing = self._filling(slot, root)
            piece = missing.get(index) or self._index.piece(content.id, index)[0]
            if digest != piece.digest or len(data) != piece.length:
                check_chunk(piece.digest, piece.length, data)
            if index in missing or self._want(content, missing, [index]):
                self._write(slot, content, piece, data)
                del missing[index]
            self._settle(slot, content, missing)

    def part(self, root: bytes) -> Path:
        with self.slot(root) as slot:
            content = self._index.content(root)
            if content.complete:
                raise LocalError("this content is complete")
            with disk_errors():
                self._descriptor(slot, content)
            return self._files.part(root)

    def placed(self, root: bytes, indices: Sequence[int]) -> None:
        with self.slot(root) as slot:
            content, missing = self._filling(slot, root)
            if content.complete:
                return
            self._want(content, missing, [index for index in indices if index not in missing])
            pieces = [missing[index] for index in dict.fromkeys(indices) if index in missing]
            self._keep_placed(slot, content, pieces)
            for piece in pieces:
                del missing[piece.index]
            self._settle(slot, content, missing)

    def finish_if_whole(self, slot: Slot, content: Content) -> None:
        if content.complete or not self._index.whole(content.id):
            return
        self.sync(slot, content)
        with disk_errors():
            self._files.publish(content.root, self._descriptor(slot, content))
        self._index.complete(content.id, self._clock())
        slot.close()

    def sync(self, slot: Slot, content: Content) -> None:
        """Data first, then the index. A failed fdatasync may have dropped pages, so nothing unsynced is kept."""
        try:
            with disk_errors():
                os.fdatasync(self._descriptor(slot, content))
        except CellulerError:
            self._index.forget(content.id, self._index.pieces(content.id, State.WRITTEN))
            slot.unsynced_bytes, slot.filling = 0, None
            raise
        self._index.mark_synced(content.id)
        slot.unsynced_bytes = 0

    def close(self) -> None:
        for root, slot in self._slots.items():
            with slot.lock:
                if slot.descriptor is not None:
                    with suppress(CellulerError):  # what cannot be synced now is hashed on the next open
                        self.sync(slot, self._index.content(root))
                slot.close()

    # --- pieces that another content holds ---------------------------------------------------------------------

    def adopt(self, content: Content) -> None:
        """Take over missing pieces that lie in some other place, each hashed before it is copied."""
        wanted = self._index.held_elsewhere(content.id)
        for at in range(0, len(wanted), _ADOPTED_AT_ONCE):
            self._adopt_some(content.root, wanted[at : at + _ADOPTED_AT_ONCE])

    def _adopt_some(self, root: bytes, pieces: Sequence[Piece]) -> None:
        """With the slot held: the content must not go and come again between the copy and the index."""
        sources: dict[bytes, int | None] = {}
        with ExitStack() as stack, self.slot(root) as slot, disk_errors():
            content, missing = self._filling(slot, root)
            todo = [piece for piece in pieces if piece.index in missing]
            if not todo:
                return
            stack.callback(lambda: _close_all(sources.values()))
            target = self._descriptor(slot, content)
            taken = [piece for piece in todo if self._copy(sources, target, piece)]
            self._keep_placed(slot, content, taken)
            for piece in taken:
                del missing[piece.index]
            self._settle(slot, content, missing)

    def _copy(self, sources: dict[bytes, int | None], target: int, piece: Piece) -> bool:
        """From the first place where its bytes are what they should be."""
        for root, held in self._index.places(piece.digest):
            if root not in sources:
                sources[root] = self._files.open(root)
            source = sources[root]
            data = read_piece(source, held) if source is not None else None
            if source is not None and data is not None:
                copy_piece(source, held.offset, target, piece, data)
                return True
        return False

    # --- steps; the slot is held -------------------------------------------------------------------------------

    def _filling(self, slot: Slot, root: bytes) -> tuple[Content, dict[int, Piece]]:
        """The content and its missing pieces, asked of the index once and then kept beside the open file."""
        if slot.filling is None:
            content = self._index.content(root)
            slot.filling = content, {piece.index: piece for piece in self._index.pieces(content.id, State.MISSING)}
        return slot.filling

    def _want(self, content: Content, missing: dict[int, Piece], indices: Collection[int]) -> bool:
        """Pieces that come although nobody asked for them are wanted from now on; whether any of these were such.

        Raises LocalError when there is no such piece.
        """
        found = [self._index.piece(content.id, index) for index in indices]
        new = {piece.index: piece for piece, state in found if state is State.UNWANTED}
        if new:
            self._index.want(content.id, new.keys())
            missing.update(new)
        return bool(new)

    def _write(self, slot: Slot, content: Content, piece: Piece, data: bytes | memoryview) -> None:
        if slot.unsynced_bytes >= SYNC_BYTES:
            self.sync(slot, content)
        with disk_errors():
            write_at(self._descriptor(slot, content), data, piece.offset)
        self._index.mark_written(content.id, [piece])
        slot.unsynced_bytes += piece.length

    def _keep_placed(self, slot: Slot, content: Content, pieces: Sequence[Piece]) -> None:
        """Their bytes are in the file. When that makes too much that is not synced, they are synced with the rest."""
        if not pieces:
            return
        with disk_errors():
            self._descriptor(slot, content)
        slot.unsynced_bytes += sum(piece.length for piece in pieces)
        if slot.unsynced_bytes >= SYNC_BYTES:
            self.sync(slot, content)
        self._index.mark_written(content.id, pieces)

    def _settle(self, slot: Slot, content: Content, missing: dict[int, Piece]) -> None:
        """When nothing wanted is missing: the whole content is finished, a part of one is synced."""
        if missing or content.complete:
            return
        self.finish_if_whole(slot, content)
        if slot.unsynced_bytes:
            self.sync(slot, content)

    def _descriptor(self, slot: Slot, content: Content) -> int:
        if slot.descriptor is None:
            slot.descriptor = self._files.open_part(content.root, content.total)
        return slot.descriptor


def _close_all(descriptors: Collection[int | None]) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)
