"""What an author did to a name, and when: an append-only log, each entry signed and naming the one before by digest.

The index holds the digest of the newest entry; whoever follows the chain down to entry 1 has seen everything, and
whoever remembers one entry can tell whether it is still part of the chain. The times are the author's word. An author
can sign two chains; that shows when two peers compare what they hold.

Knows nothing of where entries are kept: `Chain` says which block it wants next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from celluler.content.digest import Digest, digest_of
from celluler.errors import CellulerError, CorruptBlock, InvalidSpec, LocalError, ProtocolViolation
from celluler.identity import Identity, Signed, open_envelope, seal
from celluler.models.index import (
    VersionIndex,
    VersionText,
    Word,
    drop_alias,
    extend_index,
    retract,
    roll_back,
    set_alias,
)
from celluler.models.names import check_printable, check_word
from celluler.models.version import parse_version
from celluler.wire import U64, Bytes32, Length, Range

MAX_ENTRY_BYTES = 1 << 12
ACTIONS = ("published", "aliased", "unaliased", "rolled-back", "retracted", "readers")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One thing that was done to a version. number: from 1. previous: digest of the entry before, None in the first.

    subject: the manifest's digest. note: of `aliased` and `unaliased` the alias, of `retracted` the reason, of
    `readers` who may read from this version on; otherwise whatever the author says.
    """

    KIND: ClassVar[str] = "provenance"

    name: Word
    number: Annotated[int, Range(1, 2**32 - 1)]
    previous: Bytes32 | None
    at_s: U64
    action: Annotated[str, Length(1, 16)]
    version: VersionText
    subject: Bytes32 | None
    note: Annotated[str, Length(0, 512)]


def check_entry(entry: LogEntry) -> None:
    """Raises InvalidSpec with the field that is wrong."""
    check_word(entry.name, "name")
    parse_version(entry.version)
    if entry.action not in ACTIONS:
        raise InvalidSpec("action", f"is {entry.action!r}, must be one of {', '.join(ACTIONS)}")
    if (entry.number == 1) is not (entry.previous is None):
        raise InvalidSpec("previous", "must be given in every entry but the first")
    if entry.action == "published" and entry.subject is None:
        raise InvalidSpec("subject", "is missing: what was published?")
    if entry.action in ("aliased", "unaliased"):
        check_word(entry.note, "note")
    check_printable(entry.note, "note")


def append_entry(
    identity: Identity,
    newest: Signed[LogEntry] | None,
    *,
    name: str,
    at_s: int,
    action: str,
    version: str,
    subject: bytes | None = None,
    note: str = "",
) -> bytes:
    """The next entry, signed. newest: the last one so far, None for the first. Raises InvalidSpec, LocalError.

    A clock that went back does not make time go back in the log.
    """
    entry = LogEntry(name, 1, None, at_s, action, version, subject, note)
    if newest is not None:
        if (newest.signer, newest.record.name) != (identity.peer_id, name):
            raise LocalError(f"the newest entry is of another log than {name!r}")
        entry = replace(
            entry,
            number=newest.record.number + 1,
            previous=digest_of(newest.raw),
            at_s=max(at_s, newest.record.at_s),
        )
    check_entry(entry)
    return seal(identity, entry)


def open_entry(data: bytes, *, signer: str | None = None) -> Signed[LogEntry]:
    """An entry from a peer. Raises ProtocolViolation or BadSignature."""
    signed = open_envelope(LogEntry, data, limit=MAX_ENTRY_BYTES, signer=signer)
    try:
        check_entry(signed.record)
    except InvalidSpec as error:
        raise ProtocolViolation(f"provenance entry: {error}", peer=signed.signer) from error
    return signed


# --- following a chain -----------------------------------------------------------------------------------------------


class Chain:
    """A log as it is read, newest entry first, each checked against the one above it. The caller bounds how many."""

    def __init__(self, author: str, name: str, newest: bytes) -> None:
        """newest: digest of the newest entry, from the signed index."""
        self._author, self._name = author, name
        self._above: LogEntry | None = None
        self.wanted: Digest | None = Digest(newest)
        """The entry to give next; None when the chain was read to its first."""
        self.entries: list[Signed[LogEntry]] = []
        """Newest first."""

    def receive(self, envelope: bytes) -> Signed[LogEntry]:
        """The entry that was wanted. Raises CorruptBlock for other bytes, PeerViolation when the author broke it."""
        if self.wanted is None:
            raise LocalError("the chain has been read to its first entry")
        if digest_of(envelope) != self.wanted:
            raise CorruptBlock(self.wanted)
        signed = open_entry(envelope, signer=self._author)
        entry, above = signed.record, self._above
        if entry.name != self._name:
            raise self._broken(entry, f"is of {entry.name!r}")
        if above is not None and entry.number != above.number - 1:
            raise self._broken(entry, f"stands below entry {above.number}")
        if above is not None and entry.at_s > above.at_s:
            raise self._broken(entry, "is younger than the one above it")
        self.entries.append(signed)
        self._above = entry
        self.wanted = None if entry.previous is None else Digest(entry.previous)
        return signed

    def _broken(self, entry: LogEntry, problem: str) -> ProtocolViolation:
        return ProtocolViolation(f"log of {self._name}: entry {entry.number} {problem}", peer=self._author)


def check_chain(envelopes: Iterable[bytes], author: str, name: str, newest: bytes) -> tuple[Signed[LogEntry], ...]:
    """A whole log, newest first, from the digest in the index to its first entry.

    Raises CorruptBlock for an entry that is not the one its successor names, PeerViolation for one that the author
    should not have signed, LocalError when entries are missing at the end.
    """
    chain = Chain(author, name, newest)
    for envelope in envelopes:
        chain.receive(envelope)
    if chain.wanted is not None:
        raise LocalError(f"the log of {name} goes on below its last entry given")
    return tuple(chain.entries)


def replay(entries: Iterable[LogEntry], *, kind: str = "model") -> VersionIndex:
    """The index that these entries lead to; its number and log say nothing. entries: all, oldest first.

    Raises ProtocolViolation for an entry that could not have been done to what stood before it.
    """
    index: VersionIndex | None = None
    for entry in entries:
        try:
            index = _apply(index, entry, kind)
        except CellulerError as error:
            raise ProtocolViolation(f"log of {entry.name}: entry {entry.number}: {error}") from error
    if index is None:
        raise LocalError("a log without entries")
    return index


def check_agrees(index: VersionIndex, entries: Iterable[LogEntry]) -> None:
    """Everything in the index stands in the log, and the other way round. entries: all, oldest first.

    Raises ProtocolViolation with what differs.
    """
    told = replay(entries, kind=index.kind)
    for field in ("name", "entries", "aliases", "current"):
        if getattr(told, field) != getattr(index, field):
            raise ProtocolViolation(f"the log of {index.name} tells of other {field} than its index")


@dataclass(frozen=True, slots=True)
class _Published:
    name: str
    version: str


def _apply(index: VersionIndex | None, entry: LogEntry, kind: str) -> VersionIndex:
    if entry.action == "published":
        assert entry.subject is not None  # check_entry
        return extend_index(index, _Published(entry.name, entry.version), entry.subject, kind=kind)
    if index is None:
        raise LocalError("nothing was published before")
    match entry.action:
        case "aliased":
            return set_alias(index, entry.note, entry.version)
        case "unaliased":
            return drop_alias(index, entry.note)
        case "rolled-back":
            return roll_back(index, entry.version)
        case "retracted":
            return retract(index, entry.version, entry.note)
    return index
