"""What a hostile peer can do to the bulk port of a live node, and what it gains by lying over its own."""

from __future__ import annotations

import random
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
import trio

from celluler.client import Client
from celluler.content.bulk_frames import GET, HEAD_BYTES, TICKET_BYTES, Status, encode_head
from celluler.content.digest import Codec, Digest, cid_of, parse_cid
from celluler.content.manifest import Layout, parse_manifest
from celluler.content.memory import MemoryStore
from celluler.content.store import read_layout
from celluler.errors import Busy, CellulerError
from celluler.identity import Identity, PeerId
from celluler_protocols import bulk, content
from celluler_protocols.bulk import Grant, ask_grant
from celluler_protocols.host import Host
from celluler_protocols.membership import Capabilities, Profile, open_membership
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.bulk_hostile import connect, exactly, false_server, is_closed, request
from tests.support.hostile import WAIT_S, Provider, await_named, blocks_of, in_dht, soon, stranger, violations_of

MIB = 1 << 20
CROWD, ELSEWHERE = 1000, "127.0.0.2"
MAX_GROWTH_BYTES = 64 * MIB


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with open_swarm(tmp_path_factory.mktemp("swarm")) as swarm:
        swarm.start("alice")
        swarm.start("bob", join=[swarm.nodes[0].address])
        yield swarm


@pytest.fixture(scope="module")
def alice(swarm: Swarm) -> NodeProcess:
    return swarm.nodes[0]


@pytest.fixture(scope="module")
def bob(swarm: Swarm) -> NodeProcess:
    return swarm.nodes[1]


def data_of(what: str, size: int) -> bytes:
    return random.Random(what).randbytes(size)


async def added(node: NodeProcess, folder: Path, data: bytes) -> Digest:
    path = folder / f"{random.getrandbits(64):x}"
    path.write_bytes(data)
    with Client(home=node.home) as client:
        return parse_cid((await trio.to_thread.run_sync(client.blobs.add, path)).cid)


async def fetched(node: NodeProcess, root: Digest, target: Path) -> bytes:
    def get() -> bytes:
        with Client(home=node.home) as client:
            client.blobs.get(cid_of(root, Codec.MANIFEST), target)
        return target.read_bytes()

    return await trio.to_thread.run_sync(get)


async def granted(host: Host, node: NodeProcess, root: bytes) -> Grant:
    with trio.fail_after(WAIT_S):
        return await ask_grant(await host.open_stream(PeerId(node.peer_id), bulk.PROTOCOL_ID), root)


def ask(tls: ssl.SSLSocket, digest: bytes) -> tuple[int, int]:
    """(status, length) of the answer to one request."""
    tls.sendall(GET.to_bytes(1, "big") + bytes(4) + digest)
    head = exactly(tls, HEAD_BYTES)
    length = int.from_bytes(head[5:], "big")
    assert len(exactly(tls, length)) == length
    return head[0], length


def turned_away(port: int, ticket: bytes) -> bool:
    with connect(port) as tls:
        tls.sendall(ticket)
        return is_closed(tls)


def memory_of(node: NodeProcess) -> int:
    """Of the node and of its bulk process."""
    process = psutil.Process(node.process.pid)
    return sum(one.memory_info().rss for one in (process, *process.children()) if one.cmdline()[-1:] != ["worker"])


# --- tickets ---------------------------------------------------------------------------------------------------------


async def test_a_ticket_is_good_once_for_one_content_and_no_other_is_good(alice: NodeProcess, tmp_path: Path) -> None:
    root, other = [await added(alice, tmp_path, data_of(what, MIB)) for what in ("one", "other")]
    async with stranger(alice) as mallory:
        grant, foreign = await granted(mallory, alice, root), await granted(mallory, alice, other)
        chunks = [(await layout_of(mallory, alice, one))[0].digest for one in (root, other)]

        def attack() -> None:
            with connect(grant.port) as tls:
                tls.sendall(grant.ticket)
                assert ask(tls, chunks[0]) == (Status.OK, MIB)
                assert ask(tls, chunks[1])[0] == Status.NOT_FOUND
                assert turned_away(grant.port, grant.ticket)
            assert turned_away(grant.port, bytes(TICKET_BYTES))
            assert turned_away(grant.port, foreign.ticket[::-1])

        await trio.to_thread.run_sync(attack)


async def layout_of(host: Host, node: NodeProcess, root: Digest) -> Layout:
    store = MemoryStore(1 << 26)
    with trio.fail_after(WAIT_S):
        await content.fetch(
            root, store, [PeerId(node.peer_id)], lambda peer: host.open_stream(peer, content.PROTOCOL_ID)
        )
    return read_layout(store, root)


async def test_who_asks_for_very_many_tickets_gets_few_and_takes_none_from_others(
    alice: NodeProcess, bob: NodeProcess, tmp_path: Path
) -> None:
    data = data_of("many asks", 12 * MIB)
    root = await added(alice, tmp_path, data)
    outcomes: Counter[str] = Counter()

    async def beg(host: Host) -> None:
        try:
            await granted(host, alice, root)
            outcomes["granted"] += 1
        except CellulerError as error:
            outcomes[type(error).__name__] += 1

    async with stranger(alice) as mallory:
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(beg, mallory)
            assert await fetched(bob, root, tmp_path / "target") == data
        assert await violations_of(alice, mallory.peer_id) == 0
    assert 0 < outcomes["granted"] <= 4
    assert outcomes[Busy.__name__] > 0


# --- the port --------------------------------------------------------------------------------------------------------


def crowd(port: int, stack: ExitStack) -> list[socket.socket]:
    """A thousand that came: silent ones, ones that talk nonsense, ones in the midst of a handshake."""
    dice = random.Random(1)
    hello = ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    with suppress(ssl.SSLWantReadError):
        client.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    greeting = hello.read()
    words = [b"", dice.randbytes(5000), b"GET / HTTP/1.1\r\n\r\n", greeting[:20], greeting]
    came = []
    for number in range(CROWD):
        came.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT_S, (ELSEWHERE, 0))))
        with suppress(OSError):  # it may have been shown out
            came[-1].sendall(words[number % len(words)])
    return came


def trickle(port: int) -> int:
    """Say a ticket so slowly that every byte could be the last. Returns how many were heard."""
    with connect(port) as tls:
        tls.settimeout(0.4)
        for said in range(TICKET_BYTES - 1):
            try:
                tls.sendall(b"x")
                if not tls.recv(1):
                    return said
            except TimeoutError:
                continue
            except OSError:
                return said
    return TICKET_BYTES


async def test_a_crowd_and_a_slow_one_at_the_port_cost_little_memory_and_nobody_else_a_transfer(
    alice: NodeProcess, bob: NodeProcess, tmp_path: Path
) -> None:
    contents = [data_of(f"crowd {number}", 24 * MIB) for number in range(2)]
    roots = [await added(alice, tmp_path, data) for data in contents]
    assert await fetched(bob, roots[0], tmp_path / "target") == contents[0]
    async with stranger(alice) as mallory:
        idle = await added(alice, tmp_path, data_of("idle", MIB))
        late = await granted(mallory, alice, idle)  # to be shown when it is worth nothing any more
        heard: list[int] = []

        async def dawdle() -> None:
            heard.append(await trio.to_thread.run_sync(trickle, late.port))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dawdle)
            before = memory_of(alice)
            with ExitStack() as stack:
                assert len(await trio.to_thread.run_sync(crowd, late.port, stack)) == CROWD
                assert await fetched(bob, roots[1], tmp_path / "target") == contents[1]
                assert memory_of(alice) - before < MAX_GROWTH_BYTES
        assert heard[0] < TICKET_BYTES - 1

        async def forgotten() -> bool:
            with Client(home=alice.home) as client:
                stat = await trio.to_thread.run_sync(client.blobs.stat, cid_of(idle, Codec.MANIFEST))
            return not stat.in_use

        await soon(forgotten, within_s=30)
        assert await trio.to_thread.run_sync(turned_away, late.port, late.ticket)
    assert alice.process.poll() is None
    with Client(home=bob.home) as client:
        assert client.peers.show("alice").received_bytes >= sum(map(len, contents))


# --- lies ------------------------------------------------------------------------------------------------------------


class LyingByBulk:
    """Gives manifest and leaves as they are, and every chunk as other bytes of the right length over TLS."""

    def __init__(self, folder: Path, data: bytes) -> None:
        store, path = MemoryStore(1 << 26), folder / "content"
        path.write_bytes(data)
        self.root = store.add(path, "blob")
        blocks = blocks_of(store, self.root)
        self._lengths = {piece.digest: piece.length for piece in read_layout(store, self.root)}
        told = {self.root, *parse_manifest(blocks[self.root]).leaves}
        self.provider = Provider({digest: data for digest, data in blocks.items() if digest in told})

    def behave(self, tls: ssl.SSLSocket) -> None:
        while True:
            number, digest = request(tls)
            length = self._lengths[Digest(digest)]
            tls.sendall(encode_head(Status.OK, number, length) + bytes(length))


@asynccontextmanager
async def member(node: NodeProcess, identity: Identity) -> AsyncIterator[Host]:
    """A stranger that the swarm knows by name."""
    async with (
        stranger(node, identity, listens=True) as host,
        open_membership(host, identity, Profile("mallory", Capabilities(1, 1, "cpu", (), "")), known=(node.address,)),
    ):
        yield host


async def test_who_lies_by_bulk_is_named_noted_and_told_of_and_another_gives_the_truth(
    alice: NodeProcess, bob: NodeProcess, tmp_path: Path
) -> None:
    data = data_of("lies", 6 * MIB + 5)
    liar, identity = LyingByBulk(tmp_path, data), Identity.generate()
    with false_server(tmp_path / "tls", liar.behave) as server:

        async def grant(_peer: PeerId, stream: trio.abc.Stream) -> None:
            async with stream:
                await stream.receive_some()
                await stream.send_all(
                    bulk.frames().encode(Grant(server.port, server.pin, bytes(TICKET_BYTES), 15, 2, 64, b""))
                )

        async with member(alice, identity) as mallory, trio.open_nursery() as nursery:
            mallory.serve(content.PROTOCOL_ID, liar.provider)
            mallory.serve(bulk.PROTOCOL_ID, grant)
            await in_dht(mallory)
            with trio.fail_after(WAIT_S):
                await mallory.dht.provide(liar.root)
            with Client(home=bob.home) as client:
                known = lambda: any(peer.nickname == "mallory" for peer in client.peers.ls())  # noqa: E731
                await soon(lambda: trio.to_thread.run_sync(known))

            async def get() -> None:
                assert await fetched(alice, liar.root, tmp_path / "target") == data

            nursery.start_soon(get)
            await await_named(alice, {identity.peer_id: 1})
            assert server.tickets
            assert await added(bob, tmp_path, data) == liar.root  # the transfer is still looking for somebody

            async def doubts() -> int:
                with Client(home=bob.home) as client:
                    return (await trio.to_thread.run_sync(client.peers.show, "mallory")).doubts

            assert await soon(doubts) == 1
