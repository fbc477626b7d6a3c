"""Members that take and do not give: votes, their update, what they reduced, or what others would look at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celluler.learning.effects import Effect
from celluler.learning.messages import Vote
from celluler_protocols.averaging_exchange import Delivery, Exchange, Sealed
from simulations.attacks.protocol.attacker import Attacker, Puppet


class WithholdingVoter(Attacker):
    """Takes part in everything and never votes."""

    def effects(self, effects: Iterable[Effect], run: Puppet, now: float) -> Iterable[Effect]:
        return (effect for effect in effects if not isinstance(run.own(effect), Vote))


class SendsNoParts(Exchange):
    def parts_to_send(self) -> list[Delivery]:
        return []


class WithholdingSender(Attacker):
    """Commits to an update, and sends its parts to nobody."""

    hands = SendsNoParts


class PublishesNothing(Exchange):
    def publish(self, sealed: Sealed) -> list[Delivery]:
        return []


class WithholdingReducer(Attacker):
    """Takes the inputs of its parts, and gives nobody the result."""

    hands = PublishesNothing


class ServesNoInputs(Exchange):
    def input_packed(self, part: int, member: int) -> Any:
        return None


class WithholdingWitness(Attacker):
    """Gives nobody who checks or audits an input: neither its own nor those it reduced."""

    hands = ServesNoInputs
