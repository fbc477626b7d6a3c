"""Audits in virtual time: members that skip their work, accuse falsely, lie about what they found, or hide it.

A model of a run: rounds are certified at their times, to each member a little later or earlier, by a chain that all
share; the machines under test are the real ones, and so is every signature. After every schedule with at most b liars

- no honest member is proven guilty of anything by an honest one, nor blamed;
- who is proven guilty is known as that to all honest members, with evidence that a stranger can open;
- an honest member that serves is not found unserved.

`python -m simulations.auditing --schedules 300` plays many; a failing seed is printed and replays exactly.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from celluler.errors import PeerViolation
from celluler.identity import seal
from celluler.learning.audit_messages import Accuse, Conviction, Verdict
from celluler.learning.auditing import Auditing
from celluler.learning.court import Bench
from celluler.learning.effects import Audit, Exclude, Fault, Send
from celluler.learning.evidence import Docket
from celluler.learning.evidence_file import Kind, open_evidence, read_evidence_file
from celluler.learning.messages import mask, open_message
from celluler.learning.roster import tolerated
from simulations.audit_liars import LIARS, Chain, Honest, roster_of
from simulations.world import Network, World

QUIET = Network(latency_s=(0.01, 0.1))
ROUND_S = 8.0
REPLAY_S = (0.2, 1.5)
TELL_S = 0.7
"""How often members tell each other of whom they hold proof."""
CALM_ROUNDS = 4
"""At the end nothing new is done wrong, so that what was found can be heard everywhere."""


@dataclass(frozen=True, slots=True)
class Out:
    """What the world carries."""

    peer: str
    message: bytes


# --- one schedule -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Schedule:
    """absent: (round, member) whose update is in no set. away: members that can be reached by nobody from that time
    to that one, in rounds."""

    seed: int
    size: int
    rounds: int
    audits: int
    network: Network
    liars: dict[int, type[Honest]]
    absent: float = 0.0
    away: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def describe(self) -> str:
        liars = {place: kind.__name__ for place, kind in sorted(self.liars.items())}
        return f"seed {self.seed}: {self.size} members, {self.rounds} rounds, {self.network}, {liars}, away {self.away}"


@dataclass(slots=True)
class Outcome:
    schedule: Schedule
    proven: dict[int, str] = field(default_factory=dict)
    unserved: set[int] = field(default_factory=set)
    audits: int = 0
    replays: int = 0
    delivered: int = 0
    broken: list[str] = field(default_factory=list)


class Member:
    """One member's audits in the world."""

    def __init__(self, theatre: Theatre, place: int, voice: Honest) -> None:
        self.theatre, self.place, self.voice = theatre, place, voice
        self.height = 0
        self.docket = Docket()
        chain, key = theatre.chain, voice.key
        self.machine = Auditing(
            Bench(
                me=place, roster=lambda: chain.roster, seal=lambda record: seal(key, record), docket=self.docket,
                electorate_of=lambda number: chain.electorates[number] if number < self.height else None,
                body_of=lambda number: chain.bodies[number] if 0 <= number < self.height else None,
                may_speak=lambda number: True,
            )
        )  # fmt: skip

    @property
    def honest(self) -> bool:
        return type(self.voice) is Honest

    def receive(self, peer: str, raw: bytes, now: float) -> Iterable[Any]:
        roster = self.theatre.chain.roster
        sender = roster.index_of(peer)
        found: list[Any] = []
        try:
            signed = open_message(raw)
            author = roster.index_of(signed.signer)
            if author is None:
                return found
            if self.theatre.expelled >> author & 1:
                return found
            new = self._dispatch(sender, author, signed, now)
            if new:
                others = [place for place in range(len(roster)) if place not in (self.place, sender, author)]
                found += self._carry(others, raw)
        except PeerViolation as error:
            self.theatre.blamed(self, author if isinstance(author, int) else None, str(error))
        return [*found, *self._effects()]

    def _dispatch(self, sender: int | None, author: int, signed: Any, now: float) -> bool:
        match signed.record:
            case Accuse():
                return self.machine.accuse(sender, signed, now)
            case Verdict():
                return self.machine.judged(signed, now)
            case Conviction():
                return self.machine.convict(author, signed, now)
        return False

    def tick(self, now: float) -> Iterable[Any]:
        self.machine.tick(now)
        return self._effects()

    def next_deadline(self) -> float | None:
        return self.machine.next_deadline()

    def act(self, now: float, *words: tuple[int, bytes]) -> Iterable[Any]:
        """What has come up meanwhile, and words of its own."""
        members = self.theatre.chain.roster.members
        return [*self._effects(), *(Out(members[place].peer, raw) for place, raw in words)]

    def _effects(self) -> list[Any]:
        found: list[Any] = []
        members = self.theatre.chain.roster.members
        for effect in self.machine.take():
            if isinstance(effect, Send):
                to = [m.index for m in members if m.index != self.place and effect.to in (None, m.peer)]
                found += self._carry(to, effect.data)
            else:
                found.append(effect)
        return found

    def _carry(self, to: Sequence[int], raw: bytes) -> list[Out]:
        members = self.theatre.chain.roster.members
        return [Out(members[place].peer, word) for place, word in self.voice.say(to, raw)]


class Theatre:
    """Plays one schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.roster = roster_of(schedule.size, schedule.audits)
        self.chain = Chain(self.roster, schedule.seed)
        self.rng = random.Random(schedule.seed)
        self.world = World(schedule.seed, schedule.network, sends=Out, observe=self._observe)
        self.outcome = Outcome(schedule)
        self.expelled = 0
        self.members: list[Member] = []
        for place in range(schedule.size):
            voice = schedule.liars.get(place, Honest)(place, self.chain, random.Random(schedule.seed * 64 + place))
            self.members.append(Member(self, place, voice))
            self.world.add(self.roster.members[place].peer, self.members[-1])

    def play(self) -> Outcome:
        schedule, world = self.schedule, self.world
        for number in range(schedule.rounds + CALM_ROUNDS):
            world.at(number * ROUND_S, self._round)
        for place, (since, until) in schedule.away.items():
            world.at(since * ROUND_S, lambda place=place: world.partition([self.roster.members[place].peer]))  # type: ignore[misc]
            world.at(until * ROUND_S, world.heal)
        end = (schedule.rounds + CALM_ROUNDS) * ROUND_S
        for step in range(int(end / TELL_S)):
            world.at(step * TELL_S, self._tell_each_other)
        world.run(end)
        self.outcome.delivered = world.delivered
        self._judge()
        return self.outcome

    @property
    def honest(self) -> list[Member]:
        return [member for member in self.members if member.honest]

    # --- rounds ---

    def _round(self) -> None:
        """One more round is certified; members learn of it at their own times."""
        schedule, number = self.schedule, len(self.chain.bodies)
        calm = number >= schedule.rounds
        known = Counter(place for member in self.honest for place in member.docket.proven)
        q = self.roster.rules.q
        newly = mask(place for place, votes in known.items() if votes >= q) & ~self.expelled
        inside = [
            place for place in range(schedule.size)
            if not self.expelled >> place & 1 and not self._is_away(place) and self.rng.random() >= schedule.absent
        ]  # fmt: skip
        voices = [self.members[place].voice for place in inside]
        odd = [voice.place for voice in voices if voice.odd_momentum and not calm]
        off = {voice.place: voice.off for voice in voices if not calm and self.rng.random() < voice.lazy}
        self.chain.extend(inside, odd, off, newly)
        self.expelled |= newly
        for member in self.members:
            if not self.expelled >> member.place & 1:
                delay = self.rng.uniform(0.0, 2.0)
                self.world.at(self.world.now + delay, lambda member=member: self._learn(member, number))  # type: ignore[misc]

    def _learn(self, member: Member, number: int) -> None:
        if member.height != number:
            return
        member.height += 1
        member.machine.occupied()
        member.machine.certified(number, tuple(self.chain.commits[number].values()), self.world.now)
        words = tuple(member.voice.deeds()) if number < self.schedule.rounds else ()
        self._apply(member, member.act(self.world.now, *words))
        self.world.at(self.world.now + self.rng.uniform(0.5, 2.0), lambda: self._hand_over(member))

    def _hand_over(self, member: Member) -> None:
        member.machine.idle(self.world.now)
        self._apply(member, member.act(self.world.now))

    def _tell_each_other(self) -> None:
        """What statuses do in a run: who lacks proof is sent it."""
        for holder in self.honest:
            for other in self.honest:
                docket, lacks = holder.docket, other.docket
                words = [w for place, ws in docket.proven.items() if place not in lacks.proven for w in ws]
                words += [w for place, ws in docket.unserved.items() if place not in lacks.unserved for w in ws]
                if holder is not other and words:
                    self._apply(holder, [Out(self.roster.members[other.place].peer, word) for word in words])

    def _apply(self, member: Member, outputs: Iterable[Any]) -> None:
        self.world.apply(self.roster.members[member.place].peer, outputs)

    def _is_away(self, place: int) -> bool:
        since, until = self.schedule.away.get(place, (0.0, 0.0))
        return since * ROUND_S <= self.world.now < until * ROUND_S

    # --- what members do and say ---

    def _observe(self, name: str, effect: Any, now: float) -> None:
        member = self.world[name]
        assert isinstance(member, Member)
        match effect:
            case Audit():
                self.outcome.audits += not effect.accused
                self.outcome.replays += 1
                delay = self.rng.uniform(*REPLAY_S)
                self.world.at(now + delay, lambda: self._replay(member, effect))
            case Exclude():
                self._excluded(member, effect)
            case Fault():
                self.blamed(member, self.roster.index_of(effect.peer), effect.reason)

    def _replay(self, member: Member, effect: Audit) -> None:
        target = self.members[effect.member]
        served = target.voice.serves(member.place) and not self._is_away(target.place)
        found = self.chain.deviation(effect.round, effect.member, member.place)
        deviations = (found, found / 2) if served and not self._is_away(member.place) else None
        member.machine.audited(effect.round, effect.member, deviations, self.world.now)
        self._apply(member, member.act(self.world.now))

    def _excluded(self, member: Member, effect: Exclude) -> None:
        place = self.roster.index_of(effect.peer)
        assert place is not None
        if not member.honest:
            return
        if place not in self.schedule.liars:
            self.outcome.broken.append(f"honest member {place} is proven guilty: {effect.reason}")
        self.outcome.proven.setdefault(place, effect.reason)
        file = read_evidence_file(effect.evidence)
        case = open_evidence(lambda number: self.chain.electorates[number], Kind(file.kind), file.body)
        if case.accused != place:
            self.outcome.broken.append("evidence against somebody else")

    def blamed(self, member: Member, place: int | None, reason: str) -> None:
        if member.honest and place is not None and place not in self.schedule.liars:
            self.outcome.broken.append(f"honest member {place} is blamed: {reason}")

    def _judge(self) -> None:
        outcome = self.outcome
        for place, reason in outcome.proven.items():
            ignorant = [member.place for member in self.honest if place not in member.docket.proven]
            if ignorant and not self.schedule.away:
                outcome.broken.append(f"{ignorant} do not know that {place} is proven guilty: {reason}")
        outcome.unserved = {place for member in self.honest for place in member.docket.unserved}
        wronged = outcome.unserved - self.schedule.liars.keys() - self.schedule.away.keys()
        if wronged:
            outcome.broken.append(f"honest members that serve are found not to: {sorted(wronged)}")


def draw_schedule(seed: int) -> Schedule:
    rng = random.Random(seed)
    size = rng.choice((4, 5, 7, 8, 10))
    b = tolerated(size)
    liars = {place: rng.choice(LIARS) for place in rng.sample(range(size), rng.randint(min(1, b), b))}
    network = Network(
        latency_s=(0.01, rng.choice((0.1, 0.6, 2.0))),
        loss=rng.choice((0.0, 0.05, 0.25)),
        duplication=rng.choice((0.0, 0.1)),
    )
    away = {}
    free = sorted(set(range(size)) - liars.keys())
    if len(liars) < b and rng.random() < 0.5:
        since = rng.uniform(0.0, 4.0)
        away[rng.choice(free)] = (since, since + rng.uniform(0.5, 3.0))
    return Schedule(seed, size, rng.choice((4, 6, 8)), rng.choice((500, 2000, 4000)) * size // 8, network, liars,
                    rng.choice((0.0, 0.0, 0.1)), away)  # fmt: skip


def play(seed: int) -> Outcome:
    return Theatre(draw_schedule(seed)).play()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="seed of the first schedule")
    parser.add_argument("--seed", type=int, help="play only this one, and tell all")
    options = parser.parse_args(arguments)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.schedules)
    began, failed, there, caught = time.monotonic(), 0, Counter[str](), Counter[str]()
    audits = replays = 0
    for seed in seeds:
        outcome = play(seed)
        liars = outcome.schedule.liars
        there.update(kind.__name__ for kind in liars.values())
        caught.update(liars[place].__name__ for place in outcome.proven.keys() | outcome.unserved if place in liars)
        audits, replays = audits + outcome.audits, replays + outcome.replays
        if outcome.broken or options.seed is not None:
            print(outcome.schedule.describe)
            print(f"  proven {outcome.proven}; unserved {outcome.unserved}; {outcome.replays} replays")
            for line in outcome.broken:
                print(f"  BROKEN: {line}")
        failed += bool(outcome.broken)
    took = time.monotonic() - began
    print(f"{len(seeds)} schedules, {failed} failed, {audits} audits drawn, {replays} replays, {took:.1f} s")
    for kind in sorted(there):
        print(f"  {kind:16} {caught[kind]:4} of {there[kind]:4} found out")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
