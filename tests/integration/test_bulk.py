"""Bulk transfer by real processes over real TLS on loopback: what moves, and what hostile ends can do."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from celluler.content.bulk_frames import GET, MAX_IN_FLIGHT, Status, encode_head
from celluler.content.digest import Digest, digest_of
from celluler.content.movers import Chunk, Falsified, Moved, Mover
from celluler.errors import Busy, NotFound, ProtocolViolation, Unavailable
from celluler_node.bulk.news import Bulletin
from celluler_node.bulk.throttle import Throttle
from celluler_node.bulk.tls import client_context
from celluler_node.bulk.transfer import Transfer
from celluler_node.bulk.words import FULL, MAX_SERVED_A_PEER, Dial, Dialled, Ended, News, Patience
from celluler_node.processes import landlock
from celluler_node.processes.words import Reply
from celluler_protocols import content
from celluler_protocols.bulk import Grant
from tests.support.bulk_hostile import (
    Behaviour,
    FalseServer,
    connect,
    exactly,
    false_server,
    is_closed,
    request,
    until_closed,
)
from tests.support.bulk_peers import Peer, bring, chunks_of, peers
from tests.support.hosts import until
from tests.support.waiting import eventually

MIB = 1 << 20
DATA = os.urandom(2 * MIB + 12345)


@pytest.fixture(autouse=True)
async def deadline():
    with trio.fail_after(30):
        yield


async def fetch(bob: Peer, alice: Peer, root: Digest) -> None:
    """All of it by one mover."""
    part = bob.begin(root, alice)
    async with bob.bulk.open_mover(alice.id, root, part) as mover:
        await bring(mover, chunks_of(alice, root))
    bob.store.placed(root, [piece.index for piece in bob.store.missing(root)])


# --- between honest peers --------------------------------------------------------------------------------------


async def test_a_content_moves_whole_and_both_sides_know_how_much(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)
        await fetch(bob, alice, root)
        assert bob.store.path(root).read_bytes() == DATA
        assert bob.bulk.traffic[alice.id] == (0, len(DATA))
        await until(lambda: alice.bulk.traffic.get(bob.id) == (len(DATA), 0))
        await until(lambda: not alice.held)


async def test_a_chunk_is_written_to_each_of_its_places(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        data = (b"a" * 1024 + b"b" * 1024) * 3000
        root = alice.add(data, chunk_bytes=1024)
        await fetch(bob, alice, root)
        assert bob.store.path(root).read_bytes() == data


async def test_a_limit_of_bandwidth_changes_nothing_but_the_pace(tmp_path) -> None:
    async with peers(2, tmp_path, up_bytes_s=16 * MIB, down_bytes_s=8 * MIB) as (alice, bob):
        root = alice.add(DATA)
        await fetch(bob, alice, root)
        assert bob.store.path(root).read_bytes() == DATA
        await bob.bulk.meter.send(1)
        await bob.bulk.meter.receive(1)


async def test_who_has_a_part_says_which_and_serves_it(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)
        chunks = chunks_of(alice, root)
        part = bob.begin(root, alice)
        async with bob.bulk.open_mover(alice.id, root, part) as mover:
            await bring(mover, chunks[1:])
        with pytest.raises(NotFound):
            await bob.grant(alice, root)  # it has taken note of nothing yet
        bob.store.placed(root, [1, 2])
        assert (await bob.grant(alice, root)).have == b"\x06"
        file = tmp_path / "peer0" / "store" / "content" / "scrap"
        file.touch()
        async with alice.bulk.open_mover(bob.id, root, file) as mover:
            placed, lacking = await bring(mover, chunks)
        assert (placed, lacking) == ({chunk.digest for chunk in chunks[1:]}, {chunks[0].digest})


async def test_what_is_not_here_is_not_granted(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        with pytest.raises(NotFound):
            await alice.grant(bob, digest_of(b"nothing"))


async def test_a_content_is_held_while_a_ticket_or_a_connection_lives(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)
        part = bob.begin(root, alice)
        async with bob.bulk.open_mover(alice.id, root, part):
            assert alice.held == [root]
        await until(lambda: not alice.held)


async def test_a_peer_has_so_many_connections_and_no_more(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)
        part = bob.begin(root, alice)
        async with bob.bulk.open_mover(alice.id, root, part), bob.bulk.open_mover(alice.id, root, part) as second:
            await bring(second, chunks_of(alice, root)[:1])
            assert MAX_SERVED_A_PEER == 2
            with pytest.raises(Busy):
                await alice.grant(bob, root)


async def test_a_fetch_takes_the_mover_when_there_is_one(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        data = os.urandom(12 * MIB)
        root = alice.add(data)
        await content.fetch(
            root,
            bob.store,
            [alice.id],
            lambda peer: bob.open_stream(peer, content.PROTOCOL_ID),
            open_mover=bob.bulk.open_mover,
        )
        assert bob.store.path(root).read_bytes() == data


# --- a process that dies ---------------------------------------------------------------------------------------


async def test_the_death_of_our_process_ends_its_movers_and_the_next_transfer_starts_it_anew(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)
        part = bob.begin(root, alice)
        async with bob.bulk.open_mover(alice.id, root, part) as mover:
            first = bob.bulk.process_id
            os.kill(first, signal.SIGKILL)
            with pytest.raises(Unavailable):
                await mover.receive()
            with pytest.raises(Unavailable):
                await mover.ask(chunks_of(alice, root))
        await fetch(bob, alice, root)
        assert bob.store.path(root).read_bytes() == DATA
        assert bob.bulk.process_id not in (None, first)


async def test_the_death_of_the_sources_process_ends_the_mover_and_what_was_held(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)
        part = bob.begin(root, alice)
        async with bob.bulk.open_mover(alice.id, root, part) as mover:
            os.kill(alice.bulk.process_id, signal.SIGKILL)
            assert await mover.receive() == ()
        await until(lambda: not alice.held)
        await fetch(bob, alice, root)


async def test_the_process_reaches_no_file_outside_the_store(tmp_path) -> None:
    if not landlock.version():
        pytest.skip("this kernel has no Landlock")
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)
        await fetch(bob, alice, root)
        outside = tmp_path / "outside"
        outside.touch()
        with pytest.raises(Unavailable, match="Permission denied"):
            async with bob.bulk.open_mover(alice.id, root, outside):
                pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
async def test_a_full_disk_ends_a_transfer_and_says_so(tmp_path) -> None:
    news = await trio.to_thread.run_sync(transfer_to_a_full_disk, tmp_path)
    assert news.ended == (Ended(1, FULL, "No space left on device"),)


def transfer_to_a_full_disk(tmp_path: Path) -> News:
    data = bytes(MIB)
    bulletin, dialled = Bulletin(), list[Dialled]()
    with false_server(tmp_path / "false", says(lambda number: answer(Status.OK, number, data))) as server:
        order = Dial(1, ("127.0.0.1",), server.port, server.pin, bytes(32), "/dev/full", 64)
        transfer = Transfer(order, client_context(), bulletin, Throttle(0), Patience())
        thread = threading.Thread(target=transfer.run, args=(dialled.append,))
        thread.start()
        assert eventually(lambda: dialled) == [Dialled("", False)]
        transfer.ask([(7, Chunk(digest_of(data), MIB, (0,)))])
        thread.join(10)
    told = list[Reply]()
    threading.Thread(target=bulletin.tell, daemon=True).start()
    bulletin.wanted(told.append)
    return eventually(lambda: told)[0].record


# --- hostile servers -------------------------------------------------------------------------------------------


def answer(status: Status, number: int, data: bytes) -> bytes:
    return encode_head(status, number, len(data)) + data


def says(make: Callable[[int], bytes]) -> Behaviour:
    """A server that answers the first request by what `make(number)` gives, and then is silent."""

    def behave(tls: ssl.SSLSocket) -> None:
        number, _ = request(tls)
        tls.sendall(make(number))
        until_closed(tls)

    return behave


def drips(tls: ssl.SSLSocket) -> None:
    """Some bytes again and again, until the other end has enough of it."""
    number, _ = request(tls)
    tls.sendall(encode_head(Status.OK, number, MIB))
    tls.settimeout(0.05)
    while True:
        tls.sendall(b"drip")
        with suppress(TimeoutError):
            if not tls.recv(1):
                return


def granted_by(server: FalseServer, **changes: Any) -> Grant:
    return replace(Grant(server.port, server.pin, os.urandom(32), 15, 2, 64, b""), **changes)


class Victim:
    """Bob, who believes that alice has a content. `ask` brings a chunk of it from a server of hers."""

    def __init__(self, bob: Peer, alice: Peer, folder: Path) -> None:
        self._bob, self._alice, self._folder = bob, alice, folder
        self._root = alice.add(DATA)
        self._part = bob.begin(self._root, alice)
        self._empty = self._part.read_bytes()

    async def ask(self, behave: Behaviour) -> list[Moved]:
        """All that a mover tells; raises what it raises. Nothing may have been written."""
        self._folder = self._folder / "false"
        with false_server(self._folder, behave) as server:
            self._alice.grants = granted_by(server)
            try:
                async with self._bob.bulk.open_mover(self._alice.id, self._root, self._part) as mover:
                    return await everything(mover, chunks_of(self._alice, self._root)[:1])
            finally:
                assert self._part.read_bytes() == self._empty
                assert server.tickets == [self._alice.grants.ticket]


async def everything(mover: Mover, chunks: list[Chunk]) -> list[Moved]:
    await mover.ask(chunks)
    told: list[Moved] = []
    while moved := await mover.receive():
        told += moved
    return told


async def test_a_server_that_sends_something_else_is_told_as_a_liar(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        victim = Victim(bob, alice, tmp_path)
        for make in (
            lambda number: answer(Status.OK, number, bytes(MIB)),
            lambda number: encode_head(Status.OK, number, 0xFFFFFFFF),
            lambda number: answer(Status.OK, number, b"x"),
            lambda number: encode_head(Status.OK, number, 0),
        ):
            assert [type(one) for one in await victim.ask(says(make))] == [Falsified]


async def test_a_server_that_breaks_the_protocol_is_named(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        victim = Victim(bob, alice, tmp_path)
        for make in (
            lambda number: answer(Status.OK, number + 1, bytes(MIB)),
            lambda number: encode_head(Status.NOT_FOUND, number + 7),
            lambda number: answer(Status.NOT_FOUND, number, b"but bytes"),
            lambda number: b"\xff" * 9,
        ):
            with pytest.raises(ProtocolViolation) as caught:
                await victim.ask(says(make))
            assert caught.value.peer == alice.id


async def test_a_server_that_has_no_time_is_busy(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        with pytest.raises(Busy):
            await Victim(bob, alice, tmp_path).ask(says(lambda number: encode_head(Status.BUSY, number)))


async def test_a_server_that_is_slow_or_gone_is_left_without_blame(tmp_path) -> None:
    async with peers(2, tmp_path, patience=Patience(stuck_s=0.5)) as (alice, bob):
        victim = Victim(bob, alice, tmp_path)
        stops = says(lambda number: encode_head(Status.OK, number, MIB) + b"half")
        for behave in (until_closed, drips, stops, lambda tls: None):
            assert await victim.ask(behave) == []


async def test_a_mover_leaves_a_silent_server_at_once(tmp_path) -> None:
    async with peers(2, tmp_path, patience=Patience(stuck_s=1000.0)) as (alice, bob):
        root = alice.add(DATA)
        part = bob.begin(root, alice)
        with false_server(tmp_path / "false", until_closed) as server:
            alice.grants = granted_by(server)
            async with bob.bulk.open_mover(alice.id, root, part) as mover:
                await mover.ask(chunks_of(alice, root))
        alice.grants = None
        await fetch(bob, alice, root)


async def test_dialling_ends_at_once_when_nobody_wants_it_any_more(tmp_path) -> None:
    async with peers(2, tmp_path, patience=Patience(connect_s=1000.0)) as (alice, bob):
        root = alice.add(DATA)
        part = bob.begin(root, alice)
        await fetch(bob, alice, alice.add(b"something else"))
        process = psutil.Process(bob.bulk.process_id)
        threads = process.num_threads()
        with socket.create_server(("127.0.0.1", 0)) as mute, trio.move_on_after(0.3):
            alice.grants = Grant(mute.getsockname()[1], bytes(32), bytes(32), 15, 2, 64, b"")
            async with bob.bulk.open_mover(alice.id, root, part):
                raise AssertionError("nobody answered")
        await until(lambda: process.num_threads() <= threads)


async def test_who_shows_another_certificate_sees_no_ticket(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)
        part = bob.begin(root, alice)
        with false_server(tmp_path / "false", until_closed) as server:
            alice.grants = granted_by(server, pin=bytes(32))
            with pytest.raises(Unavailable, match="another certificate"):
                async with bob.bulk.open_mover(alice.id, root, part):
                    pass
            assert server.connections == 1
            assert not server.tickets


async def test_of_several_addresses_the_one_where_the_peer_is_gets_through(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)
        alice.hosts = ("127.0.0.2", "127.0.0.1", "not an address")
        await fetch(bob, alice, root)
        alice.hosts = ("127.0.0.2",)
        with pytest.raises(Unavailable):
            async with bob.bulk.open_mover(alice.id, root, tmp_path):
                pass
        alice.hosts = ()
        with pytest.raises(Unavailable):
            async with bob.bulk.open_mover(alice.id, root, tmp_path):
                pass


# --- hostile clients -------------------------------------------------------------------------------------------


def show(port: int, ticket: bytes, *more: bytes) -> ssl.SSLSocket:
    tls = connect(port)
    tls.sendall(ticket)
    for data in more:
        tls.sendall(data)
    return tls


def get(number: int, digest: bytes) -> bytes:
    return bytes([GET]) + number.to_bytes(4, "big") + digest


async def test_a_ticket_is_good_once(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)
        grant = await alice.grant(bob, root)
        digest = chunks_of(alice, root)[0].digest

        def try_twice() -> None:
            with show(grant.port, grant.ticket, get(0, digest)) as first:
                assert exactly(first, 9) == encode_head(Status.OK, 0, MIB)
                with show(grant.port, grant.ticket, get(0, digest)) as second:
                    assert is_closed(second)
                assert digest_of(exactly(first, MIB)) == digest
            with show(grant.port, bytes(32), get(0, digest)) as guessed:
                assert is_closed(guessed)

        await trio.to_thread.run_sync(try_twice)


async def test_a_client_that_breaks_the_protocol_or_falls_silent_is_closed(tmp_path) -> None:
    async with peers(2, tmp_path, patience=Patience(idle_s=0.5)) as (alice, bob):
        root = alice.add(DATA)

        def misbehave(grant: Grant, requests: bytes) -> None:
            with show(grant.port, grant.ticket, requests) as tls:
                while not is_closed(tls):
                    pass

        for requests in (
            b"\x00" * 37,
            2 * get(1, bytes(32)),
            b"".join(get(number, bytes(32)) for number in range(MAX_IN_FLIGHT + 1)),
            get(1, bytes(32))[:20],
            b"",
        ):
            await trio.to_thread.run_sync(misbehave, await alice.grant(bob, root), requests)
        await until(lambda: not alice.held)
        await fetch(bob, alice, root)


async def test_a_client_that_takes_no_answers_is_closed(tmp_path) -> None:
    async with peers(2, tmp_path, patience=Patience(stuck_s=0.5)) as (alice, bob):
        root = alice.add(DATA)
        grant = await alice.grant(bob, root)
        digest = chunks_of(alice, root)[0].digest
        requests = b"".join(get(number, digest) for number in range(MAX_IN_FLIGHT))
        tls = await trio.to_thread.run_sync(show, grant.port, grant.ticket, requests)
        with tls:
            await until(lambda: not alice.held)


async def test_strangers_that_say_nothing_or_half_of_something_are_closed(tmp_path) -> None:
    async with peers(2, tmp_path, patience=Patience(handshake_s=1.0)) as (alice, bob):
        root = alice.add(DATA)
        grant = await alice.grant(bob, root)

        def loiter() -> None:
            with ExitStack() as stack:
                silent, garbage, half = (
                    stack.enter_context(socket.create_connection(("127.0.0.1", grant.port), 10)) for _ in range(3)
                )
                garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
                half.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
                greeted = stack.enter_context(connect(grant.port))
                greeted.sendall(grant.ticket[:31])
                assert all(is_closed(sock) for sock in (silent, half, greeted))
                while not is_closed(garbage):
                    pass

        await trio.to_thread.run_sync(loiter)
        await fetch(bob, alice, root)


async def test_a_thousand_strangers_cost_no_thread_each_and_keep_nobody_out(tmp_path) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)
        grant = await alice.grant(bob, root)
        process = psutil.Process(alice.bulk.process_id)
        before = process.memory_info().rss

        def crowd(stack: ExitStack) -> None:
            for number in range(1000):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", grant.port), 10))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                if number % 2:
                    sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")

        with ExitStack() as stack:
            await trio.to_thread.run_sync(crowd, stack)
            await fetch(bob, alice, root)
            assert bob.store.path(root).read_bytes() == DATA
            assert process.num_threads() < 10
            assert process.num_fds() < 400
            assert process.memory_info().rss - before < 64 * MIB
            assert alice.bulk.process_id == process.pid
