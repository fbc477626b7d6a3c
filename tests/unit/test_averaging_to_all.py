"""Exchanges in which every input goes to every member, and those by coarser wires."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import numpy as np
import pytest

from celluler.aggregation.digests import mantissas_of, part_hash
from celluler.aggregation.q16 import encode_parts, part_slices
from celluler.aggregation.wires import WIRES, packed_bytes, round_to
from celluler.errors import Busy, LocalError, ProtocolViolation, Unavailable
from celluler.identity import Identity
from celluler_protocols.averaging_checks import Checker
from celluler_protocols.averaging_exchange import Delivery, Exchange, Slot
from celluler_protocols.averaging_gathering import check_aggregate
from celluler_protocols.averaging_messages import Assignment, Member, Plan, Reduced, Update, Want

RUN = bytes(range(32))
DIMENSION, COUNT = 1301, 4
ALL = (1 << COUNT) - 1


@dataclass
class World:
    """Alice, bob, carol and dave; part k is reduced by member k."""

    plan: Plan
    blobs: list[bytes]

    def exchange(self, place: int) -> Exchange:
        return Exchange(replace(self.plan, me=place), self.blobs[place])

    def bring(self, sender: int, receiver: Exchange, delivery: Delivery) -> None:
        assert isinstance(delivery.message, Update)
        slots = receiver.begin_update(self.plan.members[sender].peer, delivery.message)
        fill(slots, delivery.body)
        for slot in slots:
            receiver.finish(slot)

    def gathered(self, *, without: tuple[tuple[int, int], ...] = ()) -> list[Exchange]:
        """All exchanges after the updates came. without: (sender, receiver) whose link is cut."""
        exchanges = [self.exchange(place) for place in range(COUNT)]
        for sender in range(COUNT):
            for delivery in exchanges[sender].parts_to_send():
                if (sender, delivery.member) not in without:
                    self.bring(sender, exchanges[delivery.member], delivery)
        return exchanges


def world(wire: str = "q16") -> World:
    random = np.random.default_rng(5)
    common = random.standard_normal(DIMENSION)
    members, blobs = [], []
    for place in range(COUNT):
        author, averager = Identity(bytes([place]) * 32), Identity(bytes([100 + place]) * 32)
        update = common + 0.3 * random.standard_normal(DIMENSION)
        exponents, mantissas = encode_parts(update.astype(np.float32), COUNT)
        pieces = part_slices(DIMENSION, COUNT)
        rounded = [round_to(wire, mantissas[piece]) for piece in pieces]
        hashes = tuple(
            part_hash(RUN, 1, author.public_key, part=part, exponent=exponents[part], mantissas=one)
            for part, one in enumerate(rounded)
        )
        members.append(Member(averager.peer_id, author.public_key, (), hashes, exponents))
        blobs.append(np.concatenate(rounded).astype("<i2").tobytes())
    assignments = tuple(Assignment(part, part) for part in range(COUNT))
    plan = Plan(
        RUN, 1, 0, b"s" * 32, 0, tuple(members), DIMENSION, COUNT, assignments, "nk", 1, COUNT - 1, 1.0, 2.0, wire, True
    )  # fmt: skip
    return World(plan, blobs)


def fill(slots: list[Slot], body: bytes | bytearray | memoryview) -> None:
    start = 0
    for slot in slots:
        slot.target[:] = memoryview(body).cast("B")[start : start + len(slot.target)]
        start += len(slot.target)
    assert start == memoryview(body).nbytes


def reduce_own(exchange: Exchange, part: int) -> list[Delivery]:
    exchange.close_gathering(part)
    return exchange.publish(exchange.seal(part, *exchange.gatherings[part].reduce()))


@pytest.mark.parametrize("wire", WIRES)
def test_everybody_finds_by_itself_what_each_reducer_tells(wire: str) -> None:
    there = world(wire)
    exchanges = there.gathered()
    for reducer in range(COUNT):
        for delivery in reduce_own(exchanges[reducer], reducer):
            receiver = exchanges[delivery.member]
            assert isinstance(delivery.message, Reduced)
            receiver.is_announced(there.plan.members[reducer].peer, delivery.message)
            receiver.gatherings[reducer].closed = True
            sealed = receiver.foresee(reducer, ALL)
            assert sealed is not None
            assert receiver.settle(delivery.message, sealed)
    assert len({bytes(exchange.aggregate) for exchange in exchanges}) == 1
    assert len({exchange.outcome().reduced for exchange in exchanges}) == 1
    told = [sorted(exchange.outcome().squares, key=lambda one: one.part) for exchange in exchanges]
    assert told == [told[0]] * COUNT
    assert [one.part for one in told[0]] == list(range(COUNT))
    assert all(exchange.complete and not exchange.outcome().faults for exchange in exchanges)
    for part, piece in enumerate(part_slices(DIMENSION, COUNT)):
        reduced = mantissas_of(bytes(exchanges[0].aggregate))[piece]
        assert np.array_equal(round_to(wire, reduced), reduced)
        inputs = {member: blob[2 * piece.start : 2 * piece.stop] for member, blob in enumerate(there.blobs)}
        assert check_aggregate(there.plan, exchanges[0].outcome().reduced[part], inputs)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("wire", WIRES)
def test_who_lacks_an_input_takes_the_bytes(wire: str) -> None:
    there = world(wire)
    exchanges = there.gathered(without=((3, 0),))
    delivery = reduce_own(exchanges[1], 1)[0]
    assert (delivery.member, exchanges[0].gatherings[1].there) == (0, (0, 1, 2))
    exchanges[0].gatherings[1].closed = True
    assert exchanges[0].foresee(1, ALL) is None
    assert isinstance(delivery.message, Reduced)
    slot = exchanges[0].begin(there.plan.members[1].peer, delivery.message)
    assert len(slot.target) == packed_bytes(wire, there.plan.values_in(1))
    slot.target[:] = memoryview(delivery.body).cast("B")
    exchanges[0].finish(slot)
    place = exchanges[0]._places[1]
    assert exchanges[0].aggregate[place] == exchanges[1].aggregate[place]


async def checked_by_alice(there: World, exchanges: list[Exchange]) -> tuple[bool, list[str]]:
    """Whether dave's own part comes out the same when alice, whom no word of dave reaches, computes it anew; whom she
    asked."""
    reduce_own(exchanges[3], 3)
    plan = replace(there.plan, me=0)
    peers, asked = [member.peer for member in plan.members], list[str]()

    async def ask(peer: str, want: Want, target: memoryview) -> bool:
        asked.append(peer)
        held = exchanges[peers.index(peer)].input_packed(want.part, want.member) if peer != peers[3] else None
        if held is not None:
            target[:] = memoryview(held).cast("B")
        return held is not None

    checker = Checker(peers[0], lambda: [(plan.key, exchanges[0])], ask)
    (told,) = (one for one in exchanges[3].outcome().reduced if one.part == 3)
    return (await checker.check(plan, told)).equal, asked


def test_an_input_that_its_member_cannot_bring_is_had_from_another() -> None:
    there = world()
    equal, asked = asyncio.run(checked_by_alice(there, there.gathered(without=((3, 0),))))
    assert equal
    assert asked == [there.plan.members[place].peer for place in (3, 1)]


def test_an_input_that_nobody_else_has_is_not_had() -> None:
    there = world()
    with pytest.raises(Unavailable):
        asyncio.run(checked_by_alice(there, there.gathered(without=((3, 0), (3, 1), (3, 2)))))


def test_a_reducer_that_used_fewer_inputs_is_understood() -> None:
    there = world()
    exchanges = there.gathered(without=((3, 1),))
    delivery = reduce_own(exchanges[1], 1)[0]
    exchanges[0].gatherings[1].closed = True
    assert isinstance(delivery.message, Reduced)
    whole, fewer = exchanges[0].foresee(1, ALL), exchanges[0].foresee(1, delivery.message.used)
    assert whole is not None
    assert fewer is not None
    assert not exchanges[0].settle(delivery.message, whole)
    assert exchanges[0].settle(delivery.message, fewer)


def test_a_lie_about_an_aggregate_is_not_what_we_found() -> None:
    there = world()
    exchanges = there.gathered()
    message = reduce_own(exchanges[1], 1)[0].message
    assert isinstance(message, Reduced)
    exchanges[0].gatherings[1].closed = True
    sealed = exchanges[0].foresee(1, ALL)
    assert sealed is not None
    assert not exchanges[0].settle(replace(message, digest=bytes(32)), sealed)
    assert not exchanges[0].complete


def test_one_wrong_part_costs_that_part_alone() -> None:
    there = world()
    alice, bob = there.exchange(0), there.exchange(1)
    delivery = next(each for each in bob.parts_to_send() if each.member == 0)
    assert isinstance(delivery.message, Update)
    slots = alice.begin_update(there.plan.members[1].peer, delivery.message)
    fill(slots, bytes([bytes(delivery.body)[0] ^ 1]) + bytes(delivery.body)[1:])
    with pytest.raises(ProtocolViolation, match="committed"):
        alice.finish(slots[0])
    for slot in slots[1:]:
        alice.finish(slot)
    assert [gathering.has(1) for gathering in alice.gatherings.values()] == [False, True, True, True]
    assert ("hash", 1, 0) in {(fault.kind, fault.member, fault.part) for fault in alice.outcome().faults}


def test_an_update_that_broke_off_comes_again_and_what_is_there_stays() -> None:
    there = world()
    alice, bob = there.exchange(0), there.exchange(1)
    delivery = next(each for each in bob.parts_to_send() if each.member == 0)
    assert isinstance(delivery.message, Update)
    peer = there.plan.members[1].peer
    slots = alice.begin_update(peer, delivery.message)
    with pytest.raises(Busy):
        alice.begin_update(peer, delivery.message)
    fill(slots, delivery.body)
    alice.finish(slots[0])
    for slot in slots[1:]:
        alice.broken(slot)
    again = alice.begin_update(peer, delivery.message)
    assert [slot.vain for slot in again] == [True, False, False, False]
    fill(again, bytes(2 * there.plan.values_in(0)) + bytes(delivery.body)[2 * there.plan.values_in(0) :])
    for slot in again:
        alice.finish(slot)
    assert all(gathering.has(1) for gathering in alice.gatherings.values())
    with pytest.raises(ProtocolViolation, match="second copy"):
        alice.begin_update(peer, delivery.message)
    assert alice.input_of(0, 1) == bytes(delivery.body)[: 2 * there.plan.values_in(0)]


def test_who_breaks_off_again_and_again_is_not_awaited_for_ever() -> None:
    there = world()
    alice, bob = there.exchange(0), there.exchange(1)
    message = bob.parts_to_send()[0].message
    assert isinstance(message, Update)
    for _ in range(3):
        for slot in alice.begin_update(there.plan.members[1].peer, message):
            alice.broken(slot)
    for _ in range(2):
        with pytest.raises(ProtocolViolation, match="never finished"):
            alice.begin_update(there.plan.members[1].peer, message)


def test_what_is_no_packing_is_a_fault_and_another_size_too() -> None:
    there = world("q8")
    alice, bob = there.exchange(0), there.exchange(1)
    delivery = next(each for each in bob.parts_to_send() if each.member == 0)
    assert isinstance(delivery.message, Update)
    peer = there.plan.members[1].peer
    with pytest.raises(ProtocolViolation, match="announced"):
        alice.begin_update(peer, replace(delivery.message, size=delivery.message.size + 1))
    slots = alice.begin_update(peer, delivery.message)
    fill(slots, b"\xff" * len(bytes(delivery.body)))
    with pytest.raises(ProtocolViolation, match="packing"):
        alice.finish(slots[0])
    assert alice.gatherings[0].is_shut(1)


def test_an_update_finer_than_the_wire_cannot_be_sent() -> None:
    fine = world()
    with pytest.raises(LocalError, match="not rounded"):
        Exchange(replace(fine.plan, wire="q4"), fine.blobs[0])
