"""Gossip over real hosts: one says it, all hear it, and who came late asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio

from celluler.errors import LocalError
from celluler_protocols import catalogue
from celluler_protocols.gossip import TOPIC, Gossip, GossipTiming, HeadAnnouncement, ModelAnnouncement, open_gossip
from celluler_protocols.host import Host, open_host
from tests.support.hosts import LISTEN, hosts, identity, join, until

TIMING = GossipTiming(again_s=0.0, every_s=0.5)


def model(gossip: Gossip, name: str = "digits", version: str = "1.0.0") -> ModelAnnouncement:
    return ModelAnnouncement(name, version, b"m" * 32, b"r" * 32, 1000, "alice", **gossip.stamp(600))


@asynccontextmanager
async def gossips(swarm: list[Host], **options: Any) -> AsyncIterator[list[Gossip]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_gossip(host, identity(number + 1), **options))
            for number, host in enumerate(swarm)
        ]


async def line(swarm: list[Host]) -> None:
    for one, other in pairwise(swarm):
        await join(one, other)
        await until(lambda one=one, other=other: other.peer_id in one.pubsub.peers(TOPIC))
        await until(lambda one=one, other=other: one.peer_id in other.pubsub.peers(TOPIC))


async def test_an_announcement_reaches_all_of_five_hosts_in_a_line() -> None:
    never = GossipTiming(again_s=1e9, every_s=1e9)
    async with hosts(5) as swarm, gossips(swarm, timing=never) as all_gossip:
        heard = [gossip.subscribe() for gossip in all_gossip]
        await line(swarm)
        said = await all_gossip[0].announce(model(all_gossip[0]))
        for channel in heard[1:]:
            with trio.fail_after(10):
                assert (await channel.receive()).raw == said.raw
        assert all(gossip.catalogue() == (said,) for gossip in all_gossip)


async def test_a_newcomer_asks_for_what_it_missed() -> None:
    async with hosts(2) as swarm, gossips(swarm, timing=TIMING) as (alice, bob):
        for number in range(64):
            await alice.announce(model(alice, f"model-{number}"))
        heard = bob.subscribe()
        await join(swarm[1], swarm[0])
        with trio.fail_after(10):
            for _ in range(64):
                await heard.receive()
        assert {signed.raw for signed in bob.catalogue()} == {signed.raw for signed in alice.catalogue()}


async def test_what_two_halves_of_a_swarm_said_apart_reaches_both_when_they_meet() -> None:
    async with hosts(4) as swarm, gossips(swarm, timing=TIMING) as (a, b, c, d):
        await line(swarm[:2])
        await line(swarm[2:])
        left, right = await a.announce(model(a, "left")), await d.announce(model(d, "right"))
        await until(lambda: len(b.catalogue()) == 1 and len(c.catalogue()) == 1)
        await join(swarm[1], swarm[2])
        both = {left.raw, right.raw}
        await until(lambda: all({signed.raw for signed in one.catalogue()} == both for one in (a, b, c, d)))


async def test_a_restart_forgets_nothing_that_was_dumped() -> None:
    async with hosts(1) as swarm, gossips(swarm) as (alice,):
        await alice.announce(model(alice))
        kept = alice.dump()
    async with hosts(1) as swarm, gossips(swarm) as (alice,):
        assert alice.load([*kept, b"damaged", kept[0][:-1] + b"x"]) == 1
        assert alice.dump() == kept
        assert alice.stamp(60)["sequence"] > alice.catalogue()[0].record.sequence


async def test_the_newest_of_a_subject_counts_and_an_older_one_is_not_announced() -> None:
    async with hosts(2) as swarm, gossips(swarm, timing=TIMING) as (alice, bob):
        await line(swarm)
        older = model(alice)
        newer = await alice.announce(model(alice))
        with pytest.raises(LocalError):
            await alice.announce(older)
        await until(lambda: bob.catalogue() == (newer,))


async def test_forged_and_impossible_announcements_name_their_sender() -> None:
    async with hosts(2) as (mallory, bob), open_gossip(bob, identity(2), timing=TIMING) as gossip:
        await mallory.pubsub.subscribe(TOPIC, lambda *_: True)
        await join(mallory, bob)
        await until(lambda: bob.peer_id in mallory.pubsub.peers(TOPIC))
        await mallory.pubsub.publish(TOPIC, b"not an envelope")
        await until(lambda: [violation.peer for violation in bob.violations] == [mallory.peer_id])
        assert gossip.catalogue() == ()


async def test_a_catalogue_of_nonsense_is_refused_and_its_peer_named() -> None:
    async with hosts(2) as (mallory, bob):

        async def lie(_peer: str, stream: trio.abc.Stream) -> None:
            await stream.receive_some()
            await stream.send_all(catalogue.frames().encode(catalogue.Page((b"forged",), last=True)))

        mallory.serve(catalogue.PROTOCOL_ID, lie)
        async with open_gossip(bob, identity(2), timing=TIMING) as gossip:
            await join(mallory, bob)
            await until(lambda: [violation.peer for violation in bob.violations] == [mallory.peer_id])
            assert gossip.catalogue() == ()


async def test_a_client_that_listens_on_nothing_hears_and_is_heard() -> None:
    async with (
        hosts(1) as swarm,
        gossips(swarm, timing=TIMING) as (node,),
        open_host(identity(9)) as client,
        open_gossip(client, identity(9), timing=TIMING) as gossip,
    ):
        said = await node.announce(model(node))
        await client.connect(swarm[0].addresses[0])
        await until(lambda: gossip.catalogue() == (said,))
        head = HeadAnnouncement("digits", 1, b"i" * 32, **gossip.stamp(60))
        answer = await gossip.announce(head)
        await until(lambda: answer in node.catalogue())


async def test_whoever_was_lied_to_tells_the_swarm_once() -> None:
    async with hosts(3) as swarm, gossips(swarm, timing=TIMING) as (alice, bob, carol):
        await line(swarm)
        liar = identity(40).peer_id
        for _ in range(2):
            await alice.note(liar, b"r" * 32, b"d" * 32, "x" * 100)
        await carol.note(liar, b"r" * 32, b"d" * 32, "false chunk")
        await until(lambda: all(one.doubts(liar) == 2 for one in (alice, bob, carol)))
        assert len(bob.catalogue()) == 2
        assert bob.doubts(identity(41).peer_id) == 0


async def test_gossip_goes_on_after_a_neighbour_dies_and_comes_back() -> None:
    async with hosts(1) as swarm, gossips(swarm, timing=TIMING) as (alice,):
        async with open_host(identity(30), listen=LISTEN) as bob, open_gossip(bob, identity(30), timing=TIMING):
            await line([swarm[0], bob])
        await until(lambda: not swarm[0].connected())
        async with (
            open_host(identity(30), listen=LISTEN) as bob,
            open_gossip(bob, identity(30), timing=TIMING) as gossip,
        ):
            await line([swarm[0], bob])
            said = await alice.announce(model(alice))
            await until(lambda: gossip.catalogue() == (said,))
