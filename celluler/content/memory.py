"""A store in memory: for tests, simulations and peers that keep nothing.

`path`, `part` and `partial` write into a temporary folder that the store owns and deletes on `close`, or when it is
forgotten. Pieces placed there are read and hashed by `placed`: memory has no file to trust.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from celluler.content.digest import Digest, digest_of
from celluler.content.manifest import Description, Layout, Piece, describe
from celluler.content.store import (
    ContentStat,
    Verified,
    VerifiedBlocks,
    bitmap_of,
    check_block,
    check_chunk,
    read_layout,
)
from celluler.content.store_eviction import Evictable, NoRoom, Uses, needs_any, victims, with_room
from celluler.errors import BlockAbsent, IntegrityError, LocalError


@dataclass(slots=True)
class _Content:
    layout: Layout
    last_used_s: float
    wanted: set[int] = field(default_factory=set)
    pinned: bool = False
    pieces: dict[int, bytes] = field(default_factory=dict)

    @property
    def blocks(self) -> set[bytes]:
        return set(self.layout.manifest.leaves)

    @property
    def complete(self) -> bool:
        return len(self.pieces) == len(self.layout)

    @property
    def wanted_bytes(self) -> int:
        return sum(self.layout[index].length for index in self.wanted)

    def unwanted(self, only: Collection[int] | None) -> set[int]:
        """Those of these indices that were not wanted before, with the header. Raises LocalError for a bad index."""
        if only is None:
            return set(range(len(self.layout))) - self.wanted
        head = set() if self.layout.manifest.header is None else {0}
        return ({self.layout[index].index for index in only} | head) - self.wanted


class MemoryStore:
    """Implements `Store`. What it holds dies with the process."""

    def __init__(
        self,
        quota_bytes: int,
        *,
        clock: Callable[[], float] = time.time,
        evicts: bool = False,
        on_evict: Callable[[tuple[Digest, ...]], object] = lambda roots: None,
    ) -> None:
        self._quota_bytes, self._clock = quota_bytes, clock
        self._evicts, self._on_evict = evicts, on_evict
        self._uses = Uses(clock)
        self._lock = threading.RLock()
        self._blocks: dict[bytes, bytes] = {}
        self._contents: dict[bytes, _Content] = {}
        self._places: dict[bytes, set[tuple[bytes, int]]] = {}  # chunk digest -> (root, index) where it is held
        self._used_bytes = 0
        self._folder: Path | None = None

    # --- blocks ------------------------------------------------------------------------------------------------

    def put_block(self, data: bytes) -> Digest:
        digest = check_block(data)
        with_room(lambda: self._put_block(digest, data), len(data), self._make_room)
        return digest

    def get(self, digest: bytes) -> bytes:
        with self._lock:
            data = self._held(digest)
            for root, _ in self._places.get(digest, ()):
                self._uses.note(root)
        if digest_of(data) != digest:
            raise IntegrityError(f"block {digest.hex()[:16]}… changed in memory")
        return data

    def has(self, digest: bytes) -> bool:
        with self._lock:
            return digest in self._blocks or digest in self._places

    # --- filling a content -------------------------------------------------------------------------------------

    def begin(self, root: bytes, only: Collection[int] | None = None) -> None:
        with self._lock:
            layout = None if root in self._contents else read_layout(self, root)
        spared = {root, *(layout.manifest.leaves if layout else ())}
        with_room(lambda: self._begin(root, layout, only), 0, lambda short: self._make_room(short, spared))

    def missing(self, root: bytes) -> tuple[Piece, ...]:
        with self._lock:
            content = self._content(root)
            return tuple(content.layout[index] for index in sorted(content.wanted - content.pieces.keys()))

    def have(self, root: bytes) -> bytes:
        with self._lock:
            content = self._content(root)
            return bitmap_of(content.pieces.keys(), len(content.layout))

    def put_chunk(self, root: bytes, index: int, data: bytes | memoryview) -> None:
        with self._lock:
            piece = self._content(root).layout[index]
        check_chunk(piece.digest, piece.length, data)
        whole, spared = bytes(data), (root,)
        with_room(lambda: self._put(root, {index: whole}), 0, lambda short: self._make_room(short, spared))

    def part(self, root: bytes) -> Path:
        with self._lock:
            if self._content(root).complete:
                raise LocalError("this content is complete")
            return self._part_file(root)

    def placed(self, root: bytes, indices: Sequence[int]) -> None:
        with self._lock:
            content = self._content(root)
            if content.complete:
                return
            pieces = [content.layout[index] for index in indices]
            data = _read_pieces(self._part_file(root), pieces)
        spared = (root,)
        with_room(lambda: self._put(root, data), 0, lambda short: self._make_room(short, spared))

    def add(self, path: Path, kind: str, *, pin: bool = True, move: bool = False) -> Digest:
        description = describe(path, kind)
        try:
            pieces = _read_pieces(path, list(description.layout()))
        except IntegrityError:
            raise LocalError(f"{path} changed while it was added") from None
        with_room(lambda: self._add(description, pieces, pin), 0, self._make_room)
        return description.root

    # --- using a content ---------------------------------------------------------------------------------------

    def path(self, root: bytes) -> Path:
        with self._lock:
            content = self._content(root)
            if not content.complete:
                raise BlockAbsent(root)
            self._uses.note(root)
            path = self._own_folder() / root.hex()
            if not path.exists():
                path.write_bytes(b"".join(content.pieces[index] for index in range(len(content.layout))))
            return path

    def partial(self, root: bytes, indices: Collection[int]) -> Path:
        with self._lock:
            content = self._content(root)
            if content.complete:
                return self.path(root)
            for index in indices:
                if index not in content.pieces:
                    raise BlockAbsent(content.layout[index].digest)
            path = self._part_file(root)
            with path.open("r+b") as file:
                for index in indices:
                    file.seek(content.layout[index].offset)
                    file.write(content.pieces[index])
            self._uses.note(root)
            return path

    def hold(self, root: bytes) -> AbstractContextManager[None]:
        return self._uses.hold(bytes(root))

    def pin(self, root: bytes) -> None:
        with self._lock:
            self._content(root).pinned = True

    def unpin(self, root: bytes) -> None:
        with self._lock:
            self._content(root).pinned = False

    def stat(self, root: bytes) -> ContentStat:
        with self._lock:
            content = self._content(root)
            return ContentStat(
                root=Digest(root),
                kind=content.layout.manifest.kind,
                total_bytes=content.layout.manifest.total_len,
                have_bytes=sum(map(len, content.pieces.values())),
                complete=content.complete,
                last_used_s=self._uses.last_used_s(root, content.last_used_s),
                wanted_bytes=content.wanted_bytes,
                pinned=content.pinned,
                in_use=self._uses.held(root),
            )

    def roots(self) -> tuple[Digest, ...]:
        with self._lock:
            return tuple(Digest(root) for root in sorted(self._contents))

    # --- room --------------------------------------------------------------------------------------------------

    def remove(self, root: bytes) -> None:
        with self._lock:
            if any(root in content.blocks for content in self._contents.values()):
                raise LocalError("this block belongs to a content")
            if self._uses.held(root):
                raise LocalError(f"{root.hex()[:16]}… is in use")
            self._forget(root)

    def collect(self, target_bytes: int, *, dry_run: bool = False) -> tuple[ContentStat, ...]:
        with self._lock:
            chosen, _ = self._victims(target_bytes, ())
            stats = tuple(self.stat(root) for root in chosen)
            if not dry_run:
                self._forget_all(chosen)
        if stats and not dry_run:
            self._on_evict(tuple(stat.root for stat in stats))
        return stats

    def used_bytes(self) -> int:
        with self._lock:
            return self._used_bytes

    # --- checking ----------------------------------------------------------------------------------------------

    def verify(self, root: bytes, *, repair: bool = False) -> Verified:
        with self._lock:
            content = self._content(root)
            held = {content.layout[index]: data for index, data in sorted(content.pieces.items())}
            damaged = tuple(piece for piece, data in held.items() if digest_of(data) != piece.digest)
            for piece in damaged if repair else ():
                self._lose(root, content, piece.index)
            return Verified(Digest(root), sum(piece.length for piece in held), damaged)

    def verify_blocks(self, *, repair: bool = False) -> VerifiedBlocks:
        with self._lock:
            checked_bytes = sum(map(len, self._blocks.values()))
            damaged = tuple(Digest(digest) for digest, data in self._blocks.items() if digest_of(data) != digest)
            for digest in damaged if repair else ():
                self._used_bytes -= len(self._blocks.pop(digest))
            return VerifiedBlocks(checked_bytes, damaged)

    def close(self) -> None:
        with self._lock:
            if self._folder is not None:
                self._delete_folder()
                self._folder = None

    # --- keeping; the lock is held from here on, or taken ------------------------------------------------------

    def _put_block(self, digest: Digest, data: bytes) -> None:
        with self._lock:
            if digest not in self._blocks:
                self._reserve(len(data))
                self._blocks[digest] = bytes(data)

    def _begin(self, root: bytes, layout: Layout | None, only: Collection[int] | None) -> None:
        with self._lock:
            content = self._contents.get(root)
            if content is None:
                if layout is None:
                    raise BlockAbsent(root)
                for block in (root, *layout.manifest.leaves):
                    self._held(block)  # raises when one has gone since the layout was read
                content = _Content(layout, self._clock())
            self._want(content, content.unwanted(only))
            self._contents[root] = content
            self._uses.note(root)
            self._adopt(root, content)

    def _want(self, content: _Content, fresh: set[int]) -> None:
        self._reserve(sum(content.layout[index].length for index in fresh))
        content.wanted |= fresh

    def _adopt(self, root: bytes, content: _Content) -> None:
        for index in content.wanted - content.pieces.keys():
            piece = content.layout[index]
            if piece.digest in self._places:
                data = self._held(piece.digest)
                if len(data) == piece.length:  # else the manifest lies, and whoever fetches the piece will learn it
                    self._keep(root, piece, data)

    def _put(self, root: bytes, data: Mapping[int, bytes]) -> None:
        with self._lock:
            content = self._content(root)  # again: it may have been removed while the bytes were hashed
            self._want(content, set(data) - content.wanted)
            for index, piece_data in data.items():
                self._keep(root, content.layout[index], piece_data)

    def _add(self, description: Description, pieces: Mapping[int, bytes], pin: bool) -> None:
        root, layout = description.root, description.layout()
        blocks: dict[bytes, bytes] = {
            digest_of(block): block for block in (description.manifest_bytes, *description.leaves)
        }
        with self._lock:
            fresh = {digest: block for digest, block in blocks.items() if digest not in self._blocks}
            content = self._contents.get(root) or _Content(layout, self._clock())
            unwanted = content.unwanted(None)
            self._reserve(sum(map(len, fresh.values())) + sum(layout[index].length for index in unwanted))
            content.wanted |= unwanted
            content.pinned |= pin
            self._blocks |= fresh
            self._contents[root] = content
            for piece in layout:
                self._keep(root, piece, pieces[piece.index])

    def _keep(self, root: bytes, piece: Piece, data: bytes) -> None:
        content = self._content(root)
        content.pieces.setdefault(piece.index, data)
        self._places.setdefault(piece.digest, set()).add((root, piece.index))
        if content.complete:
            content.last_used_s = self._clock()
            if self._folder is not None:
                self._part_name(root).unlink(missing_ok=True)

    def _lose(self, root: bytes, content: _Content, index: int) -> None:
        del content.pieces[index]
        digest = content.layout[index].digest
        places = self._places[digest]
        places.discard((root, index))
        if not places:
            del self._places[digest]

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

    # --- room --------------------------------------------------------------------------------------------------

    def _reserve(self, extra: int) -> None:
        if self._used_bytes + extra > self._quota_bytes:
            raise NoRoom(extra, self._used_bytes, self._quota_bytes)
        self._used_bytes += extra

    def _make_room(self, short_bytes: int, spared: Collection[bytes] = ()) -> bool:
        """Evict so many bytes, but nothing when that would not be enough. Whether anything went."""
        with self._lock:
            target = self._used_bytes - short_bytes
            chosen, left_bytes = self._victims(target, spared) if self._evicts else ([], target + 1)
            if not chosen or left_bytes > target:
                return False
            self._forget_all(chosen)
        self._on_evict(tuple(map(Digest, chosen)))
        return True

    def _victims(self, target_bytes: int, spared: Collection[bytes]) -> tuple[list[bytes], int]:
        contents = [self._evictable(root, content) for root, content in self._contents.items()]
        return victims(
            contents, self._used_bytes, target_bytes, lambda it: self._uses.held(it.root) or needs_any(it, spared)
        )

    def _evictable(self, root: bytes, content: _Content) -> Evictable:
        leaves = {leaf: len(self._blocks.get(leaf, b"")) for leaf in content.blocks}
        own_bytes = content.wanted_bytes + len(self._blocks.get(root, b""))
        used_s = self._uses.last_used_s(root, content.last_used_s)
        return Evictable(root, used_s, own_bytes, leaves, content.pinned)

    def _forget_all(self, roots: Sequence[bytes]) -> None:
        for root in roots:
            self._forget(root)

    def _forget(self, root: bytes) -> None:
        content = self._contents.pop(root, None)
        doomed = {root}
        if content is not None:
            self._drop(root, content)
            kept = set[bytes]().union(*(other.blocks | {key} for key, other in self._contents.items()))
            doomed |= content.blocks - kept
        for digest in doomed & self._blocks.keys():
            self._used_bytes -= len(self._blocks.pop(digest))

    def _drop(self, root: bytes, content: _Content) -> None:
        self._used_bytes -= content.wanted_bytes
        for index in list(content.pieces):
            self._lose(root, content, index)
        if self._folder is not None:
            (self._folder / root.hex()).unlink(missing_ok=True)
            self._part_name(root).unlink(missing_ok=True)

    # --- files -------------------------------------------------------------------------------------------------

    def _own_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="celluler-memory-"))
            self._delete_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def _part_name(self, root: bytes) -> Path:
        return self._own_folder() / f"{root.hex()}.part"

    def _part_file(self, root: bytes) -> Path:
        path = self._part_name(root)
        with path.open("ab") as file:
            file.truncate(self._content(root).layout.manifest.total_len)
        return path


def _read_pieces(path: Path, pieces: Sequence[Piece]) -> dict[int, bytes]:
    """By index. Raises IntegrityError when one is not what it should be."""
    read = {}
    with path.open("rb") as file:
        for piece in pieces:
            file.seek(piece.offset)
            read[piece.index] = file.read(piece.length)
            if digest_of(read[piece.index]) != piece.digest:
                raise IntegrityError(f"{path} does not hold piece {piece.index}")
    return read
