"""The store's port: what every store guarantees, whatever keeps the bytes. `memory.py` and `disk.py` implement it.

A *block* is at most 1 MiB, kept whole under its digest: manifests, leaves, envelopes, specs. A *content* is a file of
any size under the root of its manifest, kept as one file and filled piece by piece, in any order.

What is *wanted* of a content may be less than all of it: a stage of a model needs the pieces of its own layers. The
content counts by what is wanted, stays incomplete, and gives out what it has.

What holds for every implementation, and is tested by one suite over all of them:

1. Nothing false is ever given out: bytes are hashed before they are kept and again when they are read. Bytes that
   another process of ours placed (`part`, `placed`) were hashed by it.
2. Every call is atomic: it happened whole or, when it raised, not at all. Two exceptions: a disk that fails in the
   moment of completion may leave a content with all its pieces and incomplete, and `begin` completes it; room that
   was made by evicting stays made.
3. What the store accepted outlives the death of the process, at any moment. A power cut may take back the newest
   pieces of an incomplete content (at most `disk_filling.SYNC_BYTES` of each); the store then lists them as missing.
4. Calls may come from several threads at once.
5. The quota is never exceeded. What is wanted counts from `begin` on, so that a begun fetch has room to end.
6. What is pinned or held is never evicted, what is held is never removed, and lone blocks are never evicted.

Deliberately unknown here: peers, names, signatures, what is worth keeping.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from celluler.content.digest import Digest, digest_of
from celluler.content.manifest import MAX_BLOCK_BYTES, Layout, Piece, parse_leaf, parse_manifest
from celluler.errors import CorruptBlock, LocalError, ProtocolViolation

__all__ = [
    "ContentStat", "Piece", "Store", "Verified", "VerifiedBlocks", "bitmap_of", "check_block", "check_chunk",
    "read_layout",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ContentStat:
    """State of one content.

    wanted_bytes: what counts against the quota, `total_bytes` unless only a part is wanted. complete: every piece is
    here, wanted or not. last_used_s: Unix time when it was last begun, completed, held or asked for by path.
    """

    root: Digest
    kind: str
    total_bytes: int
    have_bytes: int
    complete: bool
    last_used_s: float
    wanted_bytes: int
    pinned: bool
    in_use: bool


class Verified(NamedTuple):
    """What reading a content through found. checked_bytes: of pieces the index claims. damaged: not what it claims."""

    root: Digest
    checked_bytes: int
    damaged: tuple[Piece, ...]


class VerifiedBlocks(NamedTuple):
    """The same of every block: lone ones, manifests, leaves."""

    checked_bytes: int
    damaged: tuple[Digest, ...]


class Store(Protocol):
    """Blocks and contents by digest. See the module for what holds for every method."""

    def put_block(self, data: bytes) -> Digest:
        """Keep a block; putting it again changes nothing. Durable on return.

        Raises LocalError above 1 MiB, QuotaExceeded when there is no room.
        """
        ...

    def get(self, digest: bytes) -> bytes:
        """The bytes of a block, or of a piece of any content, complete or not.

        Raises BlockAbsent, or IntegrityError when our copy was damaged: it is then forgotten (the content it belongs
        to becomes incomplete again), so that a fetch repairs it.
        """
        ...

    def has(self, digest: bytes) -> bool:
        """Whether `get` would look it up. Does not read the bytes."""
        ...

    # --- filling a content -----------------------------------------------------------------------------------------

    def begin(self, root: bytes, only: Collection[int] | None = None) -> None:
        """Open the content of a manifest that is here with all its leaves, as blocks. Idempotent.

        only: indices of the pieces wanted for now, all when None; the header of a content that has one is always
        wanted. Called again it adds to what is wanted. Reserves the length of what was not wanted before, and takes
        over wanted pieces that other contents hold.
        Raises BlockAbsent, ProtocolViolation when the manifest is inconsistent, QuotaExceeded, LocalError for a bad
        index.
        """
        ...

    def missing(self, root: bytes) -> tuple[Piece, ...]:
        """Pieces wanted and not here, by index. Raises BlockAbsent when the content was not begun."""
        ...

    def have(self, root: bytes) -> bytes:
        """What is here: empty when all of it, else a bit a piece, piece i at `have[i // 8] >> i % 8 & 1`.

        Raises BlockAbsent when the content was not begun.
        """
        ...

    def put_chunk(self, root: bytes, index: int, data: bytes | memoryview) -> None:
        """Keep piece `index`; the last missing one completes the content. Putting a piece again changes nothing.

        A piece that was not wanted is wanted from now on.
        Raises CorruptBlock when the bytes do not hash to the piece's digest, ProtocolViolation when they do but the
        manifest gives another length, LocalError for a bad index, BlockAbsent when not begun, QuotaExceeded when
        the disk is full.
        """
        ...

    def part(self, root: bytes) -> Path:
        """The file of an incomplete content, of its full length, for another process of ours to write pieces into.

        Only bytes that were hashed may be written, each piece at its offset, and told by `placed`. Hold the root
        meanwhile. The name is valid until the content is complete, a descriptor of it for as long as it is open.
        Raises BlockAbsent when not begun, LocalError when complete, QuotaExceeded when the disk is full.
        """
        ...

    def placed(self, root: bytes, indices: Sequence[int]) -> None:
        """These pieces lie in `part(root)`, hashed and written: keep them as `put_chunk` would. One transaction.

        Of a complete content this changes nothing. Raises BlockAbsent when not begun, LocalError for a bad index,
        QuotaExceeded.
        """
        ...

    def add(self, path: Path, kind: str, *, pin: bool = True, move: bool = False) -> Digest:
        """Copy a file in and return its root. Complete and durable on return. Raises LocalError, QuotaExceeded.

        move: the caller writes to the file no more and removes it: where it can, the store keeps the very file.
        pin: what a user adds may be the only copy there is. False leaves a pin as it was.
        """
        ...

    # --- using a content -------------------------------------------------------------------------------------------

    def path(self, root: bytes) -> Path:
        """The complete file, for reading only, valid until `remove` or `close`. Raises BlockAbsent."""
        ...

    def partial(self, root: bytes, indices: Collection[int]) -> Path:
        """A file of full length in which these pieces lie at their offsets, for reading only; the rest may be holes.

        Its name is valid until the content is completed, removed or closed: open it at once, and ask again when it
        is not there. Raises BlockAbsent when a piece is not here, LocalError for a bad index.
        """
        ...

    def hold(self, root: bytes) -> AbstractContextManager[None]:
        """In use (served, in transfer, loaded) until left: neither evicted nor removed. Counted, and dies with the
        process. Holding what is not here is allowed."""
        ...

    def pin(self, root: bytes) -> None:
        """Never evict it; outlives the process. Pinning again changes nothing. Raises BlockAbsent when not begun."""
        ...

    def unpin(self, root: bytes) -> None:
        """The contrary of `pin`. Raises BlockAbsent when not begun."""
        ...

    def stat(self, root: bytes) -> ContentStat:
        """Raises BlockAbsent when the content was not begun."""
        ...

    def roots(self) -> tuple[Digest, ...]:
        """Every content begun, complete or not, in the order of their digests."""
        ...

    # --- room ------------------------------------------------------------------------------------------------------

    def remove(self, root: bytes) -> None:
        """Forget a content with its manifest and the leaves no other content needs, or a lone block.

        Pinned or not. Removing what is not here changes nothing. Raises LocalError for a block that belongs to a
        content, and for what is held.
        """
        ...

    def collect(self, target_bytes: int, *, dry_run: bool = False) -> tuple[ContentStat, ...]:
        """Evict whole contents, least recently used first, neither pinned nor held, until `used_bytes` is no more
        than the target or nothing is left to evict. Returns what went, or with `dry_run` what would go."""
        ...

    def used_bytes(self) -> int:
        """What counts against the quota: blocks, and what is wanted of every content begun."""
        ...

    # --- checking --------------------------------------------------------------------------------------------------

    def verify(self, root: bytes, *, repair: bool = False) -> Verified:
        """Hash every piece of a content that is said to be here.

        repair: forget what is damaged, so that the content is incomplete and a fetch brings those pieces anew.
        Raises BlockAbsent when not begun.
        """
        ...

    def verify_blocks(self, *, repair: bool = False) -> VerifiedBlocks:
        """The same for every block."""
        ...

    def close(self) -> None:
        """Sync and let go. No call may follow; closing again changes nothing."""
        ...


# --- shared by implementations ---------------------------------------------------------------------------------


def bitmap_of(indices: Collection[int], pieces: int) -> bytes:
    """`have` of a content of so many pieces when it has these."""
    if len(indices) == pieces:
        return b""
    bits = bytearray((pieces + 7) // 8)
    for index in indices:
        bits[index >> 3] |= 1 << (index & 7)
    return bytes(bits)


def check_block(data: bytes) -> Digest:
    """The digest of a block to keep. Raises LocalError above the limit."""
    if len(data) > MAX_BLOCK_BYTES:
        raise LocalError(f"a block of {len(data)} bytes, the most is {MAX_BLOCK_BYTES}")
    return digest_of(data)


def check_chunk(digest: bytes, length: int, data: bytes | memoryview) -> None:
    """Raise unless the bytes are the piece: a wrong hash is the sender's lie, a wrong length the manifest's."""
    if digest_of(data) != digest:
        raise CorruptBlock(digest)
    if len(data) != length:
        raise ProtocolViolation(f"manifest: a chunk of {len(data)} bytes where it says {length}")


def read_layout(store: Store, root: bytes) -> Layout:
    """The layout of a content from blocks the store holds. Raises BlockAbsent, ProtocolViolation, IntegrityError."""
    manifest = parse_manifest(store.get(root))
    return Layout(manifest, [parse_leaf(store.get(leaf), manifest, at) for at, leaf in enumerate(manifest.leaves)])
