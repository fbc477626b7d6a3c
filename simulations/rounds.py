"""Many seeded schedules of the rounds: the real machines, a network that misbehaves, members that lie and die.

After every schedule with at most b liars and dead it is checked that

- no two different bodies were certified at one height, and all honest members applied the same ones;
- no honest member was excluded or blamed by an honest one, and none was expelled;
- once the network has healed, every honest member alive finishes, with the same state;

and, where members check each other's reducing:

- where everybody checks everything, no body with a wrong part was certified; where each checks two parts, none was that
  an honest member had found wrong, as long as the network was prompt;
- an honest leader expels everybody whom all honest members have had proof against for a while.

A schedule is its seed: `python -m simulations.rounds --seed 17` replays one, `--schedules 10000` runs many.
Training, the exchange and the computing anew are models here (digests of digests); their bytes are not what is tested.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from celluler.errors import PeerViolation
from celluler.identity import Identity, PeerId, seal
from celluler.learning.checks import CheckOutcome, CheckPart, Key, Verdict, checks_for
from celluler.learning.effects import (
    Admitted,
    Apply,
    Behind,
    Certified,
    Check,
    Diverged,
    Effect,
    Exchange,
    Exclude,
    Fault,
    Fetch,
    Finished,
    Send,
    Stalled,
    Train,
)
from celluler.learning.messages import (
    BodyProposal,
    Certificate,
    Commit,
    Entry,
    Equivocation,
    Fraud,
    Mark,
    Part,
    Quorum,
    Reduced,
    SetProposal,
    Status,
    Vote,
    mask,
    open_message,
    places,
    record_hash,
    set_hash,
)
from celluler.learning.roster import RosterEntry, RosterView, open_roster, rules_for, seal_roster, tolerated
from celluler.learning.run import Run
from simulations.world import Network, World

HORIZON_S = 900.0
CALM_S = 40.0
PROMPT_S = 1.0
"""By so much checks may differ in a prompt world: half a delta."""
PROOF_S = 1.5
"""So long after everybody has proof of something, everybody knows that everybody has."""
GENESIS = blake2b(b"state before round 0", digest_size=32).digest()


def digest(*pieces: Any) -> bytes:
    return blake2b(repr(pieces).encode(), digest_size=32).digest()


@lru_cache(maxsize=256)
def identity(number: int) -> Identity:
    return Identity(digest("identity", number))


@lru_cache(maxsize=64)
def roster_of(size: int, rounds: int, parts: int, stall_ms: int = 600_000) -> RosterView:
    """A roster of `size` members, cached: its signatures are not what a schedule is about."""
    run = digest("run", size, rounds, parts)
    entries = []
    for number in range(size):
        entry = RosterEntry(run, identity(1000 + number).peer_id, ("/ip4/127.0.0.1/tcp/1",), f"peer-{number}")
        entries.append(seal(identity(number), entry))
    rules = rules_for(
        size, rounds=rounds, parts=parts, delta_ms=2_000, exchange_ms=3_000, train_ms=30_000, stall_ms=stall_ms
    )
    raw = seal_roster(identity(999), run=run, job=digest("job"), entries=tuple(entries), rules=rules)
    return open_roster(raw, identity(999).peer_id)


@lru_cache(maxsize=64)
def signers_of(size: int) -> dict[str, Identity]:
    return {identity(number).peer_id: identity(number) for number in range(size)}


@dataclass(frozen=True, slots=True)
class Out:
    """What the world carries."""

    peer: str
    message: bytes


# --- liars: an honest run whose words are changed on their way out ------------------------------------------------

Words = Iterable[tuple[str, bytes]]  # (to, bytes)


class Honest:
    """Says what its run says."""

    delivers_parts = True
    reduces_wrongly = False
    faces = 1
    delay_s = 0.0

    def __init__(self, roster: RosterView, signer: Identity, rng: random.Random) -> None:
        self.roster, self.signer, self.rng = roster, signer, rng
        self.others = tuple(member.peer for member in roster.members if member.peer != signer.peer_id)

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        return [(peer, raw) for peer in to]

    def serves(self, place: int) -> bool:
        """Whether it gives inputs to this member when it checks."""
        return self.delivers_parts

    def halves(self, to: Sequence[str], one: bytes, other: bytes) -> Words:
        """One thing to some, another to the rest."""
        return [(peer, self.rng.choice((one, other))) for peer in to]


class Silent(Honest):
    delivers_parts = False

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        return []


class TwoUpdates(Honest):
    """Commits to two different updates."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        if signed.signer == self.signer.peer_id and isinstance(signed.record, Commit):
            other = replace(signed.record, fresh=not signed.record.fresh)
            return self.halves(to, raw, seal(self.signer, other))
        return super().say(to, raw)


class TwoSets(Honest):
    """Leads some to one set and others to another, and proposes bodies of its own making."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        if signed.signer != self.signer.peer_id:
            return super().say(to, raw)
        if isinstance(record, SetProposal):
            bar = 0 if record.barred else 1 << self.rng.choice(record.entries).member
            fewer = record.entries[1:] if len(record.entries) > self.roster.rules.q else record.entries
            return self.halves(to, raw, seal(self.signer, replace(record, entries=fewer, barred=bar)))
        if isinstance(record, BodyProposal) and record.body.parts:
            parts = (replace(record.body.parts[0], digest=digest("made up")), *record.body.parts[1:])
            return self.halves(to, raw, seal(self.signer, replace(record, body=replace(record.body, parts=parts))))
        return super().say(to, raw)


class TwoVotes(Honest):
    """Votes for and against, and for every body it sees."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        if signed.signer == self.signer.peer_id and isinstance(record, Vote):
            against = Vote(record.run, record.round, record.view, record.phase, None, self.rng.getrandbits(3))
            return self.halves(to, raw, seal(self.signer, against))
        if isinstance(record, BodyProposal | Vote):
            name = record_hash(record.body) if isinstance(record, BodyProposal) else record.body
            phase = self.rng.choice((1, 2))
            mine = seal(self.signer, Vote(record.run, record.round, record.view, phase, name, 0))
            return [*super().say(to, raw), *((peer, mine) for peer in self.others)]
        return super().say(to, raw)


class Traitor(Honest):
    """Works with a cunning network: in even views it votes for the body to one member and against it to the rest, so
    that this one may decide alone; in odd views it votes for whatever is proposed, as if it had never been locked."""

    def __init__(self, roster: RosterView, signer: Identity, rng: random.Random) -> None:
        super().__init__(roster, signer, rng)
        self.proposed: dict[tuple[int, int], bytes] = {}

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        if isinstance(record, BodyProposal):
            self.proposed[record.round, record.view] = record_hash(record.body)
        if signed.signer != self.signer.peer_id or not isinstance(record, Vote):
            return super().say(to, raw)
        body = self.proposed.get((record.round, record.view))
        pro, contra = (seal(self.signer, replace(record, body=choice, lacking=0)) for choice in (body, None))
        if record.view % 2:
            return [(peer, pro) for peer in to]
        chosen = self.roster.members[favoured(self.roster, record.round, record.view)].peer
        return [(peer, pro if peer == chosen else contra) for peer in to]


def favoured(roster: RosterView, round_number: int, view: int) -> int:
    """Whom a cunning network lets decide: neither the leader of this view nor of the next."""
    return (round_number + view + 2) % len(roster)


class Withholds(Honest):
    """Takes part, but never votes."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        mine = signed.signer == self.signer.peer_id
        return [] if mine and isinstance(signed.record, Vote) else super().say(to, raw)


class TwoFaces(Honest):
    """Reduces to one result for some and to another for the rest, and signs both."""

    faces = 2

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        if signed.signer == self.signer.peer_id and isinstance(signed.record, Reduced):
            result = replace(signed.record.result, digest=digest("other face", signed.record.result.digest))
            return self.halves(to, raw, seal(self.signer, replace(signed.record, result=result)))
        return super().say(to, raw)


class Poisons(Honest):
    """Keeps to every rule, and sends an update that the aggregation gives no weight."""


class KeepsParts(Honest):
    """States what it reduced, and gives the bytes to nobody."""

    delivers_parts = False


class Late(Honest):
    """Says everything up to two deltas too late."""

    delay_s = 4.0


class Forges(Honest):
    """Certificates without a quorum, made from whatever it has seen."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        words = list(super().say(to, raw))
        if isinstance(record, BodyProposal):
            body = replace(record.body, members=record.body.members, state_root=digest("forged"))
            vote = Vote(record.run, body.round, record.view, 2, record_hash(body), 0)
            sealed = seal(self.signer, vote)
            mark = Mark(self.roster.index_of(self.signer.peer_id) or 0, sealed[-64:])
            marks = tuple(Mark(place, mark.signature) for place in range(self.roster.rules.q))
            for quorum in (Quorum(record.view, marks), Quorum(record.view, (mark,) * self.roster.rules.q)):
                forged = seal(self.signer, Certificate(record.run, body, quorum))
                words += [(peer, forged) for peer in self.others]
        return words


class Garbage(Honest):
    """Noise, mutilated messages, absurd claims, and honest members' words under its own name."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        words = list(super().say(to, raw))
        place = self.rng.randrange(len(raw))
        noise = self.rng.choice(
            (
                self.rng.randbytes(self.rng.randrange(200)),
                raw[:place],
                raw[:place] + bytes((raw[place] ^ 1,)) + raw[place + 1 :],
                seal(self.signer, self._absurd(open_message(raw).record)),
            )
        )
        return [*words, *((peer, noise) for peer in self.others)]

    def _absurd(self, record: Any) -> Any:
        if isinstance(record, Status):
            return replace(record, round=1024, view=65_535, sequence=2**32 - 1, wanted=())
        return replace(record, view=60_000) if hasattr(record, "view") else record


LIARS: tuple[type[Honest], ...] = (
    Silent, TwoUpdates, TwoSets, TwoVotes, Withholds, TwoFaces, Poisons, KeepsParts, Late, Forges, Garbage,
)  # fmt: skip


class ReducesWrongly(Honest):
    """Signs a result that the rule does not give, the same for all, and serves whoever checks."""

    reduces_wrongly = True


class HidesInputs(Honest):
    """Reduces wrongly and gives no input to anybody who checks."""

    reduces_wrongly = True

    def serves(self, place: int) -> bool:
        return False


class ServesHalf(Honest):
    """Reduces wrongly and gives inputs to some only, so that some cannot see it."""

    reduces_wrongly = True

    def serves(self, place: int) -> bool:
        return place % 2 == 0


class KeepsInputs(Honest):
    """Reduces rightly and gives no input to anybody who checks."""

    def serves(self, place: int) -> bool:
        return False


class AccusesFalsely(Honest):
    """Says of every result that it is wrong."""

    def __init__(self, roster: RosterView, signer: Identity, rng: random.Random) -> None:
        super().__init__(roster, signer, rng)
        self.sets: dict[bytes, tuple[Entry, ...]] = {}

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        words, signed = list(super().say(to, raw)), open_message(raw)
        record = signed.record
        if isinstance(record, SetProposal):
            self.sets[set_hash(record.entries)] = record.entries
        if isinstance(record, Reduced) and signed.signer != self.signer.peer_id and record.set_hash in self.sets:
            lie = seal(self.signer, self.accusation(record, raw))
            words += [(peer, lie) for peer in self.others]
        return words

    def accusation(self, record: Reduced, raw: bytes) -> Fraud:
        return Fraud(record.run, record.round, raw, self.sets[record.set_hash])


class AccusesNonsense(AccusesFalsely):
    """Accusations and contradictions that are none, and some without inputs that exist."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        record = open_message(raw).record
        words = list(super().say(to, raw))
        if isinstance(record, Commit | Vote):
            twice = seal(self.signer, Equivocation(record.run, record.round, raw, raw))
            words += [(peer, twice) for peer in self.others]
        return words

    def accusation(self, record: Reduced, raw: bytes) -> Fraud:
        entries = (Entry(0, digest("no commit")), *self.sets[record.set_hash][1:])
        if self.rng.random() < 0.5:
            return Fraud(record.run, record.round, raw, entries)
        mine = replace(record, set_hash=set_hash(entries))
        return Fraud(record.run, record.round, seal(self.signer, mine), entries)


class ClaimsProof(Honest):
    """Says that it holds proof against everybody, and never that it has checked."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        if signed.signer == self.signer.peer_id and isinstance(signed.record, Status):
            everybody = (1 << len(self.roster)) - 1
            return super().say(to, seal(self.signer, replace(signed.record, checked=False, proven=everybody)))
        return super().say(to, raw)


class ExpelsOthers(ClaimsProof):
    """As leader has bodies expel whom it likes."""

    def say(self, to: Sequence[str], raw: bytes) -> Words:
        signed = open_message(raw)
        record = signed.record
        if signed.signer == self.signer.peer_id and isinstance(record, BodyProposal) and record.proof is None:
            victim = 1 << self.rng.randrange(len(self.roster))
            return super().say(to, seal(self.signer, replace(record, body=replace(record.body, expelled=victim))))
        return super().say(to, raw)


CHECKED_LIARS: tuple[type[Honest], ...] = (
    ReducesWrongly, HidesInputs, ServesHalf, KeepsInputs, AccusesFalsely, AccusesNonsense, ClaimsProof, ExpelsOthers,
)  # fmt: skip


# --- one schedule ------------------------------------------------------------------------------------------------


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

    @property
    def describe(self) -> str:
        liars = ", ".join(f"{place} {kind.__name__}" for place, kind in self.liars.items()) or "none"
        return (
            f"seed {self.seed}: {self.size} members, {self.parts} parts, checks {'on' if self.checks else 'off'}, "
            f"liars: {liars}; deaths {self.deaths}; {self.network}"
        )

    @property
    def prompt(self) -> bool:
        """Whether everything arrives and is checked well within delta, and nobody dies or is slow."""
        return not (
            self.network.loss or self.network.latency_s[1] > 0.3 or self.partition or self.cuts or self.flaps
            or self.cunning or self.deaths or self.slow or max(self.slow_checks.values(), default=0.0) > PROMPT_S
        )  # fmt: skip

    @property
    def thorough(self) -> bool:
        """Whether everybody checks everything."""
        return self.checks and checks_for(self.size, self.parts) >= self.parts


def draw(seed: int) -> Schedule:
    """A schedule that the protocol promises to survive: liars and dead together at most b."""
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


@dataclass(slots=True)
class Outcome:
    """What came of a schedule. spoiled: wrong parts that were certified because nobody honest drew them.
    broken: the promises that were not kept."""

    schedule: Schedule
    trace: str = ""
    views: int = 0
    finished_s: float = 0.0
    delivered: int = 0
    excluded: set[str] = field(default_factory=set)
    expelled: set[str] = field(default_factory=set)
    spoiled: int = 0
    stalled: dict[int, tuple[float, str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class Member:
    """A run with its surroundings: the trainer and the exchange of the model world. A machine of the world."""

    def __init__(self, theatre: Theatre, place: int, incarnation: int) -> None:
        self.theatre, self.place = theatre, place
        self.peer = theatre.roster.members[place].peer
        signer = signers_of(theatre.schedule.size)[self.peer]
        kind = theatre.schedule.liars.get(place, Honest)
        self.voice = kind(theatre.roster, signer, theatre.world.rng)
        schedule = theatre.schedule
        checks = checks_for(schedule.size, schedule.parts) if schedule.checks else 0
        self.run = Run(theatre.roster, signer, state_root=GENESIS, incarnation=incarnation, checks=checks)
        self.trained: set[int] = set()
        self.root = GENESIS
        self.held: set[bytes] = set()

    @property
    def honest(self) -> bool:
        return type(self.voice) is Honest

    def receive(self, sender: str, raw: bytes, now: float) -> list[Any]:
        return self.carry_out(self.run.receive(PeerId(sender), raw, now))

    def tick(self, now: float) -> list[Any]:
        return self.carry_out(self.run.tick(now))

    def next_deadline(self) -> float | None:
        return self.run.next_deadline()

    def carry_out(self, effects: Iterable[Effect]) -> list[Any]:
        """Effects to words for the world; everything else passes through to the theatre."""
        outputs: list[Any] = []
        for effect in effects:
            if isinstance(effect, Send):
                self.theatre.overhear(self, effect.data)
                to = [effect.to] if effect.to else [peer for peer in self.voice.others if peer not in effect.skip]
                words = self.voice.say(to, effect.data)
                said = [Out(peer, raw) for peer, raw in words if not self.theatre.swallows(peer, raw)]
                outputs += said if not self.voice.delay_s else self.theatre.hold_back(self, said)
            else:
                outputs.append(effect)
        return outputs


class Theatre:
    """One schedule being played."""

    def __init__(self, schedule: Schedule, *, stall_ms: int = 600_000) -> None:
        self.schedule = schedule
        self.roster = roster_of(schedule.size, schedule.rounds, schedule.parts, stall_ms)
        self.world = World(schedule.seed, schedule.network, sends=Out, observe=self._observe, size_of=len)
        self.outcome = Outcome(schedule)
        self.certified: dict[int, bytes] = {}
        self.finished: dict[int, bytes] = {}
        self._exchanges: dict[tuple[int, int, bytes], dict[int, float]] = {}  # who entered, and when
        self._found_wrong: set[Key] = set()  # by an honest member, be it after the certificate
        self._spoiled: dict[Key, int] = {}  # wrong parts that were certified, and in which round
        self._proven: dict[tuple[int, int], float] = {}  # (honest, liar): since when
        self._handlers: dict[type, Callable[[Member, Any, float], None]] = {
            Train: self._train, Exchange: self._exchange, Check: self._check, Fetch: self._fetch, Apply: self._apply,
            Certified: self._certified, Exclude: self._accused, Fault: self._accused, Diverged: self._diverged,
            Finished: self._finish, Stalled: self._stall, Behind: self._nothing, Admitted: self._nothing,
        }  # fmt: skip

    def play(self, until: float = HORIZON_S) -> Outcome:
        schedule, world = self.schedule, self.world
        for place in range(schedule.size):
            self._enter(place, 0)
        for place, (dies, returns) in schedule.deaths.items():
            world.at(dies, lambda place=place: world.remove(self._name(place)))  # type: ignore[misc]
            if returns is not None:
                world.at(returns, lambda place=place: self._enter(place, 1))  # type: ignore[misc]
        if schedule.partition is not None:
            start, end, side = schedule.partition
            names = [self._name(place) for place in side]
            world.at(start, lambda: world.partition(names))
            world.at(end, world.partition)
        for one, other in schedule.cuts:
            world.cut(self._name(one), self._name(other))
        for start, end, one, other in schedule.flaps:
            world.at(start, lambda one=one, other=other: world.cut(self._name(one), self._name(other)))  # type: ignore[misc]
            world.at(end, lambda one=one, other=other: self._mend(one, other))  # type: ignore[misc]
        world.at(CALM_S, self._calm)
        step = 5.0
        while world.now < until and not self._over():
            world.run(min(world.now + step, until))
        self._judge()
        self.outcome.trace, self.outcome.delivered = world.trace, world.delivered
        return self.outcome

    def must_finish(self, place: int) -> bool:
        """Whom progress was promised: the honest that were never started again (those may follow mute to the end)."""
        return place not in self.schedule.liars and place not in self.schedule.deaths

    def swallows(self, receiver: str, raw: bytes) -> bool:
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

    def hold_back(self, member: Member, said: list[Out]) -> list[Out]:
        """Nothing now; later all of it."""
        world = self.world
        delay = world.rng.uniform(0.0, member.voice.delay_s)
        world.at(world.now + delay, lambda: world.apply(member.peer, said))
        return []

    # --- the model world ---

    def _calm(self) -> None:
        """The network heals: from here on progress is promised. Cut links stay cut."""
        low, high = self.world.network.latency_s
        self.world.network = replace(self.world.network, latency_s=(low, min(high, 0.3)), loss=0.0)

    def _mend(self, one: int, other: int) -> None:
        if (one, other) not in self.schedule.cuts:
            self.world.restore(self._name(one), self._name(other))

    def _name(self, place: int) -> str:
        return self.roster.members[place].peer

    def _enter(self, place: int, incarnation: int) -> None:
        member = Member(self, place, incarnation)
        self.world.add(self._name(place), member, ())
        self.world.apply(self._name(place), member.carry_out(member.run.start(self.world.now)))

    def _later(self, member: Member, delay: float, act: Callable[[float], Iterable[Effect]]) -> None:
        """Call back into a member's run, if that very process still lives then."""

        def call() -> None:
            if member.peer in self.world and self.world[member.peer] is member:
                self.world.apply(member.peer, member.carry_out(act(self.world.now)))

        self.world.at(self.world.now + delay, call)

    def _observe(self, name: str, effect: Any, now: float) -> None:
        member = self.world[name]
        assert isinstance(member, Member)
        self._handlers[type(effect)](member, effect, now)

    def _train(self, member: Member, effect: Train, now: float) -> None:
        parts = self.schedule.parts
        seed = self.schedule.seed  # so that every schedule draws other parts to check
        hashes = tuple(digest("update", seed, effect.round, member.place, part) for part in range(parts))
        delay = self.world.rng.uniform(0.2, 1.5) + self.schedule.slow.get(member.place, 0.0)
        root = member.root
        self._later(
            member, delay, lambda at: member.run.trained(effect.round, hashes, (0,) * parts, root, at)
            if root == member.root else ()
        )  # fmt: skip
        member.trained.add(effect.round)

    def _exchange(self, member: Member, effect: Exchange, now: float) -> None:
        entered = self._exchanges.setdefault((effect.round, effect.view, effect.set_hash), {})
        entered[member.place] = now
        self._exchange_when_ready(member, effect, now + effect.within_s * 0.9)

    def _exchange_when_ready(self, member: Member, effect: Exchange, deadline: float) -> None:
        """All of the set are in, or time is nearly up: then whatever there is."""
        entered = self._exchanges[effect.round, effect.view, effect.set_hash]
        if len(entered) < len(effect.members) and self.world.now < deadline:
            delay = min(0.25, max(deadline - self.world.now, 0.001))
            self._later(member, delay, lambda at: self._poll(member, effect, deadline))
            return
        results = [self._part(member, effect, part) for part in range(len(effect.reducers))]
        member.held |= {result.digest for result in results if result is not None}
        delay = self.world.rng.uniform(0.01, 0.2)
        self._later(member, delay, lambda at: member.run.exchanged(effect.round, effect.view, results, at))

    def _poll(self, member: Member, effect: Exchange, deadline: float) -> Iterable[Effect]:
        self._exchange_when_ready(member, effect, deadline)
        return ()

    def _part(self, member: Member, effect: Exchange, part: int) -> Part | None:
        """What a member gets of one part: nothing when its reducer is gone, keeps it, or was left by too many."""
        entered = self._exchanges[effect.round, effect.view, effect.set_hash]
        place = effect.reducers[part]
        name = self._name(place)
        reducer = self._living(name)
        if reducer is None or place not in entered:
            return None
        if member is not reducer and (
            not reducer.voice.delivers_parts or not self.world.reachable(name, member.peer) or self._lost()
        ):
            return None
        used = [k for k, sender in enumerate(effect.members) if sender in entered and self._sends(sender)]
        if (self.schedule.flaps or self.schedule.cunning) and effect.least < len(used) == len(effect.members):
            used.pop(
                effect.view % len(used)
            )  # an input that did not arrive: the same set, yet another body in each view
        if len(used) < effect.least:
            return None
        result = self._right(effect.set_hash, effect.members, part, mask(used))
        if reducer.voice.faces > 1 and member is not reducer and self.world.rng.random() < 0.5:
            result = replace(result, digest=digest("other face", result.digest))
        return self._twisted(result, effect.view) if reducer.voice.reduces_wrongly else result

    def _right(self, name_of_set: bytes, members: Sequence[int], part: int, used: int) -> Part:
        """What the rule gives for these inputs."""
        weights = tuple(int(used >> k & 1 and place not in self.schedule.liars) for k, place in enumerate(members))
        return Part(digest("reduced", name_of_set, part, used), part, used, weights)

    def _twisted(self, result: Part, view: int) -> Part:
        """What a lying reducer makes of it: other bytes, other weights, or for once the truth. The same for all."""
        match digest("lie", result.digest, view)[0] % 4:
            case 0:
                return result
            case 1:
                return replace(result, weights=tuple(2 * (result.used >> k & 1) for k in range(len(result.weights))))
        return replace(result, digest=digest("wrong", result.digest))

    # --- computing anew ---

    def _check(self, member: Member, effect: Check, now: float) -> None:
        delay = self.world.rng.uniform(0.02, 0.4) + self.schedule.slow_checks.get(member.place, 0.0)
        until = now + effect.within_s * 0.9
        self._later(member, delay, lambda at: self._attempt(member, effect, until))

    def _attempt(self, member: Member, effect: Check, until: float) -> Iterable[Effect]:
        """Again and again until every input was had, or time is up."""
        served = {part: self._is_served(member, effect.round, part) for part in effect.parts}
        if not all(served.values()) and self.world.now + 0.5 < until:
            self._later(member, 0.5, lambda at: self._attempt(member, effect, until))
            return ()
        results = [CheckOutcome(part, self._verdict(effect, part, had)) for part, had in served.items()]
        for result in results:
            if member.honest and result.outcome is Verdict.DIFFERENT:
                self._found_wrong.add(result.part.key)
        return member.run.checked(effect.round, effect.view, results, self.world.now)

    def _verdict(self, effect: Check, part: CheckPart, had: bool) -> Verdict:
        if not had:
            return Verdict.UNSERVED
        right = self._right(effect.set_hash, effect.members, part.part, part.claimed.used)
        return Verdict.SAME if part.claimed == right else Verdict.DIFFERENT

    def _is_served(self, member: Member, round_number: int, part: CheckPart) -> bool:
        return all(
            self._gives(part.reducer, member, round_number) or self._gives(sender, member, round_number)
            for sender, _ in part.inputs
        )

    def _gives(self, place: int, member: Member, round_number: int) -> bool:
        """Whether one member gets inputs of a round from another now."""
        holder = self._living(self._name(place))
        if holder is None or round_number not in holder.trained:
            return False
        if holder is member:
            return True
        reachable = self.world.reachable(holder.peer, member.peer)
        return reachable and holder.voice.serves(member.place) and not self._lost()

    # --- moving parts ---

    def _sends(self, place: int) -> bool:
        sender = self._living(self._name(place))
        return sender is not None and sender.voice.delivers_parts

    def _living(self, name: str) -> Member | None:
        machine = self.world[name] if name in self.world else None  # noqa: SIM401 - a World has no get
        return machine if isinstance(machine, Member) else None

    def _lost(self) -> bool:
        return self.world.rng.random() < self.world.network.loss / 3

    def _fetch(self, member: Member, effect: Fetch, now: float) -> None:
        for wanted in [part.digest for _, part in effect.parts]:
            for holder_name in effect.holders:
                holder = self._living(holder_name)
                if (
                    holder is not None and holder.voice.delivers_parts and wanted in holder.held
                    and self.world.reachable(holder_name, member.peer) and not self._lost()
                ):  # fmt: skip
                    delay = self.world.rng.uniform(0.01, 0.3)
                    self._later(member, delay, lambda at, wanted=wanted: self._fetched(member, effect, wanted, at))  # type: ignore[misc]
                    break

    def _fetched(self, member: Member, effect: Fetch, wanted: bytes, now: float) -> Iterable[Effect]:
        member.held.add(wanted)
        return member.run.fetched(effect.round, wanted, now)

    def _apply(self, member: Member, effect: Apply, now: float) -> None:
        missing = [part for part in effect.parts if part.digest not in member.held]
        if missing:
            self.outcome.broken.append(f"member {member.place} applies round {effect.round} without all of its parts")
        root = digest("state", member.root, [part.digest for part in effect.parts])
        delay = self.world.rng.uniform(0.01, 0.2)

        def done(now: float) -> Iterable[Effect]:
            member.root = root
            return member.run.applied(effect.round, root, now)

        self._later(member, delay, done)

    # --- what must hold ---

    def _certified(self, member: Member, effect: Certified, now: float) -> None:
        if not member.honest:
            return
        body = effect.certificate.body
        self.outcome.views = max(self.outcome.views, effect.report.views)
        if self.certified.setdefault(body.round, record_hash(body)) != record_hash(body):
            self.outcome.broken.append(f"two certificates in round {body.round}")
        expelled = set(places(body.expelled))
        if not expelled <= self.schedule.liars.keys():
            self.outcome.broken.append(f"honest members expelled in round {body.round}: {sorted(expelled)}")
        self.outcome.expelled |= {self.schedule.liars[place].__name__ for place in expelled}
        for number, part in enumerate(body.parts):
            if self.schedule.checks and part != self._right(body.set_hash, places(body.members), number, part.used):
                self._spoiled[body.set_hash, number, part] = body.round

    def overhear(self, member: Member, raw: bytes) -> None:
        """What an honest leader proposes must expel everybody whom all honest members have known as liars for long."""
        record = open_message(raw).record if member.honest and self.schedule.checks and self.schedule.prompt else None
        if not isinstance(record, BodyProposal) or record.proof is not None:
            return
        out, honest = record.body.expelled, set(range(self.schedule.size)) - self.schedule.liars.keys()
        for liar in self.schedule.liars:
            since = max(self._proven.get((place, liar), HORIZON_S) for place in honest)
            gone = out >> liar & 1 or liar not in member.run._electorate
            if since < self.world.now - PROOF_S and not gone:
                self.outcome.broken.append(f"proven liar {liar} left in round {record.round}")

    def _accused(self, member: Member, effect: Exclude | Fault, now: float) -> None:
        accused = self.roster.index_of(effect.peer)
        if not member.honest:
            return
        if accused is None or accused not in self.schedule.liars:
            self.outcome.broken.append(f"honest member {accused} blamed: {effect.reason}")
        elif isinstance(effect, Exclude):
            self._proven.setdefault((member.place, accused), now)
            self.outcome.excluded.add(f"{self.schedule.liars[accused].__name__}: {effect.reason}")

    def _diverged(self, member: Member, effect: Diverged, now: float) -> None:
        if member.honest:
            self.outcome.broken.append(f"member {member.place} diverged in round {effect.round}")

    def _finish(self, member: Member, effect: Finished, now: float) -> None:
        if member.honest:
            self.finished[member.place] = effect.state_root
            self.outcome.finished_s = now

    def _nothing(self, member: Member, effect: Behind | Admitted, now: float) -> None:
        """Nobody joins these schedules, and nobody forgets."""

    def _stall(self, member: Member, effect: Stalled, now: float) -> None:
        if member.honest:
            self.outcome.stalled[member.place] = (now, effect.reason)

    def _over(self) -> bool:
        promised = {place for place in range(self.schedule.size) if self.must_finish(place)}
        return promised <= self.finished.keys() | self.outcome.stalled.keys()

    def _judge(self) -> None:
        outcome = self.outcome
        outcome.spoiled = len(self._spoiled)
        for key, round_number in self._spoiled.items():
            if self.schedule.thorough or (self.schedule.prompt and key in self._found_wrong):
                outcome.broken.append(f"a wrong part {key[1]} certified in round {round_number}")
        if len(set(self.finished.values())) > 1:
            outcome.broken.append("members finished with different states")
        for place in range(self.schedule.size):
            if self.must_finish(place) and place not in self.finished:
                member = self.world[self._name(place)]
                assert isinstance(member, Member)
                reason = member.run.stalled or member.run._at.obstacle()
                outcome.broken.append(f"member {place} did not finish: {reason}")


def play(seed: int) -> Outcome:
    """One schedule that must end well."""
    return Theatre(draw(seed)).play()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--schedules", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="seed of the first schedule")
    parser.add_argument("--seed", type=int, help="play only this one, and tell all")
    options = parser.parse_args(arguments)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.schedules)
    began, failed, views, delivered, expelled, spoiled = time.monotonic(), 0, 0, 0, Counter[str](), 0
    for seed in seeds:
        outcome = play(seed)
        views, delivered = max(views, outcome.views), delivered + outcome.delivered
        if outcome.broken or options.seed is not None:
            print(outcome.schedule.describe)
            print(
                f"  trace {outcome.trace}; finished at {outcome.finished_s:.1f} s; "
                f"excluded {sorted(outcome.excluded)}; expelled {sorted(outcome.expelled)}; "
                f"{outcome.spoiled} parts spoiled"
            )
            for line in outcome.broken:
                print(f"  BROKEN: {line}")
        failed += bool(outcome.broken)
        expelled.update(outcome.expelled)
        spoiled += outcome.spoiled
    took = time.monotonic() - began
    print(f"{len(seeds)} schedules, {failed} failed, {delivered} messages, at most {views} views, {took:.1f} s")
    print(f"expelled: {dict(expelled)}; wrong parts certified where few check: {spoiled}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
