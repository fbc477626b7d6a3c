"""The averager of one run, seen from the node: a process that speaks with the other members' averagers.

Translates between what the round machine says (roster places, commits, parts) and what an exchange needs (averagers,
hashes, assignments). Moves arrays as bytes and looks at none.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from celluler.aggregation.q16 import is_exponent, part_slices
from celluler.aggregation.wires import FINEST
from celluler.errors import WorkerFailed
from celluler.identity import PeerId, public_key_of, short
from celluler.learning.checks import CheckOutcome, CheckPart, Verdict, checks_for
from celluler.learning.effects import Check, Exchange
from celluler.learning.messages import Commit, Part
from celluler.learning.neighbours_messages import Model
from celluler.learning.roster import RosterMember, RosterView, bad_updates
from celluler_node.processes import averager_words as words
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Program
from celluler_protocols.averaging_messages import (
    VALUE_BYTES,
    Assignment,
    Fault,
    FaultKind,
    Member,
    Outcome,
    PartOutcome,
    Plan,
    Squares,
)

log = structlog.get_logger()

LINK_FAULTS = frozenset({FaultKind.MISSING, FaultKind.UNREACHABLE, FaultKind.NOT_REDUCED})
"""Faults of a link, so of either end; every other one is the member's own doing."""

IN_TIME = 0.8
"""Share of its time after which an exchange is over, whatever is missing: the answer needs the rest, and a leader that
does not have it in time blames nobody and tries the same again."""
MAX_GATHERED_BYTES = 1 << 29
"""Of all updates of a round, up to which everybody gathers all of them. An averager keeps three rounds."""

NO_PLACE = 255
"""Of whoever checks an exchange without having been of its set."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """One reduced part as it came. mantissas: its little-endian int16."""

    part: Part
    mantissas: bytes


@dataclass(frozen=True, slots=True)
class Blame:
    """A fault of an exchange, in words. violation: no honest member does it."""

    peer: PeerId
    reason: str
    violation: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """Squared L2 norms of the inputs of one part, by roster place, in the units of the weights."""

    part: int
    squares: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Exchanged:
    """results: one a part, None where it did not come. seen: of the parts that we reduced ourselves."""

    results: tuple[Reduction | None, ...]
    blames: tuple[Blame, ...]
    seen: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """seen: None where the inputs could not be had. inputs: mantissas by roster place, where these prove a lie."""

    outcome: CheckOutcome
    seen: Seen | None
    inputs: Mapping[int, bytes] = field(default_factory=dict)


class Averaging:
    """Made by `open_averaging`. sent_bytes, received_bytes: all that its streams have moved so far."""

    def __init__(self, child: Child, peer: PeerId, addresses: tuple[str, ...], wire: str) -> None:
        self._child, self.peer, self.addresses, self._wire = child, peer, addresses, wire
        self.sent_bytes = self.received_bytes = 0

    async def admit(self, roster: RosterView) -> None:
        """Listen to the members of a roster and to nobody else; again when it has more, or other addresses."""
        await self._child.call(words.Admit(tuple(_member(member, (), ()) for member in roster.members)))

    async def exchange(
        self, roster: RosterView, me: int, effect: Exchange, dimension: int, mantissas: bytes
    ) -> Exchanged:
        """One exchange among the members of a set, of which roster place `me` is one.

        mantissas: (dimension,) little-endian int16, our update as committed.
        """
        plan = plan_of(roster, me, effect, dimension, self._wire)
        reply = await self._child.call(words.Exchange(plan), mantissas)
        outcome: Outcome = reply.record.outcome
        self._count(reply.record.moved)
        return Exchanged(
            _results(outcome, dimension, memoryview(reply.blobs[0])),
            tuple(_blame(roster, effect.members, fault) for fault in outcome.faults),
            tuple(_seen(effect.members, squares) for squares in outcome.squares),
        )

    async def check(self, roster: RosterView, me: int, effect: Check, part: CheckPart, dimension: int) -> Checked:
        """Reduce one part anew from its inputs. Never raises for what others do or fail to do."""
        claimed = part.claimed
        result = PartOutcome(part.part, claimed.exponent, claimed.used, claimed.weights, claimed.digest)
        try:
            reply = await self._child.call(words.Check(plan_of(roster, me, effect, dimension, self._wire), result))
        except WorkerFailed as error:
            return Checked(CheckOutcome(part, Verdict.UNSERVED, str(error).encode()[:200]), None)
        told: words.Checked = reply.record
        self._count(told.moved)
        outcome = CheckOutcome(part, Verdict.SAME if told.equal else Verdict.DIFFERENT)
        proven_by = tuple(effect.members[place] for place in told.proven_by)
        return Checked(outcome, _seen(effect.members, told.squares), _rows(proven_by, reply.blobs))

    async def inputs(
        self,
        roster: RosterView,
        place: int,
        round_number: int,
        commit: Commit | Model,
        parts: Sequence[int],
        dimension: int,
        within_s: float,
    ) -> bytes | None:
        """Parts of a member's update of a round, from that member, each verified against what it committed to.

        parts: ascending. One after another, little-endian int16; None when they are not served in time, or are others.
        Raises WorkerFailed when our own averager has ended.
        """
        member = _member(roster.members[place], commit.hashes, commit.exponents)
        if not all(map(is_exponent, commit.exponents)):
            return None
        request = words.Inputs(roster.run, round_number, member, dimension, tuple(parts))
        with trio.move_on_after(within_s):
            try:
                reply = await self._child.call(request)
            except WorkerFailed as error:
                if self._child.reason is not None:
                    raise  # our own averager is gone: that says nothing of the member
                log.info("inputs_not_served", peer=short(member.peer), round=round_number, reason=str(error)[:200])
                return None
            self._count(reply.record.moved)
            return bytes(reply.blobs[0])
        return None

    async def offer(self, run: bytes, round_number: int, parts: int, mantissas: bytes) -> None:
        """Serve our own model of a round to those who ask by `inputs`: (dimension,) little-endian int16."""
        await self._child.call(words.Offer(run, round_number, parts), mantissas)

    async def drain(self, within_s: float) -> None:
        """After the last round: send on what others still lack, then stop listening."""
        await self._child.call(words.Close(within_s))

    def _count(self, moved: words.Moved) -> None:
        self.sent_bytes, self.received_bytes = moved.sent_bytes, moved.received_bytes


@asynccontextmanager
async def open_averaging(
    listen: Sequence[str],
    scratch: Path,
    program: Program = words.AVERAGER,
    *,
    seed: bytes | None = None,
    wire: str = FINEST,
) -> AsyncIterator[Averaging]:
    """Start an averager under a key of its own, a fresh one unless `seed`, 32 bytes, is given. Raises WorkerFailed.

    wire: how updates travel.
    """
    async with open_process(program, limits=words.AVERAGER_LIMITS, scratch=scratch) as child:
        opened = (await child.call(words.Open(seed or os.urandom(32), tuple(listen)))).record
        yield Averaging(child, PeerId(opened.peer), opened.addresses, wire)


def plan_of(roster: RosterView, me: int, effect: Exchange | Check, dimension: int, wire: str = FINEST) -> Plan:
    """The exchange as all members of the set must see it: places in the plan are places in the set.

    Whoever only checks need not be of the set, and stands at no place of its own then.
    """
    rules = roster.rules
    members = tuple(zip(effect.members, effect.commits, strict=True))
    return Plan(
        run=roster.run,
        round=effect.round,
        view=effect.view,
        set_hash=effect.set_hash,
        me=effect.members.index(me) if me in effect.members else NO_PLACE,
        members=tuple(_member(roster.members[place], c.hashes, c.exponents) for place, c in members),
        dimension=dimension,
        parts=rules.parts,
        assignments=tuple(Assignment(j, effect.members.index(place)) for j, place in enumerate(effect.reducers)),
        rule=rules.rule,
        f=bad_updates(len(effect.members), iid=rules.iid),
        quorum=effect.least if isinstance(effect, Exchange) else 1,
        gather_s=effect.within_s / 2,
        deadline_s=IN_TIME * effect.within_s,
        wire=wire,
        to_all=rules.topology == "mesh" and inputs_go_to_all(len(members), rules.parts, dimension),
    )


def inputs_go_to_all(members: int, parts: int, dimension: int) -> bool:
    """Whether each sends its update to everybody: where all would fetch it for their checks, and have room for it."""
    return checks_for(members, parts) >= parts and members * dimension * VALUE_BYTES <= MAX_GATHERED_BYTES


def _member(member: RosterMember, hashes: tuple[bytes, ...], exponents: tuple[int, ...]) -> Member:
    return Member(member.averager, public_key_of(member.peer), member.averager_addresses, hashes, exponents)


def _results(outcome: Outcome, dimension: int, aggregate: memoryview) -> tuple[Reduction | None, ...]:
    pieces = part_slices(dimension, len(outcome.reduced) + len(outcome.missing))
    results: list[Reduction | None] = [None] * len(pieces)
    for one in outcome.reduced:
        piece = pieces[one.part]
        mantissas = bytes(aggregate[piece.start * VALUE_BYTES : piece.stop * VALUE_BYTES])
        results[one.part] = Reduction(Part(one.digest, one.exponent, one.used, one.weights), mantissas)
    return tuple(results)


def _rows(members: Sequence[int], blobs: Sequence[bytes | bytearray | memoryview]) -> dict[int, bytes]:
    """One blob of rows of a length, one after another; none where there are no members."""
    whole = memoryview(blobs[0] if blobs else b"")
    size = len(whole) // max(1, len(members))
    return {member: bytes(whole[at * size : (at + 1) * size]) for at, member in enumerate(members)}


def _seen(members: Sequence[int], squares: Squares) -> Seen:
    """members: roster places of the set."""
    pairs = zip(members, squares.values, strict=True)
    return Seen(squares.part, {place: value for place, value in pairs if value is not None})


def _blame(roster: RosterView, members: Sequence[int], fault: Fault) -> Blame:
    peer = roster.members[members[fault.member]].peer
    violation = fault.kind not in LINK_FAULTS
    return Blame(peer, f"averaging, {fault.kind}: {fault.detail}"[:200], violation)
