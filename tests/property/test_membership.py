"""The membership machine under random schedules and random lies."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from celluler.errors import PeerViolation
from celluler.identity import Identity, PeerId, seal
from celluler_protocols.membership.machine import Profile, Swim, SwimConfig
from celluler_protocols.membership.messages import (
    MAX_FRAME_BYTES,
    Ack,
    Alive,
    Capabilities,
    Departure,
    Gone,
    Message,
    Nack,
    Page,
    PeerRecord,
    Ping,
    PingRequest,
    Suspect,
    Sync,
    frames,
    open_peer_record,
)
from simulations.membership import Scenario, Swarm

pytestmark = pytest.mark.thorough

PROFILE = Profile("test", Capabilities(2, 1024, "cpu", ()))
PEERS = [Identity(bytes([number]) * 32) for number in range(1, 6)]
NAMES = [identity.peer_id for identity in PEERS]


def envelope_of(place: int, incarnation: int) -> bytes:
    identity = PEERS[place]
    address = f"/ip4/127.0.0.1/tcp/4001/p2p/{identity.peer_id}"
    return seal(identity, PeerRecord((address,), incarnation, "", PROFILE.capabilities))


places = st.integers(0, len(PEERS) - 1)
incarnations = st.integers(0, 30)
envelopes = st.builds(envelope_of, places, incarnations) | st.binary(min_size=1, max_size=300)
rumour = st.one_of(
    st.builds(Alive, envelopes),
    st.builds(Suspect, st.sampled_from(NAMES) | st.text(min_size=1, max_size=10), incarnations),
    st.builds(Gone, st.builds(lambda place, up_to: seal(PEERS[place], Departure(up_to)), places, incarnations)),
)
rumours = st.lists(rumour, max_size=4).map(tuple)
sequences = st.integers(0, 2**32 - 1)
messages = st.one_of(
    st.builds(Ping, sequences, rumours),
    st.builds(Ack, sequences, rumours),
    st.builds(PingRequest, sequences, st.sampled_from(NAMES), rumours),
    st.builds(Nack, sequences),
    st.builds(Sync, st.sampled_from(["", *NAMES]), st.integers(1, 64)),
    st.builds(Page, st.lists(envelopes, max_size=3).map(tuple), st.booleans()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(places, messages, st.floats(0.0, 2.0)), max_size=20))
def test_lies_raise_only_violations_and_no_incarnation_ever_goes_down(
    schedule: list[tuple[int, Message, float]],
) -> None:
    alice = PEERS[0]
    machine = Swim(
        alice,
        PROFILE,
        (f"/ip4/127.0.0.1/tcp/4001/p2p/{alice.peer_id}",),
        incarnation=10,
        now=0.0,
        rng=random.Random(1),
        config=replace(SwimConfig(), max_members=3),
    )
    highest: dict[PeerId, int] = {}
    now = 0.0
    machine.join(NAMES[1], now)
    for place, message, pause_s in schedule:
        now += pause_s
        machine.tick(now)
        with suppress(PeerViolation):
            machine.receive(NAMES[place], message, now)
        for member in machine.members():
            assert member.incarnation >= highest.get(member.peer, 0)
            highest[member.peer] = member.incarnation
        assert machine.incarnation >= highest.get(alice.peer_id, 10)
        highest[alice.peer_id] = machine.incarnation
        assert len(machine) <= 3
        assert alice.peer_id not in machine
        assert (deadline := machine.next_deadline()) is None or deadline > now - 1.0


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_raises_only_violations(data: bytes) -> None:
    for read in (lambda: frames().feed(data), lambda: open_peer_record(data)):
        with suppress(PeerViolation):
            read()


@settings(max_examples=40, deadline=None)
@given(st.lists(messages, max_size=5), st.lists(st.integers(1, 50), max_size=20))
def test_messages_survive_any_chunking(sent: list[Message], cuts: list[int]) -> None:
    data = b"".join(frames().encode(message) for message in sent)
    words, arrived = frames(), []
    while data:
        size = cuts.pop() if cuts else MAX_FRAME_BYTES
        arrived += words.feed(data[:size])
        data = data[size:]
    assert arrived == sent
    assert words.idle


PARTED = [(("crash", 1), 2.0), (("part", 3), 7.375), (("crash", 0), 5.0), (("part", 7), 8.0), (("heal", None), 7.0)]

steps = st.one_of(
    st.tuples(st.just("crash"), st.integers(0, 11)),
    st.tuples(st.just("return"), st.integers(0, 11)),
    st.tuples(st.just("cut"), st.tuples(st.integers(0, 11), st.integers(0, 11))),
    st.tuples(st.just("part"), st.integers(1, 11)),
    st.tuples(st.just("heal"), st.none()),
)


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking takes hours
@given(st.integers(0, 2**16), st.lists(st.tuples(steps, st.floats(0.5, 8.0)), max_size=10))
@example(113, PARTED)
def test_after_any_schedule_the_living_find_each_other_and_only_each_other(seed: int, schedule: list) -> None:  # type: ignore[type-arg]
    swarm = Swarm(Scenario(peers=12, seed=seed, loss=0.05, latency_s=(0.001, 0.1)))
    swarm.establish()
    everybody = swarm.living()
    for (kind, what), pause_s in schedule:
        swarm.world.run(swarm.world.now + pause_s)
        match kind:
            case "crash" if everybody[what] in swarm.world and len(swarm.living()) > 3:
                swarm.crash(everybody[what])
            case "return" if everybody[what] not in swarm.world:
                swarm.join(swarm.identities[everybody[what]])
            case "cut":
                swarm.world.cut(everybody[what[0]], everybody[what[1]])
            case "part":
                swarm.world.partition(everybody[:what])
            case "heal":
                swarm.world.heal()
    swarm.world.heal()
    swarm.world.run(swarm.world.now + 240.0)
    living = set(swarm.living())
    for peer in living:
        assert {member.peer for member in swarm.machine(peer).members()} == living - {peer}
