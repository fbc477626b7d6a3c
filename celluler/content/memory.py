"""A store in memory: for tests, simulations and peers that keep nothing.

`path` writes the content into a temporary folder that the store owns and deletes on `close`, or when it is forgotten.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from celluler.content.digest import Digest, digest_of
from celluler.content.manifest import Layout, Piece, describe
from celluler.content.store import ContentStat, check_block, check_chunk, read_layout
from celluler.errors import BlockAbsent, IntegrityError, LocalError, QuotaExceeded


@dataclass(slots=True)
class _Content:
    layout: Layout
    last_used_s: float
    pieces: dict[int, bytes] = field(default_factory=dict)

    @property
    def blocks(self) -> set[bytes]:
        return set(self.layout.manifest.leaves)

    @property
    def complete(self) -> bool:
        return len(self.pieces) == len(self.layout)


class MemoryStore:
    """Implements `Store`. What it holds dies with the process."""

    def __init__(self, quota_bytes: int, *, clock: Callable[[], float] = time.time) -> None:
        self._quota_bytes, self._clock = quota_bytes, clock
        self._lock = threading.RLock()
        self._blocks: dict[bytes, bytes] = {}
        self._contents: dict[bytes, _Content] = {}
        self._places: dict[bytes, set[tuple[bytes, int]]] = {}  # chunk digest -> (root, index) where it is held
        self._used_bytes = 0
        self._folder: Path | None = None

    def put_block(self, data: bytes) -> Digest:
        digest = check_block(data)
        with self._lock:
            if digest not in self._blocks:
                self._reserve(len(data))
                self._blocks[digest] = bytes(data)
        return digest

    def get(self, digest: bytes) -> bytes:
        with self._lock:
            data = self._held(digest)
        if digest_of(data) != digest:
            raise IntegrityError(f"block {digest.hex()[:16]}… changed in memory")
        return data

    def has(self, digest: bytes) -> bool:
        with self._lock:
            return digest in self._blocks or digest in self._places

    def begin(self, root: bytes) -> None:
        with self._lock:
            if root in self._contents:
                return
            layout = read_layout(self, root)
            held = [(piece, self._held(piece.digest)) for piece in layout if piece.digest in self._places]
            self._reserve(layout.manifest.total_len)
            self._contents[root] = _Content(layout, self._clock())
            for piece, data in held:
                if len(data) == piece.length:  # else the manifest lies, and whoever fetches the piece will learn it
                    self._keep(root, piece, data)

    def missing(self, root: bytes) -> tuple[Piece, ...]:
        with self._lock:
            content = self._content(root)
            return tuple(piece for piece in content.layout if piece.index not in content.pieces)

    def put_chunk(self, root: bytes, index: int, data: bytes | memoryview) -> None:
        with self._lock:
            piece = self._content(root).layout[index]
        check_chunk(piece.digest, piece.length, data)
        with self._lock:
            self._keep(root, piece, bytes(data))

    def add(self, path: Path, kind: str) -> Digest:
        description = describe(path, kind)
        root, layout = description.root, description.layout()
        pieces = _read_pieces(path, layout)
        blocks: dict[bytes, bytes] = {
            digest_of(block): block for block in (description.manifest_bytes, *description.leaves)
        }
        with self._lock:
            fresh = {digest: block for digest, block in blocks.items() if digest not in self._blocks}
            content = self._contents.get(root) or _Content(layout, self._clock())
            total = 0 if root in self._contents else layout.manifest.total_len
            self._reserve(sum(map(len, fresh.values())) + total)
            self._blocks |= fresh
            self._contents[root] = content
            for piece in layout:
                self._keep(root, piece, pieces[piece.index])
        return root

    def path(self, root: bytes) -> Path:
        with self._lock:
            content = self._content(root)
            if not content.complete:
                raise BlockAbsent(root)
            content.last_used_s = self._clock()
            path = self._own_folder() / root.hex()
            if not path.exists():
                path.write_bytes(b"".join(content.pieces[index] for index in range(len(content.layout))))
            return path

    def stat(self, root: bytes) -> ContentStat:
        with self._lock:
            content = self._content(root)
            manifest = content.layout.manifest
            have_bytes = sum(map(len, content.pieces.values()))
            return ContentStat(
                Digest(root), manifest.kind, manifest.total_len, have_bytes, content.complete, content.last_used_s
            )

    def roots(self) -> tuple[Digest, ...]:
        with self._lock:
            return tuple(Digest(root) for root in sorted(self._contents))

    def remove(self, root: bytes) -> None:
        with self._lock:
            if any(root in content.blocks for content in self._contents.values()):
                raise LocalError("this block belongs to a content")
            content = self._contents.pop(root, None)
            doomed = {root}
            if content is not None:
                self._drop(root, content)
                kept = set[bytes]().union(*(other.blocks | {key} for key, other in self._contents.items()))
                doomed |= content.blocks - kept
            for digest in doomed & self._blocks.keys():
                self._used_bytes -= len(self._blocks.pop(digest))

    def used_bytes(self) -> int:
        with self._lock:
            return self._used_bytes

    def close(self) -> None:
        with self._lock:
            if self._folder is not None:
                self._delete_folder()
                self._folder = None

    def _own_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="celluler-memory-"))
            self._delete_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def _drop(self, root: bytes, content: _Content) -> None:
        self._used_bytes -= content.layout.manifest.total_len
        for index in content.pieces:
            places = self._places[content.layout[index].digest]
            places.discard((root, index))
            if not places:
                del self._places[content.layout[index].digest]
        if self._folder is not None:
            (self._folder / root.hex()).unlink(missing_ok=True)

    def _keep(self, root: bytes, piece: Piece, data: bytes) -> None:
        content = self._content(root)  # again: it may have been removed while the bytes were hashed
        content.pieces.setdefault(piece.index, data)
        self._places.setdefault(piece.digest, set()).add((root, piece.index))
        if content.complete:
            content.last_used_s = self._clock()

    def _content(self, root: bytes) -> _Content:
        content = self._contents.get(root)
        if content is None:
            raise BlockAbsent(root)
        return content

    def _held(self, digest: bytes) -> bytes:
        if digest in self._blocks:
            return self._blocks[digest]
        for root, index in self._places.get(digest, ()):
            return self._contents[root].pieces[index]
        raise BlockAbsent(digest)

    def _reserve(self, extra: int) -> None:
        if self._used_bytes + extra > self._quota_bytes:
            raise QuotaExceeded(f"{extra} bytes more than the quota of {self._quota_bytes} leaves")
        self._used_bytes += extra


def _read_pieces(path: Path, layout: Layout) -> list[bytes]:
    """Raises LocalError when the file is no longer what was described."""
    with path.open("rb") as file:
        pieces = [file.read(piece.length) for piece in layout]
    if any(digest_of(data) != piece.digest for data, piece in zip(pieces, layout, strict=True)):
        raise LocalError(f"{path} changed while it was added")
    return pieces
