"""What hands, judge and theatre share: who plays, where they are, and what came of it so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from celluler.learning.effects import Effect
from celluler.learning.messages import Part
from celluler.learning.roster import RosterView
from simulations.rounds.cast import digest
from simulations.rounds.member import Member
from simulations.rounds.schedule import Schedule
from simulations.world import World


@dataclass(slots=True)
class Outcome:
    """What came of a schedule. excluded, expelled, suspended: kinds of liars. joined, revived: how many came late, or
    began anew with a chain. spoiled: wrong parts that were certified because nobody honest drew them. broken: the
    promises that were not kept."""

    schedule: Schedule
    trace: str = ""
    views: int = 0
    finished_s: float = 0.0
    delivered: int = 0
    excluded: set[str] = field(default_factory=set)
    expelled: set[str] = field(default_factory=set)
    suspended: set[str] = field(default_factory=set)
    joined: int = 0
    revived: int = 0
    spoiled: int = 0
    stalled: dict[int, tuple[float, str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Stage:
    """roster: with everybody whom an honest member has seen admitted."""

    schedule: Schedule
    roster: RosterView
    world: World
    outcome: Outcome

    def name(self, place: int) -> str:
        return self.roster.members[place].peer

    def living(self, name: str) -> Member | None:
        machine = self.world[name] if name in self.world else None  # noqa: SIM401 - a World has no get
        return machine if isinstance(machine, Member) else None

    def honest(self) -> list[Member]:
        """Those alive, by name."""
        members = [self.living(name) for name in sorted(self.world.names)]
        return [member for member in members if member is not None and member.honest]

    def later(self, member: Member, delay: float, act: Callable[[float], Iterable[Effect]]) -> None:
        """Call back into a member's run, if that very process still lives then."""

        def call() -> None:
            if self.living(member.peer) is member:
                self.world.apply(member.peer, member.carry_out(act(self.world.now)))

        self.world.at(self.world.now + delay, call)

    def lost(self) -> bool:
        """Whether the network just now loses bytes."""
        return self.world.rng.random() < self.world.network.loss / 3

    def right(self, name_of_set: bytes, members: tuple[int, ...], part: int, used: int) -> Part:
        """What the rule of the model world gives for these inputs."""
        liars = self.schedule.liars
        weights = tuple(int(used >> k & 1 and place not in liars) for k, place in enumerate(members))
        return Part(digest("reduced", name_of_set, part, used), part, used, weights)
