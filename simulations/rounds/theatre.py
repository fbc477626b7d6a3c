"""Plays one schedule: members enter, die, return, join late or begin anew, over a network that misbehaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from celluler.errors import PeerViolation
from celluler.identity import seal
from celluler.learning.admission import make_admission
from celluler.learning.effects import (
    Admitted,
    Apply,
    Behind,
    Certified,
    Check,
    Diverged,
    Exchange,
    Exclude,
    Fault,
    Fetch,
    Finished,
    Stalled,
    Train,
)
from celluler.learning.messages import Certificate, Invite, Vote, Vouch, open_message
from celluler.learning.roster import RosterView
from simulations.rounds.cast import COORDINATOR, GENESIS, entry_of, identity, roster_of, signers_of
from simulations.rounds.hands import Hands
from simulations.rounds.judge import HORIZON_S, Judge
from simulations.rounds.liars import favoured
from simulations.rounds.member import Member, Out
from simulations.rounds.schedule import Joiner, Schedule, draw
from simulations.rounds.stage import Outcome, Stage
from simulations.world import World

CALM_S = 40.0
KNOCK_S = 3.0
"""How long somebody who wants in waits before it asks another member."""


class Theatre:
    """One schedule being played."""

    def __init__(self, schedule: Schedule, *, stall_ms: int = 600_000) -> None:
        self.schedule = schedule
        self.world = World(schedule.seed, schedule.network, sends=Out, observe=self._observe, size_of=len)
        self.base = roster_of(
            schedule.size, schedule.rounds, schedule.parts, stall_ms, topology=schedule.topology, roles=schedule.roles,
            probation=schedule.probation, suspension=schedule.suspension,
        )  # fmt: skip
        self.stage = Stage(schedule, self.base, self.world, Outcome(schedule))
        self.hands = Hands(self.stage)
        self.judge = Judge(self.stage, self.hands)
        self._handlers: dict[type, Callable[[Member, Any, float], None]] = {
            Train: self.hands.train, Exchange: self.hands.exchange, Check: self.hands.check, Fetch: self.hands.fetch,
            Apply: self.hands.apply, Certified: self.judge.certified, Exclude: self.judge.accused,
            Fault: self.judge.accused, Diverged: self.judge.diverged, Finished: self.judge.finish,
            Stalled: self.judge.stall, Admitted: self._admitted, Behind: self._revive,
        }  # fmt: skip

    @property
    def roster(self) -> RosterView:
        return self.stage.roster

    @property
    def outcome(self) -> Outcome:
        return self.stage.outcome

    @property
    def finished(self) -> dict[int, bytes]:
        return self.judge.finished

    def play(self, until: float = HORIZON_S) -> Outcome:
        schedule, world = self.schedule, self.world
        for place in range(schedule.size):
            self._enter(place, 0)
        for place, (dies, returns) in schedule.deaths.items():
            world.at(dies, lambda place=place: world.remove(self.stage.name(place)))  # type: ignore[misc]
            if returns is not None:
                world.at(returns, lambda place=place: self._enter(place, 1))  # type: ignore[misc]
        self._disturb()
        for number, joiner in enumerate(schedule.joiners, schedule.size):
            world.at(joiner.at, lambda number=number, joiner=joiner: self._knock(number, joiner))  # type: ignore[misc]
        world.at(CALM_S, self._calm)
        step = 5.0
        while world.now < until and not self.judge.is_over():
            world.run(min(world.now + step, until))
        self.judge.conclude()
        self.outcome.trace, self.outcome.delivered = world.trace, world.delivered
        return self.outcome

    # --- the network ---

    def _disturb(self) -> None:
        schedule, world, name = self.schedule, self.world, self.stage.name
        if schedule.partition is not None:
            start, end, side = schedule.partition
            names = [name(place) for place in side]
            world.at(start, lambda: world.partition(names))
            world.at(end, world.partition)
        for one, other in schedule.cuts:
            world.cut(name(one), name(other))
        for start, end, one, other in schedule.flaps:
            world.at(start, lambda one=one, other=other: world.cut(name(one), name(other)))  # type: ignore[misc]
            world.at(end, lambda one=one, other=other: self._mend(one, other))  # type: ignore[misc]
        for place, (start, end) in schedule.away.items():
            world.at(start, lambda place=place: world.partition([name(place)]))  # type: ignore[misc]
            world.at(end, world.partition)

    def _calm(self) -> None:
        """The network heals: from here on progress is promised. Cut links stay cut."""
        low, high = self.world.network.latency_s
        self.world.network = replace(self.world.network, latency_s=(low, min(high, 0.3)), loss=0.0)

    def _mend(self, one: int, other: int) -> None:
        if (one, other) not in self.schedule.cuts:
            self.world.restore(self.stage.name(one), self.stage.name(other))

    def _said(self, member: Member, raw: bytes, words: list[Out]) -> list[Out]:
        """All that a member says passes here. What is said too late is said by the clock."""
        self.judge.overhear(member, raw)
        said = [out for out in words if not self._swallows(out.peer, out.message)]
        if not member.voice.delay_s:
            return said
        delay = self.world.rng.uniform(0.0, member.voice.delay_s)
        self.world.at(self.world.now + delay, lambda: self.world.apply(member.peer, said))
        return []

    def _swallows(self, receiver: str, raw: bytes) -> bool:
        """Whether a cunning network keeps this message from this receiver."""
        if not self.schedule.cunning or self.world.now >= CALM_S:
            return False
        try:
            signed = open_message(raw)
        except PeerViolation:
            return False
        record = signed.record
        size, place, author = len(self.roster), self.roster.index_of(receiver), self.roster.index_of(signed.signer)
        match record:
            case Vote(phase=1, body=bytes()) if record.view % 2 == 0:
                return (
                    place == (record.round + record.view + 1) % size and author == (record.round + record.view) % size
                )
            case Vote(phase=2, body=bytes()) if record.view % 2 == 0:
                return place != favoured(self.roster, record.round, record.view)
        return isinstance(record, Certificate)

    # --- coming and going ---

    def _enter(self, place: int, incarnation: int, chain: Sequence[Certificate] = (), root: bytes = GENESIS) -> None:
        """place: or the number of a joiner, which has a key like everybody."""
        size = self.schedule.size
        signer = signers_of(size)[self.base.members[place].peer] if place < size else identity(place)
        member = Member(
            self.schedule,
            self.world,
            self.base,
            signer,
            incarnation=incarnation,
            chain=chain,
            root=root,
            say=self._said,
        )
        self.world.add(member.peer, member, ())
        self.world.apply(member.peer, member.carry_out(member.run.start(self.world.now)))

    def _observe(self, name: str, effect: Any, now: float) -> None:
        member = self.world[name]
        assert isinstance(member, Member)
        self._handlers[type(effect)](member, effect, now)

    def _knock(self, number: int, joiner: Joiner) -> None:
        """Ask one member after the other, until the chain says that we are in."""
        doors = [member for member in self.stage.honest() if not member.run.stalled]
        if not doors or any(member.run.finished for member in doors):
            return
        hosts = [member for member in doors if member.run.roster.index_of(identity(number).peer_id) is not None]
        if hosts:
            self._join(number, joiner, self.world.rng.choice(hosts))
            return
        door = self.world.rng.choice(doors)
        try:
            effects = door.run.admit(self._application(number, joiner, door), self.world.now)
        except PeerViolation:
            effects = ()  # too few know it, or the run is full
        self.world.apply(door.peer, door.carry_out(effects))
        self.world.at(self.world.now + KNOCK_S, lambda: self._knock(number, joiner))

    def _application(self, number: int, joiner: Joiner, door: Member) -> bytes:
        run, signer = self.base.run, identity(number)
        entry, invite, vouches = seal(signer, entry_of(run, number, joiner.roles)), None, []
        if joiner.invited:
            invite = seal(identity(COORDINATOR), Invite(run, signer.peer_id, 2**40))
        else:
            electorate = door.run.standing.electorate
            known = [member for member in self.stage.honest() if member.place in electorate][: electorate.b + 1]
            vouches = [seal(member.signer, Vouch(run, signer.peer_id)) for member in known]
        return make_admission(door.run.roster, signer, entry, invite=invite, vouches=vouches)

    def _join(self, number: int, joiner: Joiner, host: Member) -> None:
        """With the chain and the state that another member gives."""
        if joiner.vanishes:
            return
        chain = tuple(host.run.certificates)
        self._enter(number, 0, chain, host.roots[len(chain) - 1])
        self.outcome.joined += 1

    def _admitted(self, member: Member, effect: Admitted, now: float) -> None:
        if member.honest and len(member.run.roster) > len(self.stage.roster):
            self.stage.roster = member.run.roster

    def _revive(self, member: Member, effect: Behind, now: float) -> None:
        """Nobody serves what it lacks: it begins anew with the chain and the state of one that is ahead."""
        hosts = [self.stage.living(name) for name in effect.holders]
        able = [
            host for host in hosts
            if host is not None and host.honest and self.world.reachable(host.peer, member.peer)
        ]  # fmt: skip
        if not able or not member.honest:
            return

        def again() -> None:
            if self.stage.living(member.peer) is member:
                chain = tuple(able[0].run.certificates)
                number = member.place if member.place < self.schedule.size else _number_of(member)
                self._enter(number, member.incarnation + 1, chain, able[0].roots[len(chain) - 1])
                self.outcome.revived += 1

        self.world.at(now + 0.5, again)


def _number_of(member: Member) -> int:
    return next(number for number in range(100) if identity(number).peer_id == member.peer)


def play(seed: int) -> Outcome:
    """One schedule that must end well."""
    return Theatre(draw(seed)).play()
