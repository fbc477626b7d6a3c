"""A transcript held against its signatures: the chain of certificates, what they name, and what follows from it.

Everything here is exact: a signature verifies or not, bytes hash to what was signed or not, an aggregate is what the
rule gives for these updates or not. Whether somebody *trained* what it sent is `audit`'s.

Knows neither arrays nor engines: hashing of parts and the rule come in as an `Arithmetic`. Nothing here says that the
members were many: whoever signs a roster may have made all of its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import BinaryIO, Protocol, TypeVar

from celluler.errors import LocalError, PeerViolation, ProtocolViolation
from celluler.identity import public_key_of, short
from celluler.learning.inputs import check_set
from celluler.learning.messages import (
    Body,
    Certificate,
    Commit,
    Entry,
    Part,
    Reduced,
    SetProposal,
    check_certificate,
    open_message,
    places,
    record_hash,
    set_hash,
)
from celluler.learning.roster import Electorate, RosterView, bad_updates
from celluler.learning.standing import Standing
from celluler.learning.transcript import HeightRecord, Signatures, Transcript, TranscriptWriter

T = TypeVar("T")
A = TypeVar("A")


class Arithmetic(Protocol):
    """What `celluler.aggregation` knows, over bytes as they travel."""

    def part_hash(
        self, run: bytes, round_number: int, author: bytes, *, part: int, exponent: int, mantissas: bytes
    ) -> bytes: ...

    def reduced_digest(
        self,
        run: bytes,
        round_number: int,
        set_hash: bytes,
        *,
        part: int,
        exponent: int,
        used: int,
        weights: tuple[int, ...],
        mantissas: bytes,
    ) -> bytes: ...

    def reduce(
        self, rule: str, f: int, exponents: Sequence[int], rows: Sequence[bytes]
    ) -> tuple[int, bytes, tuple[int, ...]]:
        """(exponent, mantissas, a weight for each row). Raises LocalError for what no rule takes."""


@dataclass(frozen=True, slots=True)
class Link:
    """One height, verified. name: the hash that the next one names as `prev`. voters: roster places of the quorum.

    commits: in the order of the set; none when they are not here. reducers: who signed which part, as far as known.
    standing: who took part, and how, by all heights before; after: by this one too.
    """

    round: int
    body: Body
    name: bytes
    voters: tuple[int, ...]
    commits: tuple[Commit, ...]
    reducers: Mapping[int, int]
    certificate: Certificate
    signed: Signatures
    standing: Standing
    after: Standing

    @property
    def electorate(self) -> Electorate:
        return self.standing.electorate

    @property
    def members(self) -> tuple[int, ...]:
        """Roster places of the set, ascending."""
        return places(self.body.members)

    def commit_of(self, member: int) -> Commit | None:
        return self.commits[self.members.index(member)] if self.commits and member in self.members else None


@dataclass(slots=True)
class Examination:
    """What came of looking at the bytes of one height.

    updates: members of whose update something is here, all of it as committed. parts: of the aggregate that are here
    as certified; reduced: those that the rule gave again. The rest in words: what is false, and of whom.
    """

    updates: tuple[int, ...] = ()
    parts: int = 0
    reduced: int = 0
    false_updates: list[str] = field(default_factory=list)
    false_parts: list[str] = field(default_factory=list)
    not_by_rule: list[str] = field(default_factory=list)


class Archive:
    """One run from one or more files: what one lacks, or has wrong, another may have right.

    roster: as the coordinator signed it; once a height was walked over, with those who were admitted until then.
    """

    def __init__(self, files: Sequence[Transcript], roster: RosterView, arithmetic: Arithmetic) -> None:
        """Raises LocalError when the files are of different runs."""
        if len({_run_of(file) for file in files}) != 1:
            raise LocalError("these transcripts are not of one run")
        for file in files:
            file.scan(roster.rules.parts)
        self.roster, self.opening = roster, files[0].opening
        self._start = Standing.of(roster)
        self._files, self._arithmetic = files, arithmetic

    def __len__(self) -> int:
        """Heights that are here."""
        return max(map(len, self._files))

    @property
    def complete(self) -> bool:
        """Every round and the closing height are here."""
        return len(self) == self.roster.rules.rounds + 1

    def walk(self) -> Iterator[Link]:
        """Every height in order, each verified. Raises ProtocolViolation or BadSignature, naming the round."""
        standing = self._start
        for number in range(len(self)):
            try:
                link = self._link(number, standing)
            except PeerViolation as error:
                raise type(error)(f"round {number}: {error}", peer=error.peer) from error
            standing = link.after
            self.roster = standing.roster
            yield link

    def held(self, number: int, member: int) -> frozenset[int]:
        """Parts of a member's update that some file claims to have."""
        return frozenset[int]().union(*(file.pieces(number).held(member) for file in self._files))

    def held_aggregate(self, number: int) -> int:
        """Mask of the parts of an aggregate that some file claims to have."""
        bits = 0
        for file in self._files:
            record = file.height(number)
            bits |= 0 if record is None else record.aggregate
        return bits

    def wire(self, link: Link, member: int, part: int) -> bytes | None:
        """One part of an update, as its member committed to it; None when it is not here.

        Raises ProtocolViolation when something else is here in its place.
        """
        commit = link.commit_of(member)
        if commit is None:
            return None
        author = public_key_of(self.roster.members[member].peer)
        found = [data for file in self._files if (data := file.pieces(link.round).wire(member, part)) is not None]
        for data in found:
            name = self._arithmetic.part_hash(
                self.roster.run, link.round, author, part=part, exponent=commit.exponents[part], mantissas=data
            )
            if name == commit.hashes[part]:
                return data
        if found:
            raise ProtocolViolation(f"part {part} of what {self.name_of(member)} sent is not what it committed to")
        return None

    def aggregate(self, link: Link, part: int) -> bytes | None:
        """One part of the aggregate, as certified; None when it is not here. Raises ProtocolViolation as `wire`."""
        found = [data for file in self._files if (data := file.pieces(link.round).aggregate(part)) is not None]
        for data in found:
            if self._digest(link, part, link.body.parts[part], data) == link.body.parts[part].digest:
                return data
        if found:
            raise ProtocolViolation(f"part {part} of the aggregate is not what was certified")
        return None

    def examine(self, link: Link) -> Examination:
        """Every byte of a height that is here: against what was signed, and the aggregate against the rule."""
        found, here = Examination(), [member for member in link.members if self.held(link.round, member)]
        lying: set[int] = set()
        for part in range(len(link.body.parts)):
            rows: dict[int, bytes] = {}
            for member in here:
                try:
                    row = self.wire(link, member, part)
                except ProtocolViolation as error:
                    lying.add(member)
                    found.false_updates.append(str(error))
                else:
                    rows |= {member: row} if row is not None else {}
            try:
                found.parts += self.aggregate(link, part) is not None
            except ProtocolViolation as error:
                found.false_parts.append(str(error))
            again = self.recompute(link, part, rows)
            found.reduced += again is True
            if again is False:
                found.not_by_rule.append(f"part {part} is not what the rule gives; {self.blame(link, part)} signed it")
        found.updates = tuple(member for member in here if member not in lying) if link.commits else ()
        return found

    def recompute(self, link: Link, part: int, rows: Mapping[int, bytes]) -> bool | None:
        """Whether the rule gives what was certified, bit for bit; None when an update it used is not here.

        rows: the members' updates of this part, checked.
        """
        claimed, rules = link.body.parts[part], self.roster.rules
        used = [member for place, member in enumerate(link.members) if claimed.used >> place & 1]
        commits = [commit for member in used if member in rows and (commit := link.commit_of(member)) is not None]
        if len(commits) < len(used):
            return None
        exponents = [commit.exponents[part] for commit in commits]
        try:
            exponent, mantissas, given = self._arithmetic.reduce(
                rules.rule, bad_updates(len(link.members), iid=rules.iid), exponents, [rows[member] for member in used]
            )
        except LocalError:
            return False  # nothing that the rule takes: no honest reducer made an aggregate of it
        by_member = dict(zip(used, given, strict=True))
        again = replace(claimed, exponent=exponent, weights=tuple(by_member.get(member, 0) for member in link.members))
        return again == claimed and self._digest(link, part, again, mantissas) == claimed.digest

    def blame(self, link: Link, part: int) -> str:
        """Who answers for a part."""
        reducer = link.reducers.get(part)
        return "its reducer, not named here," if reducer is None else self.name_of(reducer)

    def name_of(self, member: int) -> str:
        one = self.roster.members[member]
        return f"{one.nickname} ({short(one.peer)})" if one.nickname else short(one.peer)

    # --- one height --------------------------------------------------------------------------------------------

    def _link(self, number: int, standing: Standing) -> Link:
        records = [record for file in self._files if (record := file.height(number)) is not None]
        certificates = [record.certificate for record in records]
        certificate, after = _first(certificates, lambda one: (one, standing.accept(one)))
        body = certificate.body
        if any(_is_fork(other, certificate, standing) for other in certificates):
            raise ProtocolViolation("two different results were certified: more members lied than the run could bear")
        commits, raw_commits = self._commits(records, body)
        statements = self._statements(records, body)
        signed = Signatures(
            raw_commits,
            next((r.proposal for r in records if r.proposal and self._is_proposal(r.proposal, body, standing)), None),
            tuple(raw for raw, _ in statements.values()),
        )
        return Link(
            number,
            body,
            record_hash(body),
            tuple(mark.member for mark in certificate.quorum.marks),
            commits,
            {part: member for part, (_, member) in statements.items()},
            certificate,
            signed,
            standing,
            after,
        )

    def _commits(self, records: list[HeightRecord], body: Body) -> tuple[tuple[Commit, ...], tuple[bytes, ...]]:
        there = [record.commits for record in records if record.commits]
        if not there:
            return (), ()
        return _first(there, lambda raw: (self._check_commits(raw, body), raw))

    def _check_commits(self, raw_commits: tuple[bytes, ...], body: Body) -> tuple[Commit, ...]:
        """They are those of the certified set, and each is what an honest member signs here."""
        members = places(body.members)
        if len(raw_commits) != len(members):
            raise ProtocolViolation(f"{len(raw_commits)} commits for a set of {len(members)}")
        commits = []
        for member, raw in zip(members, raw_commits, strict=True):
            peer, signed = self.roster.members[member].peer, open_message(raw)
            commit = signed.record
            if signed.signer != peer or not isinstance(commit, Commit):
                raise ProtocolViolation(f"no commit of {self.name_of(member)}", peer=signed.signer)
            place = (commit.run, commit.round, commit.prev, commit.state_root)
            if place != (self.roster.run, body.round, body.prev, body.state_root):
                raise ProtocolViolation(f"{self.name_of(member)} committed to another round or state", peer=peer)
            if not len(commit.hashes) == len(commit.exponents) == len(body.parts):
                raise ProtocolViolation(f"{self.name_of(member)} committed to {len(commit.hashes)} parts", peer=peer)
            commits.append(commit)
        entries = tuple(Entry(member, record_hash(commit)) for member, commit in zip(members, commits, strict=True))
        if set_hash(entries) != body.set_hash:
            raise ProtocolViolation("the commits are not those of the certified set")
        return tuple(commits)

    def _statements(self, records: list[HeightRecord], body: Body) -> dict[int, tuple[bytes, int]]:
        """Part → (envelope, member) of every statement of exactly what was certified. What is none is left out."""
        found: dict[int, tuple[bytes, int]] = {}
        for raw in (raw for record in records for raw in record.statements):
            try:
                signed = open_message(raw)
            except PeerViolation:
                continue
            told, member = signed.record, self.roster.index_of(signed.signer)
            if not isinstance(told, Reduced) or member is None or told.part >= len(body.parts):
                continue
            if (told.run, told.round, told.set_hash) == (self.roster.run, body.round, body.set_hash) and (
                told.result == body.parts[told.part]
            ):
                found.setdefault(told.part, (raw, member))
        return dict(sorted(found.items()))

    def _is_proposal(self, raw: bytes, body: Body, standing: Standing) -> bool:
        try:
            signed = open_message(raw)
            told = signed.record
            if isinstance(told, SetProposal):
                check_set(standing, told)
        except PeerViolation:
            return False
        return (
            isinstance(told, SetProposal)
            and self.roster.index_of(signed.signer) is not None
            and (told.run, told.round, set_hash(told.entries)) == (self.roster.run, body.round, body.set_hash)
        )

    def _digest(self, link: Link, part: int, claimed: Part, mantissas: bytes) -> bytes:
        return self._arithmetic.reduced_digest(
            self.roster.run,
            link.round,
            link.body.set_hash,
            part=part,
            exponent=claimed.exponent,
            used=claimed.used,
            weights=claimed.weights,
            mantissas=mantissas,
        )


def merge(archive: Archive, file: BinaryIO) -> None:
    """Write all that is right into one transcript; bytes that are false are left out. Raises as `walk`."""
    writer = TranscriptWriter(file, archive.opening, parts=archive.roster.rules.parts)
    for link in archive.walk():
        parts = range(len(link.body.parts))
        writer.add(
            link.certificate,
            link.signed,
            aggregate=_right(parts, partial(archive.aggregate, link)),
            wires={member: _right(parts, partial(archive.wire, link, member)) for member in link.members},
        )


def _is_fork(other: Certificate, certificate: Certificate, standing: Standing) -> bool:
    if other.body == certificate.body:
        return False
    try:
        check_certificate(standing.electorate, other)
    except PeerViolation:
        return False
    return True


def _run_of(file: Transcript) -> tuple[bytes, bytes, bytes, int]:
    opening = file.opening
    return opening.order, opening.base, opening.roster, opening.dimension


def _right(parts: range, read: Callable[[int], bytes | None]) -> dict[int, bytes]:
    """What is here and not false, by part."""
    found = {}
    for part in parts:
        with suppress(ProtocolViolation):
            found[part] = read(part)
    return {part: data for part, data in found.items() if data is not None}


def _first(choices: Sequence[A], check: Callable[[A], T]) -> T:
    """What the check makes of the first that passes. Raises what the last one failed by."""
    failure: PeerViolation | None = None
    for one in choices:
        try:
            return check(one)
        except PeerViolation as error:
            failure = error
    assert failure is not None, "the caller has one at least"
    raise failure
