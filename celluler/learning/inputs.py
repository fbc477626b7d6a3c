"""The inputs of one view: which commits, and who reduces which part. Pure functions of what was signed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from celluler.errors import ProtocolViolation
from celluler.identity import Signed
from celluler.learning.messages import Commit, Part, Reduced, SetProposal, mask, places, set_hash
from celluler.learning.roster import Electorate, RosterView


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


def inputs_of(roster: RosterView, proposal: SetProposal, commits: list[Signed[Commit]], parts: int) -> Inputs:
    """The inputs that a set names. Raises ProtocolViolation when the commits do not start from one state."""
    roots = {signed.record.state_root for signed in commits}
    if len(roots) != 1:
        raise ProtocolViolation("a set mixes commits from different states")
    members = tuple(entry.member for entry in proposal.entries)
    reducers = assign_reducers(
        len(roster), members, proposal.barred, round_number=proposal.round, view=proposal.view, parts=parts
    )
    records = tuple(signed.record for signed in commits)
    return Inputs(proposal.view, set_hash(proposal.entries), members, records, roots.pop(), reducers)


def assign_reducers(
    size: int, members: tuple[int, ...], barred: int, *, round_number: int, view: int, parts: int
) -> tuple[int, ...]:
    """Part j goes to the first member of the set, not barred, at or after place (j + round + view) mod size.

    It turns with the view, so that a reducer that fails one view does another part in the next.
    """
    able = [place for place in members if not barred >> place & 1]
    if not able:
        raise ProtocolViolation("a set bars every member from reducing")

    def reducer(start: int) -> int:
        return min(able, key=lambda place: (place - start) % size)

    return tuple(reducer(part + round_number + view) for part in range(parts))


def check_set(roster: RosterView, proposal: SetProposal, *, expelled: int = 0) -> None:
    """Raises ProtocolViolation for a set that no honest leader proposes. expelled: mask of those out before it."""
    members = [entry.member for entry in proposal.entries]
    electorate = Electorate(roster, expelled)
    if any(one >= two for one, two in pairwise(members)) or not electorate.has(mask(members)):
        raise ProtocolViolation("a set out of order or with a stranger in it")
    if len(members) < electorate.q:
        raise ProtocolViolation(f"a set of {len(members)} commits, quorum {electorate.q}")
    barred = places(proposal.barred)
    if len(barred) > electorate.b or not set(barred) <= set(members) or len(barred) == len(members):
        raise ProtocolViolation("a set bars too many members or strangers")


def check_part(part: Part, size: int, tolerated: int) -> None:
    """size: of the set. Raises ProtocolViolation for a result that cannot come from these inputs."""
    if len(part.weights) != size or part.used >> size:
        raise ProtocolViolation(f"a part with {len(part.weights)} weights for {size} inputs")
    if part.used.bit_count() < size - tolerated:
        raise ProtocolViolation(f"a part reduced from {part.used.bit_count()} of {size} inputs")
    if any(weight and not part.used >> place & 1 for place, weight in enumerate(part.weights)):
        raise ProtocolViolation("a part gives weight to an input it did not have")
