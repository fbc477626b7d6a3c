"""The inputs of one part at whoever reduces it, and the reducing anew of a part by whoever checks it.

One row a member; bytes are received straight into their row and count only once they hash to what the member
committed to. A row is written by one stream at a time, and by none once the rule has begun. No input or output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum, auto

import numpy as np

from celluler.aggregation.digests import part_hash, reduced_digest, wire_bytes
from celluler.aggregation.q16 import Mantissas
from celluler.aggregation.rule import Reduced as RuleResult
from celluler.aggregation.rules import rule_named
from celluler.aggregation.wires import round_to
from celluler.errors import Busy, LocalError, ProtocolViolation, Unavailable
from celluler_protocols.averaging_messages import VALUE_BYTES, PartOutcome, Plan, Squares

MAX_TRIES = 3
"""Streams on which a member may begin the same part, a broken connection being no fault of its own."""


class Late(Unavailable):
    """Too late for this part; nobody's fault."""


class _Row(Enum):
    ABSENT = auto()
    COMING = auto()
    THERE = auto()
    SHUT = auto()  # it committed to nothing, or sent something else: nothing more is expected


class Gathering:
    """The inputs of one part at its reducer."""

    def __init__(self, plan: Plan, part: int) -> None:
        self.part = part
        self._plan = plan
        self._matrix = np.empty((len(plan.members), plan.values_in(part)), dtype=np.dtype("<i2"))
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

    def is_coming(self, member: int) -> bool:
        return self._rows[member] is _Row.COMING

    def has(self, member: int) -> bool:
        return self._rows[member] is _Row.THERE

    def is_shut(self, member: int) -> bool:
        return self._rows[member] is _Row.SHUT

    def shut(self, member: int) -> None:
        """What came cannot be what it committed to."""
        self._rows[member] = _Row.SHUT

    def reduce(self, used: tuple[int, ...] | None = None) -> tuple[tuple[int, ...], RuleResult]:
        """(members used, the rule's result over their rows). Only after `closed` was set; may run in a thread.

        used: by default all that are there; others must be.
        """
        assert self.closed
        used = self.there if used is None else used
        rows: Mantissas = self._matrix if len(used) == len(self._rows) else self._matrix[list(used)]
        exponents = np.array([self._plan.members[member].exponents[self.part] for member in used], dtype=np.int16)
        found = rule_named(self._plan.rule)(exponents, rows.astype(np.int16, copy=False), self._plan.f)
        return used, replace(found, mantissas=round_to(self._plan.wire, found.mantissas))


def is_committed(plan: Plan, part: int, member: int, mantissas: bytes | bytearray | memoryview) -> bool:
    """Whether these are the bytes that the member committed to for this part."""
    who = plan.members[member]
    if not who.hashes:
        return False
    found = part_hash(plan.run, plan.round, who.author, part=part, exponent=who.exponents[part], mantissas=mantissas)
    return found == who.hashes[part]


def squares_of(plan: Plan, part: int, used: tuple[int, ...], result: RuleResult) -> Squares:
    """What the rule found of its inputs. used: as in `outcome_of`."""
    found = dict(zip(used, result.squares, strict=True))
    return Squares(part, tuple(found.get(member) for member in range(len(plan.members))))


def outcome_of(plan: Plan, part: int, used: tuple[int, ...], result: RuleResult) -> PartOutcome:
    """What is said of an aggregate, and voted on. used: the members whose rows the rule saw, in their order."""
    weights = [0] * len(plan.members)
    for member, weight in zip(used, result.weights, strict=True):
        weights[member] = weight
    bitmap = sum(1 << member for member in used)
    digest = reduced_digest(
        plan.run,
        plan.round,
        plan.set_hash,
        part=part,
        exponent=result.exponent,
        used=bitmap,
        weights=tuple(weights),
        mantissas=result.mantissas,
    )
    return PartOutcome(part, result.exponent, bitmap, tuple(weights), digest)


def used_in(plan: Plan, result: PartOutcome) -> tuple[int, ...]:
    """The members whose inputs an aggregate says it has in it."""
    return tuple(place for place in range(len(plan.members)) if result.used >> place & 1)


def check_aggregate(
    plan: Plan, result: PartOutcome, inputs: Mapping[int, bytes | bytearray | memoryview]
) -> tuple[bool, Squares]:
    """Reduce a part anew from the inputs its reducer says it used, and compare everything, bit for bit.

    inputs: mantissas of every member in `result.used`. Returns whether all is the same, and what the inputs' norms are
    in any case. Raises LocalError when one is missing, ProtocolViolation when one is not what its member committed to.
    """
    gathering = Gathering(plan, result.part)
    used = used_in(plan, result)
    for member in used:
        if member not in inputs or memoryview(inputs[member]).nbytes != plan.values_in(result.part) * VALUE_BYTES:
            raise LocalError(f"no input of member {member}")
        gathering.begin(member)[:] = memoryview(inputs[member]).cast("B")
        gathering.finish(member)
    gathering.closed = True
    _, found = gathering.reduce()
    return outcome_of(plan, result.part, used, found) == result, squares_of(plan, result.part, used, found)
