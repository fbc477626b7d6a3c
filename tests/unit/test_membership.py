"""The membership machine alone and in small swarms under a virtual clock."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from celluler.errors import BadSignature, PeerViolation, ProtocolViolation
from celluler.identity import Identity, PeerId, seal
from celluler_protocols.membership.machine import (
    Joined,
    Left,
    Output,
    Profile,
    Send,
    Status,
    Swim,
    SwimConfig,
    Synced,
    Updated,
)
from celluler_protocols.membership.messages import (
    MAX_PAGE_RECORDS,
    MAX_RUMOUR_BYTES,
    Ack,
    Alive,
    Capabilities,
    Departure,
    Gone,
    Nack,
    Page,
    PeerRecord,
    Ping,
    PingRequest,
    Suspect,
    Sync,
    message_bytes,
    open_peer_record,
)
from simulations.membership import Scenario, Swarm, quiet, simulate

pytestmark = pytest.mark.thorough

PROFILE = Profile("test", Capabilities(2, 1024, "cpu", ("store",)))
ALICE, BOB, CAROL, DAVE = (Identity(bytes([number]) * 32) for number in range(1, 5))
NEAR = (0.001, 0.02)


def address_of(identity: Identity) -> tuple[str, ...]:
    return (f"/ip4/127.0.0.1/tcp/4001/p2p/{identity.peer_id}",)


def record_of(identity: Identity, incarnation: int = 5) -> bytes:
    return seal(identity, PeerRecord(address_of(identity), incarnation, PROFILE.nickname, PROFILE.capabilities))


def swim(identity: Identity = ALICE, *, knows: tuple[Identity, ...] = (), **config: Any) -> Swim:
    machine = Swim(
        identity,
        PROFILE,
        address_of(identity),
        incarnation=10,
        now=0.0,
        rng=random.Random(0),
        config=replace(SwimConfig(), **config),
    )
    machine.adopt([open_peer_record(record_of(peer)) for peer in knows], 0.0)
    return machine


def swarm(peers: int = 10, seed: int = 1, *, loss: float = 0.0, **config: Any) -> Swarm:
    scenario = Scenario(peers=peers, seed=seed, loss=loss, latency_s=NEAR, config=replace(SwimConfig(), **config))
    made = Swarm(scenario)
    made.establish()
    return made


def sends(outputs: list[Output], kind: type) -> list[Send]:
    return [output for output in outputs if isinstance(output, Send) and isinstance(output.message, kind)]


def events(outputs: list[Output]) -> list[Output]:
    return [output for output in outputs if not isinstance(output, Send)]


def run_alone(machine: Swim, until: float) -> list[Output]:
    """Let time pass for a machine that nobody answers."""
    outputs: list[Output] = []
    while (deadline := machine.next_deadline()) is not None and deadline <= until:
        outputs += machine.tick(deadline)
    return outputs


# --- detection -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_dead_peer_is_gone_from_everyones_list_within_15_seconds_at_10_nodes(seed: int) -> None:
    ten = swarm(10, seed, loss=0.05 if seed % 2 else 0.0)
    ten.world.run(3.0)
    victim = ten.living()[seed % 10]
    ten.crash(victim)
    ten.world.run(18.0)
    assert all(victim not in ten.machine(peer) for peer in ten.living())
    assert all(len(ten.machine(peer)) == 8 for peer in ten.living())


@pytest.mark.parametrize("seed", range(5))
def test_a_live_peer_with_one_cut_link_is_evicted_by_nobody(seed: int) -> None:
    ten = swarm(10, seed)
    alice, bob = ten.living()[:2]
    ten.world.cut(alice, bob)
    ten.world.run(120.0)
    assert not ten.false_evictions
    assert all(len(ten.machine(peer)) == 9 for peer in ten.living())


def test_a_live_peer_with_one_cut_link_is_not_evicted_among_three() -> None:
    three = swarm(3)
    three.world.cut(*three.living()[:2])
    three.world.run(120.0)
    assert not three.false_evictions


def test_a_parted_swarm_finds_together_again() -> None:
    ten = swarm(10)
    ten.world.partition(ten.living()[:5])
    ten.world.run(60.0)
    assert all(len(ten.machine(peer)) == 4 for peer in ten.living())
    ten.world.heal()
    ten.world.run(100.0)
    assert all(len(ten.machine(peer)) == 9 for peer in ten.living())


def test_a_peer_that_leaves_is_gone_at_once_and_nobody_looks_for_it() -> None:
    ten = swarm(10)
    ten.world.run(3.0)
    leaver = ten.living()[0]
    ten.leave(leaver)
    ten.world.run(7.0)
    assert all(leaver not in ten.machine(peer) for peer in ten.living())
    assert not ten.false_suspicions
    asked: list[str] = []
    for peer in ten.living():
        machine = ten.machine(peer)
        asked += [send.peer for send in run_alone(machine, 8.0) if isinstance(send, Send)]
    assert leaver not in asked


def test_a_peer_that_comes_back_with_a_higher_incarnation_is_a_member_again() -> None:
    ten = swarm(10)
    ten.world.run(3.0)
    victim = ten.living()[0]
    ten.crash(victim)
    ten.world.run(30.0)
    ten.join(ten.identities[victim])
    ten.world.run(45.0)
    assert all(len(ten.machine(peer)) == 9 for peer in ten.living())


def test_a_peer_that_comes_back_before_it_was_missed_is_never_evicted() -> None:
    ten = swarm(10)
    ten.world.run(3.0)
    victim = ten.living()[0]
    ten.crash(victim)
    ten.world.run(4.0)
    ten.join(ten.identities[victim])
    ten.world.run(40.0)
    assert not ten.false_evictions
    assert all(len(ten.machine(peer)) == 9 for peer in ten.living())


def test_newcomers_learn_everybody_and_everybody_learns_them() -> None:
    swarm_of_150 = swarm(150)  # more than two pages
    swarm_of_150.world.run(2.0)
    for _ in range(3):
        swarm_of_150.join(swarm_of_150.new_identity())
    swarm_of_150.world.run(20.0)
    assert all(len(swarm_of_150.machine(peer)) == 152 for peer in swarm_of_150.living())


# --- the small swarm under churn, as `make simulate` runs it large ---------------------------------------------


def test_sixty_peers_under_loss_and_churn_bury_their_dead_and_nobody_else() -> None:
    scenario = Scenario(peers=60, seed=11, seconds=90.0, crashes_per_minute=8, leaves_per_minute=4)
    result, sixty = simulate(scenario)
    assert result.crashes >= 3
    assert result.joins >= 3
    assert result.still_listed == 0
    assert result.false_evictions == 0
    assert result.everywhere.highest < 25.0
    living = set(sixty.living())
    for peer in living:
        machine = sixty.machine(peer)
        missing = living - {member.peer for member in machine.members()} - {peer}
        assert not missing


def test_the_same_seed_gives_the_same_trace() -> None:
    scenario = Scenario(peers=20, seed=3, seconds=30.0, quiet_s=5.0)
    first, second = simulate(scenario)[0], simulate(scenario)[0]
    assert replace(first, cpu_s=0.0) == replace(second, cpu_s=0.0)
    assert simulate(replace(scenario, seed=4))[0].trace != first.trace


def test_what_a_node_sends_does_not_grow_with_the_swarm() -> None:
    def sent(peers: int) -> tuple[float, float]:
        result, _ = simulate(quiet(Scenario(peers=peers, seed=2, seconds=60.0, loss=0.0)))
        return result.messages_a_node_a_second, result.bytes_a_node_a_second

    few, many = sent(20), sent(160)
    assert many[0] == pytest.approx(few[0], rel=0.05)
    assert many[1] == pytest.approx(few[1], rel=0.25)


# --- liars -----------------------------------------------------------------------------------------------------


def test_a_liar_who_suspects_somebody_all_the_time_evicts_nobody() -> None:
    ten = swarm(10)
    liar, victim, *others = ten.living()

    def accuse() -> None:
        machine = ten.machine(victim)
        for peer in others:
            lie = Ping(1, (Suspect(victim, machine.incarnation), Suspect(victim, machine.incarnation + 1)))
            ten.world.apply(peer, ten.machine(peer).receive(liar, lie, ten.world.now))
        ten.world.at(ten.world.now + 0.5, accuse)

    ten.world.at(1.0, accuse)
    ten.world.run(60.0)
    assert not ten.false_evictions
    raised = ten.machine(victim).incarnation - ten.machine(others[0]).incarnation
    assert 0 < raised <= 120  # it refutes, and no faster than it may


def test_an_accused_peer_answers_with_a_record_that_only_it_could_sign() -> None:
    alice = swim(ALICE, knows=(BOB,))
    answer = alice.receive(BOB.peer_id, Ping(1, (Suspect(ALICE.peer_id, 10),)), 1.0)
    (ack,) = sends(answer, Ack)
    assert isinstance(ack.message, Ack)
    (refutation,) = [rumour for rumour in ack.message.rumours if isinstance(rumour, Alive)]
    assert open_peer_record(refutation.envelope).record.incarnation == 11

    bob = swim(BOB, knows=(ALICE, CAROL))
    bob.receive(CAROL.peer_id, Ping(1, (Suspect(ALICE.peer_id, 5),)), 1.0)
    assert (member := bob.member(ALICE.peer_id)) is not None
    assert member.status is Status.SUSPECT
    bob.receive(ALICE.peer_id, Ack(99, (refutation,)), 1.5)
    assert (member := bob.member(ALICE.peer_id)) is not None
    assert (member.status, member.incarnation) == (Status.ALIVE, 11)


def test_a_suspicion_of_an_incarnation_nobody_signed_is_ignored() -> None:
    alice = swim(ALICE, knows=(BOB, CAROL))
    alice.receive(BOB.peer_id, Ping(1, (Suspect(CAROL.peer_id, 2**64 - 1), Suspect(ALICE.peer_id, 2**64 - 1))), 1.0)
    assert alice.incarnation == 10
    assert (member := alice.member(CAROL.peer_id)) is not None
    assert member.status is Status.ALIVE


def test_a_forged_record_is_a_violation_and_changes_nothing() -> None:
    alice = swim(ALICE, knows=(BOB, CAROL))
    forged = bytearray(record_of(CAROL, 50))
    forged[-1] ^= 1
    with pytest.raises(BadSignature):
        alice.receive(BOB.peer_id, Ping(1, (Alive(bytes(forged)),)), 1.0)
    departure = bytearray(seal(CAROL, Departure(50)))
    departure[-1] ^= 1
    with pytest.raises(BadSignature):
        alice.receive(BOB.peer_id, Ping(1, (Gone(bytes(departure)),)), 1.0)
    assert (member := alice.member(CAROL.peer_id)) is not None
    assert member.incarnation == 5


@pytest.mark.parametrize(
    "address",
    [f"/ip4/127.0.0.1/tcp/1/p2p/{BOB.peer_id}", "/ip4/127.0.0.1/tcp/1", "", f"/ip4/\x1b[2J/p2p/{ALICE.peer_id}"],
)
def test_a_record_whose_address_does_not_lead_to_its_signer_is_a_violation(address: str) -> None:
    with pytest.raises(PeerViolation):
        open_peer_record(seal(ALICE, PeerRecord((address,), 1, "", PROFILE.capabilities)))


def test_a_nickname_that_would_command_a_terminal_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        open_peer_record(seal(ALICE, PeerRecord(address_of(ALICE), 1, "\x1b[2J", PROFILE.capabilities)))


def test_an_old_record_does_not_bring_back_the_dead() -> None:
    alice = swim(ALICE, knows=(BOB, CAROL))
    outputs = run_alone(alice, 60.0)
    assert {output.peer for output in outputs if isinstance(output, Left)} == {BOB.peer_id, CAROL.peer_id}
    assert alice.members() == ()
    alice.receive(DAVE.peer_id, Ping(1, (Alive(record_of(BOB, 5)), Alive(record_of(BOB, 4)))), 61.0)
    assert BOB.peer_id not in alice
    alice.receive(DAVE.peer_id, Ping(2, (Alive(record_of(BOB, 6)),)), 62.0)
    assert BOB.peer_id in alice


def test_one_sender_makes_us_suspect_only_so_many_at_once() -> None:
    crowd = tuple(Identity(number.to_bytes(32, "big")) for number in range(1000, 1100))
    alice = swim(ALICE, knows=(BOB, *crowd))
    for start in range(0, 100, 16):
        lies = tuple(Suspect(peer.peer_id, 5) for peer in crowd[start : start + 16])
        alice.receive(BOB.peer_id, Ping(start, lies), 1.0)
    assert sum(member.status is Status.SUSPECT for member in alice.members()) == 32


def test_strangers_make_us_suspect_nobody() -> None:
    alice = swim(ALICE, knows=(BOB,))
    alice.receive(CAROL.peer_id, Ping(1, (Suspect(BOB.peer_id, 5),)), 1.0)
    assert (member := alice.member(BOB.peer_id)) is not None
    assert member.status is Status.ALIVE


def test_the_table_is_bounded_and_keeps_those_it_has() -> None:
    alice = swim(ALICE, knows=(BOB,), max_members=10)
    for number in range(50):
        stranger = Identity((7000 + number).to_bytes(32, "big"))
        alice.receive(stranger.peer_id, Ping(1, (Alive(record_of(stranger)),)), 1.0)
    assert len(alice) == 10
    assert BOB.peer_id in alice


def test_a_message_stays_small_however_much_there_is_to_tell() -> None:
    crowd = [Identity(number.to_bytes(32, "big")) for number in range(1000, 1060)]
    alice = swim(ALICE, knows=(BOB,))
    for peer in crowd:
        alice.receive(peer.peer_id, Ping(1, (Alive(record_of(peer)),)), 1.0)
    told = [send.message for send in run_alone(alice, 30.0) if isinstance(send, Send)]
    assert any(isinstance(message, Ping) and len(message.rumours) > 4 for message in told)
    assert max(map(message_bytes, told)) < MAX_RUMOUR_BYTES + 100


def test_no_stranger_makes_us_knock_at_doors() -> None:
    alice = swim(ALICE, knows=(BOB, CAROL))
    assert sends(alice.receive(DAVE.peer_id, PingRequest(3, BOB.peer_id), 1.0), Nack)
    assert sends(alice.receive(BOB.peer_id, PingRequest(3, DAVE.peer_id), 1.0), Nack)
    assert not sends(alice.receive(BOB.peer_id, PingRequest(3, CAROL.peer_id), 1.0), Nack)
    refused = [sends(alice.receive(BOB.peer_id, PingRequest(n, CAROL.peer_id), 1.0), Nack) for n in range(20)]
    assert sum(map(bool, refused)) == 20 - 7


def test_a_page_that_goes_backwards_or_nowhere_is_a_violation() -> None:
    one, other = sorted((BOB, CAROL), key=lambda identity: identity.peer_id)
    for page in (Page((record_of(other), record_of(one)), False), Page((), True)):
        alice = swim(ALICE)
        alice.join(DAVE.peer_id, 0.0)
        with pytest.raises(ProtocolViolation):
            alice.receive(DAVE.peer_id, page, 0.1)


def test_a_page_nobody_asked_for_is_not_read() -> None:
    alice = swim(ALICE)
    assert alice.receive(BOB.peer_id, Page((record_of(CAROL),), False), 0.1) == []
    assert alice.members() == ()


# --- the single node -------------------------------------------------------------------------------------------


def test_joining_reads_page_by_page_and_then_makes_us_known() -> None:
    crowd = tuple(Identity(number.to_bytes(32, "big")) for number in range(1000, 1100))
    bob, alice = swim(BOB, knows=crowd), swim(ALICE)
    outputs, seen = alice.join(BOB.peer_id, 0.0), []
    for step in range(10):
        questions = sends(outputs, Sync)
        if not questions:
            break
        (page,) = sends(bob.receive(ALICE.peer_id, questions[0].message, 0.1 * step), Page)
        assert isinstance(page.message, Page)
        assert len(page.message.records) <= MAX_PAGE_RECORDS
        outputs = alice.receive(BOB.peer_id, page.message, 0.1 * step)
        seen += [output for output in outputs if isinstance(output, Joined)]
    assert len(seen) == len(alice) == 101
    (ping,) = sends(outputs, Ping)
    (ack,) = sends(bob.receive(ALICE.peer_id, ping.message, 1.0), Ack)
    assert ALICE.peer_id in bob
    assert Synced(BOB.peer_id, complete=True) in alice.receive(BOB.peer_id, ack.message, 1.1)


def test_a_join_that_nobody_answers_ends() -> None:
    alice = swim(ALICE)
    alice.join(BOB.peer_id, 0.0)
    outputs = run_alone(alice, 60.0)
    assert Synced(BOB.peer_id, complete=False) in outputs


def test_a_record_of_an_earlier_life_is_exceeded() -> None:
    alice = swim(ALICE, knows=(BOB,))
    alice.receive(BOB.peer_id, Ping(1, (Alive(record_of(ALICE, 500)),)), 1.0)
    assert alice.incarnation == 501


def test_a_peer_that_speaks_with_an_old_record_is_told_the_newer_one() -> None:
    bob = swim(BOB, knows=(ALICE,))
    (ack,) = sends(bob.receive(ALICE.peer_id, Ping(1, (Alive(record_of(ALICE, 3)),)), 1.0), Ack)
    assert isinstance(ack.message, Ack)
    assert Alive(record_of(ALICE, 5)) in ack.message.rumours


def test_a_tick_that_comes_late_is_not_held_against_the_others() -> None:
    alice = swim(ALICE, knows=(BOB, CAROL))
    outputs = alice.tick(first := alice.next_deadline() or 0.0)
    assert sends(outputs, Ping)
    outputs = alice.tick(first + 3600.0)  # a laptop lid was shut
    assert not events(outputs)
    outputs = run_alone(alice, first + 3600.4)
    assert not events(outputs)
    assert len(alice) == 2


def test_a_refused_connection_makes_us_ask_others_at_once() -> None:
    alice = swim(ALICE, knows=(BOB, CAROL, DAVE))
    (ping,) = sends(alice.tick(alice.next_deadline() or 0.0), Ping)
    requests = sends(alice.unreachable(ping.peer, 1.0), PingRequest)
    assert {request.peer for request in requests} == {BOB.peer_id, CAROL.peer_id, DAVE.peer_id} - {ping.peer}
    assert not alice.unreachable(ping.peer, 1.1)


def test_when_every_helper_says_no_the_verdict_falls_at_once() -> None:
    alice = swim(ALICE, knows=(BOB, CAROL, DAVE))
    (ping,) = sends(alice.tick(alice.next_deadline() or 0.0), Ping)
    requests = sends(alice.unreachable(ping.peer, 1.0), PingRequest)
    outputs: list[Output] = []
    for request in requests:
        assert isinstance(request.message, PingRequest)
        outputs += alice.receive(request.peer, Nack(request.message.sequence), 1.1)
    (suspected,) = [output for output in outputs if isinstance(output, Updated)]
    assert (suspected.member.peer, suspected.member.status) == (ping.peer, Status.SUSPECT)


def test_a_helper_passes_the_answer_on() -> None:
    bob = swim(BOB, knows=(ALICE, CAROL))
    (ping,) = sends(bob.receive(ALICE.peer_id, PingRequest(77, CAROL.peer_id), 1.0), Ping)
    assert isinstance(ping.message, Ping)
    assert ping.peer == CAROL.peer_id
    assert not sends(bob.receive(DAVE.peer_id, Ack(ping.message.sequence), 1.1), Ack)
    (ack,) = sends(bob.receive(CAROL.peer_id, Ack(ping.message.sequence), 1.2), Ack)
    assert isinstance(ack.message, Ack)
    assert (ack.peer, ack.message.sequence) == (ALICE.peer_id, 77)


def test_a_direct_answer_measures_the_round_trip() -> None:
    alice = swim(ALICE, knows=(BOB,))
    now = alice.next_deadline() or 0.0
    (ping,) = sends(alice.tick(now), Ping)
    assert isinstance(ping.message, Ping)
    alice.receive(BOB.peer_id, Ack(ping.message.sequence), now + 0.25)
    assert (member := alice.member(BOB.peer_id)) is not None
    assert member.round_trip_s == pytest.approx(0.25)


def test_a_lost_connection_makes_us_ask_at_once() -> None:
    alice = swim(ALICE, knows=(BOB, CAROL))
    assert [send.peer for send in sends(alice.doubt(CAROL.peer_id, 0.0), Ping)] == [CAROL.peer_id]
    assert alice.doubt(CAROL.peer_id, 0.0) == []
    assert alice.doubt(DAVE.peer_id, 0.0) == []


def test_after_leaving_nothing_is_sent_or_heard() -> None:
    alice = swim(ALICE, knows=(BOB, CAROL))
    farewells = sends(alice.leave(1.0), Ping)
    assert {send.peer for send in farewells} == {BOB.peer_id, CAROL.peer_id}
    bob = swim(BOB, knows=(ALICE, CAROL))
    assert Left(ALICE.peer_id, left=True) in bob.receive(ALICE.peer_id, farewells[0].message, 1.0)
    assert alice.next_deadline() is None
    assert alice.receive(BOB.peer_id, Ping(1), 2.0) == []
    assert alice.tick(3.0) == []


def test_new_capabilities_reach_everybody() -> None:
    ten = swarm(10)
    ten.world.run(1.0)
    peer = ten.living()[0]
    machine = ten.machine(peer)
    profile = replace(PROFILE, capabilities=replace(PROFILE.capabilities, device="cuda"))
    ten.world.apply(peer, machine.update(machine.own.record.addresses, profile, ten.world.now))
    ten.world.run(10.0)
    seen = [ten.machine(other).member(peer) for other in ten.living() if other != peer]
    assert all(member is not None and member.capabilities.device == "cuda" for member in seen)


def test_a_suspect_that_talks_to_us_is_not_evicted() -> None:
    alice = swim(ALICE, knows=(BOB, CAROL))
    alice.receive(CAROL.peer_id, Ping(1, (Suspect(BOB.peer_id, 5),)), 0.0)
    for tenth in range(200):
        now = tenth / 10
        assert Left(BOB.peer_id, left=False) not in alice.tick(now)
        alice.receive(BOB.peer_id, Ping(tenth), now)
    assert BOB.peer_id in alice


def test_before_it_evicts_a_node_knocks_itself() -> None:
    alice = swim(ALICE, knows=(BOB, CAROL))
    alice.receive(CAROL.peer_id, Ping(1, (Suspect(BOB.peer_id, 5),)), 0.0)
    knocks = [send for send in sends(run_alone(alice, 3.5), Ping) if Suspect(BOB.peer_id, 5) in send.message.rumours]  # type: ignore[union-attr]
    assert BOB.peer_id in {send.peer for send in knocks}
    alice.receive(BOB.peer_id, Ack(7, (Alive(record_of(BOB, 6)),)), 3.6)
    assert not [output for output in run_alone(alice, 4.2) if isinstance(output, Left)]


def test_a_peer_is_never_its_own_member() -> None:
    alice = swim(ALICE)
    alice.adopt([open_peer_record(record_of(ALICE, 3))], 0.0)
    alice.receive(PeerId(ALICE.peer_id), Ping(1), 0.0)
    assert alice.members() == ()
