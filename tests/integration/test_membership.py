"""Membership over real hosts on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from celluler.errors import Unavailable
from celluler.identity import Identity, PeerId
from celluler_protocols.host import Host, open_host
from celluler_protocols.membership import (
    PROTOCOL_ID,
    Capabilities,
    Membership,
    Profile,
    ask_members,
    open_membership,
)
from celluler_protocols.nursery import own_nursery
from tests.support.hosts import LISTEN, identity, until

PROFILE = Profile("test", Capabilities(2, 1024, "cpu", ("store",)))


class Node:
    """A host and its membership in a task of their own, to be killed in mid-life."""

    host: Host
    membership: Membership

    def __init__(self, who: Identity) -> None:
        self.identity = who
        self._life, self._ended = trio.CancelScope(), trio.Event()

    async def live(
        self,
        known: tuple[str, ...] = (),
        last_incarnation: int = 0,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        try:
            with self._life:
                async with (
                    open_host(self.identity, listen=LISTEN) as self.host,
                    open_membership(
                        self.host, self.identity, PROFILE, known=known, last_incarnation=last_incarnation
                    ) as self.membership,
                ):
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self._ended.set()

    async def end(self) -> None:
        """Without a word to the others."""
        self._life.cancel()
        await self._ended.wait()

    def knows(self) -> set[PeerId]:
        return {member.peer for member in self.membership.members()}


@asynccontextmanager
async def swarm(count: int) -> AsyncIterator[tuple[trio.Nursery, list[Node]]]:
    """Nodes that joined by the first one's address and know each other."""
    nodes = [Node(identity(number + 1)) for number in range(count)]
    async with own_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.live)
            if node is not nodes[0]:
                with trio.fail_after(20):
                    await node.membership.join(nodes[0].host.addresses[0])
        await until(lambda: all(len(node.knows()) == count - 1 for node in nodes), within_s=20)
        yield nursery, nodes


async def test_nodes_that_join_by_one_address_know_each_other_and_bury_the_dead() -> None:
    async with swarm(5) as (_, nodes):
        *living, victim = nodes
        await victim.end()
        await until(lambda: not any(victim.identity.peer_id in node.knows() for node in living), within_s=15)
        assert all(len(node.knows()) == 3 for node in living)
        assert all(node.host.violations == () for node in living)
        measured = [member.round_trip_s for node in living for member in node.membership.members()]
        assert any(seconds is not None for seconds in measured)


async def test_a_node_comes_back_by_the_peers_it_knew_while_its_bootstrap_peer_is_dead() -> None:
    async with swarm(4) as (nursery, (bootstrap, one, other, comer)):
        kept = comer.membership.dump()
        await bootstrap.end()
        await comer.end()
        again = Node(comer.identity)
        await nursery.start(again.live, kept.addresses, kept.incarnation)
        everybody = {one.identity.peer_id, other.identity.peer_id}
        await until(lambda: everybody <= again.knows(), within_s=30)

        def renewed() -> bool:
            member = one.membership.member(comer.identity.peer_id)
            addresses = again.membership.own.addresses
            return member is not None and member.incarnation > kept.incarnation and member.addresses == addresses

        await until(renewed, within_s=30)
        await until(lambda: comer.identity.peer_id in other.knows(), within_s=30)


async def test_a_node_that_leaves_is_gone_at_once_and_a_client_sees_who_is_left() -> None:
    async with swarm(3) as (_, (one, other, leaver)), open_host(identity(99)) as client:
        peer = await client.connect(one.host.addresses[0])
        with trio.fail_after(10):
            assert len(await ask_members(client, peer)) == 3
        await leaver.membership.leave()
        gone = leaver.identity.peer_id
        await until(lambda: gone not in one.knows() | other.knows(), within_s=5)
        with trio.fail_after(10):
            assert {member.peer for member in await ask_members(client, peer)} == {one.host.peer_id, other.host.peer_id}
        assert client.peer_id not in one.knows() | other.knows()


@pytest.mark.parametrize("data", [b"\xff" * 300, b"\0\0\0\x02\x91\x09", b"\0\0\0\x08\x92\x00\x92\x01\x91\x92\x01\x90"])
async def test_a_peer_that_sends_garbage_is_named_and_the_node_stays_up(data: bytes) -> None:
    async with swarm(2) as (_, (one, other)), open_host(identity(99)) as liar:
        peer = await liar.connect(one.host.addresses[0])
        stream = await liar.open_stream(peer, PROTOCOL_ID)
        async with stream:
            await stream.send_all(data)
            await until(lambda: liar.peer_id in {violation.peer for violation in one.host.violations})
        assert one.knows() == {other.identity.peer_id}
        assert other.knows() == {one.identity.peer_id}


async def test_joining_an_address_where_nobody_is_says_so() -> None:
    async with swarm(1) as (_, (one,)):
        with trio.fail_after(20), pytest.raises(Unavailable):
            await one.membership.join(f"/ip4/127.0.0.1/tcp/9/p2p/{identity(50).peer_id}")
