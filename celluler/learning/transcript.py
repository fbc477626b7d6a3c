"""A run written down: everything signed in it, every aggregate, and the updates that members sent.

One file, written round after round while the run goes on: a mark, an opening, then for each height a record and the
bytes it announces. It can be read as it comes; where everything lies follows from the records, so that a reader can
also leap. It may lack what its writer did not have: another writer's file of the same run can fill the gaps.
Spec: docs/reference/protocols/transcript.md

Whoever reads one believes nothing in it: `verify` holds every byte against a signature. This module knows shapes and
lengths alone, not what is true.
"""

from __future__ import annotations

from base64 import b32encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, BinaryIO

from celluler.errors import LocalError, ProtocolViolation
from celluler.learning.ledger import Ledger
from celluler.learning.messages import Bits, Body, Certificate, Entry, Place, mask, places, set_hash
from celluler.learning.roster import MAX_MEMBERS, MAX_PARTS, MAX_ROSTER_BYTES, MAX_ROUNDS
from celluler.wire import LENGTH_PREFIX_BYTES, Length, Range, pack, unpack

MARK = b"celluler-transcript-1\n"
VALUE_BYTES = 2
MAX_OPENING_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 20
MAX_DIMENSION = 1 << 31
MAX_HEIGHTS = MAX_ROUNDS + 1
MAX_FILE_BYTES = 5 << 28
"""No more of one transcript is fetched unasked. A member keeps none that would exceed a gibibyte by much."""
HEAD_PREFIX = "transcript:"
_SIGNED_BYTES = 8192

_Signed = Annotated[bytes, Length(1, _SIGNED_BYTES)]


@dataclass(frozen=True, slots=True)
class Opening:
    """What the run was about. order: the job as its submitter signed it; base: the manifest of the model it began
    from, as its author signed it; roster: as the coordinator signed it. dimension: values in one update."""

    order: Annotated[bytes, Length(1, 1 << 17)]
    base: Annotated[bytes, Length(1, (1 << 19) + 512)]
    roster: Annotated[bytes, Length(1, MAX_ROSTER_BYTES)]
    dimension: Annotated[int, Range(1, MAX_DIMENSION)]


@dataclass(frozen=True, slots=True)
class Wire:
    """Which parts of a member's update are here."""

    member: Place
    parts: Bits


@dataclass(frozen=True, slots=True)
class HeightRecord:
    """One height. commits: envelopes of all that the certified set names, ascending by member, or none of them.

    proposal: envelope of a leader's set with those commits, if at hand. statements: envelopes of the reducers' words
    on the certified parts, as far as at hand. aggregate: which parts of the aggregate are here. wires: ascending.
    Behind the record come the bytes: parts of the aggregate ascending, then each wire's parts ascending.
    """

    certificate: Certificate
    commits: Annotated[tuple[_Signed, ...], Length(0, MAX_MEMBERS)]
    proposal: _Signed | None
    statements: Annotated[tuple[_Signed, ...], Length(0, MAX_PARTS)]
    aggregate: Bits
    wires: Annotated[tuple[Wire, ...], Length(0, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class Signatures:
    """What a member holds of a certified round beside its certificate: fields of a `HeightRecord`."""

    commits: tuple[bytes, ...] = ()
    proposal: bytes | None = None
    statements: tuple[bytes, ...] = ()


def signatures_of(ledger: Ledger, body: Body) -> Signatures:
    """Of a height that is decided, before the next one opens. A member that lagged may hold none of it."""
    proposal = next((one for one in ledger.sets.values() if set_hash(one.record.entries) == body.set_hash), None)
    entries = _first_commits(ledger, body) if proposal is None else proposal.record.entries
    commits = [ledger.commits.get(entry.member, {}).get(entry.commit) for entry in entries]
    known = set_hash(entries) == body.set_hash and None not in commits
    stated = {
        signed.record.part: signed.raw
        for signed in ledger.reduced.values()
        if signed.record.set_hash == body.set_hash and signed.record.result == body.parts[signed.record.part]
    }
    return Signatures(
        tuple(commit.raw for commit in commits if commit is not None) if known else (),
        None if proposal is None else proposal.raw,
        tuple(raw for _, raw in sorted(stated.items())),
    )


def _first_commits(ledger: Ledger, body: Body) -> tuple[Entry, ...]:
    """The set as it was unless somebody in it signed two updates."""
    named = [(member, ledger.commits.get(member, {})) for member in places(body.members)]
    return tuple(Entry(member, next(iter(kept))) for member, kept in named if kept)


def head_name(job: bytes) -> str:
    """Under which name a member's head in the directory points at its transcript of this job. No model is called so."""
    return HEAD_PREFIX + b32encode(job).decode().rstrip("=").lower()


def part_bytes(dimension: int, parts: int) -> tuple[int, ...]:
    """The length of each part of a vector on the wire: sizes differ by one value at most, the longer ones first."""
    size, longer = divmod(dimension, parts)
    return tuple(VALUE_BYTES * (size + (part < longer)) for part in range(parts))


# --- writing ------------------------------------------------------------------------------------------------------


class TranscriptWriter:
    """Appends to a file, one height after the other. The file is sound after every `add`."""

    def __init__(self, file: BinaryIO, opening: Opening, *, parts: int) -> None:
        """file: empty. parts: of an update, as the roster's rules say."""
        self._file, self._lengths, self._next = file, part_bytes(opening.dimension, parts), 0
        file.write(MARK + _framed(pack(opening), MAX_OPENING_BYTES))

    def add(
        self,
        certificate: Certificate,
        signed: Signatures = Signatures(),
        *,
        aggregate: Mapping[int, bytes] | None = None,
        wires: Mapping[int, Mapping[int, bytes]] | None = None,
    ) -> None:
        """The next height. aggregate: bytes by part. wires: bytes by member and part.

        Raises LocalError for a height out of turn, or bytes of another length than the part has.
        """
        if certificate.body.round != self._next:
            raise LocalError(f"height {certificate.body.round} where {self._next} comes next")
        pieces = [aggregate or {}, *(parts for _, parts in sorted((wires or {}).items()))]
        for piece in pieces:
            self._check(piece)
        record = HeightRecord(
            certificate,
            signed.commits,
            signed.proposal,
            signed.statements,
            mask(aggregate or ()),
            tuple(Wire(member, mask(parts)) for member, parts in sorted((wires or {}).items()) if parts),
        )
        self._file.write(_framed(pack(record), MAX_RECORD_BYTES))
        for piece in pieces:
            for _, data in sorted(piece.items()):
                self._file.write(data)
        self._file.flush()
        self._next += 1

    def _check(self, piece: Mapping[int, bytes]) -> None:
        for part, data in piece.items():
            if not 0 <= part < len(self._lengths) or len(data) != self._lengths[part]:
                raise LocalError(f"{len(data)} bytes are no part {part} of this run")


def _framed(record: bytes, limit: int) -> bytes:
    if len(record) > limit:
        raise LocalError(f"a record of {len(record)} bytes, limit {limit}")
    return len(record).to_bytes(LENGTH_PREFIX_BYTES, "big") + record


# --- reading ------------------------------------------------------------------------------------------------------


class Transcript:
    """A file as it claims to be. Holds where things lie, not what they are.

    A last height that was cut off, as a killed writer leaves it, is left out.
    """

    def __init__(self, file: BinaryIO) -> None:
        """file: seekable. Raises ProtocolViolation for a file that is none, or breaks off in its opening."""
        self._file = file
        self._end = file.seek(0, 2)
        file.seek(0)
        if file.read(len(MARK)) != MARK:
            raise ProtocolViolation("not a transcript")
        raw, self._start = self._framed_at(len(MARK), MAX_OPENING_BYTES)
        if raw is None:
            raise ProtocolViolation("a transcript that breaks off in its opening")
        self.opening = unpack(Opening, raw, limit=MAX_OPENING_BYTES)
        self._lengths: tuple[int, ...] = ()
        self._records: list[int] = []
        self._last: tuple[int, HeightRecord, Pieces] | None = None
        self.whole = False
        """Whether the file ends where a height ends."""

    def scan(self, parts: int) -> None:
        """Find where every height lies. parts: of an update, as the roster's rules say. Raises ProtocolViolation."""
        self._lengths, self._records = part_bytes(self.opening.dimension, parts), []
        at = self._start
        while at < self._end:
            raw, payload = self._framed_at(at, MAX_RECORD_BYTES)
            if raw is None:
                return
            record = unpack(HeightRecord, raw, limit=MAX_RECORD_BYTES)
            if record.certificate.body.round != len(self._records) or len(self._records) == MAX_HEIGHTS:
                raise ProtocolViolation(f"transcript: height {record.certificate.body.round} out of turn")
            end = payload + self._payload_bytes(record)
            if end > self._end:
                return
            self._records.append(at)
            at = end
        self.whole = True

    def __len__(self) -> int:
        """Heights that are here, the closing one among them if the run came so far."""
        return len(self._records)

    def height(self, number: int) -> HeightRecord | None:
        """None where there is no such height here."""
        return self._read(number)[0] if number < len(self._records) else None

    def pieces(self, number: int) -> Pieces:
        """The bytes of one height, to be read when asked for."""
        return self._read(number)[1] if number < len(self._records) else Pieces(self._file, {}, {})

    def _read(self, number: int) -> tuple[HeightRecord, Pieces]:
        """The last one is remembered: a height is asked for many times in a row."""
        if self._last is None or self._last[0] != number:
            record, payload = self._record(number)
            self._last = number, record, self._lay_out(record, payload)
        return self._last[1:]

    def _lay_out(self, record: HeightRecord, at: int) -> Pieces:
        """Where each part lies, the first of them at `at`."""
        aggregate: dict[int, tuple[int, int]] = {}
        wires: dict[int, dict[int, tuple[int, int]]] = {wire.member: {} for wire in record.wires}
        tables = [(aggregate, record.aggregate), *((wires[wire.member], wire.parts) for wire in record.wires)]
        for table, bits in tables:
            for part in places(bits):
                table[part] = at, self._lengths[part]
                at += self._lengths[part]
        return Pieces(self._file, aggregate, wires)

    def _record(self, number: int) -> tuple[HeightRecord, int]:
        raw, payload = self._framed_at(self._records[number], MAX_RECORD_BYTES)
        if raw is None:
            raise LocalError("the transcript became shorter while it was read")
        return unpack(HeightRecord, raw, limit=MAX_RECORD_BYTES), payload

    def _framed_at(self, at: int, limit: int) -> tuple[bytes | None, int]:
        """(record, where it ends); None when the file ends before."""
        self._file.seek(at)
        size = int.from_bytes(self._file.read(LENGTH_PREFIX_BYTES), "big")
        start = at + LENGTH_PREFIX_BYTES
        if size > limit:
            raise ProtocolViolation(f"transcript: a record of {size} bytes, limit {limit}")
        if start + size > self._end:
            return None, self._end
        return self._file.read(size), start + size

    def _payload_bytes(self, record: HeightRecord) -> int:
        """What follows a record. Raises ProtocolViolation for a record that announces what cannot be."""
        members = [wire.member for wire in record.wires]
        if members != sorted(set(members)):
            raise ProtocolViolation("transcript: wires out of order")
        masks = [record.aggregate, *(wire.parts for wire in record.wires)]
        if any(bits >> len(self._lengths) for bits in masks):
            raise ProtocolViolation("transcript: a part that no update has")
        if masks and not record.certificate.body.parts and any(masks):
            raise ProtocolViolation("transcript: the closing height has no parts")
        return sum(self._lengths[part] for bits in masks for part in places(bits))


@dataclass(frozen=True, slots=True)
class Pieces:
    """Where the bytes of one height lie: (offset, length) by part, and by member and part."""

    _file: BinaryIO
    _aggregate: Mapping[int, tuple[int, int]]
    _wires: Mapping[int, Mapping[int, tuple[int, int]]]

    def held(self, member: int) -> frozenset[int]:
        """Parts of a member's wire that are here."""
        return frozenset(self._wires.get(member, ()))

    def aggregate(self, part: int) -> bytes | None:
        return self._read(self._aggregate.get(part))

    def wire(self, member: int, part: int) -> bytes | None:
        return self._read(self._wires.get(member, {}).get(part))

    def _read(self, place: tuple[int, int] | None) -> bytes | None:
        if place is None:
            return None
        self._file.seek(place[0])
        return self._file.read(place[1])
