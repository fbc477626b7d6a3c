from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from celluler.aggregation.digests import mantissas_of, part_hash
from celluler.aggregation.q16 import decode_parts, encode_parts, part_slices
from celluler.errors import Busy, LocalError, PeerViolation, ProtocolViolation
from celluler.identity import Identity
from celluler_protocols.averaging_exchange import Delivery, Exchange
from celluler_protocols.averaging_gathering import MAX_TRIES, Late, check_aggregate
from celluler_protocols.averaging_messages import Assignment, Member, Outcome, Part, Plan, Reduced, check_plan

RUN = bytes(range(32))
DIMENSION = 103


@dataclass
class World:
    """All members of one round in one process: alice, bob, carol, dave. Part k is reduced by member k."""

    plan: Plan
    blobs: list[bytes]

    def exchange(self, place: int) -> Exchange:
        return Exchange(replace(self.plan, me=place), self.blobs[place])

    def peer(self, place: int) -> str:
        return self.plan.members[place].peer


def world(count: int = 4, *, absent: int | None = None) -> World:
    random = np.random.default_rng(3)
    members, blobs = [], []
    for place in range(count):
        author, averager = Identity(bytes([place]) * 32), Identity(bytes([100 + place]) * 32)
        hashes: tuple[bytes, ...] = ()
        exponents: tuple[int, ...] = ()
        blob = b""
        if place != absent:
            exponents, mantissas = encode_parts(random.standard_normal(DIMENSION).astype(np.float32), count)
            blob = mantissas.astype("<i2").tobytes()
            hashes = tuple(
                part_hash(RUN, 1, author.public_key, part=part, exponent=exponents[part], mantissas=mantissas[piece])
                for part, piece in enumerate(part_slices(DIMENSION, count))
            )
        members.append(Member(averager.peer_id, author.public_key, (), hashes, exponents))
        blobs.append(blob)
    assignments = tuple(Assignment(part, part) for part in range(count))
    plan = Plan(
        RUN, 1, 0, b"s" * 32, 0, tuple(members), DIMENSION, count, assignments, "nk", 1, count - 1, 1.0, 2.0
    )  # fmt: skip
    return World(plan, blobs)


def bring(world: World, sender: int, receiver: Exchange, delivery: Delivery) -> None:
    slot = receiver.begin(world.peer(sender), delivery.message)
    slot.target[:] = memoryview(delivery.body).cast("B")
    receiver.finish(slot)


def run_all(world: World, places: range | tuple[int, ...]) -> dict[int, Exchange]:
    exchanges = {place: world.exchange(place) for place in places}
    for sender, exchange in exchanges.items():
        for delivery in exchange.parts_to_send():
            if delivery.member in exchanges:
                bring(world, sender, exchanges[delivery.member], delivery)
    for sender, exchange in exchanges.items():
        for part, gathering in exchange.gatherings.items():
            if exchange.close_gathering(part):
                for delivery in exchange.publish(exchange.seal(part, *gathering.reduce())):
                    if delivery.member in exchanges:
                        bring(world, sender, exchanges[delivery.member], delivery)
    return exchanges


def kinds(outcome: Outcome) -> set[tuple[str, int]]:
    return {(fault.kind, fault.member) for fault in outcome.faults}


def first_part(world: World) -> tuple[Exchange, Part, bytes]:
    """(alice, bob's announcement of her part, its bytes)"""
    delivery = next(each for each in world.exchange(1).parts_to_send() if each.member == 0)
    assert isinstance(delivery.message, Part)
    return world.exchange(0), delivery.message, bytes(delivery.body)


def test_everybody_ends_with_the_same_bytes_and_digests() -> None:
    exchanges = run_all(world(), range(4))
    assert len({bytes(exchange.aggregate) for exchange in exchanges.values()}) == 1
    assert len({exchange.outcome().reduced for exchange in exchanges.values()}) == 1
    assert exchanges[0].outcome().missing == exchanges[0].outcome().faults == ()
    assert all(exchange.complete for exchange in exchanges.values())


def test_an_exchange_is_not_complete_before_its_own_aggregate_is_on_its_way() -> None:
    """Sealing runs beside everything else: were it to complete the exchange, nobody would send the aggregate."""
    there = world()
    others = run_all(there, range(4))
    alice = there.exchange(0)
    for sender in (1, 2, 3):
        for delivery in there.exchange(sender).parts_to_send():
            if delivery.member == 0:
                bring(there, sender, alice, delivery)
        result = others[sender].outcome().reduced[sender]
        place = alice._places[sender]
        message = Reduced(
            RUN, 1, 0, b"s" * 32, sender, result.exponent, result.used, result.weights, result.digest,
            place.stop - place.start,
        )  # fmt: skip
        bring(there, sender, alice, Delivery(0, message, others[sender].aggregate[place]))
    alice.close_gathering(0)
    sealed = alice.seal(0, *alice.gatherings[0].reduce())
    assert not alice.complete
    assert len(alice.publish(sealed)) == 3
    assert alice.complete


def test_one_absent_member_of_four_costs_its_part_only() -> None:
    exchanges = run_all(world(), (0, 1, 2))
    for exchange in exchanges.values():
        outcome = exchange.outcome()
        assert outcome.missing == (3,)
        assert kinds(outcome) == {("missing", 3), ("not-reduced", 3)}
        assert all(part.used == 0b0111 and part.weights[3] == 0 for part in outcome.reduced)


def test_two_absent_members_of_four_leave_too_few_inputs() -> None:
    exchanges = run_all(world(), (0, 1))
    assert all(exchange.outcome().missing == (0, 1, 2, 3) for exchange in exchanges.values())
    assert not any(exchanges[0].aggregate)


def test_a_member_that_committed_to_nothing_reduces_and_receives() -> None:
    there = world(absent=2)
    exchanges = run_all(there, range(4))
    assert exchanges[2].parts_to_send() == []
    assert len({bytes(exchange.aggregate) for exchange in exchanges.values()}) == 1
    assert all(part.used == 0b1011 for part in exchanges[2].outcome().reduced)
    with pytest.raises(PeerViolation):
        there.exchange(0).begin(there.peer(2), Part(RUN, 1, 0, 0, 52))


def test_bytes_other_than_those_committed_to_count_for_nothing() -> None:
    there = world()
    alice, message, body = first_part(there)
    slot = alice.begin(there.peer(1), message)
    slot.target[:] = bytes([body[0] ^ 1]) + body[1:]
    with pytest.raises(ProtocolViolation):
        alice.finish(slot)
    assert 1 not in alice.gatherings[0].there
    with pytest.raises(ProtocolViolation):  # one lie is enough
        alice.begin(there.peer(1), message)
    assert ("hash", 1) in kinds(alice.outcome())


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"size": 50}, "length"),
        ({"size": 54}, "length"),
        ({"part": 1}, "order"),
        ({"part": 9}, "length"),
    ],
)
def test_an_announcement_that_does_not_fit_is_refused_and_named(change: dict[str, int], kind: str) -> None:
    there = world()
    alice, message, _ = first_part(there)
    with pytest.raises(PeerViolation):
        alice.begin(there.peer(1), replace(message, **change))
    assert (kind, 1) in kinds(alice.outcome())


def test_a_stranger_gets_no_room() -> None:
    there = world()
    alice, message, _ = first_part(there)
    with pytest.raises(ProtocolViolation):
        alice.begin(Identity(b"m" * 32).peer_id, message)


def test_a_part_is_taken_once_and_from_one_stream_at_a_time() -> None:
    there = world()
    alice, message, body = first_part(there)
    slot = alice.begin(there.peer(1), message)
    with pytest.raises(Busy):
        alice.begin(there.peer(1), message)
    slot.target[:] = body
    alice.finish(slot)
    with pytest.raises(ProtocolViolation):
        alice.begin(there.peer(1), message)
    assert alice.gatherings[0].there == (0, 1)


def test_a_broken_stream_may_be_begun_again_but_not_for_ever() -> None:
    there = world()
    alice, message, body = first_part(there)
    for _ in range(MAX_TRIES - 1):
        alice.broken(alice.begin(there.peer(1), message))
    slot = alice.begin(there.peer(1), message)
    slot.target[:] = body
    alice.finish(slot)
    assert kinds(alice.outcome()).isdisjoint({("missing", 1), ("length", 1), ("hash", 1), ("order", 1)})

    other, message, _ = first_part(there)
    for _ in range(MAX_TRIES):
        other.broken(other.begin(there.peer(1), message))
    with pytest.raises(ProtocolViolation):
        other.begin(there.peer(1), message)


def test_nothing_is_written_once_the_rule_has_begun() -> None:
    there = world()
    alice, message, _ = first_part(there)
    alice.close_gathering(0)
    with pytest.raises(Late):
        alice.begin(there.peer(1), message)


@pytest.mark.parametrize(
    "change",
    [
        {"set_hash": bytes(32)},
        {"used": 0b11111},
        {"used": 0b0001},
        {"used": 0b1110},  # weight stays on member 0
        {"weights": (1, 1, 1)},
        {"exponent": 5},
        {"digest": bytes(32)},
        {"part": 2},
        {"size": 50},
    ],
)
def test_an_aggregate_that_contradicts_itself_is_not_taken(change: dict[str, object]) -> None:
    there = world()
    exchanges = run_all(there, range(4))
    reduced = exchanges[1].outcome().reduced[1]
    body = exchanges[1].aggregate[52:104]
    true = Reduced(RUN, 1, 0, b"s" * 32, 1, reduced.exponent, reduced.used, reduced.weights, reduced.digest, 52)
    fresh = there.exchange(0)
    with pytest.raises(PeerViolation):
        bring(there, 1, fresh, Delivery(0, replace(true, **change), body))
    assert fresh.outcome().missing == (0, 1, 2, 3)
    assert not any(fresh.aggregate)
    assert {member for kind, member in kinds(fresh.outcome()) if kind != "not-reduced"} == {1}


def test_an_aggregate_is_taken_once_and_only_from_its_reducer() -> None:
    there = world()
    exchanges = run_all(there, range(4))
    reduced = exchanges[1].outcome().reduced[1]
    true = Reduced(RUN, 1, 0, b"s" * 32, 1, reduced.exponent, reduced.used, reduced.weights, reduced.digest, 52)
    fresh = there.exchange(0)
    with pytest.raises(PeerViolation):
        fresh.begin(there.peer(2), true)
    slot = fresh.begin(there.peer(1), true)
    with pytest.raises(Busy):
        fresh.begin(there.peer(1), true)
    fresh.broken(slot)
    bring(there, 1, fresh, Delivery(0, true, exchanges[1].aggregate[52:104]))
    with pytest.raises(PeerViolation):
        fresh.begin(there.peer(1), true)


def test_who_reduces_anew_finds_a_wrong_aggregate() -> None:
    there = world()
    exchanges = run_all(there, range(4))
    result = exchanges[0].outcome().reduced[2]
    inputs = {member: exchanges[2].input_of(2, member) for member in range(4)}
    assert all(inputs.values())
    assert check_aggregate(there.plan, result, inputs)[0]  # type: ignore[arg-type]
    for change in ({"exponent": result.exponent + 1}, {"weights": (9, 0, 0, 0)}, {"digest": bytes(32)}):
        assert not check_aggregate(there.plan, replace(result, **change), inputs)[0]  # type: ignore[arg-type]
    with pytest.raises(ProtocolViolation):
        check_aggregate(there.plan, result, {**inputs, 1: bytes(52)})  # type: ignore[dict-item]
    with pytest.raises(LocalError):
        check_aggregate(there.plan, result, {0: inputs[0]})  # type: ignore[dict-item]


def test_who_reduces_one_part_and_checks_the_others_knows_everybodys_norm() -> None:
    there = world()
    exchanges = run_all(there, range(4))
    (own,) = exchanges[0].outcome().squares
    assert own.part == 0
    told = [own]
    for part in (1, 2, 3):
        inputs = {member: exchanges[part].input_of(part, member) for member in range(4)}
        told.append(check_aggregate(there.plan, exchanges[0].outcome().reduced[part], inputs)[1])  # type: ignore[arg-type]
    for member, blob in enumerate(there.blobs):
        values = decode_parts(there.plan.members[member].exponents, mantissas_of(blob)).astype(np.float64)
        assert sum(one.values[member] or 0.0 for one in told) == pytest.approx(float(values @ values), rel=1e-12)


def test_of_an_input_that_was_not_there_no_norm_is_told() -> None:
    exchanges = run_all(world(), (0, 1, 2))
    (own,) = exchanges[0].outcome().squares
    assert [value is None for value in own.values] == [False, False, False, True]


def test_inputs_are_kept_for_those_who_check() -> None:
    exchanges = run_all(world(), (0, 1, 2))
    assert exchanges[0].input_of(0, 1) is not None
    assert exchanges[0].input_of(0, 3) is None
    assert exchanges[0].input_of(2, 0) == exchanges[0].own(2)
    assert exchanges[0].input_of(2, 1) is None


@pytest.mark.parametrize(
    "change",
    [
        {"me": 4},
        {"rule": "bulyan"},
        {"quorum": 0},
        {"quorum": 5},
        {"gather_s": 0.0},
        {"gather_s": 3.0},
        {"assignments": (Assignment(0, 4),)},
        {"assignments": (Assignment(4, 0),)},
        {"assignments": (Assignment(1, 0), Assignment(1, 1))},
        {"dimension": 3},
        {"dimension": 1 << 31},
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(LocalError):
        check_plan(replace(world().plan, **change))  # type: ignore[arg-type]


def test_a_plan_with_a_broken_member_is_refused() -> None:
    plan = world().plan
    alice = plan.members[0]
    for wrong in (
        replace(alice, hashes=alice.hashes[:-1]),
        replace(alice, exponents=alice.exponents[:-1]),
        replace(alice, exponents=(-999, *alice.exponents[1:])),
        plan.members[1],
    ):
        with pytest.raises(LocalError):
            check_plan(replace(plan, members=(wrong, *plan.members[1:])))


def test_we_do_not_send_what_we_did_not_commit_to() -> None:
    there = world()
    with pytest.raises(LocalError):
        Exchange(there.plan, there.blobs[1])
    with pytest.raises(LocalError):
        Exchange(there.plan, there.blobs[0][:-2])
