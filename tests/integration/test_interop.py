"""libp2p as others wrote it: a peer in Go and one in JavaScript dial a host of ours, identify it, ping it, and talk.

The one in Go comes with hivemind, the one in JavaScript from npm, hence `large`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from celluler.errors import Unavailable
from celluler.identity import peer_id_of
from celluler_protocols.host import Host, open_host
from tests.support.go_libp2p import GoPeer, Refused, go_peer
from tests.support.hosts import LISTEN, echo, identity, until
from tests.support.protobuf import decode, exactly, receive, texts

ECHO = "/celluler-test/echo/1"
PING = "/ipfs/ping/1.0.0"
IDENTIFY = "/ipfs/id/1.0.0"
JAVASCRIPT = Path(__file__).parents[1] / "support" / "js_libp2p"
_KEY, _PROTOCOLS = 1, 3  # fields of Identify
_KEY_TYPE, _KEY_DATA, _ED25519 = 1, 2, 1  # fields of a public key


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with open_host(identity(1), listen=LISTEN) as opened:
        opened.serve(ECHO, echo)
        yield opened


@pytest.fixture
async def go() -> AsyncIterator[GoPeer]:
    async with go_peer() as peer:
        yield peer


async def test_a_go_peer_dials_us_and_both_know_who_the_other_is(host: Host, go: GoPeer) -> None:
    with trio.fail_after(20):
        await go.connect(host.addresses[0])
        assert await go.peers() == [host.peer_id]
        await until(lambda: host.connected() == {go.peer_id})


async def test_a_go_peer_that_expects_another_key_at_our_address_does_not_connect(host: Host, go: GoPeer) -> None:
    wrong = host.addresses[0].replace(host.peer_id, identity(2).peer_id)
    with trio.fail_after(20), pytest.raises(Refused):
        await go.connect(wrong)
    assert host.connected() == set()


async def test_a_go_peer_identifies_us(host: Host, go: GoPeer) -> None:
    with trio.fail_after(20):
        await go.connect(host.addresses[0])
        async with await go.open_stream(host.peer_id, IDENTIFY) as stream:
            told = await receive(stream)
    assert {PING, IDENTIFY, ECHO} <= set(texts(told[_PROTOCOLS]))
    (packed,) = told[_KEY]
    assert isinstance(packed, bytes)
    key = decode(packed)
    (public,) = key[_KEY_DATA]
    assert isinstance(public, bytes)
    assert key[_KEY_TYPE] == [_ED25519]
    assert peer_id_of(public) == host.peer_id


async def test_a_go_peer_pings_us(host: Host, go: GoPeer) -> None:
    with trio.fail_after(20):
        await go.connect(host.addresses[0])
        async with await go.open_stream(host.peer_id, PING) as stream:
            for _ in range(3):
                sent = os.urandom(32)
                await stream.send_all(sent)
                assert await exactly(stream, 32) == sent


async def test_a_go_peer_talks_to_us_over_a_protocol_of_ours(host: Host, go: GoPeer) -> None:
    payload = os.urandom(3_000_000)  # more than any window of the muxer
    with trio.fail_after(20):
        await go.connect(host.addresses[0])
        async with await go.open_stream(host.peer_id, ECHO) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, payload)
            assert await exactly(stream, len(payload)) == payload
        with pytest.raises(Refused):
            await go.open_stream(host.peer_id, "/celluler-test/unknown/1")
    assert host.violations == ()


async def test_we_dial_a_go_peer_and_open_a_stream_to_it(host: Host, go: GoPeer) -> None:
    async def echo_there(stream: trio.abc.Stream) -> None:
        await echo("", stream)

    payload = os.urandom(1_000_000)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(20):
            await go.serve(ECHO, echo_there, nursery)
            assert await host.connect(go.address) == go.peer_id
            async with await host.open_stream(go.peer_id, ECHO) as stream, trio.open_nursery() as sending:
                sending.start_soon(
                    stream.send_all, payload
                )  # never ended: p2pd takes the end of one way for that of both
                assert await exactly(stream, len(payload)) == payload
            with pytest.raises(Unavailable):
                await host.open_stream(go.peer_id, "/celluler-test/unknown/1")
        nursery.cancel_scope.cancel()


@pytest.mark.large
@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm here")
async def test_a_javascript_peer_dials_identifies_and_pings_us_and_opens_a_stream(host: Host, tmp_path: Path) -> None:
    for name in ("package.json", "peer.js"):
        shutil.copy(JAVASCRIPT / name, tmp_path)
    with trio.fail_after(180):
        await _run(tmp_path, "npm", "install", "--no-audit", "--no-fund", "--loglevel=error")
    with trio.fail_after(60):
        said = await _run(tmp_path, "node", "peer.js", host.addresses[0], ECHO, "3000000")
    told = json.loads(said)
    assert {PING, IDENTIFY, ECHO} <= set(told.pop("protocols"))
    assert told == {
        "peer": host.peer_id,
        "pinged": True,
        "muxer": "/yamux/1.0.0",
        "encryption": "/noise",
        "received": 3_000_000,
        "intact": True,
    }
    assert host.violations == ()


async def _run(folder: Path, *command: str) -> str:
    done = await trio.run_process(
        command, cwd=folder, check=False, capture_stdout=True, capture_stderr=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout.decode()
