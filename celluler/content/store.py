"""The store's port: what every store guarantees, whatever keeps the bytes. `memory.py` and `disk.py` implement it.

A *block* is at most 1 MiB, kept whole under its digest: manifests, leaves, envelopes, specs. A *content* is a file of
any size under the root of its manifest, kept as one file and filled piece by piece, in any order.

What holds for every implementation, and is tested by one suite over all of them:

1. Nothing false is ever given out: bytes are hashed before they are kept and again when they are read.
2. Every call is atomic: it happened whole or, when it raised, not at all. One exception: a disk that fails in the
   moment of completion may leave a content with all its pieces and incomplete; `begin` completes it.
3. What the store accepted outlives the death of the process, at any moment. A power cut may take back the newest
   pieces of an incomplete content (at most `disk.SYNC_BYTES` of each); the store then lists them as missing.
4. Calls may come from several threads at once.
5. The quota is never exceeded. A content counts in full from `begin` on, so that a begun fetch has room to end.

Deliberately unknown here: peers, names, signatures, what to evict.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from celluler.content.digest import Digest, digest_of
from celluler.content.manifest import MAX_BLOCK_BYTES, Layout, Piece, parse_leaf, parse_manifest
from celluler.errors import CorruptBlock, LocalError, ProtocolViolation

__all__ = ["ContentStat", "Piece", "Store", "check_block", "check_chunk", "read_layout"]


@dataclass(frozen=True, slots=True)
class ContentStat:
    """State of one content. `last_used_s`: Unix time when it was last begun, completed or asked for by path."""

    root: Digest
    kind: str
    total_bytes: int
    have_bytes: int
    complete: bool
    last_used_s: float


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

    def begin(self, root: bytes) -> None:
        """Open the content of a manifest that is here with all its leaves, as blocks. Idempotent.

        Reserves the whole length, and takes over pieces that other contents already hold.
        Raises BlockAbsent, ProtocolViolation when the manifest is inconsistent, QuotaExceeded.
        """
        ...

    def missing(self, root: bytes) -> tuple[Piece, ...]:
        """Pieces still to be put, by index. Raises BlockAbsent when the content was not begun."""
        ...

    def put_chunk(self, root: bytes, index: int, data: bytes | memoryview) -> None:
        """Keep piece `index`; the last missing one completes the content. Putting a piece again changes nothing.

        Raises CorruptBlock when the bytes do not hash to the piece's digest, ProtocolViolation when they do but the
        manifest gives another length, LocalError for a bad index, BlockAbsent when not begun, QuotaExceeded when
        the disk is full.
        """
        ...

    def add(self, path: Path, kind: str) -> Digest:
        """Copy a file in and return its root. Complete and durable on return. Raises LocalError, QuotaExceeded."""
        ...

    def path(self, root: bytes) -> Path:
        """The complete file, for reading only, valid until `remove` or `close`. Raises BlockAbsent."""
        ...

    def stat(self, root: bytes) -> ContentStat:
        """Raises BlockAbsent when the content was not begun."""
        ...

    def roots(self) -> tuple[Digest, ...]:
        """Every content begun, complete or not, in the order of their digests."""
        ...

    def remove(self, root: bytes) -> None:
        """Forget a content with its manifest and the leaves no other content needs, or a lone block.

        Removing what is not here changes nothing. Raises LocalError for a block that belongs to a content.
        """
        ...

    def used_bytes(self) -> int:
        """What counts against the quota: blocks, and the full length of every content begun."""
        ...

    def close(self) -> None:
        """Sync and let go. No call may follow; closing again changes nothing."""
        ...


# --- shared by implementations ---------------------------------------------------------------------------------


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
