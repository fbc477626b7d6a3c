"""The bulletin: what a node knows of signed announcements, sans-IO. Time is an argument, in Unix seconds.

Keeps the newest announcement of each (signer, kind, subject) until it expires, within bounds for each signer and for
all. Two bulletins that were shown the same announcements hold the same, whatever the order, as long as no bound bit.
Knows nothing of the network, nor whether an announcement is true: only who said it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, Any, ClassVar

from celluler.errors import LocalError, ProtocolViolation
from celluler.identity import Envelope, PeerId, Signed, open_envelope, public_key_of
from celluler.wire import U16, U64, Bytes32, Length, Name, PeerName, Range, unpack

MAX_ENVELOPE_BYTES = 4096
_MAX_BODY_BYTES = MAX_ENVELOPE_BYTES - 320
MAX_LIFETIME_S = 30 * 24 * 3600
MAX_NOTE_LIFETIME_S = 24 * 3600
MAX_COPIES = 64

Seconds = Annotated[int, Range(0, 2**40)]
Nickname = Annotated[str, Length(0, 64)]
VersionText = Annotated[str, Length(1, 64)]
Addresses = Annotated[tuple[Annotated[str, Length(1, 256)], ...], Length(0, 8)]


Region = Annotated[str, Length(1, 32)]


@dataclass(frozen=True, slots=True)
class ModelAnnouncement:
    """A version of a model exists, or of a dataset, as `kind` says.

    manifest: digest of its signed manifest. root: digest of its weights or rows. copies: how many peers should keep
    it, 0 for what the swarm is used to. regions: where, in the order of preference; none for anywhere. The last two
    stand here so that whoever replicates need not fetch the manifest first.
    """

    KIND: ClassVar[str] = "celluler/announce-model/1"
    name: Name
    version: VersionText
    manifest: Bytes32
    root: Bytes32
    total_bytes: U64
    nickname: Nickname
    sequence: U64
    issued_s: Seconds
    expires_s: Seconds
    kind: Annotated[str, Length(1, 16)] = "model"
    copies: Annotated[int, Range(0, MAX_COPIES)] = 0
    regions: Annotated[tuple[Region, ...], Length(0, 8)] = ()

    @property
    def subject(self) -> str:
        return f"{self.kind}/{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class JobAnnouncement:
    """A job looks for peers. job: digest of its block. The signer is the coordinator, reached at `addresses`."""

    KIND: ClassVar[str] = "celluler/announce-job/1"
    job: Bytes32
    kind: Name
    addresses: Addresses
    peers_min: U16
    peers_max: U16
    sequence: U64
    issued_s: Seconds
    expires_s: Seconds

    @property
    def subject(self) -> str:
        return self.job.hex()


@dataclass(frozen=True, slots=True)
class HeadAnnouncement:
    """The signer moved its head: a hint to ask the directory, which alone decides."""

    KIND: ClassVar[str] = "celluler/announce-head/1"
    name: Name
    number: U64
    index: Bytes32
    sequence: U64
    issued_s: Seconds
    expires_s: Seconds

    @property
    def subject(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class NoteAnnouncement:
    """The signer was given false bytes by `accused`: asked for `digest` of the content `root`, it got something else.

    One peer's word, which nobody can check: worth asking another first, never a reason to shut a peer out.
    """

    KIND: ClassVar[str] = "celluler/announce-note/1"
    accused: PeerName
    root: Bytes32
    digest: Bytes32
    reason: Annotated[str, Length(1, 64)]
    sequence: U64
    issued_s: Seconds
    expires_s: Seconds

    @property
    def subject(self) -> str:
        return f"{self.accused}/{self.root.hex()}"


Announcement = ModelAnnouncement | JobAnnouncement | HeadAnnouncement | NoteAnnouncement
_KINDS: dict[str, type[Any]] = {
    cls.KIND: cls for cls in (ModelAnnouncement, JobAnnouncement, HeadAnnouncement, NoteAnnouncement)
}


def max_lifetime_s(record: Announcement) -> int:
    """Suspicion grows stale sooner than news."""
    return MAX_NOTE_LIFETIME_S if isinstance(record, NoteAnnouncement) else MAX_LIFETIME_S


def open_announcement(raw: bytes) -> Signed[Announcement] | None:
    """Verify and parse one announcement; None for a kind of a later version.

    Raises ProtocolViolation, BadSignature; ProtocolViolation also for times that no honest peer writes.
    """
    cls = _KINDS.get(unpack(Envelope, raw, limit=MAX_ENVELOPE_BYTES).kind)
    if cls is None:
        return None
    signed: Signed[Announcement] = open_envelope(cls, raw, limit=_MAX_BODY_BYTES)
    record = signed.record
    if not record.issued_s < record.expires_s <= record.issued_s + max_lifetime_s(record):
        raise ProtocolViolation(f"lifetime of {record.expires_s - record.issued_s} s", peer=signed.signer)
    if isinstance(record, NoteAnnouncement):
        public_key_of(PeerId(record.accused))
    return signed


@dataclass(frozen=True, slots=True)
class BulletinLimits:
    """Bounds. skew_s: how far another's clock may be off ours before its announcements are not taken.

    notes: how many entries may be notes, in all and of one signer, so that suspicion never crowds out the rest.
    """

    entries: int = 4096
    entries_a_signer: int = 64
    notes: int = 1024
    notes_a_signer: int = 16
    burst: int = 64
    refill_per_s: float = 0.2
    signers_metered: int = 4096
    skew_s: int = 120


class Verdict(Enum):
    NEW = auto()
    """Taken: worth telling others."""
    KNOWN = auto()
    """Held already, or older than what is held."""
    CONFLICT = auto()
    """Another announcement of the same signer, subject and sequence is held: the signer contradicts itself."""
    UNTIMELY = auto()
    """Expired, or from the future."""
    THROTTLED = auto()
    """Its signer announces too much."""


Key = tuple[PeerId, str, str]


@dataclass(slots=True)
class _Entry:
    signed: Signed[Announcement]
    kept_until_s: int
    """Beyond its own expiry where an older one would outlive it and could come back."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class Bulletin:
    def __init__(self, limits: BulletinLimits | None = None) -> None:
        self._limits = limits or BulletinLimits()
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # in the order of arrival
        self._by_signer: Counter[PeerId] = Counter()
        self._notes_by_signer: Counter[PeerId] = Counter()
        self._buckets: OrderedDict[PeerId, _Bucket] = OrderedDict()

    def take(self, signed: Signed[Announcement], now: float, *, metered: bool = True) -> Verdict:
        """Judge one verified announcement and keep it if it is NEW. metered: whether its signer's rate counts."""
        self.expire(now)
        record, limits = signed.record, self._limits
        if record.issued_s > now + limits.skew_s or record.expires_s <= now:
            return Verdict.UNTIMELY
        key = (signed.signer, record.KIND, record.subject)
        held = self._entries.get(key)
        if held is not None and (verdict := _compare(held.signed, signed)) is not Verdict.NEW:
            if verdict is Verdict.CONFLICT and signed.raw < held.signed.raw:
                held.kept_until_s = max(held.kept_until_s, record.expires_s)
                held.signed = signed  # an arbitrary rule, the same everywhere: all bulletins settle on one of the two
            return verdict
        if metered and not self._spend(signed.signer, now):
            return Verdict.THROTTLED
        self._put(key, signed, max(record.expires_s, held.kept_until_s if held else 0))
        return Verdict.NEW

    def current(self, now: float) -> tuple[Signed[Announcement], ...]:
        """What is announced and not expired, in the order of arrival."""
        self.expire(now)
        return tuple(entry.signed for entry in self._entries.values() if entry.signed.record.expires_s > now)

    def fingerprint(self, now: float) -> bytes:
        """32 bytes, equal where two bulletins hold the same."""
        digests = sorted(hashlib.sha256(signed.raw).digest() for signed in self.current(now))
        return hashlib.sha256(b"".join(digests)).digest()

    def doubts(self, accused: PeerId, now: float) -> int:
        """How many peers, itself left out, say that it gave them false bytes."""
        said = ((signed.signer, signed.record) for signed in self.current(now))
        by = {signer for signer, note in said if isinstance(note, NoteAnnouncement) and note.accused == accused}
        return len(by - {accused})

    def expire(self, now: float) -> None:
        for key in [key for key, entry in self._entries.items() if entry.kept_until_s <= now]:
            self._drop(key)

    def __len__(self) -> int:
        return len(self._entries)

    def _put(self, key: Key, signed: Signed[Announcement], kept_until_s: int) -> None:
        if key in self._entries:
            self._drop(key)
        else:
            self._make_room(key)
        self._entries[key] = _Entry(signed, kept_until_s)
        self._by_signer[key[0]] += 1
        if key[1] == NoteAnnouncement.KIND:
            self._notes_by_signer[key[0]] += 1

    def _make_room(self, key: Key) -> None:
        """Notes push out notes first: the signer's own, then those of who has written most of them."""
        limits, signer = self._limits, key[0]
        if key[1] == NoteAnnouncement.KIND:
            if self._notes_by_signer[signer] >= limits.notes_a_signer:
                self._drop(next(self._of(signer, NoteAnnouncement.KIND)))
            elif self._notes_by_signer.total() >= limits.notes:
                self._drop(next(self._of(self._notes_by_signer.most_common(1)[0][0], NoteAnnouncement.KIND)))
        if self._by_signer[signer] >= limits.entries_a_signer:
            self._drop(next(self._of(signer)))
        elif len(self._entries) >= limits.entries:
            self._drop(next(self._of(self._by_signer.most_common(1)[0][0])))

    def _drop(self, key: Key) -> None:
        del self._entries[key]
        for counter in (self._by_signer, *((self._notes_by_signer,) if key[1] == NoteAnnouncement.KIND else ())):
            counter[key[0]] -= 1
            if not counter[key[0]]:
                del counter[key[0]]

    def _of(self, signer: PeerId, kind: str = "") -> Iterator[Key]:
        """Its entries, the oldest first. kind: of one kind alone."""
        return (key for key in self._entries if key[0] == signer and kind in ("", key[1]))

    def _spend(self, signer: PeerId, now: float) -> bool:
        limits = self._limits
        bucket = self._buckets.pop(signer, None) or _Bucket(limits.burst, now)
        bucket.tokens = min(limits.burst, bucket.tokens + max(0.0, now - bucket.at_s) * limits.refill_per_s)
        bucket.at_s = now
        self._buckets[signer] = bucket
        if len(self._buckets) > limits.signers_metered:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


def _compare(held: Signed[Announcement], other: Signed[Announcement]) -> Verdict:
    if other.record.sequence != held.record.sequence:
        return Verdict.NEW if other.record.sequence > held.record.sequence else Verdict.KNOWN
    return Verdict.KNOWN if other.raw == held.raw else Verdict.CONFLICT


def check_own(record: Announcement) -> None:
    """Raises LocalError for a record that others would refuse."""
    if not record.issued_s < record.expires_s <= record.issued_s + max_lifetime_s(record):
        raise LocalError(f"an announcement of this kind lives at most {max_lifetime_s(record)} s")
