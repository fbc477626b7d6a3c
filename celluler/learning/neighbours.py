"""One member of a run without certificates, sans-IO: neighbours average their models, and nobody votes.

A round: local steps from our own model; a signed announcement of the result to the neighbours; their results fetched
by hash; ours moved towards them by a rule that no far one can pull far; the next round. After the last training round
come a few that only mix, since by then all that is left to do is to agree.

    STEP ─ stepped ─▶ GATHER ─ everybody heard of is here, or the deadline ─▶ MIX ─ mixed ─▶ STEP … DONE

Nobody is waited for for ever: a neighbour that is silent not at all, one that is slow for Δ and the time our own steps
took. Of a neighbour that is ahead its later model is taken; who sees most of its neighbours ahead goes on in their
round. Rounds therefore only pace the members: no result depends on two of them being in the same one.

What this does NOT give stands in docs/explanation/consensus.md: members' models differ, two neighbours may be told
different things, and nothing here can be proved to anybody.

Time is an argument, everywhere. Knows nothing of arrays: rows are named by what was announced.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from celluler.errors import LocalError, PeerViolation, ProtocolViolation
from celluler.identity import Identity, PeerId, Signed, seal
from celluler.learning.effects import Fault, Send
from celluler.learning.neighbours_effects import Done, Effect, Gather, Mix, Mixed, Row, Step
from celluler.learning.neighbours_messages import MAX_SETTLING, Here, Model, open_word
from celluler.learning.report import RoundReport, RunReport
from celluler.learning.roster import RosterView, bad_updates
from celluler.learning.topology import Graph, Topology, graph

SETTLING_ROUNDS = 3
"""Rounds without training at the end."""
OPENING_DELTAS = 3
"""Δ that others have to open the run: it takes their workers unequally long to start."""
KEPT_ANNOUNCEMENTS = 3
"""Of one neighbour: those of the lowest rounds that may still be of use, and the newest."""
TRIES = 3
"""How often one model is asked for."""
LEAST_PULL = 0.01
"""A model of whose difference less than this was let in counts as given no weight."""
RULE = "clipped-gossip"

Effects = tuple[Effect, ...]


class Phase(Enum):
    """What we wait for."""

    STEP = auto()
    GATHER = auto()
    MIX = auto()
    DONE = auto()


class Neighbours:
    """Feed it what arrives; carry out the effects that every call returns, in order."""

    def __init__(
        self,
        roster: RosterView,
        identity: Identity,
        *,
        topology: Topology,
        regions: Sequence[str] = (),
        settling: int = SETTLING_ROUNDS,
    ) -> None:
        """regions: see `graph`. settling: rounds at the end in which nobody trains."""
        me = roster.index_of(identity.peer_id)
        if me is None:
            raise LocalError("not a member of this roster")
        if not 0 <= settling <= MAX_SETTLING:
            raise LocalError(f"0..{MAX_SETTLING} rounds without training, not {settling}")
        rules = roster.rules
        self.roster, self.me = roster, me
        self.rounds = rules.rounds + settling
        self.report = RunReport(RULE)
        self.phase = Phase.STEP
        self.round = 0
        self._identity, self._topology, self._regions = identity, topology, tuple(regions)
        self._liars = max(bad_updates(len(roster), iid=rules.iid), rules.b)
        self._delta_s, self._period_s = rules.delta_ms / 1000, rules.delta_ms / 4000
        self._train_s, self._gather_s = rules.train_ms / 1000, rules.exchange_ms / 1000
        self._heard: dict[int, float] = {}
        self._reached: dict[int, int] = {}
        self._told: dict[int, dict[int, Model]] = {place: {} for place in range(len(roster)) if place != me}
        self._tries: dict[tuple[int, int], int] = {}
        self._gathering: set[tuple[int, int]] = set()
        self._here: set[tuple[int, int]] = set()
        self._own: bytes | None = None
        self._mixing: tuple[Row, ...] = ()
        self._now = self._began = self._deadline = self._speak_at = self._grace = 0.0
        self._out: list[Effect] = []
        self._deviations: tuple[tuple[int, float], ...] = ()
        self.met: set[int] = set()
        """Places whose models we have ever mixed with ours."""

    # --- what the caller asks -------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return self.phase is Phase.DONE

    @property
    def settled(self) -> bool:
        """Everybody heard of has finished too: nobody needs us any more."""
        return self.finished and all(self._reached.get(p, 0) >= self.rounds for p in self._told if self._alive(p))

    def next_deadline(self) -> float:
        return min(self._speak_at, self._deadline) if self.phase is Phase.GATHER else self._speak_at

    # --- what happens ---------------------------------------------------------------------------------------------

    def start(self, now: float) -> Effects:
        self._now = now
        self._grace = now + OPENING_DELTAS * self._delta_s
        self._heard = dict.fromkeys(self._told, self._grace - self._delta_s)
        self._speak()
        self._enter(0)
        return self._drain()

    def receive(self, sender: PeerId, data: bytes, now: float) -> Effects:
        """Bytes that `sender`'s stream brought. What breaks the rules is its Fault, for nobody speaks for another."""
        self._now = now
        try:
            signed = open_word(data)
            place = self.roster.index_of(sender)
            if signed.signer != sender or place is None or place == self.me:
                raise ProtocolViolation("passed on what another signed", peer=sender)
            self._take(place, signed)
        except PeerViolation as error:
            self._out.append(Fault(sender, str(error)))
        self._advance()
        return self._drain()

    def stepped(self, round_number: int, hashes: tuple[bytes, ...], exponents: tuple[int, ...], now: float) -> Effects:
        """Our model of this round is ready to be fetched. Late answers are ignored."""
        self._now = now
        if round_number != self.round or self.phase is not Phase.STEP:
            return ()
        if not len(hashes) == len(exponents) == self.roster.rules.parts:
            raise LocalError(f"a model of {len(hashes)} parts in a run of {self.roster.rules.parts}")
        self._own = seal(self._identity, Model(self.roster.run, round_number, hashes, exponents))
        self._announce()
        self.phase = Phase.GATHER
        wait_s = self._delta_s + min(now - self._began, self._train_s)
        self._deadline = max(now + wait_s, self._grace)
        self._advance()
        return self._drain()

    def gathered(self, place: int, round_number: int, had: bool, now: float) -> Effects:
        """The answer to a Gather: whether that model is here, every part as announced."""
        self._now = now
        self._gathering.discard((place, round_number))
        if had:
            self._here.add((place, round_number))
        self._advance()
        return self._drain()

    def mixed(self, round_number: int, deviations: Sequence[float], pulls: Sequence[float], now: float) -> Effects:
        """The answer to a Mix, one figure a row: how far it lay from ours, and how much of that was let in (0…1)."""
        self._now = now
        if round_number != self.round or self.phase is not Phase.MIX:
            return ()
        places = [row.place for row in self._mixing]
        self._deviations = tuple(zip(places, deviations, strict=True))
        self.met.update(places)
        ignored = [place for place, pull in zip(places, pulls, strict=True) if pull < LEAST_PULL]
        self._account(places, ignored)
        self._enter(max(self.round + 1, self._most_reached()))
        return self._drain()

    def tick(self, now: float) -> Effects:
        self._now = now
        if now >= self._speak_at:
            self._speak()
            self._announce()
        self._advance()
        return self._drain()

    # --- words ----------------------------------------------------------------------------------------------------

    def _take(self, place: int, signed: Signed[Here] | Signed[Model]) -> None:
        record = signed.record
        if record.run != self.roster.run:
            raise ProtocolViolation("a word of another run", peer=signed.signer)
        if record.round > self.rounds:
            raise ProtocolViolation(f"round {record.round} of {self.rounds}", peer=signed.signer)
        if isinstance(record, Model):
            if not len(record.hashes) == len(record.exponents) == self.roster.rules.parts:
                raise ProtocolViolation("a model cut into another number of parts", peer=signed.signer)
            told = self._told[place]
            if told.setdefault(record.round, record) != record:
                raise ProtocolViolation(f"two models of round {record.round}", peer=signed.signer)
            self._forget(place)
        self._heard[place] = self._now
        self._reached[place] = max(self._reached.get(place, 0), record.round)

    def _forget(self, place: int) -> None:
        """Keep the announcements of the next rounds and the newest one: a neighbour cannot fill our memory."""
        told = self._told[place]
        useful = sorted(number for number in told if number >= self.round)
        kept = {*useful[:KEPT_ANNOUNCEMENTS], *useful[-1:]}
        self._told[place] = {number: told[number] for number in useful if number in kept}

    def _speak(self) -> None:
        self._speak_at = self._now + self._period_s
        self._out.append(Send(None, seal(self._identity, Here(self.roster.run, self.round))))

    def _announce(self) -> None:
        """Our newest to our neighbours, again and again: a message may be lost."""
        if self._own is not None:
            peers = [self.roster.members[place].peer for place in self._graph().neighbours[self.me]]
            self._out += [Send(peer, self._own) for peer in peers]

    # --- rounds ---------------------------------------------------------------------------------------------------

    def _enter(self, round_number: int) -> None:
        self.round, self._began = round_number, self._now
        for place in self._told:
            self._forget(place)
        self._here = {(place, number) for place, number in self._here if number in self._told[place]}
        self._tries = {key: count for key, count in self._tries.items() if key[1] in self._told[key[0]]}
        if round_number >= self.rounds:
            self.phase = Phase.DONE
            self._speak()
            self._out.append(Done(self._deviations, self._distance))
            return
        self.phase = Phase.STEP
        self._out.append(Step(round_number, train=round_number < self.roster.rules.rounds))
        self._advance()

    def _advance(self) -> None:
        """Ask for what is announced; mix once nothing is to be waited for any more."""
        if self.phase not in (Phase.STEP, Phase.GATHER):
            return
        neighbours = self._graph().neighbours[self.me]
        for place in neighbours:
            self._gather(place)
        if self.phase is Phase.GATHER and (self._now >= self._deadline or all(map(self._answered, neighbours))):
            self.phase, self._mixing = Phase.MIX, self._rows()
            self._out.append(Mix(self.round, self._mixing, self._trusted(len(self._mixing))))

    def _gather(self, place: int) -> None:
        model = self._useful(place)
        if model is None:
            return
        key = place, model.round
        if key in self._here or key in self._gathering or self._tries.get(key, 0) >= TRIES:
            return
        self._tries[key] = self._tries.get(key, 0) + 1
        self._gathering.add(key)
        self._out.append(Gather(place, model, self._gather_s))

    def _useful(self, place: int) -> Model | None:
        """Of this round, else of the nearest later one."""
        told = self._told[place]
        return told[min(told)] if told else None

    def _answered(self, place: int) -> bool:
        """Nothing more is to be had of a neighbour in this round."""
        model = self._useful(place)
        if model is None:
            return not self._alive(place)
        key = place, model.round
        return key in self._here or (key not in self._gathering and self._tries.get(key, 0) >= TRIES)

    def _rows(self) -> tuple[Row, ...]:
        """What is here, by the weights of the graph; what is not leaves its weight with us."""
        weights, rows = self._graph(), []
        for place in weights.neighbours[self.me]:
            numbers = sorted(number for number in self._told[place] if (place, number) in self._here)
            if numbers:
                rows.append(Row(place, self._told[place][numbers[0]], weights.weight(self.me, place)))
        return tuple(rows)

    def _trusted(self, rows: int) -> int | None:
        """As many neighbours as would be left without the most liars that so few may have; see `Mix`."""
        return None if rows < 2 else rows - min(self._liars, rows // 2)

    # --- who is there ---------------------------------------------------------------------------------------------

    def _alive(self, place: int) -> bool:
        return self._now - self._heard[place] <= self._delta_s

    def _graph(self) -> Graph:
        """Among those we hear of, and those whose model is here though they fell silent since."""
        here = {place for place, _ in self._here}
        silent = frozenset(place for place in self._told if place not in here and not self._alive(place))
        return graph(self._topology, len(self.roster), regions=self._regions, silent=silent)

    def _most_reached(self) -> int:
        """The round that more than half of our neighbours say to be in.

        An only neighbour has us skip no more than one round a round: it could be the one that lies.
        """
        reached = sorted((self._reached.get(p, 0) for p in self._graph().neighbours[self.me]), reverse=True)
        if not reached:
            return 0
        return min(reached[len(reached) // 2], self.round + 2 if len(reached) == 1 else self.rounds)

    # --- what came of it ------------------------------------------------------------------------------------------

    @property
    def _distance(self) -> float:
        return max((deviation for _, deviation in self._deviations), default=0.0)

    def _account(self, places: Sequence[int], ignored: Sequence[int]) -> None:
        def names(some: Sequence[int]) -> tuple[PeerId, ...]:
            return tuple(self.roster.members[place].peer for place in some)

        neighbours = self._graph().neighbours[self.me]
        absent = [p for p in self._told if p not in places and (p in neighbours or not self._alive(p))]
        report = RoundReport(
            round=self.round,
            views=1,
            contributed=names(sorted([*places, self.me])),
            no_weight=names(ignored),
            absent=names(absent),
        )
        if self.round < self.roster.rules.rounds:
            self.report.rounds.append(report)
        self._out.append(Mixed(report, self._distance))

    def _drain(self) -> Effects:
        effects, self._out = tuple(self._out), []
        for effect in effects:
            if isinstance(effect, Fault):
                self.report.fault(effect.peer, effect.reason)
        return effects
