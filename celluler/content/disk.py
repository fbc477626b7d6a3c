"""A store on disk: one real file a content beside a SQLite index. A complete model is ready to be memory-mapped.

    index.sqlite    the blocks themselves; contents; one row a piece: unwanted, missing, written or synced
    content/        the files, see `disk_files.py`; how they are filled, see `disk_filling.py`

One process writes a store; others may read beside it (`reader.py`) and write into `part`. On open every piece that is
written but not synced is hashed again, so what the index claims is so.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from celluler.content.digest import Digest, digest_of
from celluler.content.disk_files import Files, disk_errors, linked, lock_folder, read_piece, sync_file
from celluler.content.disk_filling import Filler
from celluler.content.index import Content, Index, State
from celluler.content.manifest import Description, Layout, Piece, describe
from celluler.content.store import ContentStat, Verified, VerifiedBlocks, bitmap_of, check_block, read_layout
from celluler.content.store_eviction import NoRoom, Uses, needs_any, victims, with_room
from celluler.errors import BlockAbsent, IntegrityError, LocalError, QuotaExceeded

_ROOM_FOR_ROWS_BYTES = 1 << 20
"""What a call that writes only rows wants of a disk that is full."""


class DiskStore:
    """Implements `Store` under a folder. Opening it repairs whatever a crash left. One process at a time."""

    def __init__(
        self,
        folder: Path,
        quota_bytes: int,
        *,
        clock: Callable[[], float] = time.time,
        evicts: bool = False,
        on_evict: Callable[[tuple[Digest, ...]], object] = lambda roots: None,
    ) -> None:
        """evicts: make room by evicting rather than raise QuotaExceeded. on_evict: told what went, holding no lock.

        Raises LocalError when another process holds the folder, IntegrityError when the index cannot be read.
        """
        self._folder, self._quota_bytes, self._clock = folder, quota_bytes, clock
        self._evicts, self._on_evict = evicts, on_evict
        self._uses = Uses(clock)
        self._closed = False
        with disk_errors():
            self._files = Files(folder)
            self._files.make_folders()
            self._lock_file = lock_folder(folder)
        try:
            self._index = Index(folder / "index.sqlite", quota_bytes)
            self._filler = Filler(self._files, self._index, clock)
            with disk_errors():
                self._recover()
        except BaseException:
            os.close(self._lock_file)
            raise

    # --- blocks ------------------------------------------------------------------------------------------------

    def put_block(self, data: bytes) -> Digest:
        digest = check_block(data)
        with_room(lambda: self._index.put_block(digest, data), len(data), self._make_room)
        return digest

    def get(self, digest: bytes) -> bytes:
        block = self._index.block(digest)
        if block is not None:
            if digest_of(block) == digest:
                return block
            self._index.drop_block(digest)
            raise _damaged(digest)
        damaged = False
        for root, piece in self._index.places(digest):
            with suppress(BlockAbsent):
                data = self._files.read(root, piece)
                data = self._read_or_forget(root, piece) if data is None else data
                if data is not None:
                    self._uses.note(root)
                    return data
                damaged = True
        raise _damaged(digest) if damaged else BlockAbsent(digest)

    def has(self, digest: bytes) -> bool:
        return self._index.has(digest)

    # --- filling a content -------------------------------------------------------------------------------------

    def begin(self, root: bytes, only: Collection[int] | None = None) -> None:
        layout = None if self._known(root) else read_layout(self, root)
        spared = {root, *(layout.manifest.leaves if layout else ())}
        self._flush_uses()
        grown = with_room(
            lambda: self._begin(root, layout, only),
            _ROOM_FOR_ROWS_BYTES,
            lambda short_bytes: self._make_room(short_bytes, spared),
        )
        if grown:
            with suppress(LocalError, BlockAbsent):  # a full disk will tell the next put_chunk
                self._filler.adopt(self._index.content(root))

    def missing(self, root: bytes) -> tuple[Piece, ...]:
        return self._index.pieces(self._index.content(root).id, State.MISSING)

    def have(self, root: bytes) -> bytes:
        content = self._index.content(root)
        if content.complete:
            return b""
        return bitmap_of(self._index.held_numbers(content.id), self._index.count(content.id))

    def put_chunk(self, root: bytes, index: int, data: bytes | memoryview) -> None:
        spared = (root,)
        with_room(lambda: self._filler.put(root, index, data), len(data), lambda short: self._make_room(short, spared))

    def part(self, root: bytes) -> Path:
        return self._filler.part(root)

    def placed(self, root: bytes, indices: Sequence[int]) -> None:
        self._filler.placed(root, indices)

    def add(self, path: Path, kind: str, *, pin: bool = True, move: bool = False) -> Digest:
        self._refuse_early(path, kind)
        size = path.stat().st_size
        return with_room(lambda: self._add(path, kind, pin, move), size, self._make_room)

    # --- using a content ---------------------------------------------------------------------------------------

    def path(self, root: bytes) -> Path:
        if not self._index.content(root).complete:
            with self._filler.slot(root):  # whoever put the last piece may be about to finish it
                if not self._index.content(root).complete:
                    raise BlockAbsent(root)
        self._uses.note(root)
        self._flush_uses()
        return self._files.data(root)

    def partial(self, root: bytes, indices: Collection[int]) -> Path:
        content = self._index.content(root)
        if content.complete:
            return self.path(root)
        for index in indices:
            piece, state = self._index.piece(content.id, index)
            if state <= State.MISSING:
                raise BlockAbsent(piece.digest)
        self._uses.note(root)
        with suppress(LocalError):  # complete in the meantime
            return self._filler.part(root)
        return self.path(root)

    def hold(self, root: bytes) -> AbstractContextManager[None]:
        return self._uses.hold(bytes(root))

    def pin(self, root: bytes) -> None:
        self._index.pin(root, True)

    def unpin(self, root: bytes) -> None:
        self._index.pin(root, False)

    def stat(self, root: bytes) -> ContentStat:
        return self._stat(self._index.content(root))

    def roots(self) -> tuple[Digest, ...]:
        return tuple(Digest(content.root) for content in self._index.contents())

    # --- room --------------------------------------------------------------------------------------------------

    def remove(self, root: bytes) -> None:
        self._drop(root, functools.partial(self._index.remove, root))

    def collect(self, target_bytes: int, *, dry_run: bool = False) -> tuple[ContentStat, ...]:
        gone: list[ContentStat] = []
        while True:
            chosen, _ = self._victims(target_bytes, ())
            if dry_run:
                return tuple(self._stat(content) for content in chosen)
            went = self._evict(chosen)
            gone += went
            if not went:  # all that may go went, or the target was met before
                return tuple(gone)

    def used_bytes(self) -> int:
        return self._index.used_bytes()

    # --- checking ----------------------------------------------------------------------------------------------

    def verify(self, root: bytes, *, repair: bool = False) -> Verified:
        with self.hold(root):
            content = self._index.content(root)
            held = self._index.held(content.id)
            damaged = tuple(self._damaged_pieces(root, held))
            if repair:
                damaged = tuple(piece for piece in damaged if self._read_or_forget(root, piece) is None)
            return Verified(Digest(root), sum(piece.length for piece in held), damaged)

    def verify_blocks(self, *, repair: bool = False) -> VerifiedBlocks:
        checked_bytes, damaged = 0, []
        for digest, data in self._index.blocks():
            checked_bytes += len(data)
            if digest_of(data) != digest:
                damaged.append(digest)
        if repair:
            for digest in damaged:
                self._index.drop_block(digest)
        return VerifiedBlocks(checked_bytes, tuple(damaged))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._filler.close()
        with suppress(LocalError):
            self._flush_uses()
        self._index.close()
        os.close(self._lock_file)

    # --- beginning and adding ----------------------------------------------------------------------------------

    def _begin(self, root: bytes, layout: Layout | None, only: Collection[int] | None) -> bool:
        """Whether something is wanted that was not before."""
        with self._filler.slot(root) as slot:
            grown = self._index.begin(root, layout, only, self._clock())
            self._uses.note(root)
            if grown:
                slot.filling = None  # it knows only what was missing before
            # Of no bytes, or an earlier attempt to finish failed.
            self._filler.finish_if_whole(slot, self._index.content(root))
            return grown

    def _refuse_early(self, path: Path, kind: str) -> None:
        """Raise QuotaExceeded before copying what would not fit, unless it is here already."""
        try:
            size = path.stat().st_size
        except OSError as error:
            raise LocalError(f"cannot read {path}: {error.strerror}") from error
        with_room(lambda: self._check_room(path, kind, size), size, self._make_room)

    def _check_room(self, path: Path, kind: str, size: int) -> None:
        used = self.used_bytes()
        if used + size > self._quota_bytes and not self._known(describe(path, kind).root):
            raise NoRoom(size, used, self._quota_bytes)

    def _add(self, path: Path, kind: str, pin: bool, move: bool) -> Digest:
        with disk_errors(), self._files.incoming() as copy:
            if not (move and linked(path, copy)):
                shutil.copyfile(path, copy)  # what is described must not change under our hands
            description = describe(copy, kind)
            if not self._complete(description.root):
                sync_file(copy)
                self._take_in(copy, description, pin)
            elif pin:
                self.pin(description.root)
        return description.root

    def _take_in(self, copy: Path, description: Description, pin: bool) -> None:
        root = description.root
        blocks = {digest_of(block): block for block in (description.manifest_bytes, *description.leaves)}
        with self._filler.slot(root) as slot:
            if self._complete(root):
                return
            try:
                self._files.take_in(root, copy)
                self._index.add_whole(root, description.layout(), blocks, self._clock(), pin=pin)
            except BaseException:
                self._files.take_back(root)
                raise
            slot.close()
            self._files.part(root).unlink(missing_ok=True)

    def _known(self, root: bytes) -> bool:
        with suppress(BlockAbsent):
            return bool(self._index.content(root))
        return False

    def _complete(self, root: bytes) -> bool:
        with suppress(BlockAbsent):
            return bool(self._index.content(root).complete)
        return False

    # --- evicting ----------------------------------------------------------------------------------------------

    def _make_room(self, short_bytes: int, spared: Collection[bytes] = ()) -> bool:
        """Evict so many bytes, but nothing when that would not be enough. Whether anything went."""
        if not self._evicts:
            return False
        target = self.used_bytes() - short_bytes
        chosen, left_bytes = self._victims(target, spared)
        return left_bytes <= target and bool(self._evict(chosen))

    def _victims(self, target_bytes: int, spared: Collection[bytes]) -> tuple[list[Content], int]:
        """What would have to go for the target, in order, and how much would be used then."""
        self._flush_uses()
        contents = self._index.evictable()
        roots, left_bytes = victims(
            contents, self.used_bytes(), target_bytes, lambda it: self._uses.held(it.root) or needs_any(it, spared)
        )
        chosen = {content.root: content for content in self._index.contents()}
        return [chosen[root] for root in roots if root in chosen], left_bytes

    def _evict(self, contents: Sequence[Content]) -> list[ContentStat]:
        """Those that went: one that is pinned, held or removed by now does not."""
        gone: list[ContentStat] = []
        try:
            for content in contents:
                stat, root = self._stat(content), content.root
                if self._drop(root, functools.partial(self._index.evict, root)):
                    gone.append(stat)
        finally:
            if gone:
                self._on_evict(tuple(stat.root for stat in gone))
        return gone

    def _drop(self, root: bytes, forget: Callable[[Callable[[bytes], bool]], bool]) -> bool:
        """Forget what the index has of it, then delete the file: files without a row are swept on open.

        A disk that is full has no room even for the index to forget. Nothing speaks against it then but the room, so
        the file goes first, and whoever took hold of the root in between finds nothing.
        """
        with self._filler.slot(root) as slot:
            try:
                done = forget(self._uses.held)
            except QuotaExceeded:
                slot.close()
                self._files.drop(root)
                done = forget(lambda _: False)
            if done:
                slot.close()
                self._files.drop(root)
            return done

    def _flush_uses(self) -> None:
        """When each was used. A full disk keeps nobody from reading."""
        used_s = self._uses.drain()
        if used_s:
            try:
                self._index.touch(used_s)
            except QuotaExceeded:
                self._uses.restore(used_s)

    def _stat(self, content: Content) -> ContentStat:
        return ContentStat(
            root=Digest(content.root),
            kind=content.kind,
            total_bytes=content.total,
            have_bytes=content.have,
            complete=bool(content.complete),
            last_used_s=self._uses.last_used_s(content.root, content.last_used),
            wanted_bytes=content.wanted,
            pinned=bool(content.pinned),
            in_use=self._uses.held(content.root),
        )

    # --- damage ------------------------------------------------------------------------------------------------

    def _damaged_pieces(self, root: bytes, held: Sequence[Piece]) -> list[Piece]:
        descriptor = self._files.open(root)
        if descriptor is None:
            return list(held)
        try:
            # What the disk has, not what the kernel remembers of it; where it can forget.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            # A piece that fails may have been put in another file meanwhile: asked again by name.
            return [
                piece
                for piece in held
                if read_piece(descriptor, piece) is None and self._files.read(root, piece) is None
            ]
        finally:
            os.close(descriptor)

    def _read_or_forget(self, root: bytes, piece: Piece) -> bytes | None:
        """The piece with its file held still: what is not there now is damage, so the content is incomplete.

        Raises BlockAbsent when the content was removed in between.
        """
        with self._filler.slot(root) as slot:
            data = self._files.read(root, piece)
            if data is None:
                content = self._index.content(root)
                slot.close()
                self._files.reopen(content.root)
                self._index.forget(content.id, [piece])
            return data

    # --- opening -----------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        contents = self._index.contents()
        self._files.sweep([content.root for content in contents])
        for content in contents:
            self._recover_content(content)

    def _recover_content(self, content: Content) -> None:
        part, data = self._files.part(content.root), self._files.data(content.root)
        if content.complete and data.exists() and data.stat().st_size == content.total:
            part.unlink(missing_ok=True)
            return
        if content.complete:
            self._index.doubt(content.id)
        if part.exists():
            data.unlink(missing_ok=True)
        else:
            self._files.reopen(content.root)
        with self._filler.slot(content.root) as slot:
            lost = [piece for piece in self._doubtful(content) if self._files.read(content.root, piece) is None]
            if lost:
                self._index.forget(content.id, lost)
            with suppress(QuotaExceeded):  # a full disk has the pieces, if not the room to say that they are synced
                if self._index.pieces(content.id, State.WRITTEN):
                    self._filler.sync(slot, content)
                self._filler.finish_if_whole(slot, self._index.content(content.root))
            slot.close()

    def _doubtful(self, content: Content) -> tuple[Piece, ...]:
        """Pieces not known to be on the disk; all that are held, when the file itself is gone."""
        if not self._files.part(content.root).exists():
            self._index.doubt(content.id)
        return self._index.pieces(content.id, State.WRITTEN)


def _damaged(digest: bytes) -> IntegrityError:
    return IntegrityError(f"our copy of {digest.hex()[:16]}… was damaged; fetch it again")
