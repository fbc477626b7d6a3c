"""Runs without certificates in virtual time: members hold small vectors, some lie, die, lag or are cut off.

`play` gives a schedule's outcome: what every honest member ended with and when. The machine, its words and their
signatures and the mixing are those that nodes run; training is a step towards a target, moving a model takes time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from celluler.engines.mixing import averaged, clipped, length_between
from celluler.identity import Identity, PeerId, seal
from celluler.learning.effects import Fault, Send
from celluler.learning.neighbours import SETTLING_ROUNDS, Neighbours
from celluler.learning.neighbours_effects import Done, Effect, Gather, Mix, Step
from celluler.learning.roster import RosterEntry, RosterView, open_roster, rules_for, seal_roster
from celluler.learning.topology import Topology
from simulations.world import Network, World

Vector = NDArray[np.float32]
Lie = Callable[[int, Vector], Vector]
"""From the round and the own model to what is sent instead."""

QUIET = Network(latency_s=(0.005, 0.05))
RATE = np.float32(0.3)
"""How far a training round goes towards the member's target."""


@dataclass(frozen=True, slots=True)
class Out:
    """What the world carries."""

    peer: str
    message: bytes


def digest(*pieces: Any) -> bytes:
    return blake2b(repr(pieces).encode(), digest_size=32).digest()


@lru_cache(maxsize=128)
def identity(number: int) -> Identity:
    return Identity(digest("neighbour", number))


@lru_cache(maxsize=64)
def roster_of(size: int, rounds: int) -> RosterView:
    """Δ is two seconds."""
    run = digest("run", size, rounds)
    entries = tuple(
        seal(identity(number), RosterEntry(run, identity(100 + number).peer_id, (), f"peer-{number}"))
        for number in range(size)
    )
    rules = rules_for(size, rounds=rounds, parts=1, delta_ms=2_000, exchange_ms=3_000, train_ms=30_000)
    raw = seal_roster(identity(99), run=run, job=digest("job"), entries=entries, rules=rules)
    return open_roster(raw, identity(99).peer_id)


@lru_cache(maxsize=64)
def signers_of(size: int) -> dict[str, Identity]:
    return {identity(number).peer_id: identity(number) for number in range(size)}


@dataclass(frozen=True, slots=True)
class Schedule:
    """starts, targets: (members, d). deaths: place to when. cut_off: (from, to, the places on one side).

    slow: place to how long its steps take. lies: place to what it sends. mean: mix without a radius.
    """

    topology: Topology
    starts: Vector
    targets: Vector | None = None
    rounds: int = 8
    settling: int = SETTLING_ROUNDS
    seed: int = 0
    network: Network = QUIET
    deaths: Mapping[int, float] = field(default_factory=dict)
    cut_off: tuple[float, float, tuple[int, ...]] | None = None
    slow: Mapping[int, float] = field(default_factory=dict)
    lies: Mapping[int, Lie] = field(default_factory=dict)
    mean: bool = False
    step_s: float = 0.1
    regions: tuple[str, ...] = ()

    @property
    def honest(self) -> tuple[int, ...]:
        return tuple(place for place in range(len(self.starts)) if place not in self.lies and place not in self.deaths)


@dataclass(slots=True)
class Outcome:
    """models: of the members that ended, by place; when: at which time; distances: as each reports its own."""

    models: dict[int, Vector] = field(default_factory=dict)
    when: dict[int, float] = field(default_factory=dict)
    distances: dict[int, float] = field(default_factory=dict)
    faults: list[tuple[int, PeerId, str]] = field(default_factory=list)
    trace: str = ""

    def spread(self, places: Iterable[int]) -> float:
        """The largest distance between two of them."""
        models = [self.models[place] for place in places]
        return max(length_between(one, two) for one in models for two in models)


class Member:
    """A machine and the little it works on. A machine of the world."""

    def __init__(self, theatre: Theatre, place: int) -> None:
        schedule = theatre.schedule
        self.theatre, self.place = theatre, place
        signer = signers_of(len(schedule.starts))[theatre.roster.members[place].peer]
        self.run = Neighbours(
            theatre.roster, signer, topology=schedule.topology, regions=schedule.regions, settling=schedule.settling
        )
        self.model = schedule.starts[place].copy()
        self.length = 0.0
        self.sent: dict[bytes, Vector] = {}
        self.rows: dict[tuple[int, int], Vector] = {}

    def receive(self, sender: str, raw: bytes, now: float) -> list[Any]:
        return self.carry_out(self.run.receive(PeerId(sender), raw, now))

    def tick(self, now: float) -> list[Any]:
        return self.carry_out(self.run.tick(now))

    def next_deadline(self) -> float:
        return self.run.next_deadline()

    def carry_out(self, effects: Iterable[Effect]) -> list[Any]:
        outputs: list[Any] = []
        for effect in effects:
            if isinstance(effect, Send):
                peers = [effect.to] if effect.to else [m.peer for m in self.run.roster.members if m.index != self.place]
                outputs += [Out(peer, effect.data) for peer in peers if peer not in effect.skip]
            else:
                outputs.append(effect)
        return outputs


class Theatre:
    """One schedule being played."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.roster = roster_of(len(schedule.starts), schedule.rounds)
        self.world = World(schedule.seed, schedule.network, sends=Out, observe=self._observe, size_of=len)
        self.outcome = Outcome()
        self.members = {place: Member(self, place) for place in range(len(schedule.starts))}

    def play(self, until: float = 600.0) -> Outcome:
        schedule, world = self.schedule, self.world
        for place, member in self.members.items():
            world.add(self._name(place), member, member.carry_out(member.run.start(0.0)))
        for place, dies in schedule.deaths.items():
            world.at(dies, lambda place=place: world.remove(self._name(place)))  # type: ignore[misc]
        if schedule.cut_off is not None:
            begins, ends, side = schedule.cut_off
            world.at(begins, lambda: world.partition([self._name(place) for place in side]))
            world.at(ends, world.heal)
        while world.now < until and not all(member.run.finished for member in self._present()):
            world.run(world.now + 0.5)
        self.outcome.trace = world.trace
        return self.outcome

    def _present(self) -> list[Member]:
        return [member for place, member in self.members.items() if self._name(place) in self.world]

    def _name(self, place: int) -> str:
        return self.roster.members[place].peer

    def _observe(self, name: str, output: Any, now: float) -> None:
        place = self.roster.index_of(name)
        assert place is not None
        match output:
            case Step():
                self._later(
                    place, self.schedule.slow.get(place, self.schedule.step_s), lambda: self._step(place, output)
                )
            case Gather():
                self._later(place, 0.02, lambda: self._gather(place, output))
            case Mix():
                self._later(place, 0.0, lambda: self._mix(place, output))
            case Done():
                member = self.members[place]
                self.outcome.models[place] = member.model
                self.outcome.when[place] = now
                self.outcome.distances[place] = output.distance
            case Fault(peer, reason):
                self.outcome.faults.append((place, peer, reason))

    def _later(self, place: int, after_s: float, work: Callable[[], Iterable[Effect]]) -> None:
        def act() -> None:
            if self._name(place) in self.world:
                self.world.apply(self._name(place), self.members[place].carry_out(work()))

        self.world.at(self.world.now + after_s, act)

    def _step(self, place: int, effect: Step) -> Iterable[Effect]:
        member, targets = self.members[place], self.schedule.targets
        if effect.train and targets is not None:
            before = member.model
            member.model = (before + RATE * (targets[place] - before)).astype(np.float32)
            member.length = length_between(member.model, before)
        lie = self.schedule.lies.get(place)
        shown = member.model if lie is None else lie(effect.round, member.model)
        name = digest(place, effect.round)
        member.sent[name] = shown.astype(np.float32)
        return member.run.stepped(effect.round, (name,), (0,), self.world.now)

    def _gather(self, place: int, effect: Gather) -> Iterable[Effect]:
        reachable = self.world.reachable(self._name(place), self._name(effect.place))
        there = self._name(effect.place) in self.world and reachable
        if there:
            found = self.members[effect.place].sent[effect.model.hashes[0]]
            self.members[place].rows[effect.place, effect.model.round] = found
        return self.members[place].run.gathered(effect.place, effect.model.round, there, self.world.now)

    def _mix(self, place: int, effect: Mix) -> Iterable[Effect]:
        member = self.members[place]
        rows = [member.rows[row.place, row.model.round] for row in effect.rows]
        weights = [row.weight for row in effect.rows]
        if self.schedule.mean:
            mixture = averaged(member.model, rows, weights)
        else:
            mixture = clipped(member.model, rows, weights, trusted=effect.trusted, step=member.length)
        member.model = mixture.vector
        return member.run.mixed(effect.round, mixture.deviations, mixture.pulls, self.world.now)


def play(schedule: Schedule) -> Outcome:
    return Theatre(schedule).play()
