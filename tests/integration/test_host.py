"""Real hosts over loopback: what they promise each other, and what a hostile peer can do to one."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any

import pytest
import trio

from celluler.errors import InvalidSpec, LocalError, ProtocolViolation, Unavailable
from celluler_protocols.host import Host, HostLimits, open_host
from tests.support.hosts import LISTEN, ask, echo, hosts, identity, join, until

ECHO = "/celluler-test/echo/1"


async def serves(asker: Host, server: Host) -> bool:
    return await ask(asker, server.peer_id, ECHO, b"still there?") == b"still there?"


async def test_streams_carry_bytes_both_ways_and_are_counted() -> None:
    async with hosts(2) as (alice, bob):
        bob.serve(ECHO, echo)
        await join(alice, bob)
        payload = os.urandom(3_000_000)
        assert await ask(alice, bob.peer_id, ECHO, payload) == payload
        assert alice.traffic[bob.peer_id].sent_bytes == len(payload)
        assert alice.traffic[bob.peer_id].received_bytes == len(payload)
        await until(lambda: bob.traffic[alice.peer_id].sent_bytes == len(payload))


async def test_the_handler_learns_who_is_at_the_other_end() -> None:
    seen: list[str] = []

    async def note(peer: str, _stream: trio.abc.Stream) -> None:
        seen.append(peer)

    async with hosts(2) as (alice, bob):
        bob.serve(ECHO, note)
        await join(alice, bob)
        await ask(alice, bob.peer_id, ECHO, b"")
        assert seen == [alice.peer_id]


async def test_a_host_knows_where_a_peer_has_proven_its_key_and_nothing_by_hearsay() -> None:
    async with hosts(2) as (alice, bob):
        alice.learn(bob.peer_id, ["/ip4/192.0.2.1/tcp/4040", *bob.addresses])
        assert alice.remote_hosts(bob.peer_id) == ()
        await join(alice, bob)
        assert alice.remote_hosts(bob.peer_id) == ("127.0.0.1",)
        await until(lambda: bob.remote_hosts(alice.peer_id) == ("127.0.0.1",))


async def test_a_client_that_listens_on_nothing_is_reached_over_its_own_connection() -> None:
    async with hosts(1) as (server,), open_host(identity(77)) as client:
        assert client.addresses == ()
        client.serve(ECHO, echo)
        await client.connect(server.addresses[0])
        await until(lambda: client.peer_id in server.connected())
        assert await serves(server, client)


async def test_a_peer_is_dialled_at_the_addresses_learnt_of_it_whichever_works() -> None:
    async with hosts(2) as (alice, bob):
        bob.serve(ECHO, echo)
        alice.learn(bob.peer_id, [bob.addresses[0]])
        alice.learn(bob.peer_id, ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2"])
        assert await serves(alice, bob)


async def test_a_peer_is_dialled_by_the_name_of_its_machine() -> None:
    async with hosts(2) as (alice, bob):
        bob.serve(ECHO, echo)
        await alice.connect(bob.addresses[0].replace("/ip4/127.0.0.1/", "/dns4/localhost/"))
        assert await serves(alice, bob)
        with pytest.raises(Unavailable):
            await alice.connect(f"/dns4/no-such-host.invalid/tcp/1/p2p/{identity(9).peer_id}")


async def test_a_restarted_peer_is_reached_again_at_once() -> None:
    async with hosts(1) as (alice,):
        async with open_host(identity(50), listen=LISTEN) as bob:
            address = bob.addresses[0]
            await alice.connect(address)
        await until(lambda: not alice.connected())
        for _ in range(3):
            with pytest.raises(Unavailable):
                await alice.connect(address)
        port = address.split("/")[4]
        async with open_host(identity(50), listen=[f"/ip4/127.0.0.1/tcp/{port}"]) as bob:
            bob.serve(ECHO, echo)
            await alice.connect(address)
            assert await serves(alice, bob)


async def test_another_key_at_the_address_is_not_the_peer() -> None:
    async with hosts(2) as (alice, bob):
        wrong = bob.addresses[0].replace(bob.peer_id, identity(99).peer_id)
        with pytest.raises(Unavailable):
            await alice.connect(wrong)


async def test_addresses_of_ours_and_of_peers_are_judged_apart() -> None:
    async with hosts(1) as (alice,):
        for text in (
            "",
            "localhost:80",
            "/ip4/127.0.0.1/udp/1",
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/300.1.1.1/tcp/1",
            "x" * 999,
        ):
            with pytest.raises(InvalidSpec):
                await alice.connect(text)
        with pytest.raises(ProtocolViolation):
            alice.learn(identity(5).peer_id, ["/ip4/127.0.0.1/tcp/70000"])
        with pytest.raises(ProtocolViolation):
            alice.learn(identity(5).peer_id, [f"/ip4/127.0.0.1/tcp/1/p2p/{identity(6).peer_id}"])
        with pytest.raises(LocalError):
            await alice.connect(alice.addresses[0])


async def test_an_unknown_protocol_and_an_unknown_peer_are_unavailable() -> None:
    async with hosts(2) as (alice, bob):
        await join(alice, bob)
        with pytest.raises(Unavailable):
            await alice.open_stream(bob.peer_id, "/celluler-test/unknown/1")
        with pytest.raises(Unavailable):
            await alice.open_stream(identity(9).peer_id, ECHO)


async def test_exceptions_in_handlers_end_their_stream_only() -> None:
    failures: list[BaseException] = [
        ValueError("bug"),
        OSError("disk"),
        ExceptionGroup("several", [KeyError("x"), ValueError("y")]),
        trio.BrokenResourceError("gone"),
        Unavailable("later"),
    ]

    async def fail(_peer: str, stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        raise failures.pop()

    async with hosts(2) as (alice, bob):
        bob.serve("/celluler-test/fail/1", fail)
        bob.serve(ECHO, echo)
        await join(alice, bob)
        while failures:
            with pytest.raises(trio.BrokenResourceError):
                await ask(alice, bob.peer_id, "/celluler-test/fail/1", b"go")
        assert await serves(alice, bob)
        assert bob.violations == ()


async def test_a_peer_that_vanishes_in_mid_handler_leaves_the_host_serving() -> None:
    ended = trio.Event()

    async def wait(_peer: str, stream: trio.abc.Stream) -> None:
        try:
            while True:
                await stream.send_all(b"x" * 1000)
                await stream.receive_some()
        finally:
            ended.set()

    async with hosts(2) as (alice, bob):
        bob.serve("/celluler-test/wait/1", wait)
        bob.serve(ECHO, echo)
        async with open_host(identity(60)) as mallory:
            await mallory.connect(bob.addresses[0])
            stream = await mallory.open_stream(bob.peer_id, "/celluler-test/wait/1")
            await stream.receive_some()
        with trio.fail_after(10):
            await ended.wait()
        await join(alice, bob)
        assert await serves(alice, bob)


async def test_a_lost_connection_never_looks_like_the_end_of_a_stream() -> None:
    async def half(_peer: str, stream: trio.abc.Stream) -> None:
        await stream.send_all(b"half of it")
        await trio.sleep_forever()

    async with hosts(2) as (alice, bob):
        bob.serve("/celluler-test/half/1", half)
        await join(alice, bob)
        stream = await alice.open_stream(bob.peer_id, "/celluler-test/half/1")
        assert await stream.receive_some() == b"half of it"
        await bob.disconnect(alice.peer_id)
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_a_peer_that_falls_silent_without_closing_is_dropped_and_one_that_only_idles_is_not() -> None:
    async with hosts(3, limits=HostLimits(keepalive_s=0.1, silence_s=0.5)) as (bob, idle, silent):
        await join(idle, bob)
        await join(silent, bob)

        async def swallow(_frame: bytes) -> None: ...

        for connection in silent._swarm.get_connections():
            connection.muxed_conn._write_frame = swallow
        await until(lambda: silent.peer_id not in bob.connected())
        assert idle.peer_id in bob.connected()


async def test_a_caller_who_gives_up_does_not_break_the_connection() -> None:
    async with hosts(2) as (alice, bob):
        bob.serve(ECHO, echo)
        await join(alice, bob)
        for delay_s in (0, 0.0005, 0.001, 0.002, 0.003, 0.005) * 4:
            with trio.move_on_after(delay_s):
                await ask(alice, bob.peer_id, ECHO, b"x" * 300_000)
        assert await serves(alice, bob)
        assert len(alice.connected()) == 1


async def test_a_slow_reader_slows_its_sender_and_loses_nothing() -> None:
    release = trio.Event()

    async def slow(_peer: str, stream: trio.abc.Stream) -> None:
        await release.wait()
        total = 0
        while data := await stream.receive_some():
            total += len(data)
        await stream.send_all(str(total).encode())

    async with hosts(2) as (alice, bob):
        bob.serve("/celluler-test/slow/1", slow)
        bob.serve(ECHO, echo)
        await join(alice, bob)
        async with (
            await alice.open_stream(bob.peer_id, "/celluler-test/slow/1") as stream,
            trio.open_nursery() as nursery,
        ):
            with trio.fail_after(20):
                nursery.start_soon(stream.send_all, b"x" * 5_000_000)
                assert await serves(alice, bob)  # the connection is not blocked by the stalled stream
                release.set()
                await until(lambda: alice.traffic[bob.peer_id].sent_bytes > 5_000_000)
                await stream.send_eof()
                assert await stream.receive_some() == b"5000000"


async def test_a_reader_that_never_reads_breaks_the_stream_after_the_deadline() -> None:
    async def never(_peer: str, _stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with hosts(2, limits=HostLimits(stalled_write_s=0.3)) as (alice, bob):
        bob.serve("/celluler-test/never/1", never)
        await join(alice, bob)
        stream = await alice.open_stream(bob.peer_id, "/celluler-test/never/1")
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x" * 5_000_000)


async def test_a_flood_of_streams_is_cut_at_the_bound_of_its_peer() -> None:
    async def hold(_peer: str, stream: trio.abc.Stream) -> None:
        await stream.receive_some()

    async with hosts(3, limits=HostLimits(streams_a_peer=8, open_stream_s=2)) as (alice, mallory, bob):
        bob.serve("/celluler-test/hold/1", hold)
        bob.serve(ECHO, echo)
        await join(mallory, bob)
        await join(alice, bob)
        opened, refused = [], 0
        for _ in range(20):
            try:
                opened.append(await mallory.open_stream(bob.peer_id, "/celluler-test/hold/1"))
            except Unavailable:
                refused += 1
        assert len(opened) <= 8
        assert refused >= 12
        assert await serves(alice, bob)


async def test_violations_are_counted_and_lead_to_a_ban_that_ends() -> None:
    async def strict(peer: str, _stream: trio.abc.Stream) -> None:
        raise ProtocolViolation("nonsense", peer=peer)

    limits = HostLimits(violations_before_ban=3, ban_s=4.0)
    async with hosts(2, limits=limits) as (mallory, bob):
        bob.serve("/celluler-test/strict/1", strict)
        bob.serve(ECHO, echo)
        for _ in range(3):
            await join(mallory, bob)
            with suppress(trio.BrokenResourceError, Unavailable):
                await ask(mallory, bob.peer_id, "/celluler-test/strict/1", b"x")
            await until(lambda: mallory.peer_id not in bob.connected() and not mallory.connected())
        (violation,) = bob.violations
        assert (violation.peer, violation.count) == (mallory.peer_id, 3)
        with pytest.raises(Unavailable):
            await bob.open_stream(mallory.peer_id, ECHO)
        with suppress(Unavailable):
            await join(mallory, bob)
        with pytest.raises((Unavailable, trio.BrokenResourceError)):
            await ask(mallory, bob.peer_id, ECHO, b"let me in")
        with trio.fail_after(10):
            while True:
                with suppress(Unavailable, trio.BrokenResourceError):
                    await join(mallory, bob)
                    if await serves(mallory, bob):
                        return
                await trio.sleep(0.05)


async def test_a_host_does_not_go_deaf_after_many_connections() -> None:
    async with hosts(1, limits=HostLimits(connections=2)) as (server,):
        server.serve(ECHO, echo)
        for number in range(5):
            async with open_host(identity(100 + number)) as client:
                await client.connect(server.addresses[0])
                assert await serves(client, server)


async def test_closing_frees_the_port_and_the_name() -> None:
    async with open_host(identity(1), listen=LISTEN) as host:
        port = int(host.addresses[0].split("/")[4])
        with pytest.raises(LocalError, match="in use"):
            async with open_host(identity(2), listen=[f"/ip4/127.0.0.1/tcp/{port}"]):
                pass
    with socket.create_server(("127.0.0.1", port)), pytest.raises(LocalError, match="in use"):
        async with open_host(identity(1), listen=[f"/ip4/127.0.0.1/tcp/{port}"]):
            pass
    async with open_host(identity(1), listen=[f"/ip4/127.0.0.1/tcp/{port}"]) as host:
        assert host.addresses[0].split("/")[4] == str(port)


async def test_an_exception_in_the_block_closes_the_host_and_comes_out_as_it_is() -> None:
    async def body() -> Any:
        async with open_host(identity(1), listen=LISTEN):
            raise LocalError("mine")

    with pytest.raises((LocalError, ExceptionGroup)) as caught:
        await body()
    assert caught.type is LocalError
