"""Membership over a host, on streams in memory and a clock that leaps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import MockClock

from celluler.errors import InvalidSpec, LocalError, Unavailable
from celluler.identity import Identity, PeerId, seal
from celluler_protocols.membership import (
    PROTOCOL_ID,
    Capabilities,
    Change,
    Joined,
    Left,
    Membership,
    PeerRecord,
    Profile,
    ask_members,
    open_membership,
)
from celluler_protocols.membership.messages import Ack, Alive, Page, Ping, Suspect, Sync, frames
from tests.support.membership_network import MemoryHost, MemoryNetwork

ALICE, BOB, CAROL, DAVE, ERIN = (Identity(bytes([number]) * 32) for number in range(1, 6))
PROFILE = Profile("test", Capabilities(2, 1024, "cpu", ("store",)))


@pytest.fixture
async def network(nursery: trio.Nursery) -> MemoryNetwork:
    return MemoryNetwork(nursery)


async def until(holds: Callable[[], bool], *, within_s: float = 60.0) -> None:
    with trio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110 - the condition is not an event of ours
            await trio.sleep(0.1)


def peers(membership: Membership) -> set[PeerId]:
    return {member.peer for member in membership.members()}


def waiting(changes: trio.MemoryReceiveChannel[Change]) -> list[Change]:
    """All that a reader has not read yet."""
    return [changes.receive_nowait() for _ in range(changes.statistics().current_buffer_used)]


@asynccontextmanager
async def node(
    network: MemoryNetwork, identity: Identity, *, join: MemoryHost | None = None
) -> AsyncIterator[tuple[MemoryHost, Membership]]:
    host = network.host(identity)
    async with open_membership(host, identity, PROFILE) as membership:
        if join is not None:
            with trio.fail_after(20):
                await membership.join(join.addresses[0])
        yield host, membership


async def test_all_who_join_one_peer_know_each_other_soon(network: MemoryNetwork, autojump_clock: MockClock) -> None:
    async with (
        node(network, ALICE) as (host, alice),
        node(network, BOB, join=host) as (_, bob),
        node(network, CAROL, join=host) as (_, carol),
        node(network, DAVE, join=host) as (_, dave),
    ):
        everybody = {identity.peer_id for identity in (ALICE, BOB, CAROL, DAVE)}
        for membership in (alice, bob, carol, dave):
            await until(lambda m=membership: len(peers(m)) == 3)  # type: ignore[misc]
            assert peers(membership) | {identity_of(membership)} == everybody
        await until(lambda: all(member.round_trip_s is not None for member in alice.members()))


def identity_of(membership: Membership) -> PeerId:
    return PeerId(membership.own.addresses[0].rpartition("/p2p/")[2])


async def test_a_killed_peer_is_gone_within_15_seconds_and_a_reader_hears_of_it(
    network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    async with (
        node(network, ALICE) as (host, alice),
        node(network, BOB, join=host) as (_, bob),
        node(network, CAROL, join=host) as (_, carol),
    ):
        changes = alice.changes()
        await until(lambda: len(peers(alice)) == len(peers(bob)) == len(peers(carol)) == 2)
        network.kill(CAROL.peer_id)
        await until(lambda: CAROL.peer_id not in peers(alice) | peers(bob), within_s=15)
        heard = waiting(changes)
        assert Left(CAROL.peer_id, left=False) in heard
        assert {change.member.peer for change in heard if isinstance(change, Joined)} <= {BOB.peer_id, CAROL.peer_id}


async def test_two_peers_that_cannot_reach_each_other_stay_members_through_a_third(
    network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    async with (
        node(network, ALICE) as (host, alice),
        node(network, BOB, join=host) as (_, bob),
        node(network, CAROL, join=host) as (_, carol),
    ):
        await until(lambda: len(peers(alice)) == len(peers(bob)) == len(peers(carol)) == 2)
        network.cut.add(frozenset((BOB.peer_id, CAROL.peer_id)))
        reader = alice.changes(), bob.changes(), carol.changes()
        await trio.sleep(120)
        assert not any(waiting(changes) for changes in reader)


async def test_a_peer_that_leaves_is_gone_at_once(network: MemoryNetwork, autojump_clock: MockClock) -> None:
    async with (
        node(network, ALICE) as (host, alice),
        node(network, BOB, join=host) as (_, bob),
        node(network, CAROL, join=host) as (_, carol),
    ):
        await until(lambda: len(peers(alice)) == len(peers(bob)) == 2)
        await carol.leave()
        await until(lambda: CAROL.peer_id not in peers(alice) | peers(bob), within_s=3)


async def test_a_restarted_node_rejoins_by_the_peers_it_knew_without_its_bootstrap_peer(
    network: MemoryNetwork,
    autojump_clock: MockClock,
) -> None:
    async with node(network, BOB) as (bobs_host, bob):
        async with node(network, ALICE) as (host, _), node(network, CAROL, join=host) as (_, carol):
            await bob.join(host.addresses[0])
            await until(lambda: len(peers(carol)) == 2)
            kept = carol.dump()
            network.kill(ALICE.peer_id)
        network.kill(CAROL.peer_id)
        await until(lambda: not peers(bob))
        again = network.host(CAROL)
        async with open_membership(
            again, CAROL, PROFILE, known=kept.addresses, last_incarnation=kept.incarnation + 10**9
        ) as carol:
            await until(lambda: peers(carol) == {BOB.peer_id} and peers(bob) == {CAROL.peer_id})
            assert (member := bob.member(CAROL.peer_id)) is not None
            assert member.incarnation == kept.incarnation + 10**9 + 1
        assert bobs_host.penalties == []


async def test_a_client_reads_the_members_without_becoming_one(
    network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    async with node(network, ALICE) as (host, alice), node(network, BOB, join=host):
        client = network.host(ERIN, listens=False)
        peer = await client.connect(host.addresses[0])
        with trio.fail_after(5):
            members = await ask_members(client, peer)
        assert {member.peer for member in members} == {ALICE.peer_id, BOB.peer_id}
        assert members[0].capabilities == PROFILE.capabilities
        await trio.sleep(5)
        assert peers(alice) == {BOB.peer_id}
        with pytest.raises(LocalError):
            async with open_membership(client, ERIN, PROFILE):
                pass


async def test_a_bootstrap_peer_that_comes_later_is_found_in_the_background(
    network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    async with node(network, BOB) as (_, bob):
        with pytest.raises(Unavailable):
            await bob.join(f"/ip4/127.0.0.1/tcp/4001/p2p/{ALICE.peer_id}")
        await trio.sleep(100)
        async with node(network, ALICE) as (_, alice):
            await until(lambda: peers(alice) == {BOB.peer_id} and peers(bob) == {ALICE.peer_id})


async def test_joining_nobody_says_so(network: MemoryNetwork, autojump_clock: MockClock) -> None:
    async with node(network, ALICE) as (_, alice):
        stranger = network.host(DAVE)
        with trio.fail_after(30):
            with pytest.raises(Unavailable):
                await alice.join(stranger.addresses[0])
            with pytest.raises(Unavailable):
                await alice.join(f"/ip4/127.0.0.1/tcp/1/p2p/{ERIN.peer_id}")
            with pytest.raises(InvalidSpec):
                await alice.join("nonsense")


def forged() -> bytes:
    record = PeerRecord((f"/ip4/127.0.0.1/tcp/1/p2p/{CAROL.peer_id}",), 2**63, "", PROFILE.capabilities)
    return seal(CAROL, record)[:-1] + b"\0"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 64,
        frames().encode(Ping(1, (Alive(forged()),))),
        frames().encode(Ping(1))[:-1],
        b"\0\0\0\1\x90",
    ],
)
async def test_a_peer_that_speaks_garbage_is_penalised_and_nothing_changes(
    network: MemoryNetwork, autojump_clock: MockClock, data: bytes
) -> None:
    async with node(network, ALICE) as (host, alice), node(network, BOB, join=host):
        await until(lambda: peers(alice) == {BOB.peer_id})
        liar = network.host(ERIN, listens=False)
        await liar.connect(host.addresses[0])
        stream = await liar.open_stream(ALICE.peer_id, PROTOCOL_ID)
        async with stream:
            await stream.send_all(data)
            await stream.send_eof()
            with trio.fail_after(5), suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
        assert [peer for peer, _ in host.penalties] == [ERIN.peer_id]
        assert peers(alice) == {BOB.peer_id}


async def test_a_flood_of_messages_is_cut_off(network: MemoryNetwork, autojump_clock: MockClock) -> None:
    async with node(network, ALICE) as (host, _):
        liar = network.host(ERIN, listens=False)
        await liar.connect(host.addresses[0])
        stream = await liar.open_stream(ALICE.peer_id, PROTOCOL_ID)
        answered = bytearray()
        async with stream:
            await stream.send_all(frames().encode(Ping(1)) * 1000)
            with trio.fail_after(5):
                while chunk := await stream.receive_some():
                    answered += chunk
        assert len(frames().feed(bytes(answered))) == 512


async def test_a_member_that_answers_with_what_was_not_asked_is_penalised(
    network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    async def lie(peer: PeerId, stream: trio.abc.Stream) -> None:
        """Pages that never end and never advance."""
        while await stream.receive_some():
            await stream.send_all(frames().encode(Page((), True)))

    liar = network.host(ERIN)
    liar.serve(PROTOCOL_ID, lie)
    async with node(network, ALICE) as (host, alice):
        with trio.fail_after(30), pytest.raises(Unavailable):
            await alice.join(liar.addresses[0])
        assert ERIN.peer_id in {peer for peer, _ in host.penalties}
        assert not peers(alice)


async def test_a_member_that_accepts_and_never_answers_holds_nothing_up(
    network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    async def sleep(peer: PeerId, stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with node(network, ALICE) as (host, alice), node(network, BOB, join=host) as (bobs_host, _):
        await until(lambda: peers(alice) == {BOB.peer_id})
        bobs_host.serve(PROTOCOL_ID, sleep)
        network.cut.add(frozenset((ALICE.peer_id, BOB.peer_id)))
        await until(lambda: not peers(alice), within_s=20)
        assert alice.dropped == 0


async def test_a_lie_told_over_the_wire_evicts_nobody(network: MemoryNetwork, autojump_clock: MockClock) -> None:
    async with (
        node(network, ALICE) as (host, alice),
        node(network, BOB, join=host) as (_, bob),
        node(network, CAROL, join=host) as (carols_host, carol),
    ):
        await until(lambda: len(peers(alice)) == len(peers(bob)) == len(peers(carol)) == 2)
        changes = alice.changes()
        for _ in range(20):
            accused = alice.member(BOB.peer_id)
            assert accused is not None
            async with await carols_host.open_stream(ALICE.peer_id, PROTOCOL_ID) as stream:
                await stream.send_all(frames().encode(Ping(1, (Suspect(BOB.peer_id, accused.incarnation),))))
                answer = frames().feed(bytes(await stream.receive_some()))
            assert isinstance(answer[0], Ack)
            await trio.sleep(1)
        await trio.sleep(20)
        assert (heard := waiting(changes))
        assert not [change for change in heard if isinstance(change, Left)]


async def test_a_page_is_asked_of_one_peer_only_so_often(network: MemoryNetwork, autojump_clock: MockClock) -> None:
    async with node(network, ALICE) as (host, _):
        greedy = network.host(ERIN, listens=False)
        await greedy.connect(host.addresses[0])
        stream = await greedy.open_stream(ALICE.peer_id, PROTOCOL_ID)
        pages = bytearray()
        async with stream:
            await stream.send_all(frames().encode(Sync()) * 300)
            with trio.move_on_after(5):
                while chunk := await stream.receive_some():
                    pages += chunk
        assert 150 < len(frames().feed(bytes(pages))) < 200
