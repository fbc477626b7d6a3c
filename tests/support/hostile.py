"""A peer that knows every protocol well and means harm: real hosts in this process against a node in another.

An offender is disconnected, and banned after some violations: every attack is made by an identity of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import httpx
import msgpack
import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11 as GOSSIP

from celluler.client import Client
from celluler.content.digest import Digest, digest_of
from celluler.content.memory import MemoryStore
from celluler.errors import CellulerError
from celluler.identity import Envelope, Identity, PeerId, seal
from celluler.wire import Frames, pack, unpack
from celluler_protocols import (
    bulk,
    catalogue,
    content,
    inference,
    jobs_messages,
    leases,
    rounds_messages,
    scoring,
    stages_messages,
)
from celluler_protocols.generation import messages as generation
from celluler_protocols.gossip import TOPIC
from celluler_protocols.host import Handler, Host, open_host
from celluler_protocols.host.kad import PROTOCOL_ID as KAD
from celluler_protocols.membership import messages as swim
from simulations.swarm import NodeProcess
from tests.support.hosts import LISTEN, until
from tests.support.waiting import eventually

T = TypeVar("T")
WAIT_S = 20.0
STRANGERS_AT_ONCE = 8
SOME_DIGEST = digest_of(b"a block that nobody has")


@dataclass(frozen=True, slots=True)
class Spoken:
    """A protocol of ours as an attacker sees it.

    opening: what an honest peer may say first. out_of_order: words of the protocol that nobody may say first.
    names_truncation: whether ending the stream inside a frame counts as a violation.
    """

    protocol: str
    frames: Callable[[], Frames]
    opening: Any
    out_of_order: tuple[Any, ...]
    names_truncation: bool = True


_DRAWING = generation.Drawing(1.0, 1.0, 0, 0, 0, None)
_LOAD = generation.Load(0, 0, 1)
PROTOCOLS = (
    Spoken(
        content.PROTOCOL_ID,
        content.frames,
        content.Want((SOME_DIGEST,)),
        (content.Found(SOME_DIGEST, b"x"), content.Absent(SOME_DIGEST), content.Busy()),
    ),
    Spoken(
        bulk.PROTOCOL_ID,
        bulk.frames,
        bulk.Ask(SOME_DIGEST),
        (
            bulk.Refused(1),
            bulk.Grant(1, SOME_DIGEST, SOME_DIGEST, 1, 1, 1, b""),
            bulk.Grant(1, SOME_DIGEST, SOME_DIGEST, 1, 1, 1, bytes(1 << 17)),
        ),
    ),
    Spoken(
        jobs_messages.PROTOCOL_ID,
        jobs_messages.frames,
        jobs_messages.ListJobs(2**63),
        (jobs_messages.Accepted(SOME_DIGEST), jobs_messages.Offered(), jobs_messages.Refused(0, "no")),
    ),
    Spoken(
        inference.PROTOCOL_ID,
        inference.frames,
        inference.Predict("nobody/nothing", "raw", "float32", (1,), bytes(4)),
        (
            inference.Refused(0, "no"),
            inference.Predict("nobody/nothing", "raw", "float32", (3,), bytes(4)),
            inference.Predict("nobody/nothing", "raw", "object", (1,), bytes(4)),
            inference.Predict("nobody/nothing", "raw", "float32", (2**31, 2**31, 2**31), bytes(4)),
        ),
    ),
    Spoken(
        generation.PROTOCOL_ID,
        generation.frames,
        generation.Generate("nobody/nothing", generation.OfText("x"), _DRAWING, 1, 5, 1000, b"", b""),
        (
            generation.Stop(0),
            generation.Begun(SOME_DIGEST, bytes(4), _LOAD),
            generation.Alive(_LOAD),
            generation.Generate("nobody/nothing", generation.OfTokens(bytes(5)), _DRAWING, 1, 5, 1000, b"", b""),
        ),
    ),
    Spoken(
        scoring.PROTOCOL_ID,
        scoring.frames,
        scoring.Score("nobody/nothing", bytes(4), bytes(4), False, 0.0, 1.0, 0, 0, 0, 0, 0.0),
        (
            scoring.Scored(SOME_DIGEST, bytes(scoring.SCORE.itemsize)),
            scoring.Score("nobody/nothing", bytes(5), bytes(4), False, 0.0, 1.0, 0, 0, 0, 0, 0.0),
        ),
    ),
    Spoken(
        stages_messages.PROTOCOL_ID,
        stages_messages.frames,
        stages_messages.OpenStage(SOME_DIGEST, 0, 1, 1, 8, "bf16"),
        (
            stages_messages.StageReady(1, 1, 1, False),
            stages_messages.Forward(0, 0, 1, 0, 0, bytes(4)),
            stages_messages.End(0),
        ),
    ),
    Spoken(
        leases.PROTOCOL_ID,
        leases.frames,
        leases.Release(SOME_DIGEST),
        (leases.Kept(1, True), leases.Released()),
    ),
    Spoken(
        catalogue.PROTOCOL_ID,
        catalogue.frames,
        catalogue.Ask(SOME_DIGEST),
        (catalogue.Next(), catalogue.Page((), last=True)),
    ),
    Spoken(
        swim.PROTOCOL_ID,
        swim.frames,
        swim.Sync(),
        (
            swim.Ping(1, (swim.Alive(b"no envelope"),)),
            swim.Ping(1, (swim.Gone(b"no envelope"),)),
        ),
    ),
    Spoken(  # a member that is cancelled in mid-word ends its stream there, so truncation names nobody
        rounds_messages.PROTOCOL_ID,
        rounds_messages.frames,
        rounds_messages.Talk(SOME_DIGEST),
        (rounds_messages.Say(b"x"), rounds_messages.Have(1), rounds_messages.Absent()),
        names_truncation=False,
    ),
)
LIBP2P_PROTOCOLS = (KAD, str(GOSSIP), "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0")
"""Read by libp2p: nonsense ends the stream and names nobody."""


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def wrong_frames(spoken: Spoken) -> list[bytes]:
    """Frames that are msgpack, and no message: tag, arity, types and ranges wrong, words out of order."""
    opening = spoken.frames().encode(spoken.opening)
    tag, plain = msgpack.unpackb(opening[4:])
    arity = len(fields(spoken.opening))
    bodies: list[Any] = [
        [99, plain],
        [-1, plain],
        [True, plain],
        [tag, plain, plain],
        [tag, [*plain, 0]],
        [tag, [None] * arity],
        [tag, [-1] * arity],
        [tag, [b"\xff" * 70] * arity],
        {"tag": tag},
        [],
    ]
    nested = b"\x91" * 20_000
    return [
        *(framed(msgpack.packb(body)) for body in bodies),
        framed(nested),
        framed(msgpack.packb([tag, plain]) + b"\0"),
        *(spoken.frames().encode(word) for word in spoken.out_of_order),
    ]


# --- hosts ---------------------------------------------------------------------------------------------------------


class _Gullible:
    """A DHT validator that believes anything."""

    def validate(self, key: str, value: bytes) -> None: ...

    def select(self, key: str, values: Any) -> int:
        return 0


@asynccontextmanager
async def stranger(
    node: NodeProcess,
    identity: Identity | None = None,
    *,
    listens: bool = False,
    protocols: Mapping[str, Handler] | None = None,
) -> AsyncIterator[Host]:
    """A host with an identity of its own, connected to the node. listens: so that it can provide content."""
    identity = identity or Identity.generate()
    listen = LISTEN if listens else ()
    async with open_host(identity, listen=listen, validators={"head": _Gullible()}) as host:
        for protocol, handler in (protocols or {}).items():
            host.serve(protocol, handler)
        with trio.fail_after(WAIT_S):
            await host.connect(node.address)
        yield host


async def in_dht(host: Host) -> None:
    """Until the host's DHT knows somebody to tell things to."""
    await soon(lambda: _is(host.dht.routing_peers > 0))


async def _is(value: bool) -> bool:
    return value


def told_protocols(host: Host, node: NodeProcess) -> frozenset[str]:
    """What the node says it serves; empty until it has said so."""
    try:
        return frozenset(host._node.get_peerstore().get_protocols(ID.from_string(node.peer_id)))
    except Exception:
        return frozenset()


async def soon(holds: Callable[[], Awaitable[T]], *, within_s: float = WAIT_S) -> T:
    """`eventually`, with the hosts of this process alive meanwhile."""
    return await trio.to_thread.run_sync(lambda: eventually(lambda: trio.from_thread.run(holds), within_s=within_s))


async def throw(host: Host, node: NodeProcess, protocol: str, data: bytes, within_s: float = 5.0) -> bytes:
    """Send bytes on one stream, say that is all, and read what comes. Never mind how it ends."""
    answer = bytearray()
    with trio.move_on_after(within_s), suppress(CellulerError, trio.BrokenResourceError):
        async with await host.open_stream(PeerId(node.peer_id), protocol) as stream:
            await stream.send_all(data)
            await stream.send_eof()
            while chunk := await stream.receive_some():
                answer += chunk
    return bytes(answer)


@asynccontextmanager
async def hung_up_on(host: Host, node: NodeProcess) -> AsyncIterator[None]:
    """For an offence: afterwards, wait until the node has closed the connection it came by.

    What is said while the node is closing it is not heard.
    """
    with trio.fail_after(WAIT_S):
        await host.connect(node.address)
    used = tuple(host._swarm.get_connections(ID.from_string(node.peer_id)))
    yield
    with trio.move_on_after(1):
        await until(lambda: all(connection.is_closed for connection in used))


async def throw_each(node: NodeProcess, protocol: str, attacks: Sequence[bytes]) -> Counter[str]:
    """Every attack, each by a stranger of its own: what one says while the node hangs up on it is not heard.

    Returns attacks by peer.
    """
    thrown: Counter[str] = Counter()
    room = trio.CapacityLimiter(STRANGERS_AT_ONCE)

    async def attack(data: bytes) -> None:
        async with room, stranger(node) as mallory:
            thrown[mallory.peer_id] += 1
            async with hung_up_on(mallory, node):
                await throw(mallory, node, protocol, data, WAIT_S)

    async with trio.open_nursery() as nursery:
        for data in attacks:
            nursery.start_soon(attack, data)
    return thrown


# --- what a node says afterwards -------------------------------------------------------------------------------------


async def await_named(node: NodeProcess, offences: Mapping[str, int]) -> None:
    """Until the node has written down as many violations of each peer."""

    def missing() -> dict[str, int]:
        with Client(home=node.home) as client:
            told = {violation.peer: violation.count for violation in client.violations()}
        return {peer: told.get(peer, 0) for peer, count in offences.items() if told.get(peer, 0) != count}

    def named() -> bool:
        return not missing()

    try:
        await trio.to_thread.run_sync(lambda: eventually(named, within_s=WAIT_S))
    except AssertionError:
        raise AssertionError(f"counted {missing()} of {dict(offences)}") from None


async def violations_of(node: NodeProcess, peer: str) -> int:
    def count() -> int:
        with Client(home=node.home) as client:
            return sum(violation.count for violation in client.violations() if violation.peer == peer)

    return await trio.to_thread.run_sync(count)


async def assert_serves(node: NodeProcess, blob: bytes) -> None:
    """The node is up, and a stranger without a past gets an answer on each protocol that has one for strangers.

    blob: root of a content that the node holds.
    """
    assert node.process.poll() is None, node.log()[-4000:]
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{node.ready['api']}/healthz", timeout=WAIT_S)
        assert answer.status_code == 200
    peer = PeerId(node.peer_id)
    async with stranger(node) as alice:
        with trio.fail_after(WAIT_S):
            store = MemoryStore(1 << 26)
            await content.fetch(blob, store, [peer], lambda to: alice.open_stream(to, content.PROTOCOL_ID))
            assert store.stat(blob).complete
        for spoken in PROTOCOLS:
            if spoken.protocol not in (content.PROTOCOL_ID, rounds_messages.PROTOCOL_ID):
                answered = await throw(alice, node, spoken.protocol, spoken.frames().encode(spoken.opening))
                assert answered, spoken.protocol
        assert await violations_of(node, alice.peer_id) == 0


# --- lies ------------------------------------------------------------------------------------------------------------


def forged(identity: Identity, record: Any, *, name: Identity | None = None) -> bytes:
    """An envelope whose signature is wrong: one bit changed, or given by `identity` under the name of another."""
    envelope = unpack(Envelope, seal(identity, record), limit=1 << 20)
    if name is not None:
        return pack(Envelope(envelope.kind, name.public_key, envelope.body, envelope.signature))
    changed = bytes([envelope.signature[0] ^ 1]) + envelope.signature[1:]
    return pack(Envelope(envelope.kind, envelope.signer, envelope.body, changed))


def relabelled(identity: Identity, record: Any, kind: str) -> bytes:
    """A signature given for one kind of record, shown for another."""
    envelope = unpack(Envelope, seal(identity, record), limit=1 << 20)
    return pack(Envelope(kind, envelope.signer, envelope.body, envelope.signature))


class Provider:
    """Answers the content protocol from a table of bytes by digest, true or not.

    before: awaited before each answer that it has. answered: digests it gave bytes for.
    """

    def __init__(self, blocks: Mapping[bytes, bytes], *, before: Callable[[bytes], Awaitable[None]] | None = None):
        self._blocks, self._before = blocks, before
        self.answered: set[bytes] = set()

    async def __call__(self, _peer: PeerId, stream: trio.abc.Stream) -> None:
        words = content.frames()
        while chunk := await stream.receive_some():
            for want in words.feed(bytes(chunk)):
                for digest in want.digests:
                    await stream.send_all(words.encode(await self._answer(digest)))

    async def _answer(self, digest: bytes) -> Any:
        if digest not in self._blocks:
            return content.Absent(digest)
        if self._before is not None:
            await self._before(digest)
        self.answered.add(digest)
        return content.Found(digest, self._blocks[digest])


def blocks_of(store: MemoryStore, root: bytes) -> dict[bytes, bytes]:
    """Every block and chunk of a complete content, by digest."""
    manifest = store.get(root)
    from celluler.content.manifest import parse_manifest  # noqa: PLC0415

    parsed = parse_manifest(manifest)
    blocks = {digest_of(manifest): manifest, **{leaf: store.get(leaf) for leaf in parsed.leaves}}
    return blocks | {piece.digest: store.get(piece.digest) for piece in _layout(store, root)}


def _layout(store: MemoryStore, root: bytes) -> Any:
    from celluler.content.store import read_layout  # noqa: PLC0415

    return read_layout(store, root)


def block(blocks: dict[bytes, bytes], data: bytes) -> Digest:
    """Put a block under its true digest."""
    digest = digest_of(data)
    blocks[digest] = data
    return digest


async def gossip_until_named(host: Host, node: NodeProcess, data: bytes) -> None:
    """Publish, again and again while the mesh forms, until the node has named us."""
    await host.pubsub.subscribe(TOPIC, lambda *_: True)
    await soon(lambda: _is(PeerId(node.peer_id) in host.pubsub.peers(TOPIC)))

    async def named() -> bool:
        await host.pubsub.publish(TOPIC, data)
        return await violations_of(node, host.peer_id) > 0

    await soon(named)


async def announced(node: NodeProcess) -> set[bytes]:
    """The envelopes in the node's catalogue."""
    async with stranger(node) as alice:
        with trio.fail_after(WAIT_S):
            stream = await alice.open_stream(PeerId(node.peer_id), catalogue.PROTOCOL_ID)
            return {raw async for raw in catalogue.ask_catalogue(stream, bytes(32))}
