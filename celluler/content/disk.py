"""A store on disk: one real file a content beside a SQLite index. A complete model is ready to be memory-mapped.

    index.sqlite                 the blocks themselves; contents; one row a piece: missing, written or synced
    content/<root>/data.part     an incomplete content, renamed to `data` when its last piece is synced
    incoming/                    files being added; emptied on open
    lock                         held while open: one process a store

The order is always data, fdatasync, index. A piece is *written* when its bytes were handed to the kernel: the death of
the process cannot take them back. It is *synced* once fdatasync returned; that happens every `SYNC_BYTES` and at
completion. On open every piece that is written but not synced is hashed again, so what the index claims is so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from celluler.content.digest import Digest, digest_of
from celluler.content.index import Content, Index, State
from celluler.content.manifest import Description, Piece, describe
from celluler.content.store import ContentStat, check_block, check_chunk, read_layout
from celluler.errors import BlockAbsent, CellulerError, IntegrityError, LocalError, QuotaExceeded

SYNC_BYTES = 32 << 20
"""Bytes of one content that may be written and not yet synced: an fdatasync a piece costs more than the network."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PART, _DATA = "data.part", "data"


class _Slot:
    """One content's file. Its lock is taken before the index's, never inside it, and never two slots at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.descriptor: int | None = None  # of data.part, kept open between pieces
        self.unsynced_bytes = 0
        self.filling: tuple[Content, dict[int, Piece]] | None = None  # the index's row and its missing pieces

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.descriptor, self.unsynced_bytes, self.filling = None, 0, None


class DiskStore:
    """Implements `Store` under a folder. Opening it repairs whatever a crash left. One process at a time."""

    def __init__(self, folder: Path, quota_bytes: int, *, clock: Callable[[], float] = time.time) -> None:
        """Raises LocalError when another process holds the folder, IntegrityError when the index cannot be read."""
        self._folder, self._quota_bytes, self._clock = folder, quota_bytes, clock
        self._slots: dict[bytes, _Slot] = {}
        self._slots_lock = threading.Lock()
        self._closed = False
        with _disk_errors():
            (folder / "content").mkdir(parents=True, exist_ok=True)
            self._lock_file = _hold(folder / "lock")
        try:
            self._index = Index(folder / "index.sqlite", quota_bytes)
            with _disk_errors():
                self._recover()
        except BaseException:
            os.close(self._lock_file)
            raise

    # --- blocks ------------------------------------------------------------------------------------------------

    def put_block(self, data: bytes) -> Digest:
        digest = check_block(data)
        self._index.put_block(digest, data)
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
                data = self._read(root, piece)
                data = self._read_or_forget(root, piece) if data is None else data
                if data is not None:
                    return data
                damaged = True
        raise _damaged(digest) if damaged else BlockAbsent(digest)

    def has(self, digest: bytes) -> bool:
        return self._index.has(digest)

    # --- contents ----------------------------------------------------------------------------------------------

    def begin(self, root: bytes) -> None:
        known = self._known(root)
        layout = None if known else read_layout(self, root)
        with self._slot(root) as slot:
            if layout is not None:
                self._index.begin(root, layout, self._clock())
            content = self._index.content(root)
            self._finish_if_whole(slot, content)  # of no bytes, or an earlier attempt to finish failed
        if not known:
            with suppress(QuotaExceeded, BlockAbsent):  # a full disk will tell the next put_chunk
                self._adopt(content)

    def missing(self, root: bytes) -> tuple[Piece, ...]:
        return self._index.pieces(self._index.content(root).id, State.MISSING)

    def put_chunk(self, root: bytes, index: int, data: bytes | memoryview) -> None:
        digest = digest_of(data)  # before anything is held
        with self._slot(root) as slot:
            content, missing = self._filling(slot, root)
            piece = missing.get(index) or self._index.piece(content.id, index)[0]
            if digest != piece.digest or len(data) != piece.length:
                check_chunk(piece.digest, piece.length, data)
            if index in missing:
                self._write(slot, content, piece, data)
                del missing[index]
            if not missing:
                self._finish_if_whole(slot, content)

    def add(self, path: Path, kind: str) -> Digest:
        self._refuse_early(path, kind)
        with _disk_errors(), self._incoming() as copy:
            shutil.copyfile(path, copy)  # what is described must not change under our hands
            description = describe(copy, kind)
            if not self._complete(description.root):
                _sync_file(copy)
                self._take_in(copy, description)
        return description.root

    def path(self, root: bytes) -> Path:
        content = self._index.content(root)
        if not content.complete:
            raise BlockAbsent(root)
        self._index.touch(content.id, self._clock())
        return self._file(root, _DATA)

    def stat(self, root: bytes) -> ContentStat:
        content = self._index.content(root)
        return ContentStat(
            Digest(root), content.kind, content.total, content.have, bool(content.complete), content.last_used
        )

    def roots(self) -> tuple[Digest, ...]:
        return tuple(Digest(content.root) for content in self._index.contents())

    def remove(self, root: bytes) -> None:
        with self._slot(root) as slot:
            self._index.remove(root)  # first: files without a row are swept on open, rows without a file are not
            slot.close()
            shutil.rmtree(self._home(root), ignore_errors=True)

    def used_bytes(self) -> int:
        return self._index.used_bytes()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for root, slot in self._slots.items():
            with slot.lock:
                if slot.descriptor is not None:
                    with suppress(CellulerError):  # what cannot be synced now is hashed on the next open
                        self._sync(slot, self._index.content(root))
                slot.close()
        self._index.close()
        os.close(self._lock_file)

    # --- filling a content; the slot is held -------------------------------------------------------------------

    def _filling(self, slot: _Slot, root: bytes) -> tuple[Content, dict[int, Piece]]:
        """The content and its missing pieces, asked of the index once and then kept beside the open file."""
        if slot.filling is None:
            content = self._index.content(root)
            slot.filling = content, {piece.index: piece for piece in self._index.pieces(content.id, State.MISSING)}
        return slot.filling

    def _write(self, slot: _Slot, content: Content, piece: Piece, data: bytes | memoryview) -> None:
        if slot.unsynced_bytes >= SYNC_BYTES:
            self._sync(slot, content)
        with _disk_errors():
            _write_at(self._part(slot, content.root), data, piece.offset)
        self._index.mark_written(content.id, piece)
        slot.unsynced_bytes += piece.length

    def _sync(self, slot: _Slot, content: Content) -> None:
        """Data first, then the index. A failed fdatasync may have dropped pages, so nothing unsynced is kept."""
        try:
            with _disk_errors():
                os.fdatasync(self._part(slot, content.root))
        except CellulerError:
            self._index.forget(content.id, self._index.pieces(content.id, State.WRITTEN))
            slot.unsynced_bytes, slot.filling = 0, None
            raise
        self._index.mark_synced(content.id)
        slot.unsynced_bytes = 0

    def _finish_if_whole(self, slot: _Slot, content: Content) -> None:
        if content.complete or not self._index.whole(content.id):
            return
        self._sync(slot, content)
        with _disk_errors():
            os.fchmod(self._part(slot, content.root), 0o444)
            with suppress(FileNotFoundError):  # renamed by an earlier attempt, which failed after that
                os.replace(self._file(content.root, _PART), self._file(content.root, _DATA))
            _sync_file(self._home(content.root))
        self._index.complete(content.id, self._clock())
        slot.close()

    def _part(self, slot: _Slot, root: bytes) -> int:
        """The descriptor of the incomplete file, made when it is not there."""
        if slot.descriptor is None:
            self._home(root).mkdir(exist_ok=True)
            slot.descriptor = os.open(self._file(root, _PART), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return slot.descriptor

    def _adopt(self, content: Content) -> None:
        """Take over pieces that other contents hold. Outside the slot: reading may need another content's."""
        for piece in self._index.held_elsewhere(content.id):
            with suppress(IntegrityError):
                self.put_chunk(content.root, piece.index, self.get(piece.digest))

    # --- adding a file -----------------------------------------------------------------------------------------

    def _refuse_early(self, path: Path, kind: str) -> None:
        """Raise QuotaExceeded before copying what would not fit, unless it is here already."""
        try:
            size = path.stat().st_size
        except OSError as error:
            raise LocalError(f"cannot read {path}: {error.strerror}") from error
        too_large = self.used_bytes() + size > self._quota_bytes
        if too_large and not self._known(describe(path, kind).root):
            raise QuotaExceeded(f"{path} has {size} bytes, more than the quota of {self._quota_bytes} leaves")

    def _take_in(self, copy: Path, description: Description) -> None:
        root = description.root
        blocks = {digest_of(block): block for block in (description.manifest_bytes, *description.leaves)}
        with self._slot(root) as slot:
            if self._complete(root):
                return
            try:
                self._home(root).mkdir(exist_ok=True)
                copy.chmod(0o444)
                os.replace(copy, self._file(root, _DATA))
                _sync_file(self._home(root))
                self._index.add_whole(root, description.layout(), blocks, self._clock())
            except BaseException:
                self._file(root, _DATA).unlink(missing_ok=True)
                with suppress(OSError):  # not empty when the content was begun before
                    self._home(root).rmdir()
                raise
            slot.close()
            self._file(root, _PART).unlink(missing_ok=True)

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(dir=self._folder / "incoming"))
        try:
            yield folder / "file"
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _known(self, root: bytes) -> bool:
        with suppress(BlockAbsent):
            return bool(self._index.content(root))
        return False

    def _complete(self, root: bytes) -> bool:
        with suppress(BlockAbsent):
            return bool(self._index.content(root).complete)
        return False

    # --- reading -----------------------------------------------------------------------------------------------

    def _read(self, root: bytes, piece: Piece) -> bytes | None:
        """The piece from whichever name its file has now; None when its bytes are not there."""
        for name in (_DATA, _PART):
            with suppress(OSError):
                data = _read_at(self._file(root, name), piece)
                return data if digest_of(data) == piece.digest else None
        return None

    def _read_or_forget(self, root: bytes, piece: Piece) -> bytes | None:
        """The same with the file held still: what is not there now is damage, so the content is incomplete.

        Raises BlockAbsent when the content was removed in between.
        """
        with self._slot(root) as slot:
            data = self._read(root, piece)
            if data is None:
                content = self._index.content(root)
                slot.close()
                self._reopen(content)
                self._index.forget(content.id, [piece])
            return data

    def _reopen(self, content: Content) -> None:
        """Nothing incomplete stays under the final name."""
        with suppress(FileNotFoundError):
            self._file(content.root, _DATA).chmod(0o644)
            os.replace(self._file(content.root, _DATA), self._file(content.root, _PART))

    # --- opening -----------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        shutil.rmtree(self._folder / "incoming", ignore_errors=True)
        (self._folder / "incoming").mkdir()
        contents = self._index.contents()
        known = {content.root.hex() for content in contents}
        for home in (self._folder / "content").iterdir():
            if home.name not in known:
                shutil.rmtree(home)
        for content in contents:
            self._recover_content(content)

    def _recover_content(self, content: Content) -> None:
        part, data = self._file(content.root, _PART), self._file(content.root, _DATA)
        if content.complete and data.exists() and data.stat().st_size == content.total:
            part.unlink(missing_ok=True)
            return
        if content.complete:
            self._index.doubt(content.id)
        if part.exists():
            data.unlink(missing_ok=True)
        else:
            self._reopen(content)
        with self._slot(content.root) as slot:
            self._index.forget(content.id, [p for p in self._doubtful(content) if self._read(content.root, p) is None])
            if self._index.pieces(content.id, State.WRITTEN):
                self._sync(slot, content)
            self._finish_if_whole(slot, self._index.content(content.root))
            slot.close()

    def _doubtful(self, content: Content) -> tuple[Piece, ...]:
        """Pieces not known to be on the disk; all that are held, when the file itself is gone."""
        if not self._file(content.root, _PART).exists():
            self._index.doubt(content.id)
        return self._index.pieces(content.id, State.WRITTEN)

    # --- places ------------------------------------------------------------------------------------------------

    @contextmanager
    def _slot(self, root: bytes) -> Iterator[_Slot]:
        with self._slots_lock:
            slot = self._slots.setdefault(bytes(root), _Slot())
        with slot.lock:
            yield slot

    def _home(self, root: bytes) -> Path:
        return self._folder / "content" / root.hex()

    def _file(self, root: bytes, name: str) -> Path:
        return self._home(root) / name


def _hold(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LocalError(f"the store {path.parent} is open in another process") from None
    return descriptor


def _write_at(descriptor: int, data: bytes | memoryview, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, place)
        view, place = view[written:], place + written


def _read_at(path: Path, piece: Piece) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, piece.length, piece.offset)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    """Of a file its bytes, of a folder its names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(digest: bytes) -> IntegrityError:
    return IntegrityError(f"our copy of {digest.hex()[:16]}… was damaged; fetch it again")


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise QuotaExceeded(f"the disk is full: {error.strerror}") from error
        raise LocalError(f"the store's disk: {error}") from error
