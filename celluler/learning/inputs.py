"""The inputs of one view: which commits, and who reduces which part. Pure functions of what was signed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from celluler.errors import ProtocolViolation
from celluler.identity import Signed
from celluler.learning.messages import Commit, Part, Reduced, SetProposal, mask, places, set_hash
from celluler.learning.roster import Electorate, RosterView


class Situation(Protocol):
    """Of a `standing.Standing`, what matters here: whose commits a set may name, and how many it needs."""

    @property
    def roster(self) -> RosterView: ...

    @property
    def electorate(self) -> Electorate: ...

    @property
    def senders(self) -> int: ...

    @property
    def least(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Inputs:
    """An accepted set. members: ascending places; commits: theirs; reducers: a place for each part."""

    view: int
    hash: bytes
    members: tuple[int, ...]
    commits: tuple[Commit, ...]
    state_root: bytes
    reducers: tuple[int, ...]

    @property
    def mask(self) -> int:
        return mask(self.members)

    def states(self, roster: RosterView, round_number: int, part: int, result: Part) -> Reduced:
        """The statement a reducer signs for this result."""
        return Reduced(roster.run, round_number, self.view, self.hash, part, result)


def inputs_of(standing: Situation, proposal: SetProposal, commits: list[Signed[Commit]], parts: int) -> Inputs:
    """The inputs that a set names. Raises ProtocolViolation when the commits do not start from one state."""
    roots = {signed.record.state_root for signed in commits}
    if len(roots) != 1:
        raise ProtocolViolation("a set mixes commits from different states")
    members = tuple(entry.member for entry in proposal.entries)
    reducers = reducers_of(standing, proposal, parts)
    records = tuple(signed.record for signed in commits)
    return Inputs(proposal.view, set_hash(proposal.entries), members, records, roots.pop(), reducers)


def reducers_of(standing: Situation, proposal: SetProposal, parts: int) -> tuple[int, ...]:
    """Who reduces which part of a set, by place; for the topology that the rules name. Raises ProtocolViolation."""
    roster, able = standing.roster, mask(entry.member for entry in proposal.entries) & ~proposal.barred
    return assign_reducers(
        len(roster), places(able & standing.electorate.aggregators), topology=roster.rules.topology,
        round_number=proposal.round, view=proposal.view, parts=parts,
    )  # fmt: skip


def assign_reducers(
    size: int, able: tuple[int, ...], *, topology: str, round_number: int, view: int, parts: int
) -> tuple[int, ...]:
    """able: places of the aggregators in the set that are not barred.

    mesh: part j goes to the first of them at or after place (j + round + view) mod size. It turns with the view, so
    that a reducer that fails one view does another part in the next. star: all go to the first at or after place view
    mod size, so that it stays the same while it works.
    """
    if not parts:
        return ()
    if not able:
        raise ProtocolViolation("a set of which nobody may reduce")

    def reducer(start: int) -> int:
        return min(able, key=lambda place: (place - start) % size)

    if topology == "star":
        return (reducer(view),) * parts
    return tuple(reducer(part + round_number + view) for part in range(parts))


def check_set(standing: Situation, proposal: SetProposal) -> None:
    """Raises ProtocolViolation for a set that no honest leader proposes."""
    members, electorate = [entry.member for entry in proposal.entries], standing.electorate
    inside = mask(members)
    if any(one >= two for one, two in pairwise(members)) or inside & ~standing.senders:
        raise ProtocolViolation("a set out of order or with a stranger in it")
    if len(members) < standing.least:
        raise ProtocolViolation(f"a set of {len(members)} commits, of which {standing.least} are needed")
    barred = proposal.barred
    if barred.bit_count() > electorate.b or barred & ~inside or barred == inside:
        raise ProtocolViolation("a set bars too many members or strangers")


def check_part(part: Part, size: int, tolerated: int) -> None:
    """size: of the set. Raises ProtocolViolation for a result that cannot come from these inputs."""
    if len(part.weights) != size or part.used >> size:
        raise ProtocolViolation(f"a part with {len(part.weights)} weights for {size} inputs")
    if part.used.bit_count() < size - tolerated:
        raise ProtocolViolation(f"a part reduced from {part.used.bit_count()} of {size} inputs")
    if any(weight and not part.used >> place & 1 for place, weight in enumerate(part.weights)):
        raise ProtocolViolation("a part gives weight to an input it did not have")
