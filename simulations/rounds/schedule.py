"""What happens in one simulated run, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from celluler.learning.checks import checks_for
from celluler.learning.roster import ALL_ROLES, Role, tolerated
from simulations.rounds.liars import CHECKED_LIARS, LIARS, MEMBERSHIP_LIARS, Honest, Traitor
from simulations.world import Network

PROMPT_S = 1.0
"""By so much checks may differ in a prompt world: half a delta."""


@dataclass(frozen=True, slots=True)
class Joiner:
    """Somebody who comes late. at: when it asks; invited: by the coordinator, else vouched for by members.

    vanishes: it is gone as soon as it is admitted.
    """

    at: float
    invited: bool
    vanishes: bool
    roles: Role = ALL_ROLES


@dataclass(frozen=True, slots=True)
class Schedule:
    """What happens in one simulated run; drawn from a seed by `draw`."""

    seed: int
    size: int
    rounds: int
    parts: int
    network: Network
    liars: dict[int, type[Honest]]
    deaths: dict[int, tuple[float, float | None]]
    """place: (when it dies, when it starts again or None)"""
    partition: tuple[float, float, frozenset[int]] | None
    cuts: tuple[tuple[int, int], ...]
    """Links that never work."""
    flaps: tuple[tuple[float, float, int, int], ...]
    """(from, to, one, other): links that fail for a while, long enough that views end in disagreement."""
    cunning: bool
    """Until it heals the network reads what it carries and parts the members just where they decide: only one gets the
    last votes, the next leader does not see the lock, and nobody is shown a certificate."""
    slow: dict[int, float]
    """place: by how many seconds its training is slower"""
    checks: bool = False
    slow_checks: dict[int, float] = field(default_factory=dict)
    """place: by how many seconds its computing anew is slower"""
    topology: str = "mesh"
    roles: tuple[Role, ...] = ()
    """By place; none: everybody does everything."""
    probation: int = 32
    suspension: int = 32
    joiners: tuple[Joiner, ...] = ()
    away: dict[int, tuple[float, float]] = field(default_factory=dict)
    """place: (from, to), while nobody hears it, nor it anybody"""
    forgets: bool = False
    """Whether members keep reduced parts of the last rounds only, as real ones do."""

    @property
    def describe(self) -> str:
        liars = ", ".join(f"{place} {kind.__name__}" for place, kind in self.liars.items()) or "none"
        return (
            f"seed {self.seed}: {self.size} members, {self.rounds} rounds, {self.parts} parts, {self.topology}, "
            f"checks {'on' if self.checks else 'off'}, liars: {liars}; deaths {self.deaths}; {self.network}; "
            f"roles {[int(role) for role in self.roles]}; joiners {self.joiners}; away {self.away}"
        )

    @property
    def prompt(self) -> bool:
        """Whether everything arrives and is checked well within delta, and nobody dies or is slow."""
        return not (
            self.network.loss or self.network.latency_s[1] > 0.3 or self.partition or self.cuts or self.flaps
            or self.cunning or self.deaths or self.slow or self.away
            or max(self.slow_checks.values(), default=0.0) > PROMPT_S
        )  # fmt: skip

    @property
    def thorough(self) -> bool:
        """Whether everybody checks everything."""
        return self.checks and checks_for(self.size, self.parts) >= self.parts


def draw(seed: int) -> Schedule:
    """A schedule that the protocol promises to survive: liars and dead together at most b.

    Every third is longer, and members come, go and return in it.
    """
    return _with_changes(_draw(seed), random.Random(f"changes {seed}")) if seed % 3 == 2 else _draw(seed)


def _draw(seed: int) -> Schedule:
    rng = random.Random(seed)
    size = rng.choice((1, 2, 3, 4, 4, 4, 5, 5, 6, 7, 7, 9, 10))
    checks = rng.random() < 0.7
    bad = rng.sample(range(size), rng.randint(0, tolerated(size)))
    liars: dict[int, type[Honest]] = {}
    deaths: dict[int, tuple[float, float | None]] = {}
    for place in bad:
        if rng.random() < 0.7:
            liars[place] = rng.choice(CHECKED_LIARS if checks and rng.random() < 0.7 else LIARS)
        else:
            deaths[place] = (rng.uniform(0.0, 12.0), rng.choice((None, rng.uniform(13.0, 25.0))))
    stormy = rng.random() < 0.5
    network = Network(
        latency_s=(0.005, rng.choice((0.05, 0.3, 1.0))),
        loss=rng.choice((0.0, 0.1, 0.3)) if stormy else 0.0,
        duplication=0.1 if stormy else 0.0,
    )
    partition = None
    if rng.random() < 0.3 and size > 1:
        start = rng.uniform(0.0, 8.0)
        side = frozenset(rng.sample(range(size), rng.randint(1, size - 1)))
        partition = (start, start + rng.uniform(1.0, 15.0), side)
    pairs = [(one, other) for one in range(size) for other in range(one)]
    cuts = tuple(rng.sample(pairs, 1)) if size > 3 and rng.random() < 0.3 else ()
    flaps: tuple[tuple[float, float, int, int], ...] = ()
    if rng.random() < 0.4 and size > 3:
        starts = [rng.uniform(0.5, 30.0) for _ in range(rng.randint(5, 12) * size)]
        flaps = tuple((start, start + rng.uniform(1.0, 7.0), *rng.choice(pairs)) for start in starts)
    cunning = rng.random() < 0.2
    if cunning:
        size = rng.choice((4, 4, 7))
        liars, deaths, partition, cuts, flaps = (
            dict.fromkeys(rng.sample(range(size), tolerated(size)), Traitor),
            {},
            None,
            (),
            (),
        )
    slow = {rng.randrange(size): rng.uniform(0.0, 6.0)} if rng.random() < 0.3 else {}
    slow_checks = {rng.randrange(size): rng.uniform(0.0, 6.0)} if checks and rng.random() < 0.2 else {}
    return Schedule(
        seed=seed, size=size, rounds=rng.choice((1, 2, 3, 4) if checks else (1, 2, 2, 3)),
        parts=rng.randint(1, 5 if checks else 3), network=network, liars=liars,
        deaths=deaths, partition=partition, cuts=cuts, flaps=flaps,
        cunning=cunning, slow=slow, checks=checks, slow_checks=slow_checks,
    )  # fmt: skip


def _with_changes(schedule: Schedule, rng: random.Random) -> Schedule:
    """The same, with roles, a topology, late joiners, suspensions or members that are away for long."""
    if schedule.size < 4 or schedule.cunning:
        return schedule
    bad = {
        place: rng.choice(MEMBERSHIP_LIARS) if rng.random() < 0.6 else kind for place, kind in schedule.liars.items()
    }
    joiners = tuple(
        Joiner(rng.uniform(0.0, 20.0), rng.random() < 0.5, rng.random() < 0.2, rng.choice((ALL_ROLES, Role.VALIDATOR)))
        for _ in range(rng.choice((0, 1, 1, 2)))
    )
    calm = not (schedule.partition or schedule.cuts or schedule.flaps)
    away, deaths = {}, schedule.deaths
    if calm and tolerated(schedule.size) > len(schedule.liars) and rng.random() < 0.6:
        place = rng.choice([place for place in range(schedule.size) if place not in schedule.liars])
        start = rng.uniform(0.0, 6.0)
        away, deaths = {place: (start, start + rng.uniform(8.0, 25.0))}, {}
    return replace(
        schedule, rounds=rng.randint(5, 10), liars=bad, deaths=deaths, joiners=joiners, away=away,
        parts=rng.randint(2, 5), topology=rng.choice(("mesh", "mesh", "star")), roles=_roles(schedule, rng),
        probation=rng.randint(0, 2), suspension=rng.choice((0, 2, 3)), forgets=True,
    )  # fmt: skip


def _roles(schedule: Schedule, rng: random.Random) -> tuple[Role, ...]:
    """Some only vote and check, some only train; as few that the bad ones are borne among each kind too."""
    if rng.random() < 0.5:
        return ()
    roles = tuple(
        rng.choice((ALL_ROLES, ALL_ROLES, Role.VALIDATOR, Role.WORKER | Role.AGGREGATOR, Role.WORKER | Role.VALIDATOR))
        for _ in range(schedule.size)
    )
    bad = schedule.liars.keys() | schedule.deaths.keys()
    return roles if all(_bears(roles, role, len(bad)) for role in Role) else ()


def _bears(roles: tuple[Role, ...], role: Role, bad: int) -> bool:
    having = sum(role in one for one in roles)
    return having > bad if role is Role.AGGREGATOR else tolerated(having) >= bad + 1
