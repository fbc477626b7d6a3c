"""Whole runs with audits in the world of `simulations.rounds`: trainers that do not train, and liars about it.

The real machines, with checks and audits on; a network that misbehaves, members that die. Whatever `simulations.rounds`
promises is looked at here too: above all, no honest member is excluded, expelled or blamed. Further, where everything
arrives in time and everybody audits somebody in every round, whoever does not train is expelled.

`python -m simulations.audited_rounds --schedules 200` plays many; a failing seed is printed and replays exactly.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from celluler.identity import Identity, seal
from celluler.learning.audit_messages import Judgement, Verdict
from celluler.learning.checks import checks_for
from celluler.learning.effects import Audit, Effect
from celluler.learning.messages import Certificate, Commit, Status, open_message
from celluler.learning.roster import RosterEntry, RosterView, open_roster, rules_for, seal_roster, tolerated
from celluler.learning.run import Run
from simulations.rounds.cast import GENESIS, digest, identity, signers_of
from simulations.rounds.judge import HORIZON_S
from simulations.rounds.liars import Honest, Words
from simulations.rounds.member import Member, Out
from simulations.rounds.schedule import Schedule
from simulations.rounds.schedule import draw as draw_any
from simulations.rounds.stage import Outcome
from simulations.rounds.theatre import Theatre
from simulations.world import Network, World

KEPT_STATES = 4
AUDITS = 1000
"""In thousandths, a member and round."""
QUIET = Network(latency_s=(0.005, 0.05))


@lru_cache(maxsize=64)
def audited_roster(size: int, rounds: int, parts: int, probation: int, suspension: int) -> RosterView:
    """As `simulations.rounds.roster_of`, of members that compute alike and audit each other."""
    run = digest("audited run", size, rounds, parts, probation, suspension)
    entries = []
    for number in range(size):
        entry = RosterEntry(run, identity(1000 + number).peer_id, (), f"peer-{number}", audit_class="cpu")
        entries.append(seal(identity(number), entry))
    rules = rules_for(
        size, rounds=rounds, parts=parts, delta_ms=2_000, exchange_ms=3_000, train_ms=30_000, stall_ms=600_000,
        audits=AUDITS * size, probation=probation, suspension=suspension,
    )  # fmt: skip
    raw = seal_roster(identity(999), run=run, job=digest("job"), entries=tuple(entries), rules=rules)
    return open_roster(raw, identity(999).peer_id)


# --- liars --------------------------------------------------------------------------------------------------------


class Trainer(Honest):
    """What a liar about training has beside what any liar has. run: its own, to see what it can lie about."""

    run: Run
    trains = True

    def shows(self, place: int) -> bool:
        """Whether it gives what it sent to this member when it audits."""
        return True


class DoesNotTrain(Trainer):
    trains = False


class HidesItsUpdate(DoesNotTrain):
    def shows(self, place: int) -> bool:
        return False


class ShowsItToSome(DoesNotTrain):
    def shows(self, place: int) -> bool:
        return place % 2 == 0


class LiesAboutMomentum(Trainer):
    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        if signed.signer == self.signer.peer_id and isinstance(record, Commit) and record.hashes:
            raw = seal(self.signer, replace(record, fresh=not record.fresh))
        return super().say(to, raw)


class AccusesTrainers(Trainer):
    """Says once a round of somebody that it did not train."""

    deviations: tuple[float, ...] | None = None

    def __init__(self, roster: RosterView, signer: Any, rng: random.Random) -> None:
        super().__init__(roster, signer, rng)
        self.said: set[int] = set()

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        words, signed = list(super().say(to, raw)), open_message(raw)
        number = self.run.round - 1
        if not isinstance(signed.record, Status) or number in self.said:
            return words
        audits = self.run._audits
        known = {} if audits is None else audits._commits.get(number, {})
        able = [m for m, c in known.items() if c.record.fresh or m in audits._commits.get(number - 1, {})]  # type: ignore[union-attr]
        others = [member for member in able if member != self.run.me]
        if others and audits is not None:
            self.said.add(number)
            found = (0.7,) * len(known[others[0]].record.hashes) if self.deviations is None else self.deviations
            lie = seal(self.signer, audits._accusation((number, self.rng.choice(others)), found))
            words += [(peer, lie) for peer in self.others]
        return words


class CriesUnserved(AccusesTrainers):
    deviations = ()


class JudgesFalsely(AccusesTrainers):
    """And finds everybody guilty whom anybody accuses."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        if signed.signer == self.signer.peer_id and isinstance(signed.record, Verdict):
            lie = replace(signed.record, judgement=Judgement.GUILTY.value, deviation=0.5)
            return [(peer, seal(self.signer, lie)) for peer in to]
        return super().say(to, raw)


LIARS: tuple[type[Trainer], ...] = (
    DoesNotTrain, HidesItsUpdate, ShowsItToSome, LiesAboutMomentum, AccusesTrainers, CriesUnserved, JudgesFalsely,
)  # fmt: skip
PROVEN: tuple[type[Trainer], ...] = (DoesNotTrain, LiesAboutMomentum, AccusesTrainers, JudgesFalsely)
"""Who is expelled by the end of a calm run. Who hides is suspended at least; who cries that others do stays."""


# --- playing ------------------------------------------------------------------------------------------------------


class AuditedMember(Member):
    def __init__(
        self,
        schedule: Schedule,
        world: World,
        roster: RosterView,
        signer: Identity,
        *,
        incarnation: int = 0,
        chain: Sequence[Certificate] = (),
        root: bytes = GENESIS,
        say: Callable[[Member, bytes, list[Out]], list[Out]],
    ) -> None:
        super().__init__(
            schedule, world, roster, signer, incarnation=incarnation, chain=chain, root=root, say=say
        )  # fmt: skip
        self.run = Run(
            roster, signer, state_root=root, incarnation=incarnation, chain=chain, audits=True,
            checks=checks_for(schedule.size, schedule.parts),
        )  # fmt: skip
        if isinstance(self.voice, Trainer):
            self.voice.run = self.run


class AuditedTheatre(Theatre):
    """One schedule being played."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.base = self.stage.roster = audited_roster(
            schedule.size, schedule.rounds, schedule.parts, schedule.probation, schedule.suspension
        )
        self.replays = 0
        self._handlers[Audit] = self._audit

    def play(self, until: float = HORIZON_S) -> Outcome:
        outcome, schedule = super().play(until), self.schedule
        calm = schedule.prompt and not schedule.joiners  # whose class is none, so that they have no say
        for kind in set(schedule.liars.values()) if calm else ():
            out = outcome.expelled if kind in PROVEN else outcome.expelled | outcome.suspended
            if kind is not CriesUnserved and kind.__name__ not in out:
                outcome.broken.append(f"{kind.__name__} is still there")
        return outcome

    def _member(self, place: int, incarnation: int, chain: Sequence[Certificate], root: bytes) -> Member:
        size = self.schedule.size
        signer = signers_of(size)[self.base.members[place].peer] if place < size else identity(place)
        return AuditedMember(
            self.schedule, self.world, self.base, signer, incarnation=incarnation, chain=chain, root=root,
            say=self._said,
        )  # fmt: skip

    def _enter(self, place: int, incarnation: int, chain: Sequence[Certificate] = (), root: bytes = GENESIS) -> None:
        member = self._member(place, incarnation, chain, root)
        self.world.add(member.peer, member, ())
        self.world.apply(member.peer, member.carry_out(member.run.start(self.world.now)))

    def _audit(self, member: Member, effect: Audit, now: float) -> None:
        self.replays += 1
        delay = self.world.rng.uniform(0.2, 1.5)
        self.stage.later(member, delay, lambda at: self._try(member, effect, now + effect.within_s * 0.9))

    def _try(self, member: Member, effect: Audit, until: float) -> Iterable[Effect]:
        """Again and again until it was had, or time is up."""
        if member.run.round - effect.round >= KEPT_STATES or effect.round not in member.roots:
            return member.run.audited(effect.round, effect.member, (), self.world.now)
        shown = self._shows(effect.member, member, effect.round)
        if not shown and self.world.now + 0.5 < until:
            self.stage.later(member, 0.5, lambda at: self._try(member, effect, until))
            return ()
        found = self._found(effect) if shown else None
        return member.run.audited(effect.round, effect.member, found, self.world.now)

    def _found(self, effect: Audit) -> tuple[float, ...]:
        voice = self.schedule.liars.get(effect.member, Honest)
        trains = not issubclass(voice, Trainer) or voice.trains
        return (1e-5 if trains else 0.8,) * len(effect.parts)

    def _shows(self, place: int, member: Member, number: int) -> bool:
        """Whether one member gets now what another sent."""
        holder = self.stage.living(self.stage.name(place))
        if holder is None or number not in holder.trained or not self.world.reachable(holder.peer, member.peer):
            return False
        return not isinstance(holder.voice, Trainer) or holder.voice.shows(member.place)


def draw(seed: int) -> Schedule:
    """A schedule that the protocol promises to survive, of members that lie about training."""
    rng = random.Random(seed)
    size = rng.choice((4, 4, 5, 7))
    base = draw_any(seed)
    liars = {place: rng.choice(LIARS) for place in rng.sample(range(size), rng.randint(0, tolerated(size)))}
    room = tolerated(size) - len(liars)
    deaths = dict([one for one in base.deaths.items() if one[0] < size and one[0] not in liars][:room])
    partition = base.partition
    if partition is not None:
        partition = (*partition[:2], frozenset(place for place in partition[2] if place < size))
    schedule = replace(
        base, size=size, liars=dict(liars), deaths=deaths, partition=partition, rounds=10, parts=2, cuts=(), flaps=(),
        cunning=False, checks=True, slow_checks={}, roles=(), topology="mesh", away={},
        slow={place: extra for place, extra in base.slow.items() if place < size},
    )  # fmt: skip
    if rng.random() < 0.4:
        return replace(schedule, network=QUIET, deaths={}, partition=None, slow={}, joiners=())
    return schedule


def play(seed: int) -> Outcome:
    return AuditedTheatre(draw(seed)).play()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--schedules", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="seed of the first schedule")
    parser.add_argument("--seed", type=int, help="play only this one, and tell all")
    options = parser.parse_args(arguments)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.schedules)
    began, failed, replays = time.monotonic(), 0, 0
    expelled, suspended, there = Counter[str](), Counter[str](), Counter[str]()
    for seed in seeds:
        theatre = AuditedTheatre(draw(seed))
        outcome = theatre.play()
        replays += theatre.replays
        there.update({kind.__name__ for kind in theatre.schedule.liars.values()})
        expelled.update(outcome.expelled)
        suspended.update(outcome.suspended)
        if outcome.broken or options.seed is not None:
            print(outcome.schedule.describe)
            print(f"  finished at {outcome.finished_s:.1f} s; excluded {sorted(outcome.excluded)}")
            for line in outcome.broken:
                print(f"  BROKEN: {line}")
        failed += bool(outcome.broken)
    print(f"{len(seeds)} schedules, {failed} failed, {replays} replays, {time.monotonic() - began:.1f} s")
    for kind, count in sorted(there.items()):
        print(f"  {kind:18} expelled {expelled[kind]}, suspended {suspended[kind]} of {count}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
