"""The directory over real hosts: heads and provider records outlive their publisher."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from celluler.errors import LocalError, NotFound
from celluler.identity import seal
from celluler_protocols.directory import (
    NAMESPACE,
    Directory,
    DirectoryTiming,
    Head,
    HeadBook,
    HeadValidator,
    head_key,
    open_directory,
)
from celluler_protocols.host import Host, open_host
from tests.support.hosts import LISTEN, identity, join, until

ONE, TWO = b"1" * 32, b"2" * 32


@asynccontextmanager
async def peer(number: int, *, listen: Any = LISTEN, settle_s: float = 600) -> AsyncIterator[tuple[Host, Directory]]:
    book, own = HeadBook(), identity(number)
    async with (
        open_host(own, listen=listen, validators={NAMESPACE: HeadValidator(book)}) as host,
        open_directory(host, own, book, timing=DirectoryTiming(settle_s=settle_s)) as directory,
    ):
        yield host, directory


@asynccontextmanager
async def swarm(count: int) -> AsyncIterator[list[tuple[Host, Directory]]]:
    """A line: each knows the next, and the DHT must do the rest."""
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer(number + 1)) for number in range(count)]
        for (one, _), (other, _) in pairwise(peers):
            await join(one, other)
        for place, (host, _) in enumerate(peers):
            await until(lambda host=host, place=place: host.dht.routing_peers >= (1 if place in (0, count - 1) else 2))
        yield peers


async def meet(one: Host, other: Host) -> None:
    """Connect, and wait until the DHT has taken notice."""
    await join(one, other)
    await until(lambda: one.dht.routing_peers > 0)


async def test_a_head_is_resolved_and_content_found_with_their_publisher_gone() -> None:
    async with swarm(4) as peers:
        async with peer(50) as (publisher, directory):
            await meet(publisher, peers[0][0])
            await directory.publish_head("digits", 1, ONE)
            await directory.publish_head("digits", 2, TWO)
            await peers[1][1].provide(ONE)
            await directory.provide(ONE)
        await until(lambda: publisher.peer_id not in peers[0][0].connected())
        async with peer(60, listen=()) as (client, newcomer):
            await meet(client, peers[3][0])
            head = await newcomer.resolve_head(identity(50).peer_id, "digits")
            assert (head.record.number, head.record.index) == (2, TWO)
            found = await newcomer.providers(ONE)
            assert set(found) == {peers[1][0].peer_id, identity(50).peer_id}
            assert await newcomer.providers(TWO) == ()
            with pytest.raises(NotFound):
                await newcomer.resolve_head(identity(50).peer_id, "unknown")


async def test_a_provider_found_in_the_directory_can_be_dialled() -> None:
    async with swarm(3) as peers, peer(60, listen=()) as (client, directory):
        await peers[2][1].provide(ONE)
        await meet(client, peers[0][0])
        (found,) = await directory.providers(ONE)
        assert found == peers[2][0].peer_id
        peers[2][0].serve("/celluler-test/x/1", _nothing)
        await (await client.open_stream(found, "/celluler-test/x/1")).aclose()


async def test_a_head_never_goes_back_for_who_has_seen_a_newer_one() -> None:
    async with swarm(3) as peers:
        author = identity(1)
        first = seal(author, Head("digits", 1, ONE, 1))
        key = head_key(author.peer_id, "digits")
        await peers[0][1].publish_head("digits", 2, TWO)
        assert (await peers[2][1].resolve_head(author.peer_id, "digits")).record.number == 2
        for host, directory in peers:
            with pytest.raises(LocalError):
                await host.dht.put(key, first)
            assert (await directory.resolve_head(author.peer_id, "digits")).record.number == 2
        with pytest.raises(LocalError):
            await peers[0][1].publish_head("digits", 1, ONE)
        with pytest.raises(LocalError):
            await peers[0][1].publish_head("digits", 2, ONE)


async def test_nobody_can_put_a_head_for_another() -> None:
    async with swarm(2) as peers:
        key = head_key(identity(50).peer_id, "digits")
        forged = seal(identity(1), Head("digits", 9, ONE, 1))
        misplaced = seal(identity(50), Head("other", 9, ONE, 1))
        for value in (forged, misplaced, b"", b"nonsense"):
            with pytest.raises(LocalError):
                await peers[0][0].dht.put(key, value)
        for unknown in ("/unknown/x", "plain", "/head/", "/head/x/y/z"):
            with pytest.raises(LocalError):
                await peers[0][0].dht.put(unknown, forged)
        assert await peers[1][0].dht.get(key) is None


async def test_two_heads_of_one_number_are_reported_and_all_settle_on_the_same() -> None:
    async with swarm(3) as peers:
        liar = identity(50)
        key = head_key(liar.peer_id, "digits")
        heads = [seal(liar, Head("digits", 1, index, 1)) for index in (ONE, TWO)]
        await peers[0][0].dht.put(key, heads[0])
        resolved = await peers[2][1].resolve_head(liar.peer_id, "digits")
        assert resolved.record.index == ONE
        peers[1][1].heads.see(resolved)
        async with peer(60) as (far, other):
            await far.dht.put(key, heads[1])
            await other.resolve_head(liar.peer_id, "digits")
            await meet(far, peers[0][0])
            assert (await other.resolve_head(liar.peer_id, "digits")).record.index == ONE
            (proof,) = other.equivocations
            assert (proof.author, proof.number, {proof.first, proof.second}) == (liar.peer_id, 1, set(heads))


async def test_own_records_reach_neighbours_that_came_later() -> None:
    async with peer(1, settle_s=0.05) as (early, directory), peer(2) as (late, other):
        await directory.publish_head("digits", 1, ONE)
        await directory.provide(ONE)
        assert other.heads.best(early.peer_id, "digits") is None
        await join(early, late)
        await until(lambda: late.dht.stored_values == 1)


async def test_alone_a_host_resolves_what_it_published_itself() -> None:
    async with peer(1) as (host, directory):
        await directory.publish_head("digits", 1, ONE)
        assert (await directory.resolve_head(host.peer_id, "digits")).record.index == ONE
        assert await directory.providers(ONE) == ()


async def _nothing(_peer: str, _stream: object) -> None: ...
