"""The disk store's files: where they lie, and the few ways in which they are read, written, synced and renamed.

    content/<root>/data.part     an incomplete content, of its full length, with holes where pieces are missing
    content/<root>/data          a complete one, read-only
    incoming/                    files being added
    lock                         held while the store is open

Knows nothing of the index, and takes no locks: who may do what when is for the callers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from celluler.content.digest import digest_of
from celluler.content.manifest import Piece
from celluler.errors import LocalError, QuotaExceeded

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PART, _DATA = "data.part", "data"
_CANNOT_COPY = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.EPERM})
_SHARED_BLOCK_BYTES = 4096  # file systems share whole blocks of this size


class Files:
    def __init__(self, folder: Path) -> None:
        self._contents, self._incoming = folder / "content", folder / "incoming"

    def make_folders(self) -> None:
        self._contents.mkdir(parents=True, exist_ok=True)

    def data(self, root: bytes) -> Path:
        return self._home(root) / _DATA

    def part(self, root: bytes) -> Path:
        return self._home(root) / _PART

    def open(self, root: bytes) -> int | None:
        """A descriptor for reading, under whichever name the file has now; None when there is none."""
        for path in (self.data(root), self.part(root)):
            with suppress(OSError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return None

    def read(self, root: bytes, piece: Piece) -> bytes | None:
        """The piece, or None when its bytes are not there."""
        descriptor = self.open(root)
        if descriptor is None:
            return None
        try:
            return read_piece(descriptor, piece)
        finally:
            os.close(descriptor)

    def open_part(self, root: bytes, total_bytes: int) -> int:
        """A descriptor of the incomplete file, made with its holes when it is not there."""
        self._home(root).mkdir(exist_ok=True)
        descriptor = os.open(self.part(root), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size != total_bytes:
                os.ftruncate(descriptor, total_bytes)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def publish(self, root: bytes, descriptor: int) -> None:
        """Give a complete file its final name, durably. Doing it again changes nothing."""
        os.fchmod(descriptor, 0o444)
        with suppress(FileNotFoundError):  # renamed by an earlier attempt, which failed after that
            os.replace(self.part(root), self.data(root))
        sync_file(self._home(root))

    def reopen(self, root: bytes) -> None:
        """Nothing incomplete stays under the final name."""
        with suppress(FileNotFoundError):
            self.data(root).chmod(0o644)
            os.replace(self.data(root), self.part(root))

    def take_in(self, root: bytes, copy: Path) -> None:
        self._home(root).mkdir(exist_ok=True)
        copy.chmod(0o444)
        os.replace(copy, self.data(root))
        sync_file(self._home(root))

    def take_back(self, root: bytes) -> None:
        """After `take_in`, when nothing came of it."""
        self.data(root).unlink(missing_ok=True)
        with suppress(OSError):  # not empty when the content was begun before
            self._home(root).rmdir()

    def drop(self, root: bytes) -> None:
        shutil.rmtree(self._home(root), ignore_errors=True)

    def sweep(self, known: Collection[bytes]) -> None:
        """Delete what nobody refers to."""
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir()
        names = {root.hex() for root in known}
        for home in self._contents.iterdir():
            if home.name not in names:
                shutil.rmtree(home)

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """Where a file may lie that is about to be added."""
        folder = Path(tempfile.mkdtemp(dir=self._incoming))
        try:
            yield folder / "file"
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _home(self, root: bytes) -> Path:
        return self._contents / root.hex()


def linked(path: Path, copy: Path) -> bool:
    """Give a file a second name; False for a symbolic link, on another file system, or on one without links."""
    if path.is_symlink():
        return False
    try:
        os.link(path, copy)
    except OSError:
        return False
    return True


def lock_folder(folder: Path) -> int:
    """A descriptor that holds the folder. Raises LocalError when another process does."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LocalError(f"the store {folder} is open in another process") from None
    return descriptor


def read_piece(descriptor: int, piece: Piece) -> bytes | None:
    """None when the bytes are not the piece."""
    with suppress(OSError):
        data = os.pread(descriptor, piece.length, piece.offset)
        if digest_of(data) == piece.digest:
            return data
    return None


def write_at(descriptor: int, data: bytes | memoryview, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, place)
        view, place = view[written:], place + written


def copy_piece(source: int, place: int, target: int, piece: Piece, data: bytes) -> None:
    """Write `data`, which lies at `place` of the source, where the piece belongs in the target, within the kernel.

    Whole blocks at places that match are shared by a file system that can; the rest, or everything when the kernel
    copies nothing between these two files, is written.
    """
    matching = place % _SHARED_BLOCK_BYTES == piece.offset % _SHARED_BLOCK_BYTES
    head = min(-place % _SHARED_BLOCK_BYTES, piece.length) if matching else 0
    write_at(target, memoryview(data)[:head], piece.offset)
    done = head
    while done < piece.length:
        copied = _copy_range(source, target, piece.length - done, place + done, piece.offset + done)
        if not copied:
            break
        done += copied
    write_at(target, memoryview(data)[done:], piece.offset + done)


def _copy_range(source: int, target: int, count: int, place: int, to: int) -> int:
    """How much was copied; 0 when the kernel cannot between these two files."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, count, place, to)
    except OSError as error:
        if error.errno in _CANNOT_COPY:
            return 0
        raise


def sync_file(path: Path) -> None:
    """Of a file its bytes, of a folder its names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the operating system says, in our words."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            hint = "make room on it; nothing in the store was lost"
            raise QuotaExceeded(f"the disk is full: {error.strerror}", hint=hint) from error
        raise LocalError(f"the store's disk: {error}") from error
