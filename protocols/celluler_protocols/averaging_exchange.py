"""One exchange of /celluler/averaging/1 as a machine: what came, what it is worth, what goes out. No input or output.

A reducer keeps one row a member for each of its parts; bytes are received straight into their row and count only
once they hash to what the member committed to. A row is written by one stream at a time, and by none once the rule
has begun. Knows nothing of streams, clocks or hivemind.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from celluler.aggregation.digests import part_hash, reduced_digest, wire_bytes
from celluler.aggregation.q16 import Mantissas, part_slices
from celluler.aggregation.rule import Reduced as RuleResult
from celluler.aggregation.rules import rule_named
from celluler.errors import Busy, LocalError, PeerViolation, ProtocolViolation, Unavailable
from celluler_protocols.averaging_messages import (
    VALUE_BYTES,
    Fault,
    FaultKind,
    Outcome,
    Part,
    PartOutcome,
    Plan,
    Reduced,
    check_plan,
)

MAX_FAULTS = 1024
MAX_TRIES = 3
"""Streams on which a member may begin the same part, a broken connection being no fault of its own."""


class Late(Unavailable):
    """Too late for this part; nobody's fault."""


class _Row(Enum):
    ABSENT = auto()
    COMING = auto()
    THERE = auto()
    SHUT = auto()  # it committed to nothing, or sent something else: nothing more is expected


@dataclass(slots=True)
class Slot:
    """Where the bytes of an announced part or aggregate go. `target` has exactly the announced length."""

    target: memoryview
    member: int
    message: Part | Reduced


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message and its bytes for one member, by place."""

    member: int
    message: Part | Reduced
    body: bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Sealed:
    """An aggregate of ours: what is said about it, and its bytes."""

    result: PartOutcome
    body: memoryview


class Gathering:
    """The inputs of one part at its reducer."""

    def __init__(self, plan: Plan, part: int) -> None:
        self.part = part
        self._plan = plan
        self._matrix = np.zeros((len(plan.members), plan.values_in(part)), dtype=np.dtype("<i2"))
        self._rows = [_Row.ABSENT if member.hashes else _Row.SHUT for member in plan.members]
        self._tries = [0] * len(plan.members)
        self.closed = False

    @property
    def complete(self) -> bool:
        return all(row in (_Row.THERE, _Row.SHUT) for row in self._rows)

    @property
    def there(self) -> tuple[int, ...]:
        return tuple(member for member, row in enumerate(self._rows) if row is _Row.THERE)

    def begin(self, member: int) -> memoryview:
        """The row to receive into. Raises Late or Busy (try again), ProtocolViolation when this member may not."""
        if self.closed:
            raise Late("the part is being reduced already")
        match self._rows[member]:
            case _Row.THERE:
                raise ProtocolViolation("a second copy of the part")
            case _Row.SHUT:
                raise ProtocolViolation("nothing more is expected from this member")
            case _Row.COMING:
                raise Busy("another stream is bringing this part")
        self._tries[member] += 1
        if self._tries[member] > MAX_TRIES:
            raise ProtocolViolation(f"begun {MAX_TRIES} times and never finished")
        self._rows[member] = _Row.COMING
        return self.row(member)

    def broken(self, member: int) -> None:
        """The stream ended within the bytes."""
        self._rows[member] = _Row.ABSENT

    def finish(self, member: int) -> None:
        """All bytes of the row came. Raises ProtocolViolation when they are not what the member committed to."""
        if not is_committed(self._plan, self.part, member, self.row(member)):
            self._rows[member] = _Row.SHUT
            raise ProtocolViolation("bytes other than those committed to")
        self._rows[member] = _Row.THERE

    def row(self, member: int) -> memoryview:
        return memoryview(wire_bytes(self._matrix[member]))

    def reduce(self) -> tuple[tuple[int, ...], RuleResult]:
        """(members used, the rule's result over their rows). Only after `closed` was set; may run in a thread."""
        assert self.closed
        used = self.there
        rows: Mantissas = self._matrix if len(used) == len(self._rows) else self._matrix[list(used)]
        exponents = np.array([self._plan.members[member].exponents[self.part] for member in used], dtype=np.int16)
        return used, rule_named(self._plan.rule)(exponents, rows.astype(np.int16, copy=False), self._plan.f)


class Exchange:
    """All of one exchange at one member."""

    def __init__(self, plan: Plan, own: bytes | bytearray | memoryview) -> None:
        """own: our mantissas of the assigned parts, in the order of the assignments; empty if we committed to none.

        Raises LocalError when the plan contradicts itself or `own` has another length, or is not what we committed to.
        """
        check_plan(plan)
        self.plan = plan
        self._reducer = {each.part: each.reducer for each in plan.assignments}
        self._places = self._layout()
        self._me = plan.members[plan.me]
        self._members = {member.peer: place for place, member in enumerate(plan.members)}
        self.aggregate = bytearray(sum(place.stop - place.start for place in self._places.values()))
        """The reduced mantissas in the order of the assignments; zeros where one is missing."""
        self._own = memoryview(own).cast("B")
        self._results: dict[int, PartOutcome] = {}
        self._coming: set[int] = set()
        self._faults: dict[tuple[FaultKind, int, int], Fault] = {}
        self._broken: set[tuple[int, int]] = set()
        self.gatherings = {
            each.part: Gathering(plan, each.part) for each in plan.assignments if each.reducer == plan.me
        }
        if len(self._own) != (len(self.aggregate) if self._me.hashes else 0):
            raise LocalError(f"{len(self._own)} bytes of our own for {len(self.aggregate)}")
        self._take_own()

    # --- what goes out ---

    def parts_to_send(self) -> list[Delivery]:
        """Our parts for the others, beginning behind ourselves so that not everybody starts at the first reducer."""
        if not self._me.hashes:
            return []
        deliveries = [
            Delivery(reducer, Part(*self.plan.key, part, len(self.own(part))), self.own(part))
            for part, reducer in self._reducer.items()
            if reducer != self.plan.me
        ]
        count = len(self.plan.members)
        return sorted(deliveries, key=lambda delivery: (delivery.member - self.plan.me) % count)

    def close_gathering(self, part: int) -> bool:
        """No more inputs for this part; says whether there are enough. The missing ones are noted as faults."""
        gathering = self.gatherings[part]
        gathering.closed = True
        there = set(gathering.there)
        for member, who in enumerate(self.plan.members):
            if who.hashes and member not in there:
                self.fault(FaultKind.MISSING, member, part, self._why_missing(member, part))
        return len(there) >= self.plan.quorum

    def seal(self, part: int, used: tuple[int, ...], result: RuleResult) -> Sealed:
        """The aggregate as it will be sent. Changes nothing, so it may run in a thread."""
        body = memoryview(wire_bytes(result.mantissas))
        weights = [0] * len(self.plan.members)
        for member, weight in zip(used, result.weights, strict=True):
            weights[member] = weight
        bitmap = sum(1 << member for member in used)
        plan = self.plan
        digest = reduced_digest(
            plan.run,
            plan.round,
            plan.set_hash,
            part=part,
            exponent=result.exponent,
            used=bitmap,
            weights=tuple(weights),
            mantissas=body,
        )
        return Sealed(PartOutcome(part, result.exponent, bitmap, tuple(weights), digest), body)

    def publish(self, sealed: Sealed) -> list[Delivery]:
        """Keep the aggregate as everybody else will, and give out the same bytes for all the others.

        The exchange may be complete from here on: whoever calls must have begun the deliveries before anybody else
        can find that out and end it.
        """
        result, plan = sealed.result, self.plan
        self._places_view(result.part)[:] = sealed.body
        self._results[result.part] = result
        message = Reduced(
            *plan.key,
            plan.set_hash,
            result.part,
            result.exponent,
            result.used,
            result.weights,
            result.digest,
            len(sealed.body),
        )
        others = [place for place in range(len(plan.members)) if place != plan.me]
        return [Delivery(member, message, sealed.body) for member in others]

    # --- what comes in ---

    def begin(self, peer: str, message: Part | Reduced) -> Slot:
        """Where the announced bytes go. Raises PeerViolation (noted as a fault), or Unavailable: try again."""
        member = self._members.get(peer)
        if member is None:
            raise ProtocolViolation("not a member of this round", peer=peer)
        try:
            if message.part not in self._places or message.size != len(self._places_view(message.part)):
                raise _Wrong(FaultKind.LENGTH, f"{message.size} bytes announced")
            if isinstance(message, Part):
                return Slot(self._begin_part(member, message), member, message)
            return Slot(self._begin_reduced(member, message), member, message)
        except PeerViolation as error:
            self._note(error, member, message.part)
            raise

    def finish(self, slot: Slot) -> None:
        """All the bytes came. Raises PeerViolation, noted as a fault, when they are not what they must be."""
        try:
            if isinstance(slot.message, Part):
                self._finish_part(slot.member, slot.message)
            else:
                self._finish_reduced(slot, slot.message)
        except PeerViolation as error:
            self._note(error, slot.member, slot.message.part)
            raise

    def broken(self, slot: Slot) -> None:
        """The stream ended within the bytes: room for another try, and no fault if that succeeds."""
        self._broken.add((slot.member, slot.message.part))
        if isinstance(slot.message, Part):
            self.gatherings[slot.message.part].broken(slot.member)
        else:
            self._coming.discard(slot.message.part)
            slot.target[:] = bytes(len(slot.target))

    def fault(self, kind: FaultKind, member: int, part: int, detail: str) -> None:
        if len(self._faults) < MAX_FAULTS:
            self._faults.setdefault((kind, member, part), Fault(kind.value, member, part, detail[:60]))

    @property
    def complete(self) -> bool:
        return len(self._results) == len(self._reducer)

    def outcome(self) -> Outcome:
        """What came of it so far. A reducer that sent nothing is a fault of its link to us."""
        missing = tuple(part for part in self._reducer if part not in self._results)
        for part in missing:
            if self._reducer[part] != self.plan.me:
                reducer = self._reducer[part]
                self.fault(FaultKind.NOT_REDUCED, reducer, part, self._why_missing(reducer, part))
        reduced = tuple(self._results[part] for part in self._reducer if part in self._results)
        return Outcome(reduced, missing, tuple(self._faults.values()))

    def input_of(self, part: int, member: int) -> memoryview | None:
        """A member's input, for those who check: from our gathering, or our own part."""
        if part in self.gatherings and member in self.gatherings[part].there:
            return self.gatherings[part].row(member)
        if member == self.plan.me and self._me.hashes and part in self._places:
            return self.own(part)
        return None

    def own(self, part: int) -> memoryview:
        return self._own[self._places[part]]

    # --- inside ---

    def _layout(self) -> dict[int, slice]:
        """Where each assigned part lies in `own` and in `aggregate`, in bytes."""
        pieces = part_slices(self.plan.dimension, self.plan.parts)
        places, start = {}, 0
        for each in self.plan.assignments:
            size = (pieces[each.part].stop - pieces[each.part].start) * VALUE_BYTES
            places[each.part] = slice(start, start + size)
            start += size
        return places

    def _why_missing(self, member: int, part: int) -> str:
        return "the stream ended within the bytes" if (member, part) in self._broken else "nothing came"

    def _places_view(self, part: int) -> memoryview:
        return memoryview(self.aggregate)[self._places[part]]

    def _take_own(self) -> None:
        if not self._me.hashes:
            return
        for part, gathering in self.gatherings.items():
            gathering.begin(self.plan.me)[:] = self.own(part)
            try:
                gathering.finish(self.plan.me)
            except ProtocolViolation:
                raise LocalError(f"our own part {part} is not what we committed to") from None

    def _begin_part(self, member: int, message: Part) -> memoryview:
        gathering = self.gatherings.get(message.part)
        if gathering is None:
            raise _Wrong(FaultKind.ORDER, "not our part to reduce")
        return gathering.begin(member)

    def _begin_reduced(self, member: int, message: Reduced) -> memoryview:
        if self._reducer[message.part] != member:
            raise _Wrong(FaultKind.ORDER, "not its part to reduce")
        if message.part in self._results:
            raise _Wrong(FaultKind.ORDER, "a second aggregate")
        if message.part in self._coming:
            raise Busy("another stream is bringing this aggregate")
        self._check_reduced(message)
        self._coming.add(message.part)
        return self._places_view(message.part)

    def _check_reduced(self, message: Reduced) -> None:
        """The fields agree with the set and with each other; whether the rule was followed is for the checkers."""
        count = len(self.plan.members)
        allowed = sum(1 << place for place, member in enumerate(self.plan.members) if member.hashes)
        if message.set_hash != self.plan.set_hash:
            raise _Wrong(FaultKind.AGGREGATE, "reduced over another set")
        if message.used & ~allowed or message.used.bit_count() < self.plan.quorum or len(message.weights) != count:
            raise _Wrong(FaultKind.AGGREGATE, "inputs that cannot have been there, or too few")
        if any(weight and not message.used >> place & 1 for place, weight in enumerate(message.weights)):
            raise _Wrong(FaultKind.AGGREGATE, "weight on an input that was not there")

    def _finish_part(self, member: int, message: Part) -> None:
        try:
            self.gatherings[message.part].finish(member)
        except ProtocolViolation as error:
            raise _Wrong(FaultKind.HASH, str(error)) from None

    def _finish_reduced(self, slot: Slot, message: Reduced) -> None:
        self._coming.discard(message.part)
        found = reduced_digest(
            self.plan.run,
            self.plan.round,
            self.plan.set_hash,
            part=message.part,
            exponent=message.exponent,
            used=message.used,
            weights=message.weights,
            mantissas=slot.target,
        )
        if found != message.digest:
            slot.target[:] = bytes(len(slot.target))
            raise _Wrong(FaultKind.AGGREGATE, "bytes that do not match their digest")
        self._results[message.part] = PartOutcome(
            message.part, message.exponent, message.used, message.weights, message.digest
        )

    def _note(self, error: PeerViolation, member: int, part: int) -> None:
        kind = error.kind if isinstance(error, _Wrong) else FaultKind.ORDER
        self.fault(kind, member, part, str(error))


class _Wrong(ProtocolViolation):
    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def is_committed(plan: Plan, part: int, member: int, mantissas: bytes | bytearray | memoryview) -> bool:
    """Whether these are the bytes that the member committed to for this part."""
    who = plan.members[member]
    if not who.hashes:
        return False
    found = part_hash(plan.run, plan.round, who.author, part=part, exponent=who.exponents[part], mantissas=mantissas)
    return found == who.hashes[part]


def check_aggregate(plan: Plan, result: PartOutcome, inputs: dict[int, bytes | bytearray | memoryview]) -> bool:
    """Reduce a part anew from the inputs its reducer says it used, and compare everything, bit for bit.

    inputs: of every member in `result.used`. Raises LocalError when one is missing, ProtocolViolation when one is
    not what its member committed to.
    """
    gathering = Gathering(plan, result.part)
    used = tuple(place for place in range(len(plan.members)) if result.used >> place & 1)
    for member in used:
        if member not in inputs or memoryview(inputs[member]).nbytes != plan.values_in(result.part) * VALUE_BYTES:
            raise LocalError(f"no input of member {member}")
        gathering.begin(member)[:] = memoryview(inputs[member]).cast("B")
        gathering.finish(member)
    gathering.closed = True
    _, reduced = gathering.reduce()
    weights = [0] * len(plan.members)
    for member, weight in zip(used, reduced.weights, strict=True):
        weights[member] = weight
    digest = reduced_digest(
        plan.run,
        plan.round,
        plan.set_hash,
        part=result.part,
        exponent=reduced.exponent,
        used=result.used,
        weights=tuple(weights),
        mantissas=reduced.mantissas,
    )
    return (reduced.exponent, tuple(weights), digest) == (result.exponent, result.weights, result.digest)
