"""What a peer that knows libp2p well can throw at a live host, gossip and DHT included: the host goes on serving."""

from __future__ import annotations

import os
import random
import struct
from contextlib import suppress
from typing import Any

import pytest
import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from celluler.errors import CellulerError, ProtocolViolation
from celluler_protocols.host import Host, HostLimits, open_host
from celluler_protocols.host.kad import PROTOCOL_ID as KAD
from tests.support.hosts import ask, echo, hosts, identity, join, until

ECHO = "/celluler-test/echo/1"
GOSSIP = "/meshsub/1.1.0"
TOPIC = "celluler-test"


async def still_serves(alice: Host, bob: Host) -> None:
    """A third party's stream, gossip and DHT all work."""
    assert await ask(alice, bob.peer_id, ECHO, b"still there?") == b"still there?"
    await bob.dht.provide(os.urandom(32))


async def prepared(alice: Host, bob: Host) -> trio.MemoryReceiveChannel[Any]:
    bob.serve(ECHO, echo)
    await join(alice, bob)
    await alice.pubsub.subscribe(TOPIC, lambda *_: True)
    return await bob.pubsub.subscribe(TOPIC, lambda *_: True)


async def throw(mallory: Host, bob: Host, protocol: str, data: bytes) -> bool:
    """Send bytes on one stream and never mind what comes of it. True when they went out."""
    with trio.move_on_after(2), suppress(CellulerError, trio.BrokenResourceError):
        await join(mallory, bob)
        async with await mallory.open_stream(bob.peer_id, protocol) as stream:
            await stream.send_all(data)
            return True
    return False


async def assert_gossip_flows(alice: Host, inbox: trio.MemoryReceiveChannel[Any]) -> None:
    token = os.urandom(16)
    with trio.fail_after(15):
        while True:
            await alice.pubsub.publish(TOPIC, token)
            with trio.move_on_after(1):
                while (await inbox.receive())[1] != token:
                    pass
                return


async def test_random_bytes_on_every_protocol() -> None:
    dice = random.Random(1)
    async with hosts(2) as (alice, bob), open_host(identity(66)) as mallory:
        inbox = await prepared(alice, bob)
        protocols = bob.protocols
        assert {ECHO, GOSSIP, KAD} <= set(protocols)
        for protocol in protocols:
            thrown = 0
            for size in (0, 1, 2, 100, 5000):
                thrown += await throw(mallory, bob, protocol, dice.randbytes(size))
                thrown += await throw(mallory, bob, protocol, encode_varint_prefixed(dice.randbytes(size)))
            thrown += await throw(mallory, bob, protocol, b"\xff" * 40)
            assert thrown > 8
        await still_serves(alice, bob)
        await assert_gossip_flows(alice, inbox)


def gossip_nonsense(dice: random.Random) -> list[bytes]:
    """RPCs that parse and mean harm."""
    rpcs = []
    ed25519, rsa = b"\x00\x24\x08\x01\x12\x20" + dice.randbytes(32), b"\x12\x20" + dice.randbytes(32)
    for author in (b"", b"\x00", dice.randbytes(34), rsa, ed25519):
        for key in (b"", dice.randbytes(3), b"\x08\x01\x12\x20" + dice.randbytes(32), b"\x08\x63\x12\x01\x00"):
            message = rpc_pb2.Message(from_id=author, seqno=dice.randbytes(8), data=b"x", topicIDs=[TOPIC])
            message.key, message.signature = key, b"s"
            rpcs.append(rpc_pb2.RPC(publish=[message]))
    rpcs.append(rpc_pb2.RPC(publish=[rpc_pb2.Message(topicIDs=[TOPIC])]))
    rpcs.append(rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=str(n)) for n in range(5000)]))
    rpcs.append(rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=False, topicid=TOPIC)] * 3))
    rpcs.append(rpc_pb2.RPC(senderRecord=dice.randbytes(200)))
    control = rpc_pb2.ControlMessage(
        graft=[rpc_pb2.ControlGraft(topicID=name) for name in (TOPIC, "unknown", "")],
        prune=[rpc_pb2.ControlPrune(topicID=name, backoff=2**63) for name in (TOPIC, "unknown")],
        ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[dice.randbytes(20), b"", b"zz"])],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[dice.randbytes(20), b"", b"a" * 1000])],
    )
    rpcs.append(rpc_pb2.RPC(control=control))
    return [encode_varint_prefixed(rpc.SerializeToString()) for rpc in rpcs]


async def test_well_formed_gossip_that_means_harm() -> None:
    dice = random.Random(2)
    async with hosts(2) as (alice, bob), open_host(identity(66)) as mallory:
        inbox = await prepared(alice, bob)
        for rpc in gossip_nonsense(dice):
            assert await throw(mallory, bob, GOSSIP, rpc)
        await throw(mallory, bob, GOSSIP, encode_varint_prefixed(b"x")[:1] + b"\xff" * 9 + b"\x01")
        await still_serves(alice, bob)
        await assert_gossip_flows(alice, inbox)


def kad_nonsense(dice: random.Random) -> list[bytes]:
    messages = []
    for kind in KadMessage.MessageType.values():
        for key in (b"", b"\xff", dice.randbytes(32), b"/celluler-head/x/y", b"k" * 5000):
            message = KadMessage(type=kind, key=key, senderRecord=dice.randbytes(20))
            messages.append(message)
            message = KadMessage(type=kind, key=key)
            message.record.key, message.record.value = key, dice.randbytes(50)
            message.record.timeReceived = "not a time"
            for _ in range(3):
                message.closerPeers.add(id=dice.randbytes(5), addrs=[dice.randbytes(9), b""])
                message.providerPeers.add(id=dice.randbytes(38), addrs=[dice.randbytes(9)] * 50)
            messages.append(message)
    return [encode_varint_prefixed(message.SerializeToString()) for message in messages]


async def test_well_formed_dht_messages_that_mean_harm() -> None:
    dice = random.Random(3)
    async with hosts(2) as (alice, bob), open_host(identity(66)) as mallory:
        await prepared(alice, bob)
        for message in kad_nonsense(dice):
            assert await throw(mallory, bob, KAD, message)
        assert bob.dht.stored_values == 0
        await still_serves(alice, bob)


async def test_a_lying_dht_answers_nonsense_to_our_questions() -> None:
    dice = random.Random(4)
    answers = kad_nonsense(dice)

    async with hosts(2) as (alice, mallory):

        async def lie(_peer: str, stream: trio.abc.Stream) -> None:
            await stream.receive_some()
            await stream.send_all(dice.choice(answers))

        mallory.serve(KAD, lie)
        await join(alice, mallory)
        for _ in range(10):
            assert await alice.dht.providers(dice.randbytes(32)) == ()


async def test_raw_bytes_on_the_socket_and_torn_handshakes() -> None:
    dice = random.Random(5)
    async with hosts(2) as (alice, bob):
        inbox = await prepared(alice, bob)
        port = int(bob.addresses[0].split("/")[4])
        for opening in (b"", b"\x13/multistream/1.0.0\n", b"\x13/multistream/1.0.0\n\x07/noise\n"):
            for size in (0, 1, 3, 100, 70_000):
                socket = await trio.open_tcp_stream("127.0.0.1", port)
                async with socket:
                    with suppress(trio.BrokenResourceError):
                        await socket.send_all(opening + dice.randbytes(size))
        await still_serves(alice, bob)
        await assert_gossip_flows(alice, inbox)


async def test_random_muxer_frames_on_an_authenticated_connection() -> None:
    dice = random.Random(6)
    async with hosts(2) as (alice, bob), open_host(identity(66)) as mallory:
        inbox = await prepared(alice, bob)
        sent = 0
        for round_ in range(10):
            with suppress(Exception), trio.move_on_after(3):
                await join(mallory, bob)
                muxed = mallory._swarm.get_connections()[0].muxed_conn
                for _ in range(20):
                    kind, flags = dice.randrange(5), dice.randrange(16)
                    body = dice.randbytes(dice.choice((0, 1, 100)))
                    length = len(body) if round_ % 2 else dice.choice((0, 2**31, 2**32 - 1))
                    head = struct.pack("!BBHII", 0, kind, flags, dice.choice((0, 1, 2, 3, 2**32 - 1)), length)
                    await muxed._write_frame(head + (body if kind == 0 else b""))
                    sent += 1
            await mallory.disconnect(bob.peer_id)
        assert sent > 40
        await still_serves(alice, bob)
        await assert_gossip_flows(alice, inbox)


async def test_a_sender_that_ignores_the_window_is_cut_off_and_named() -> None:
    async def stall(_peer: str, _stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with hosts(2) as (alice, bob), open_host(identity(66)) as mallory:
        await prepared(alice, bob)
        bob.serve("/celluler-test/stall/1", stall)
        await mallory.connect(bob.addresses[0])
        stream = await mallory.open_stream(bob.peer_id, "/celluler-test/stall/1")
        stream._net.muxed_stream.send_window = 1 << 30
        with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x" * 120_000_000)
        await until(lambda: [violation.peer for violation in bob.violations] == [mallory.peer_id])
        await still_serves(alice, bob)


async def test_thousands_of_half_made_streams_take_no_more_than_their_peers_share() -> None:
    async with hosts(2) as (alice, bob), open_host(identity(66)) as mallory:
        await prepared(alice, bob)
        await mallory.connect(bob.addresses[0])
        muxed = mallory._swarm.get_connections()[0].muxed_conn
        with trio.fail_after(20):
            for number in range(101, 4101, 2):
                await muxed._write_frame(struct.pack("!BBHII", 0, 1, 1, number, 0))
        assert bob.inbound_streams <= HostLimits().streams_a_peer + 8
        await still_serves(alice, bob)


async def test_gossip_refused_by_the_validator_goes_no_further_and_a_violation_names_its_forwarder() -> None:
    async with hosts(3) as (mallory, bob, carol):

        def accept(_author: str, data: bytes) -> bool:
            if data == b"bad":
                raise ProtocolViolation("bad")
            if data == b"bug":
                raise ValueError("a bug of ours")
            return data != b"no"

        inbox = await bob.pubsub.subscribe(TOPIC, accept)
        onward = await carol.pubsub.subscribe(TOPIC, lambda *_: True)
        await mallory.pubsub.subscribe(TOPIC, lambda *_: True)
        await join(mallory, bob)
        await join(bob, carol)
        await until(lambda: mallory.peer_id in bob.pubsub.peers(TOPIC) and carol.peer_id in bob.pubsub.peers(TOPIC))
        await until(lambda: bob.peer_id in mallory.pubsub.peers(TOPIC))
        for data in (b"no", b"bug", b"yes", b"bad"):
            await mallory.pubsub.publish(TOPIC, data)
        with trio.fail_after(10):
            assert await inbox.receive() == (mallory.peer_id, b"yes")
            assert await onward.receive() == (mallory.peer_id, b"yes")
        await until(lambda: [violation.peer for violation in bob.violations] == [mallory.peer_id])
        with pytest.raises(trio.WouldBlock):
            onward.receive_nowait()
