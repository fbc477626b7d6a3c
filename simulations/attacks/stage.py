"""One small group with an attacker or two in it, in virtual time, on real updates.

The runs, the exchanges, the rule and the trainers are those of nodes, down to every byte; what is modelled is the
network between them, which is calm, and how long things take. So a reducer that lies has really reduced wrongly, and
who checks it really computes the part anew. For networks that misbehave see `simulations/rounds.py`.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from celluler.aggregation.digests import mantissas_of, part_hash, wire_bytes
from celluler.aggregation.q16 import Values, decode_parts, encode_parts, part_slices
from celluler.errors import LocalError
from celluler.identity import PeerId
from celluler.learning.checks import CheckOutcome, CheckPart, Verdict, checks_for
from celluler.learning.effects import (
    Apply,
    Audit,
    Certified,
    Check,
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
from celluler.learning.evidence_file import Kind, read_evidence_file
from celluler.learning.messages import Part, places
from celluler.learning.roster import bad_updates
from celluler.learning.run import Run
from celluler_node.training.averaging import plan_of
from celluler_protocols.averaging_exchange import Exchange as Hands
from celluler_protocols.averaging_gathering import check_aggregate, is_committed
from celluler_protocols.averaging_messages import VALUE_BYTES, PartOutcome, Plan
from simulations.attacks.catalogue import parse_attacker
from simulations.attacks.protocol.attacker import Attacker, End, Puppet
from simulations.attacks.protocol.withholding import ServesNoInputs
from simulations.attacks.stage_audit import deviations_of
from simulations.attacks.stage_exchange import Room
from simulations.attacks.stage_material import RUN, STEPS, accuracy_of, architecture, roster_of, trainer_of
from simulations.attacks.trainer import steps_of
from simulations.attacks.updates import PAST_ROUNDS, Scene, Wire, forged
from simulations.world import Network, World

MEMBERS = 7
ROUNDS = 4
HORIZON_S = 900.0
KEPT_EXCHANGES = 4


@dataclass(frozen=True, slots=True)
class Out:
    """What the world carries."""

    peer: str
    message: bytes


@dataclass(slots=True)
class Outcome:
    """What came of a play. Members are named by their places, rounds begin at 0.

    finished, stalled: honest members, with their state root or the reason. excluded: accused -> honest accuser ->
    (reason, evidence). told: whom an honest member named as at fault, and of what. expelled, suspended: in which round
    a certified body did. absent: rounds whose set has not this member. share: of all weight in parts that others
    reduced. reduced: how many certified parts it reduced. views: of each round. accuracy: of the final state, on
    held-out images.
    """

    liars: frozenset[int]
    members: int
    finished: dict[int, bytes] = field(default_factory=dict)
    stalled: dict[int, str] = field(default_factory=dict)
    excluded: dict[int, dict[int, tuple[str, bytes]]] = field(default_factory=lambda: defaultdict(dict))
    told: dict[int, str] = field(default_factory=dict)
    expelled: dict[int, int] = field(default_factory=dict)
    suspended: dict[int, int] = field(default_factory=dict)
    absent: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    share: dict[int, float] = field(default_factory=dict)
    reduced: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    views: list[int] = field(default_factory=list)
    seconds: float = 0.0
    accuracy: float = 0.0

    @property
    def honest(self) -> frozenset[int]:
        return frozenset(range(self.members)) - self.liars

    def end_of(self, place: int) -> End:
        """What became of a member: the worst that did."""
        rounds = len(self.views) - 1
        if place in self.expelled:
            kinds = {read_evidence_file(evidence).kind for _, evidence in self.excluded[place].values()}
            return End.AUDITED if kinds == {Kind.AUDIT.value} else End.PROVEN
        if place in self.suspended:
            return End.SUSPENDED
        if len(self.absent[place]) == rounds:
            return End.ABSENT
        if self.share[place] < 1 / (3 * self.members):
            return End.WEIGHTLESS
        if self.reduced[place] <= rounds / 3:
            return End.BARRED
        return End.TOLD if place in self.told else End.BORNE


class Actor:
    """A member with all that a node has around it. A machine of the world."""

    def __init__(self, stage: Stage, place: int, attacker: Attacker | None) -> None:
        self.stage, self.place, self.honest = stage, place, attacker is None
        self.peer = stage.roster.members[place].peer
        self.attacker = attacker or Attacker()
        attack, members = self.attacker.update, len(stage.roster)
        steps = STEPS if attack is None else steps_of(attack, STEPS)
        self.trainer = trainer_of(place, members, steps=steps, flipped=attack is not None and attack.flips_labels)
        signer = stage.signers[self.peer]
        root, audits = self.trainer.state_root(), stage.roster.rules.audits > 0
        run = Run(stage.roster, signer, state_root=root, checks=stage.checks, audits=audits)
        self.run: Any = run if attacker is None else Puppet(run, signer, attacker)
        self.sent: dict[int, Wire] = {}
        self.held: dict[bytes, bytes] = {}
        self.kept: deque[Hands] = deque(maxlen=KEPT_EXCHANGES)
        self.starts = {0: self.trainer.parameters.copy()}
        self._past: deque[Values] = deque(maxlen=PAST_ROUNDS)
        self._aggregate: Values | None = None

    def receive(self, sender: str, raw: bytes, now: float) -> list[Any]:
        return self.carry_out(self.run.receive(PeerId(sender), raw, now))

    def tick(self, now: float) -> list[Any]:
        return self.carry_out(self.run.tick(now))

    def next_deadline(self) -> float | None:
        deadline: float | None = self.run.next_deadline()
        return deadline

    def carry_out(self, effects: Iterable[Effect]) -> list[Any]:
        """Sends to words for the world; everything else passes through to the stage."""
        outputs: list[Any] = []
        for effect in effects:
            if isinstance(effect, Send):
                others = (member.peer for member in self.stage.roster.members if member.peer != self.peer)
                to = [effect.to] if effect.to is not None else [peer for peer in others if peer not in effect.skip]
                outputs += [Out(peer, effect.data) for peer in to]
            else:
                outputs.append(effect)
        return outputs

    def train(self, number: int, fresh: bool) -> Wire:
        """What it sends in this round: its update, or what it makes of it."""
        update, _ = self.trainer.train(number, fresh=fresh)
        own = Wire(*encode_parts(update, self.stage.parts))
        self.trainer.sent(number, own.values())
        attack = self.attacker.update
        self.sent[number] = own if attack is None else forged(attack, self._scene(number, own))
        self._past.append(own.values())
        return self.sent[number]

    def apply(self, number: int, exponents: tuple[int, ...], mantissas: bytes) -> bytes:
        self._aggregate = decode_parts(exponents, mantissas_of(mantissas))
        self.trainer.apply(number, self._aggregate)
        self.starts[number + 1] = self.trainer.parameters.copy()
        return self.trainer.state_root()

    def _scene(self, number: int, own: Wire) -> Scene:
        others = [one.sent[number].values() for one in self.stage.honest if number in one.sent]
        members, liars = len(self.stage.roster), len(self.stage.outcome.liars)
        return Scene(
            number, self.place, members, liars, bad_updates(members, iid=True), own,
            np.stack(others or [own.values()]), tuple(self._past), self._aggregate,
        )  # fmt: skip


class Stage:
    """One play. attackers: their names by place. audits: expected a round, over all members."""

    def __init__(
        self,
        attackers: Mapping[int, str],
        *,
        members: int = MEMBERS,
        rounds: int = ROUNDS,
        audits: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.roster, self.signers = roster_of(members, rounds, round(1000 * audits))
        self.parts = self.roster.rules.parts
        self.checks = checks_for(members, self.parts)
        self.outcome = Outcome(frozenset(attackers), members)
        self.world = World(seed, Network((0.005, 0.05)), sends=Out, observe=self._observe, size_of=len)
        self.dimension = architecture().dimension
        self._pieces = part_slices(self.dimension, self.parts)
        self._rooms: dict[tuple[int, int, bytes], Room] = defaultdict(Room)
        self._reducers: dict[tuple[bytes, int, bytes], int] = {}  # of (set, part, digest): whoever it was assigned to
        self._given: dict[int, int] = defaultdict(int)  # weight in parts that others reduced
        self._handlers: dict[type, Callable[[Actor, Any, float], None]] = {
            Train: self._train, Exchange: self._exchange, Check: self._check, Fetch: self._fetch, Apply: self._apply,
            Certified: self._certified, Exclude: self._excluded, Fault: self._fault, Finished: self._finished,
            Stalled: self._stalled, Audit: self._audit,
        }  # fmt: skip
        self.actors = [
            Actor(self, place, parse_attacker(attackers[place]) if place in attackers else None)
            for place in range(members)
        ]
        self.honest = [actor for actor in self.actors if actor.honest]

    def play(self, until: float = HORIZON_S) -> Outcome:
        world, outcome = self.world, self.outcome
        for actor in self.actors:
            world.add(actor.peer, actor)
        for actor in self.actors:
            world.apply(actor.peer, actor.carry_out(actor.run.start(world.now)))
        while world.now < until and len(outcome.finished) + len(outcome.stalled) < len(self.honest):
            world.run(world.now + 0.5)
        total = sum(self._given.values()) or 1
        outcome.share = {place: self._given[place] / total for place in range(len(self.roster))}
        outcome.accuracy = accuracy_of(self.honest[0].trainer)
        return outcome

    # --- what a node does, and how long it takes ---

    def _observe(self, name: str, effect: Any, now: float) -> None:
        actor = self.world[name]
        assert isinstance(actor, Actor)
        handler = self._handlers.get(type(effect))
        if handler is not None:
            handler(actor, effect, now)

    def _later(self, actor: Actor, delay: float, act: Callable[[float], Iterable[Effect]]) -> None:
        def call() -> None:
            self.world.apply(actor.peer, actor.carry_out(act(self.world.now)))

        self.world.at(self.world.now + delay, call)

    def _train(self, actor: Actor, effect: Train, now: float) -> None:
        """Liars are a little slower: they may want to see what others send."""
        delay = self.world.rng.uniform(0.2, 0.5) if actor.honest else 0.6
        self._later(actor, delay, lambda at: self._trained(actor, effect, at))

    def _trained(self, actor: Actor, effect: Train, now: float) -> Iterable[Effect]:
        if actor.trainer.applied >= effect.round:
            return ()
        wire = actor.train(effect.round, effect.fresh)
        author = self.signers[actor.peer].public_key
        hashes = tuple(
            part_hash(RUN, effect.round, author, part=part, exponent=exponent, mantissas=wire.mantissas[piece])
            for part, (exponent, piece) in enumerate(zip(wire.exponents, self._pieces, strict=True))
        )
        called: Iterable[Effect] = actor.run.trained(
            effect.round, hashes, wire.exponents, actor.trainer.state_root(), now
        )
        return called

    def _exchange(self, actor: Actor, effect: Exchange, now: float) -> None:
        plan = plan_of(self.roster, actor.place, effect, self.dimension)
        hands = actor.attacker.hands(plan, wire_bytes(actor.sent[effect.round].mantissas))
        actor.kept.append(hands)
        room = self._rooms[effect.round, effect.view, effect.set_hash]
        room.enter(hands, lambda done: self._later(actor, 0.05, lambda at: self._exchanged(actor, effect, done, at)))
        self.world.at(now + plan.gather_s, lambda: room.reduce(plan.me, late=True))
        self.world.at(now + 0.9 * plan.deadline_s, lambda: room.end(plan.me))

    def _exchanged(self, actor: Actor, effect: Exchange, done: Hands, now: float) -> Iterable[Effect]:
        results: list[Part | None] = [None] * self.parts
        for one in done.outcome().reduced:
            piece = self._pieces[one.part]
            view = memoryview(done.aggregate)[VALUE_BYTES * piece.start : VALUE_BYTES * piece.stop]
            actor.held[one.digest] = bytes(view)
            results[one.part] = Part(one.digest, one.exponent, one.used, one.weights)
            self._reducers[effect.set_hash, one.part, one.digest] = effect.reducers[one.part]
        called: Iterable[Effect] = actor.run.exchanged(effect.round, effect.view, tuple(results), now)
        return called

    def _check(self, actor: Actor, effect: Check, now: float) -> None:
        self._later(actor, self.world.rng.uniform(0.02, 0.2), lambda at: self._checked(actor, effect, at))

    def _checked(self, actor: Actor, effect: Check, now: float) -> Iterable[Effect]:
        plan = plan_of(self.roster, actor.place, effect, self.dimension)
        found = [CheckOutcome(part, self._verdict(actor, effect, plan, part)) for part in effect.parts]
        called: Iterable[Effect] = actor.run.checked(effect.round, effect.view, found, now)
        return called

    def _verdict(self, actor: Actor, effect: Check, plan: Plan, part: CheckPart) -> Verdict:
        claimed, inputs = part.claimed, dict[int, Any]()
        for member in places(claimed.used):
            asked = dict.fromkeys((actor.place, part.reducer, effect.members[member]))
            given = (self._input(actor, place, effect.round, part.part, member) for place in asked)
            had = next((one for one in given if one is not None and is_committed(plan, part.part, member, one)), None)
            if had is None:
                return Verdict.UNSERVED
            inputs[member] = had
        result = PartOutcome(part.part, claimed.exponent, claimed.used, claimed.weights, claimed.digest)
        return Verdict.SAME if check_aggregate(plan, result, inputs)[0] else Verdict.DIFFERENT

    def _input(self, actor: Actor, holder: int, round_number: int, part: int, member: int) -> Any:
        """What a member gives to another, or has itself. Nothing is packed on the finest wire."""
        for hands in reversed(self.actors[holder].kept):
            given = hands.input_of if holder == actor.place else hands.input_packed
            if hands.plan.round == round_number and (held := given(part, member)) is not None:
                return held
        return None

    def _audit(self, actor: Actor, effect: Audit, now: float) -> None:
        self._later(actor, self.world.rng.uniform(0.1, 0.3), lambda at: self._audited(actor, effect, at))

    def _audited(self, actor: Actor, effect: Audit, now: float) -> Iterable[Effect]:
        """What it sent it serves to whoever asks, or to nobody."""
        target, found = self.actors[effect.member], None
        if not issubclass(target.attacker.hands, ServesNoInputs):
            before = None if effect.before is None else target.sent[effect.round - 1]
            sent, start = target.sent[effect.round], actor.starts[effect.round]
            found = deviations_of(actor.trainer, effect, sent, before, start)
        called: Iterable[Effect] = actor.run.audited(effect.round, effect.member, found, now)
        return called

    def _fetch(self, actor: Actor, effect: Fetch, now: float) -> None:
        for _, part in effect.parts:
            for holder in effect.holders:
                held = self.actors[self._place(holder)].held.get(part.digest)
                if held is not None:
                    self._later(actor, 0.1, lambda at, d=part.digest, b=held: self._fetched(actor, effect, d, b, at))  # type: ignore[misc]
                    break

    def _fetched(self, actor: Actor, effect: Fetch, digest: bytes, held: bytes, now: float) -> Iterable[Effect]:
        actor.held[digest] = held
        called: Iterable[Effect] = actor.run.fetched(effect.round, digest, now)
        return called

    def _apply(self, actor: Actor, effect: Apply, now: float) -> None:
        self._later(actor, 0.05, lambda at: self._applied(actor, effect, at))

    def _applied(self, actor: Actor, effect: Apply, now: float) -> Iterable[Effect]:
        mantissas = b"".join(actor.held[part.digest] for part in effect.parts)
        root = actor.apply(effect.round, tuple(part.exponent for part in effect.parts), mantissas)
        called: Iterable[Effect] = actor.run.applied(effect.round, root, now)
        return called

    # --- what came of it ---

    def _place(self, peer: str) -> int:
        place = self.roster.index_of(peer)
        if place is None:
            raise LocalError(f"{peer} is not of this run")
        return place

    def _certified(self, actor: Actor, effect: Certified, now: float) -> None:
        """As the first honest member hears of it: bodies are equal, or the states in the end are not."""
        body, outcome = effect.certificate.body, self.outcome
        if not actor.honest or body.round < len(outcome.views):
            return
        outcome.views.append(effect.report.views)
        for place in places(body.expelled):
            outcome.expelled[place] = body.round
        for place in places(body.suspended):
            outcome.suspended[place] = body.round
        members = places(body.members)
        for place in range(len(self.roster)):
            if place not in members and place not in outcome.expelled and body.parts:
                outcome.absent[place].add(body.round)
        for number, part in enumerate(body.parts):
            reducer = self._reducers[body.set_hash, number, part.digest]
            outcome.reduced[reducer] += 1
            for member, weight in zip(members, part.weights, strict=True):
                self._given[member] += weight * (member != reducer)

    def _excluded(self, actor: Actor, effect: Exclude, now: float) -> None:
        if actor.honest:
            accused = self.outcome.excluded[self._place(effect.peer)]
            accused[actor.place] = effect.reason, effect.evidence

    def _fault(self, actor: Actor, effect: Fault, now: float) -> None:
        if actor.honest:
            self.outcome.told.setdefault(self._place(effect.peer), effect.reason)

    def _finished(self, actor: Actor, effect: Finished, now: float) -> None:
        if actor.honest:
            self.outcome.finished[actor.place] = effect.state_root
            self.outcome.seconds = now

    def _stalled(self, actor: Actor, effect: Stalled, now: float) -> None:
        if actor.honest:
            self.outcome.stalled[actor.place] = effect.reason
