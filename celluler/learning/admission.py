"""Joining a run that has begun: who vouches for it, and whether that is enough.

Whoever wants to join signs an entry as the first members did, and shows an invite of the coordinator (or of the
inviter that the rules name), or the word of b+1 members, at least one of whom is honest. The members put it into a
body. Whoever was ever a member, under that key or with that averager, is not admitted again: an expelled member stays
out, a suspended one comes back by itself.

Knows nothing of time but what it is told, nor of how an admission gets to the members.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from typing import Any, Protocol

from celluler.errors import PeerViolation, ProtocolViolation
from celluler.identity import Identity, Signed, open_envelope, seal, short
from celluler.learning.messages import (
    MAX_ADMISSION_BYTES,
    MAX_ADMITTED,
    MAX_ADMITTED_BYTES,
    Admission,
    Invite,
    Mark,
    Vouch,
    check_signature,
    mask,
    signature_of,
)
from celluler.learning.roster import MAX_MEMBERS, Electorate, RosterMember, RosterView, open_entry

CLOCK_SKEW_S = 300
"""So much later than it says a member still accepts an invite from a leader, whose clock may be behind."""
MAX_VOUCH_BYTES = 512
MAX_WAITING = 16
"""Applicants that a member keeps in mind."""


class Admitting(Protocol):
    """Of a `standing.Standing`, what matters here."""

    @property
    def roster(self) -> RosterView: ...

    @property
    def electorate(self) -> Electorate: ...


def make_admission(
    roster: RosterView, identity: Identity, entry: bytes, *, invite: bytes | None = None, vouches: Iterable[bytes] = ()
) -> bytes:
    """The applicant's half: its sealed Admission. entry: its sealed RosterEntry; vouches: members' sealed Vouches.

    Raises PeerViolation for a vouch that is none, naming who gave it.
    """
    marks: dict[int, Mark] = {}
    for raw in vouches:
        signed: Signed[Any] = open_envelope(Vouch, raw, limit=MAX_VOUCH_BYTES)
        place = roster.index_of(signed.signer)
        if place is None or (signed.record.run, signed.record.peer) != (roster.run, identity.peer_id):
            raise ProtocolViolation("a vouch of a stranger, or for another", peer=signed.signer)
        marks[place] = Mark(place, signature_of(raw))
    return seal(identity, Admission(roster.run, entry, invite, tuple(mark for _, mark in sorted(marks.items()))))


def open_admission(standing: Admitting, raw: bytes, *, unix_s: float | None = None) -> RosterMember:
    """The member that this admits if the next body holds it, with the place it would get were it the only one.

    unix_s: when given, an invite must not have expired by then.
    Raises PeerViolation, the applicant's, for one that nothing stands behind or for which there is no place.
    """
    roster = standing.roster
    signed: Signed[Any] = open_envelope(Admission, raw, limit=MAX_ADMISSION_BYTES)
    record, applicant = signed.record, signed.signer
    try:
        if record.run != roster.run:
            raise ProtocolViolation("an admission to another run")
        if len(roster) >= MAX_MEMBERS:
            raise ProtocolViolation(f"a run has at most {MAX_MEMBERS} members, those that left included")
        member = open_entry(record.entry, roster.run, len(roster))
        if member.peer != applicant:
            raise ProtocolViolation("an admission with another peer's entry")
        if any(one.peer == applicant or one.averager == member.averager for one in roster.members):
            raise ProtocolViolation("an admission of somebody, or of an averager, that is a member or was one")
        if record.invite is not None:
            _check_invite(roster, record.invite, applicant, unix_s)
        else:
            _check_vouches(standing.electorate, record.vouches, applicant)
    except PeerViolation as error:
        raise ProtocolViolation(f"{short(applicant)} is not admitted: {error}", peer=applicant) from error
    return member


def check_admitted(standing: Admitting, admitted: tuple[bytes, ...]) -> None:
    """Raises PeerViolation unless a body may admit these, all together."""
    if sum(map(len, admitted)) > MAX_ADMITTED_BYTES:
        raise ProtocolViolation("a body with longer admissions than it may hold")
    members = [open_admission(standing, raw) for raw in admitted]
    if len(standing.roster) + len(members) > MAX_MEMBERS:
        raise ProtocolViolation(f"a body that admits more than {MAX_MEMBERS} members in all")
    if len({m.peer for m in members}) < len(members) or len({m.averager for m in members}) < len(members):
        raise ProtocolViolation("a body that admits one peer, or one averager, twice")


def admitted_members(roster: RosterView, admitted: tuple[bytes, ...]) -> tuple[RosterMember, ...]:
    """Those whom a certified body admits, behind the members that there are, in the order in which it names them."""
    found = []
    for number, raw in enumerate(admitted):
        record = open_envelope(Admission, raw, limit=MAX_ADMISSION_BYTES).record
        found.append(open_entry(record.entry, roster.run, len(roster) + number))
    return tuple(found)


def expired(raw: bytes, unix_s: float) -> bool:
    """Whether an admission that is one rests on an invite that ended before then."""
    record = open_envelope(Admission, raw, limit=MAX_ADMISSION_BYTES).record
    if record.invite is None:
        return False
    return open_envelope(Invite, record.invite, limit=MAX_ADMISSION_BYTES).record.expires_s < unix_s


class Applicants:
    """Those who want to join, at one member."""

    def __init__(self) -> None:
        self._waiting: dict[str, bytes] = {}

    def add(self, standing: Admitting, raw: bytes, unix_s: float | None) -> bool:
        """True if it is new and kept. Raises PeerViolation as `open_admission`."""
        if raw in self._waiting.values():
            return False
        peer = open_admission(standing, raw, unix_s=unix_s).peer
        if peer in self._waiting or len(self._waiting) >= MAX_WAITING:
            self._drop_hopeless(standing, unix_s)
        if len(self._waiting) >= MAX_WAITING:
            return False
        new = peer not in self._waiting
        self._waiting.setdefault(peer, raw)
        return new

    def chosen(self, standing: Admitting, unix_s: float | None) -> tuple[bytes, ...]:
        """Whom to admit by the next body, first come first served."""
        self._drop_hopeless(standing, unix_s)
        found: tuple[bytes, ...] = ()
        for raw in self._waiting.values():
            with suppress(PeerViolation):
                if len(found) < MAX_ADMITTED:
                    check_admitted(standing, (*found, raw))
                    found = (*found, raw)
        return found

    def welcome(self, admitted: tuple[bytes, ...], unix_s: float | None) -> bool:
        """Whether none of these, which a leader proposes, comes too late."""
        return unix_s is None or not any(expired(raw, unix_s - CLOCK_SKEW_S) for raw in admitted)

    def _drop_hopeless(self, standing: Admitting, unix_s: float | None) -> None:
        for peer, raw in list(self._waiting.items()):
            try:
                open_admission(standing, raw, unix_s=unix_s)
            except PeerViolation:
                del self._waiting[peer]


def _check_invite(roster: RosterView, raw: bytes, applicant: str, unix_s: float | None) -> None:
    signed: Signed[Any] = open_envelope(Invite, raw, limit=MAX_ADMISSION_BYTES)
    if signed.signer not in (roster.coordinator, roster.rules.inviter):
        raise ProtocolViolation("an invite of somebody who may not invite")
    if (signed.record.run, signed.record.peer) != (roster.run, applicant):
        raise ProtocolViolation("an invite to another run, or of another peer")
    if unix_s is not None and signed.record.expires_s < unix_s:
        raise ProtocolViolation("an invite that has expired")


def _check_vouches(electorate: Electorate, marks: tuple[Mark, ...], applicant: str) -> None:
    members = [one.member for one in marks]
    if any(one >= two for one, two in pairwise(members)) or not electorate.has(mask(members)):
        raise ProtocolViolation("vouches out of order, or of somebody without a vote")
    if len(members) <= electorate.b:
        raise ProtocolViolation(f"{len(members)} vouches where {electorate.b + 1} are needed")
    for one in marks:
        check_signature(electorate.roster, one.member, Vouch(electorate.roster.run, applicant), one.signature)
