"""The tables a host keeps of its peers: violations, bans, traffic, slots."""

from __future__ import annotations

from contextlib import suppress

from celluler.identity import PeerId
from celluler_protocols.host.ledger import Ledger, Meter, Slots
from celluler_protocols.host.limits import HostLimits, Traffic

ALICE, BOB = PeerId("alice"), PeerId("bob")
LIMITS = HostLimits(violations_before_ban=3, ban_s=60, ledger_peers=4, streams=5, streams_a_peer=3)


def test_a_peer_is_banned_after_some_violations_and_only_for_a_time() -> None:
    ledger = Ledger(LIMITS)
    assert [ledger.record(ALICE, "bad", at) for at in (0, 1, 2)] == [False, False, True]
    assert ledger.banned(ALICE, 61.9)
    assert not ledger.banned(ALICE, 62)
    assert not ledger.banned(BOB, 2)


def test_after_a_ban_the_count_starts_again_and_the_total_goes_on() -> None:
    ledger = Ledger(LIMITS)
    for at in (0, 1, 2, 100, 101):
        ledger.record(ALICE, "bad", at)
    assert not ledger.banned(ALICE, 101)
    assert ledger.violations[0].count == 5
    assert ledger.record(ALICE, "x" * 10_000, 102)
    assert len(ledger.violations[0].reason) <= 200


def test_a_flood_of_offenders_does_not_free_who_is_banned() -> None:
    ledger = Ledger(LIMITS)
    for at in range(3):
        ledger.record(ALICE, "bad", at)
    for number in range(100):
        ledger.record(PeerId(f"sybil-{number}"), "bad", 10)
    assert ledger.banned(ALICE, 11)
    assert len(ledger.violations) == 4


def test_traffic_is_counted_by_peer_in_a_bounded_table() -> None:
    meter = Meter(2)
    meter.add(ALICE, sent=3)
    meter.add(ALICE, received=4)
    assert meter.traffic == {ALICE: Traffic(3, 4)}
    meter.add(BOB, sent=1)
    meter.add(PeerId("carol"), sent=1)
    assert set(meter.traffic) == {BOB, PeerId("carol")}


def test_slots_are_bounded_for_a_peer_and_for_all_and_come_back() -> None:
    slots = Slots(LIMITS.streams, LIMITS.streams_a_peer)
    assert [slots.take(ALICE) for _ in range(4)] == [True, True, True, False]
    assert [slots.take(BOB) for _ in range(3)] == [True, True, False]
    slots.give_back(ALICE)
    assert slots.take(BOB)
    assert slots.total == 5


def test_a_slot_is_held_for_a_block_however_it_ends() -> None:
    slots = Slots(2, 1)
    with slots.held(ALICE) as first, slots.held(ALICE) as second:
        assert (first, second) == (True, False)
    with suppress(ValueError), slots.held(ALICE):
        raise ValueError
    assert slots.total == 0
