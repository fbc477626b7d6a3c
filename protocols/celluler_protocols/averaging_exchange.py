"""One exchange of /celluler/averaging/1 as a machine: what came, what it is worth, what goes out. No input or output.

Each part has a reducer, who gathers its inputs (`averaging_gathering`) and sends the aggregate to everybody. Where
inputs go to all (`Plan.to_all`), every member gathers every part and finds the aggregates by itself; the reducer still
says which inputs it used and what came of them, and its bytes travel to those only who did not find the same.
Knows nothing of streams, clocks or hivemind.
"""

from __future__ import annotations

from dataclasses import dataclass

from celluler.aggregation.digests import mantissas_of, reduced_digest, wire_bytes
from celluler.aggregation.q16 import part_slices
from celluler.aggregation.rule import Reduced as RuleResult
from celluler.aggregation.wires import FINEST, pack, unpack
from celluler.errors import Busy, LocalError, PeerViolation, ProtocolViolation
from celluler_protocols.averaging_gathering import Gathering, outcome_of, squares_of
from celluler_protocols.averaging_messages import (
    VALUE_BYTES,
    Fault,
    FaultKind,
    Outcome,
    Part,
    PartOutcome,
    Plan,
    Reduced,
    Squares,
    Update,
    check_plan,
)

MAX_FAULTS = 1024


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the bytes of a part or an aggregate go, `target`, and where its mantissas belong then, `place`.

    The two are one unless it comes packed. reduced: what was announced of an aggregate. vain: what comes is here.
    """

    target: memoryview
    place: memoryview
    member: int
    part: int
    reduced: Reduced | None = None
    vain: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message and its bytes for one member, by place."""

    member: int
    message: Part | Reduced | Update
    body: bytes | bytearray | memoryview

    @property
    def part(self) -> int:
        return 0 if isinstance(self.message, Update) else self.message.part


@dataclass(frozen=True, slots=True)
class Sealed:
    """An aggregate of ours: what is said about it, its mantissas, and what its inputs' norms are."""

    result: PartOutcome
    body: memoryview
    squares: Squares


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
        self._squares: dict[int, Squares] = {}
        self._coming: set[int] = set()
        self._faults: dict[tuple[FaultKind, int, int], Fault] = {}
        self._broken: set[tuple[int, int]] = set()
        self.mine = tuple(each.part for each in plan.assignments if each.reducer == plan.me)
        """The parts of which we are the reducer."""
        self.gatherings = {part: Gathering(plan, part) for part in (self._reducer if plan.to_all else self.mine)}
        if len(self._own) != (len(self.aggregate) if self._me.hashes else 0):
            raise LocalError(f"{len(self._own)} bytes of our own for {len(self.aggregate)}")
        self._take_own()
        self._travelling = {part: self._packed(self.own(part)) for part in self._places if self._me.hashes}

    # --- what goes out ---

    def parts_to_send(self) -> list[Delivery]:
        """Our parts for the others, beginning behind ourselves so that not everybody starts at the first reducer.

        Where inputs go to all, one message brings all of them.
        """
        if not self._me.hashes:
            return []
        me, count = self.plan.me, len(self.plan.members)
        if self.plan.to_all:
            body = self._own if self.plan.wire == FINEST else b"".join(self._travelling.values())
            update = Update(*self.plan.key, len(body))
            deliveries = [Delivery(member, update, body) for member in range(count) if member != me]
        else:
            deliveries = [
                Delivery(reducer, Part(*self.plan.key, part, self.plan.bytes_of(part)), self._travelling[part])
                for part, reducer in self._reducer.items()
                if reducer != me
            ]
        return sorted(deliveries, key=lambda delivery: (delivery.member - me) % count)

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
        """The aggregate as it will be told. Changes nothing, so it may run in a thread."""
        body, squares = memoryview(wire_bytes(result.mantissas)), squares_of(self.plan, part, used, result)
        return Sealed(outcome_of(self.plan, part, used, result), body, squares)

    def publish(self, sealed: Sealed) -> list[Delivery]:
        """Keep the aggregate as everybody else will, and give out the same bytes for all the others.

        The exchange may be complete from here on: whoever calls must have begun the deliveries before anybody else
        can find that out and end it.
        """
        result, plan = sealed.result, self.plan
        self._places_view(result.part)[:] = sealed.body
        self._results[result.part], self._squares[result.part] = result, sealed.squares
        message = Reduced(
            *plan.key,
            plan.set_hash,
            result.part,
            result.exponent,
            result.used,
            result.weights,
            result.digest,
            plan.bytes_of(result.part),
        )
        body = self._packed(sealed.body)
        others = [place for place in range(len(plan.members)) if place != plan.me]
        return [Delivery(member, message, body) for member in others]

    # --- what we find by ourselves, where inputs go to all ---

    def foresee(self, part: int, used: int) -> Sealed | None:
        """The aggregate over these inputs, if we have them all. Once the part is closed; may run in a thread.

        used: as `PartOutcome` has it.
        """
        gathering = self.gatherings.get(part)
        places = tuple(place for place in range(len(self.plan.members)) if used >> place & 1)
        if gathering is None or not gathering.closed or not all(map(gathering.has, places)) or not places:
            return None
        return self.seal(part, *gathering.reduce(places))

    def settle(self, message: Reduced, sealed: Sealed) -> bool:
        """Whether what its reducer says of an aggregate is what we have found; if so it has come."""
        told = PartOutcome(message.part, message.exponent, message.used, message.weights, message.digest)
        if told != sealed.result:
            return False
        self._places_view(message.part)[:] = sealed.body
        self._results[message.part], self._squares[message.part] = told, sealed.squares
        return True

    # --- what comes in ---

    def begin(self, peer: str, message: Part | Reduced) -> Slot:
        """Where the announced bytes go. Raises PeerViolation (noted as a fault), or Unavailable: try again."""
        member = self._member(peer)
        try:
            if message.part not in self._places or message.size != self.plan.bytes_of(message.part):
                raise _Wrong(FaultKind.LENGTH, f"{message.size} bytes announced")
            if isinstance(message, Part):
                return self._slot(self._begin_part(member, message), member, message.part)
            return self._slot(self._begin_reduced(member, message), member, message.part, message)
        except PeerViolation as error:
            self._note(error, member, message.part)
            raise

    def begin_update(self, peer: str, message: Update) -> list[Slot]:
        """Where the bytes of all the parts go, one slot after another. Raises as `begin` does."""
        member = self._member(peer)
        try:
            if not self.plan.to_all:
                raise _Wrong(FaultKind.ORDER, "parts that are not ours to reduce")
            if message.size != sum(self.plan.bytes_of(part) for part in self._places):
                raise _Wrong(FaultKind.LENGTH, f"{message.size} bytes announced")
            if any(gathering.is_coming(member) for gathering in self.gatherings.values()):
                raise Busy("another stream is bringing this update")
            if all(gathering.has(member) for gathering in self.gatherings.values()):
                raise _Wrong(FaultKind.ORDER, "a second copy of the update")
            return self._slots_of_update(member)
        except PeerViolation as error:
            self._note(error, member, 0)
            raise

    def is_announced(self, peer: str, message: Reduced) -> None:
        """An aggregate that we may have found already. Raises as `begin` does, and takes no slot."""
        member = self._member(peer)
        try:
            if message.part not in self._places or message.size != self.plan.bytes_of(message.part):
                raise _Wrong(FaultKind.LENGTH, f"{message.size} bytes announced")
            self._check_turn(member, message)
            self._check_reduced(message)
        except PeerViolation as error:
            self._note(error, member, message.part)
            raise

    def finish(self, slot: Slot) -> None:
        """All the bytes came. Raises PeerViolation, noted as a fault, when they are not what they must be."""
        if slot.vain:
            return
        try:
            if slot.target is not slot.place:
                self._unpack(slot)
            if slot.reduced is None:
                self._finish_part(slot)
            else:
                self._finish_reduced(slot, slot.reduced)
        except PeerViolation as error:
            self._note(error, slot.member, slot.part)
            raise

    def broken(self, slot: Slot) -> None:
        """The stream ended within the bytes: room for another try, and no fault if that succeeds."""
        if slot.vain:
            return
        self._broken.add((slot.member, slot.part))
        if slot.reduced is None:
            self.gatherings[slot.part].broken(slot.member)
        else:
            self._coming.discard(slot.part)
            slot.place[:] = bytes(len(slot.place))

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
        return Outcome(reduced, missing, tuple(self._faults.values()), tuple(self._squares.values()))

    def input_of(self, part: int, member: int) -> memoryview | None:
        """A member's input, for those who check: from our gathering, or our own part."""
        if part in self.gatherings and member in self.gatherings[part].there:
            return self.gatherings[part].row(member)
        if member == self.plan.me and self._me.hashes and part in self._places:
            return self.own(part)
        return None

    def input_packed(self, part: int, member: int) -> bytes | bytearray | memoryview | None:
        """The same as it travels."""
        if member == self.plan.me and part in self._travelling:
            return self._travelling[part]
        held = self.input_of(part, member)
        return None if held is None else self._packed(held)

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

    def _member(self, peer: str) -> int:
        member = self._members.get(peer)
        if member is None:
            raise ProtocolViolation("not a member of this round", peer=peer)
        return member

    def _packed(self, mantissas: memoryview) -> bytes | bytearray | memoryview:
        return pack(self.plan.wire, mantissas_of(mantissas))

    def _unpack(self, slot: Slot) -> None:
        try:
            found = unpack(self.plan.wire, slot.target, self.plan.values_in(slot.part))
        except ProtocolViolation as error:
            if slot.reduced is None:
                self.gatherings[slot.part].shut(slot.member)
            else:
                self._coming.discard(slot.part)
            kind = FaultKind.HASH if slot.reduced is None else FaultKind.AGGREGATE
            raise _Wrong(kind, f"no packing of this wire: {error}") from None
        slot.place[:] = wire_bytes(found)

    def _slot(self, place: memoryview, member: int, part: int, reduced: Reduced | None = None) -> Slot:
        packed = self.plan.wire != FINEST
        target = memoryview(bytearray(self.plan.bytes_of(part))) if packed else place
        return Slot(target, place, member, part, reduced)

    def _slots_of_update(self, member: int) -> list[Slot]:
        slots: list[Slot] = []
        try:
            for part in self._places:
                slots.append(self._slot_of_update(member, part))
        except ProtocolViolation:
            for slot in slots:
                self.broken(slot)
            raise
        return slots

    def _slot_of_update(self, member: int, part: int) -> Slot:
        gathering = self.gatherings[part]
        if gathering.closed or gathering.has(member) or gathering.is_shut(member):
            target = memoryview(bytearray(self.plan.bytes_of(part)))
            return Slot(target, target, member, part, vain=True)
        return self._slot(gathering.begin(member), member, part)

    def _begin_part(self, member: int, message: Part) -> memoryview:
        if self._reducer[message.part] != self.plan.me:
            raise _Wrong(FaultKind.ORDER, "not our part to reduce")
        return self.gatherings[message.part].begin(member)

    def _begin_reduced(self, member: int, message: Reduced) -> memoryview:
        self._check_turn(member, message)
        if message.part in self._coming:
            raise Busy("another stream is bringing this aggregate")
        self._check_reduced(message)
        self._coming.add(message.part)
        return self._places_view(message.part)

    def _check_turn(self, member: int, message: Reduced) -> None:
        if self._reducer[message.part] != member:
            raise _Wrong(FaultKind.ORDER, "not its part to reduce")
        if message.part in self._results:
            raise _Wrong(FaultKind.ORDER, "a second aggregate")

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

    def _finish_part(self, slot: Slot) -> None:
        try:
            self.gatherings[slot.part].finish(slot.member)
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
            mantissas=slot.place,
        )
        if found != message.digest:
            slot.place[:] = bytes(len(slot.place))
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
