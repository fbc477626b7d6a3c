"""Contents of the store, and transfers into it."""

from __future__ import annotations

from dataclasses import dataclass

from celluler.views.swarm import PeerTraffic


@dataclass(frozen=True, slots=True)
class Blob:
    """One content.

    kind: `blob`, `dataset` or `model`. have_bytes: of it here. complete: all of it is. wanted_bytes: how much of it is
    kept or fetched here, less than `total_bytes` when only some layers were asked for. pinned: never evicted. in_use:
    being served, loaded or fetched now. last_used_s: 0 when not known. received: bytes of it that came from whom, and
    went to whom where that is counted, as long as the node remembers. providers: peer ids that say they have it, asked
    for when one content is shown.
    """

    cid: str
    kind: str
    total_bytes: int
    have_bytes: int
    complete: bool
    wanted_bytes: int = 0
    pinned: bool = False
    in_use: bool = False
    last_used_s: float = 0.0
    received: tuple[PeerTraffic, ...] = ()
    providers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Collected:
    """What was evicted, or with `dry_run` what would be. freed_bytes: counted as the quota counts."""

    freed_bytes: int
    contents: tuple[Blob, ...]
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class DamagedContent:
    """A content with pieces that are not what the index says. restored: fetched anew from peers, and right now."""

    cid: str
    kind: str
    pieces: int
    damaged_bytes: int
    restored: bool = False


@dataclass(frozen=True, slots=True)
class StoreCheck:
    """Every byte that the index claims, hashed again.

    repaired: damaged pieces were forgotten, and fetched anew where somebody has them. damaged_blocks: small ones that
    belong to no content, such as signed records.
    """

    contents: int
    checked_bytes: int
    damaged: tuple[DamagedContent, ...] = ()
    damaged_blocks: int = 0
    repaired: bool = False

    @property
    def ok(self) -> bool:
        """Nothing is damaged, or everything that was is restored."""
        return all(one.restored for one in self.damaged) and (self.repaired or not self.damaged_blocks)


@dataclass(frozen=True, slots=True)
class TransferSource:
    """transport: `bulk`, or `stream` for the libp2p one. received_bytes: verified ones, in this transfer."""

    peer: str
    received_bytes: int
    rate_bytes_s: float
    transport: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """A content on its way here.

    name: what it was asked for as, or empty. kept_bytes: verified and written, of `wanted_bytes`. eta_s: None while
    nothing is known to tell it by.
    """

    cid: str
    name: str
    started_s: float
    kept_bytes: int
    wanted_bytes: int
    rate_bytes_s: float
    eta_s: float | None = None
    sources: tuple[TransferSource, ...] = ()
