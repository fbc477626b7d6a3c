"""The exchange of one set and view on the stage: the shipped machine at each member, deliveries without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from celluler.errors import PeerViolation, Unavailable
from celluler_protocols.averaging_exchange import Delivery, Exchange
from celluler_protocols.averaging_messages import Update


@dataclass(slots=True)
class Seat:
    """One member inside. leave: called once, with its exchange, when it has everything or its time is up."""

    exchange: Exchange
    leave: Callable[[Exchange], None]
    left: bool = False


class Room:
    """Members are named by their places in the set."""

    def __init__(self) -> None:
        self._seats: dict[int, Seat] = {}
        self._waiting: list[tuple[int, Delivery]] = []  # (from, what), for those not yet inside

    def enter(self, exchange: Exchange, leave: Callable[[Exchange], None]) -> None:
        me = exchange.plan.me
        self._seats[me] = Seat(exchange, leave)
        waiting = [one for one in self._waiting if one[1].member == me]
        for sender, delivery in (*waiting, *((me, delivery) for delivery in exchange.parts_to_send())):
            self._deliver(sender, delivery)
        for place in tuple(self._seats):
            self.reduce(place, late=False)

    def reduce(self, place: int, *, late: bool) -> None:
        """Reduce what this member has all inputs of; late: or as many as came."""
        exchange = self._seats[place].exchange
        for part in exchange.mine:
            gathering = exchange.gatherings[part]
            if gathering.closed or not (gathering.complete or late) or not exchange.close_gathering(part):
                continue
            for delivery in exchange.publish(exchange.seal(part, *gathering.reduce())):
                self._deliver(place, delivery)
        for other, seat in self._seats.items():
            if seat.exchange.complete:
                self.end(other)

    def end(self, place: int) -> None:
        seat = self._seats[place]
        if not seat.left:
            seat.left = True
            seat.leave(seat.exchange)

    def _deliver(self, sender: int, delivery: Delivery) -> None:
        if delivery.member not in self._seats:
            self._waiting.append((sender, delivery))
            return
        receiver, message, body = self._seats[delivery.member].exchange, delivery.message, memoryview(delivery.body)
        peer, read = receiver.plan.members[sender].peer, 0
        try:
            if isinstance(message, Update):
                slots = receiver.begin_update(peer, message)
            else:
                slots = [receiver.begin(peer, message)]
            for slot in slots:
                slot.target[:] = body.cast("B")[read : read + len(slot.target)]
                read += len(slot.target)
                receiver.finish(slot)
        except (PeerViolation, Unavailable):
            pass  # noted in its outcome, or too late
