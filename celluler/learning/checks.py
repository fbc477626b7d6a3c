"""Which parts of the others' reducing a member computes anew, and what came of it. Pure; one object a height.

A member draws its parts from its own signature over the set and the view: nobody can foresee or choose them, and
nobody needs be asked. It looks at a part only once its reducer has signed the result, so that who asks for inputs
tells a liar nothing in time. Up to eight members each checks every part that is not its own.

A verdict belongs to (set, part, claimed result), not to a view: the same inputs and bitmap give the same bytes.
Only UNSERVED, which says that inputs could not be had just now, ends with its view.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from blake3 import blake3

from celluler.identity import Signed
from celluler.learning.inputs import Inputs
from celluler.learning.messages import Commit, Entry, Part, Reduced, places

CHECK_ALL = 8
"""Members up to which each checks all parts but its own."""
CHECKS = 2
"""Parts that each checks in a larger group."""

Key = tuple[bytes, int, Part]
"""Set hash, part, what its reducer claims."""


class Verdict(StrEnum):
    """SAME: every bit. DIFFERENT: the inputs were had and give something else. UNSERVED: an input was not had."""

    SAME = "same"
    DIFFERENT = "different"
    UNSERVED = "unserved"


@dataclass(frozen=True, slots=True)
class CheckPart:
    """One result to be computed anew. reducer: a roster place.

    inputs: (roster place, hash it committed to) of every input that the reducer says it used, ascending; the claimed
    part's `used` names the same ones by their places in the set.
    """

    set_hash: bytes
    part: int
    reducer: int
    inputs: tuple[tuple[int, bytes], ...]
    claimed: Part

    @property
    def key(self) -> Key:
        return self.set_hash, self.part, self.claimed


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """What came of one. evidence: whatever the caller would like to see in a log; it proves nothing to anybody."""

    part: CheckPart
    outcome: Verdict
    evidence: bytes | None = None


def checks_for(members: int, parts: int) -> int:
    """How many parts a member of such a group checks in each view."""
    return parts if members <= CHECK_ALL else min(CHECKS, parts)


def draw(secret: bytes, candidates: Iterable[int], count: int) -> tuple[int, ...]:
    """`count` of the parts, ascending. secret: our own signature, which nobody else has seen."""
    ranked = sorted(candidates, key=lambda part: blake3(secret + part.to_bytes(2, "big")).digest())
    return tuple(sorted(ranked[:count]))


@dataclass(slots=True)
class Case:
    """One result under examination.

    statements: by reducer, who all signed this same result. accusers: with their accusations. noted, asked, judged:
    the latest view in which it was ours to check, was asked for, and was answered. pending: questions unanswered.
    """

    key: Key
    entries: tuple[Entry, ...]
    inputs: Inputs | None = None
    statements: dict[int, Signed[Reduced]] = field(default_factory=dict)
    accusers: dict[int, bytes] = field(default_factory=dict)
    verdict: Verdict | None = None
    noted: int = -1
    asked: int = -1
    judged: int = -1
    pending: int = 0

    def verdict_in(self, view: int) -> Verdict | None:
        return None if self.verdict is Verdict.UNSERVED and self.judged < view else self.verdict

    @property
    def as_check(self) -> CheckPart:
        inputs, (set_hash, part, claimed) = self.inputs, self.key
        assert inputs is not None
        used = (
            (inputs.members[place], inputs.commits[place].hashes[part]) for place in places(claimed.used)
        )  # places in the set
        return CheckPart(set_hash, part, next(reversed(self.statements)), tuple(used), claimed)


class Checks:
    """The cases of one height."""

    def __init__(self) -> None:
        self.cases: dict[Key, Case] = {}
        self.news: dict[Key, None] = {}
        """Cases of which we have learned something that was not acted upon yet."""

    def note(self, inputs: Inputs, entries: tuple[Entry, ...], reducer: int, statement: Signed[Reduced]) -> None:
        """A statement that is ours to check in this view."""
        case = self._case(statement, reducer, entries)
        case.inputs, case.noted = inputs, inputs.view

    def accuse(
        self, accuser: int, raw: bytes, reducer: int, statement: Signed[Reduced], entries: tuple[Entry, ...]
    ) -> None:
        self._case(statement, reducer, entries).accusers.setdefault(accuser, raw)

    def has_accused(self, accuser: int, key: Key) -> bool:
        case = self.cases.get(key)
        return case is not None and accuser in case.accusers

    def open_accusations(self, accuser: int) -> int:
        """Of this member, and not found to be true."""
        return sum(accuser in case.accusers and case.verdict is not Verdict.DIFFERENT for case in self.cases.values())

    def unresolved(self) -> list[Case]:
        """Accusations whose inputs were not named to us yet: we lack commits, or have not looked."""
        return [case for case in self.cases.values() if case.inputs is None]

    def unasked(self, view: int) -> list[Case]:
        return [
            case for case in self.cases.values()
            if case.inputs is not None and case.asked < view and case.verdict_in(view) is None
            and (case.noted == view or case.accusers)
        ]  # fmt: skip

    def answer(self, results: Sequence[CheckOutcome], view: int) -> None:
        """What the caller found. UNSERVED never takes back what is known."""
        for result in results:
            case = self.cases.get(result.part.key)
            if case is None:
                continue
            case.pending -= 1
            stale = result.outcome is Verdict.UNSERVED and case.pending > 0  # of an earlier view, and asked again since
            if case.verdict in (None, Verdict.UNSERVED) and not stale:
                case.verdict, case.judged = result.outcome, view
                self.news[case.key] = None

    def verdict(self, key: Key, view: int) -> Verdict | None:
        case = self.cases.get(key)
        return None if case is None else case.verdict_in(view)

    def _case(self, statement: Signed[Reduced], reducer: int, entries: tuple[Entry, ...]) -> Case:
        reduced = statement.record
        key = (reduced.set_hash, reduced.part, reduced.result)
        case = self.cases.setdefault(key, Case(key, entries))
        if reducer not in case.statements:
            case.statements[reducer] = statement
        self.news[key] = None
        return case


def inputs_for(accused: int, entries: tuple[Entry, ...], commits: tuple[Commit, ...], statement: Reduced) -> Inputs:
    """The inputs that an accusation names, as far as a check needs them: all parts stand to the accused."""
    members = tuple(entry.member for entry in entries)
    reducers = (accused,) * len(commits[0].hashes)
    return Inputs(statement.view, statement.set_hash, members, commits, commits[0].state_root, reducers)
