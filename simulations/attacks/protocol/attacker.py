"""What a lying member is made of, and how it leads an honest `Run` by the hand.

An attacker changes what an honest member would do in four places: the effects of its run (`effects`), what it makes of
others' messages (`received`), what its averager does (`hands`), and what its trainer sends (`update`). The same object
serves a simulation in virtual time and a real node: both drive a `Puppet`, which looks like the run inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, ClassVar

from celluler.errors import PeerViolation
from celluler.identity import Identity, PeerId, Record, Signed, seal
from celluler.learning.effects import Audit, Effect, Send
from celluler.learning.messages import open_message
from celluler.learning.roster import RosterView
from celluler.learning.run import Run
from celluler_protocols.averaging_exchange import Exchange
from simulations.attacks.updates import UpdateAttack

Effects = tuple[Effect, ...]


class End(StrEnum):
    """What becomes of an attacker in a group that bears it."""

    PROVEN = "expelled, with proof"
    AUDITED = "expelled, after an audit"
    WEIGHTLESS = "its update does not count"
    SUSPENDED = "suspended"
    ABSENT = "its update is in no set"
    BARRED = "kept from reducing"
    TOLD = "named as at fault, not expelled"
    BORNE = "nothing so far"


class Attacker:
    """An honest member, until a method says otherwise. One object for one member and one run.

    hands: the exchange of its averager. update: what it does to its own update, if anything.
    """

    hands: ClassVar[type[Exchange]] = Exchange
    update: UpdateAttack | None = None

    def effects(self, effects: Iterable[Effect], run: Puppet, now: float) -> Iterable[Effect]:
        """What it does in place of what its run asks for."""
        return effects

    def received(self, message: Signed[Any], run: Puppet, now: float) -> Iterable[Effect]:
        """What it does beside that when it hears a message, its own run not having heard it yet."""
        return ()

    def next_deadline(self) -> float | None:
        """When it wants `tick`, should its run not be due before."""
        return None

    def tick(self, run: Puppet, now: float) -> Iterable[Effect]:
        return ()


class LyingTrainer(Attacker):
    """Honest in the protocol, with an update of its own making. It looks into nobody else's."""

    def __init__(self, update: UpdateAttack) -> None:
        self.update = update

    def effects(self, effects: Iterable[Effect], run: Puppet, now: float) -> Iterable[Effect]:
        for effect in effects:
            if isinstance(effect, Audit):
                yield from run.audited(effect.round, effect.member, (), now)
            else:
                yield effect


_CALLS = frozenset({"start", "trained", "exchanged", "checked", "fetched", "applied", "audited", "admit"})
"""Of a run: those that return effects and take the time last."""


class Puppet:
    """A run in an attacker's hands. To whoever drives it, it is that run; what comes out is the attacker's."""

    def __init__(self, run: Run, identity: Identity, attacker: Attacker) -> None:
        self._run, self._identity, self._attacker = run, identity, attacker

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._run, name)
        if name not in _CALLS:
            return found

        def call(*given: Any) -> Effects:
            return self._changed(found(*given), given[-1])

        return call

    def receive(self, sender: PeerId, raw: bytes, now: float) -> Effects:
        try:
            beside = tuple(self._attacker.received(open_message(raw), self, now))
        except PeerViolation:
            beside = ()
        return (*beside, *self._changed(self._run.receive(sender, raw, now), now))

    def tick(self, now: float) -> Effects:
        return (*self._changed(self._run.tick(now), now), *self._attacker.tick(self, now))

    def next_deadline(self) -> float | None:
        times = (self._run.next_deadline(), self._attacker.next_deadline())
        return min((time for time in times if time is not None), default=None)

    def _changed(self, effects: Effects, now: float) -> Effects:
        return tuple(self._attacker.effects(effects, self, now))

    # --- for attackers ---

    @property
    def roster(self) -> RosterView:
        return self._run.roster

    @property
    def me(self) -> int:
        return self._run.me

    @property
    def delta_s(self) -> float:
        return self.roster.rules.delta_ms / 1000

    @property
    def others(self) -> tuple[PeerId, ...]:
        return tuple(member.peer for member in self.roster.members if member.index != self.me)

    def sign(self, record: Record) -> bytes:
        return seal(self._identity, record)

    def own(self, effect: Effect) -> Any:
        """What this effect says of ours: the record, or None for anything that is not our own message."""
        if not isinstance(effect, Send):
            return None
        signed = open_message(effect.data)
        return signed.record if signed.signer == self._identity.peer_id else None

    def parted(self, effect: Send, other: bytes) -> Effects:
        """This message to every second of those it is for, and another one to the rest."""
        to = [effect.to] if effect.to is not None else [peer for peer in self.others if peer not in effect.skip]
        return tuple(Send(peer, other if number % 2 else effect.data) for number, peer in enumerate(to))


def possessed(attacker: Callable[[], Attacker]) -> Callable[..., Any]:
    """In place of `Run`, for a node: each run is led by an attacker of its own."""

    def make(roster: RosterView, identity: Identity, **named: Any) -> Puppet:
        return Puppet(Run(roster, identity, **named), identity, attacker())

    return make
