"""What a hostile peer can do to a live node: it goes on serving, names the offender, and takes in nothing false."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import trio
from libp2p.utils import encode_varint_prefixed

from celluler.client import Client
from celluler.content.digest import Codec, Digest, cid_of, digest_of, parse_cid
from celluler.content.manifest import Header, Leaf, Manifest, Tensor, parse_manifest
from celluler.content.memory import MemoryStore
from celluler.errors import CellulerError, Denied, NotFound, PeerViolation, Unavailable
from celluler.identity import Identity, PeerId, seal
from celluler.jobs.spec import canonical_job, check_job
from celluler.jobs.states import JobState
from celluler.learning.roster import Roster, RosterEntry, rules_for
from celluler.models.index import VersionEntry, VersionIndex
from celluler.models.manifest import describe_model
from celluler.models.spec import format_spec, parse_spec
from celluler.models.weights import initial_weights
from celluler.wire import pack
from celluler_protocols import catalogue, content, inference, jobs
from celluler_protocols.directory import Head, head_key
from celluler_protocols.gossip import TOPIC, HeadAnnouncement, JobAnnouncement, ModelAnnouncement
from celluler_protocols.host import Host, HostLimits
from celluler_protocols.jobs_messages import Offered
from celluler_protocols.jobs_orders import CancelOrder, JobOrder
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.hostile import (
    LIBP2P_PROTOCOLS,
    PROTOCOLS,
    WAIT_S,
    Provider,
    Spoken,
    announced,
    assert_serves,
    await_named,
    block,
    blocks_of,
    forged,
    framed,
    gossip_until_named,
    hung_up_on,
    in_dht,
    relabelled,
    soon,
    stranger,
    throw,
    throw_each,
    told_protocols,
    violations_of,
    wrong_frames,
)
from tests.support.specs import TINY, dense, regression

SEED = 20_26
MAX_GROWTH_BYTES = 160 << 20
CUT_OFF = (trio.BrokenResourceError, Unavailable, PeerViolation)
"""How a stream ends whose other side will hear no more: the answer that never comes may look like any of these."""


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """A node that serves and does not train, and one that does both: only the second takes part in jobs."""
    with open_swarm(tmp_path_factory.mktemp("swarm")) as swarm:
        (swarm.folder / "alice").mkdir()
        (swarm.folder / "alice" / "config.toml").write_text('roles = ["serve"]\n')
        swarm.start("alice")
        swarm.start("bob", join=[swarm.nodes[0].address])
        yield swarm


@pytest.fixture(scope="module")
def node(swarm: Swarm) -> NodeProcess:
    return swarm.nodes[0]


@pytest.fixture(scope="module")
def trainer(swarm: Swarm) -> NodeProcess:
    return swarm.nodes[1]


@pytest.fixture(scope="module")
def blob(node: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Root of a content of 2 MB that the node holds."""
    path = tmp_path_factory.mktemp("blob") / "blob"
    path.write_bytes(random.Random(SEED).randbytes(2 << 20))
    with Client(home=node.home) as client:
        return parse_cid(client.blobs.add(path).cid)


# --- bytes on streams ------------------------------------------------------------------------------------------------


async def test_every_protocol_that_the_node_serves_is_attacked_here(node: NodeProcess) -> None:
    async with stranger(node) as mallory:

        async def told() -> frozenset[str]:
            return told_protocols(mallory, node)

        assert await soon(told) == {spoken.protocol for spoken in PROTOCOLS} | set(LIBP2P_PROTOCOLS)


@pytest.mark.parametrize("spoken", PROTOCOLS, ids=lambda spoken: spoken.protocol)
async def test_nonsense_names_who_sent_it_and_changes_nothing(spoken: Spoken, node: NodeProcess, blob: bytes) -> None:
    """Random bytes, lengths over every limit, and well-formed frames that are no message of the protocol."""
    dice = random.Random(f"{SEED} {spoken.protocol}")
    attacks = [framed(dice.randbytes(size)) for size in (1, 7, 5000)]
    attacks += [b"\xff" + dice.randbytes(5000), b"\xff\xff\xff\xff", bytes(4)]
    attacks += wrong_frames(spoken)
    whole = spoken.frames().encode(spoken.opening)
    torn = [whole[:size] for size in (1, 4, len(whole) - 1)]
    if spoken.names_truncation:
        attacks += torn
    else:
        async with stranger(node) as mallory:
            for data in torn:
                await throw(mallory, node, spoken.protocol, data)
    await await_named(node, await throw_each(node, spoken.protocol, attacks))
    await assert_serves(node, blob)


async def test_nonsense_on_the_protocols_of_libp2p_is_survived(node: NodeProcess, blob: bytes) -> None:
    """Gossip, DHT, identify and ping: nobody is named, nothing ends, announcements still spread."""
    dice = random.Random(SEED)
    noise = [dice.randbytes(size) for size in (1, 100, 5000)]
    attacks = [*noise, *map(encode_varint_prefixed, noise), b"\xff" * 40, b"\xff" * 9 + b"\x01"]
    async with AsyncExitStack() as stack:
        strangers = [await stack.enter_async_context(stranger(node)) for _ in LIBP2P_PROTOCOLS]
        async with trio.open_nursery() as nursery:
            for mallory, protocol in zip(strangers, LIBP2P_PROTOCOLS, strict=True):
                for data in attacks:
                    nursery.start_soon(throw, mallory, node, protocol, data, 1.0)
    eve = Identity.generate()
    true = seal(eve, announcement("after-the-noise"))
    async with stranger(node) as alice:
        await alice.pubsub.subscribe(TOPIC, lambda *_: True)

        async def spread() -> bool:
            await alice.pubsub.publish(TOPIC, true)
            return true in await announced(node)

        await soon(spread)
    await assert_serves(node, blob)


# --- gossip ----------------------------------------------------------------------------------------------------------


def announcement(name: str, *, issued_s: int | None = None, life_s: int = 600) -> ModelAnnouncement:
    issued_s = int(time.time()) if issued_s is None else issued_s
    return ModelAnnouncement(name, "1.0.0", digest_of(b"m"), digest_of(b"w"), 1, "eve", 1, issued_s, issued_s + life_s)


def false_announcements() -> dict[str, bytes]:
    """What no honest peer sends, by what is wrong with it."""
    eve, victim = Identity.generate(), Identity.generate()
    record = announcement("false")
    return {
        "garbage": random.Random(SEED).randbytes(300),
        "forged": forged(eve, record),
        "in another's name": forged(eve, record, name=victim),
        "signed as another kind": relabelled(eve, record, HeadAnnouncement.KIND),
        "living for ever": seal(eve, announcement("false", life_s=10**9)),
        "cut short": seal(eve, record)[:-1],
    }


async def test_a_false_announcement_names_who_brought_it_and_is_not_kept(node: NodeProcess) -> None:
    lies = false_announcements()

    async def spread(data: bytes) -> None:
        async with stranger(node) as mallory:
            await gossip_until_named(mallory, node, data)

    async with trio.open_nursery() as nursery:
        for data in lies.values():
            nursery.start_soon(spread, data)
    assert not set(lies.values()) & await announced(node)


async def test_an_expired_announcement_is_not_kept_and_a_later_true_one_is(node: NodeProcess, blob: bytes) -> None:
    eve, now = Identity.generate(), int(time.time())
    expired = seal(eve, announcement("old", issued_s=now - 700))
    ahead = seal(eve, announcement("ahead", issued_s=now + 80_000))
    true = seal(eve, announcement("true"))
    async with stranger(node) as mallory:
        await mallory.pubsub.subscribe(TOPIC, lambda *_: True)

        async def spread() -> bool:
            for data in (expired, ahead, true):
                await mallory.pubsub.publish(TOPIC, data)
            return true in await announced(node)

        await soon(spread)
        assert not {expired, ahead} & await announced(node)
        assert await violations_of(node, mallory.peer_id) == 0
    await assert_serves(node, blob)


async def test_a_neighbour_whose_catalogue_holds_a_forgery_is_named(node: NodeProcess) -> None:
    lie = false_announcements()["in another's name"]
    identity = Identity.generate()

    async def answer(_peer: PeerId, stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(catalogue.frames().encode(catalogue.Page((lie,), last=True)))

    async with stranger(node, identity, protocols={catalogue.PROTOCOL_ID: answer}):
        await await_named(node, {identity.peer_id: 1})
    assert lie not in await announced(node)


# --- content ---------------------------------------------------------------------------------------------------------


def content_of(folder: Path, data: bytes) -> tuple[Digest, dict[bytes, bytes]]:
    """Root and blocks of a blob."""
    store, path = MemoryStore(1 << 26), folder / "content"
    path.write_bytes(data)
    root = store.add(path, "blob")
    return root, blocks_of(store, root)


def corrupted(root: Digest, blocks: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Manifest and leaves as they are, every chunk with one bit changed."""
    kept = {root, *parse_manifest(blocks[root]).leaves}
    return {digest: data if digest in kept else bytes([data[0] ^ 1]) + data[1:] for digest, data in blocks.items()}


async def fetched(node: NodeProcess, cid: str, target: Path) -> int:
    def get() -> int:
        with Client(home=node.home) as client:
            return client.blobs.get(cid, target)

    return await trio.to_thread.run_sync(get)


async def provide(host: Host, provider: Provider, *roots: bytes) -> None:
    """Serve, and tell the DHT that we do."""
    host.serve(content.PROTOCOL_ID, provider)
    await in_dht(host)
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            for root in roots:
                nursery.start_soon(host.dht.provide, root)


async def test_a_provider_of_corrupt_chunks_is_named_and_an_honest_one_completes(
    node: NodeProcess, tmp_path: Path
) -> None:
    data = random.Random(f"{SEED} chunks").randbytes(5 << 20)
    root, blocks = content_of(tmp_path, data)
    lies = corrupted(root, blocks)
    cid, target = cid_of(root, Codec.MANIFEST), tmp_path / "target"

    async with stranger(node, listens=True) as mallory:
        await provide(mallory, Provider(lies), root)
        with pytest.raises(CellulerError):
            await fetched(node, cid, target)
        await await_named(node, {mallory.peer_id: 1})
        assert await bytes_held(node, root) == 0
    async with stranger(node, listens=True) as mallory, stranger(node, listens=True) as alice:
        named = trio.Event()

        async def once_the_liar_is_named(digest: bytes) -> None:
            if lies[digest] != blocks[digest] and not named.is_set():
                await await_named(node, {mallory.peer_id: 1})
                named.set()

        await provide(mallory, Provider(lies), root)
        await provide(alice, Provider(blocks, before=once_the_liar_is_named), root)
        assert await fetched(node, cid, target) == len(data)
        assert target.read_bytes() == data
        assert named.is_set()
        assert await violations_of(node, alice.peer_id) == 0


async def bytes_held(node: NodeProcess, root: bytes) -> int:
    def ask() -> int:
        with Client(home=node.home) as client:
            return client.blobs.stat(cid_of(root, Codec.MANIFEST)).have_bytes

    return await trio.to_thread.run_sync(ask)


def unchecked(record: Manifest | Leaf) -> bytes:
    """As `pack`, which refuses to write what nobody would read."""
    return bytes(msgpack.packb(astuple(record)))


def lying_manifests() -> dict[str, Manifest]:
    leaf = (digest_of(b"leaf"),)
    header = Header(digest_of(b"header"), 100)
    plain = Manifest(1, "blob", 4096, 4096, None, (), leaf, ())
    first = Tensor("a", "F32", (1024,), 100, 4096, 0, 1)
    second = Tensor("b", "F32", (1024,), 4196, 4096, 1, 1)
    model = Manifest(1, "model", 100 + 8192, 4096, header, (first, second), leaf, ())
    return {
        "more bytes than its leaves can hold": replace(plain, total_len=1 << 44),
        "leaves for bytes that are not there": replace(plain, total_len=0),
        "tensors without a header": replace(model, header=None),
        "overlapping tensors": replace(model, tensors=(first, replace(second, offset=2148))),
        "a tensor beyond the end": replace(model, total_len=8192),
        "a tensor of another size than its shape": replace(model, tensors=(replace(first, shape=(9,)), second)),
        "two tensors of one name": replace(model, tensors=(first, replace(second, name="a"))),
        "chunks claimed twice": replace(model, tensors=(first, replace(second, first_chunk=0))),
        "2^63 bytes": replace(plain, total_len=1 << 63),
        "a tensor at 2^63": replace(model, tensors=(first, replace(second, offset=1 << 63))),
        "a tensor of 2^64 - 1 bytes": replace(model, tensors=(first, replace(second, length=(1 << 64) - 1))),
        "a shape beyond all numbers": replace(model, tensors=(first, replace(second, shape=(1 << 44,) * 16))),
        "2^63 chunks": replace(model, tensors=(first, replace(second, n_chunks=1 << 63))),
        "chunks larger than any": replace(plain, total_len=1 << 30, chunk_size=1 << 30),
        "chunks of a byte": replace(plain, chunk_size=1),
        "more leaves than any": replace(plain, total_len=1 << 44, leaves=leaf * 4097),
        "more tensors than any": replace(model, tensors=(first,) * 8193),
    }


def lying_leaves(blocks: dict[bytes, bytes]) -> dict[str, Digest]:
    """Roots of contents whose manifests are sound, and what lies under them is not."""
    manifest = Manifest(1, "blob", 3 * 4096, 4096, None, (), (), ())
    chunks = tuple(block(blocks, bytes([value]) * 4096) for value in range(3))
    short = block(blocks, b"short")
    leaves = {
        "a leaf of too few": pack(Leaf(chunks[:2])),
        "a leaf of too many": pack(Leaf((*chunks, *chunks))),
        "a leaf of more than any": unchecked(Leaf(chunks * 2000)),
        "a leaf that is a manifest": pack(replace(manifest, leaves=chunks[:1])),
        "a leaf of leaves": pack(Leaf(tuple(block(blocks, pack(Leaf((*chunks, one)))) for one in chunks))),
        "a chunk of another length": pack(Leaf((*chunks[:2], short))),
        "garbage": b"\x92" * 100,
    }
    return {
        what: block(blocks, pack(replace(manifest, leaves=(block(blocks, leaf),)))) for what, leaf in leaves.items()
    }


async def test_a_manifest_that_lies_is_refused_and_nothing_of_it_is_stored(node: NodeProcess, tmp_path: Path) -> None:
    blocks: dict[bytes, bytes] = {}
    lies = {what: block(blocks, unchecked(manifest)) for what, manifest in lying_manifests().items()}
    lies["garbage"] = block(blocks, random.Random(SEED).randbytes(500))
    async with stranger(node, listens=True) as mallory:
        await provide(mallory, Provider(blocks), *lies.values())
        for what, root in lies.items():
            with pytest.raises(PeerViolation):
                await fetched(node, cid_of(root, Codec.MANIFEST), tmp_path / "target")
            with pytest.raises(NotFound):
                await bytes_held(node, root)
            assert not (tmp_path / "target").exists(), what
    assert not await holds_any(node, blocks)


async def test_what_lies_under_a_sound_manifest_is_refused_and_never_a_file(node: NodeProcess, tmp_path: Path) -> None:
    blocks: dict[bytes, bytes] = {}
    lies = lying_leaves(blocks)
    async with stranger(node, listens=True) as mallory:
        await provide(mallory, Provider(blocks), *lies.values())
        for what, root in lies.items():
            with pytest.raises(PeerViolation):
                await fetched(node, cid_of(root, Codec.MANIFEST), tmp_path / "target")
            assert not (tmp_path / "target").exists(), what
    assert (await with_client(node, lambda client: client.check_store())).ok


async def holds_any(node: NodeProcess, digests: Any) -> bool:
    """Whether the node gives a stranger any of these blocks."""
    async with stranger(node) as alice:
        for digest in digests:
            try:
                await content.fetch_block(
                    digest,
                    MemoryStore(1 << 20),
                    [PeerId(node.peer_id)],
                    lambda peer: alice.open_stream(peer, content.PROTOCOL_ID),
                )
            except NotFound:
                continue
            return True
    return False


# --- models and heads ------------------------------------------------------------------------------------------------


class Author:
    """An author and the blocks of its models."""

    def __init__(self, folder: Path) -> None:
        self.identity, self.blocks, self._folder = Identity.generate(), {}, folder
        self.blocks: dict[bytes, bytes] = {}

    def weights(self, spec: dict[str, Any]) -> Digest:
        store, path = MemoryStore(1 << 20), self._folder / "weights.safetensors"
        initial_weights(parse_spec(spec), bytes(32), path)
        root = store.add(path, "model")
        self.blocks |= blocks_of(store, root)
        return root

    def manifest(self, spec_of: dict[str, Any], weights: bytes, *, version: str = "1.0.0", **lies: Any) -> Digest:
        record = describe_model("m", version, format_spec(parse_spec(spec_of)), weights, created_s=1)
        return block(self.blocks, seal(self.identity, replace(record, **lies)))

    def index(self, number: int, **versions: bytes) -> Digest:
        """versions: manifests by version, as in `v1` for 1.0.0, oldest first."""
        entries = tuple(VersionEntry(f"{version[1:]}.0.0", manifest) for version, manifest in versions.items())
        return block(self.blocks, seal(self.identity, VersionIndex("m", "model", number, entries)))

    def head(self, number: int, index: bytes, *, signer: Identity | None = None) -> bytes:
        return seal(signer or self.identity, Head("m", number, index, int(time.time())))


def with_client(node: NodeProcess, call: Any) -> Any:
    def run() -> Any:
        with Client(home=node.home) as client:
            return call(client)

    return trio.to_thread.run_sync(run)


async def test_a_model_that_does_not_fit_its_own_spec_is_refused(node: NodeProcess, tmp_path: Path) -> None:
    author = Author(tmp_path)
    weights, other = author.weights(TINY), author.weights(regression(dense(2)))
    record_lies: tuple[dict[str, Any], ...] = (
        {"weights_bytes": 1},
        {"task": "regression"},
        {"labels": ("one",)},
        {"spec": b"{}"},
        {"spec": b'{"spec":1,"layers":' + b"[" * 5000},
    )
    lies = [author.manifest(TINY, weights, **each) for each in record_lies]
    lies.append(author.manifest(TINY, other))
    lies.append(block(author.blocks, forged(Identity.generate(), Head("m", 1, weights, 1))))
    async with stranger(node, author.identity, listens=True) as mallory:
        await provide(mallory, Provider(author.blocks), *lies, other)
        for cid in map(cid_of, lies):
            with pytest.raises(PeerViolation):
                await with_client(node, lambda client, cid=cid: client.models.pull(cid))
    held = {model.cid for model in await with_client(node, lambda client: client.models.ls()) if model.local}
    assert not held & {cid_of(manifest, Codec.MANIFEST) for manifest in lies}


async def test_a_head_never_goes_back_and_only_its_author_moves_it(node: NodeProcess, tmp_path: Path) -> None:
    author = Author(tmp_path)
    weights = author.weights(TINY)
    old, new, false = (author.manifest(TINY, weights, version=version) for version in ("1.0.0", "2.0.0", "9.0.0"))
    first, second = author.index(1, v1=old), author.index(2, v1=old, v2=new)
    key, name = head_key(author.identity.peer_id, "m"), f"{author.identity.peer_id}/m"

    async def shown() -> str:
        return str((await with_client(node, lambda client: client.models.show(name))).version)

    async def put(host: Host, value: bytes) -> None:
        await in_dht(host)
        with trio.fail_after(WAIT_S):
            await host.dht.put(key, value)

    async with stranger(node, author.identity, listens=True) as mallory:
        await provide(mallory, Provider(author.blocks), old, new)
        await put(mallory, author.head(1, first))
        assert await shown() == "1.0.0"
        await put(mallory, author.head(2, second))
        assert await shown() == "2.0.0"
        await put(mallory, author.head(1, first))
        assert await shown() == "2.0.0"
        async with stranger(node, listens=True) as eve:
            third = author.index(3, v1=old, v2=new, v9=false)
            await put(eve, author.head(3, third, signer=Identity.generate()))
            await put(eve, forged(Identity.generate(), Head("m", 3, third, 1), name=author.identity))
            await put(eve, b"\xff" * 100)
            assert await shown() == "2.0.0"


@pytest.mark.parametrize("better", ["comes first", "comes second"])
async def test_two_heads_of_one_number_are_shown_as_an_equivocation_by_whoever_saw_both(
    better: str, node: NodeProcess, tmp_path: Path
) -> None:
    author = Author(tmp_path)
    weights, key = author.weights(TINY), head_key(author.identity.peer_id, "m")
    manifests = [author.manifest(TINY, weights, version=version) for version in ("1.0.0", "2.0.0")]
    indexes = sorted([author.index(1, v1=manifests[0]), author.index(1, v2=manifests[1])])  # the lower one is kept
    if better == "comes second":
        indexes.reverse()
    name = f"{author.identity.peer_id}/m"
    async with stranger(node, author.identity, listens=True) as mallory, stranger(node, listens=True) as mallet:
        await provide(mallory, Provider(author.blocks), *manifests, *indexes)
        for host, index in zip((mallory, mallet), indexes, strict=True):
            await in_dht(host)
            with trio.fail_after(WAIT_S):
                await host.dht.put(key, author.head(1, index))
            told = await with_client(node, lambda client: client.models.versions(name))
            if host is mallory:
                before = told
                assert not before.equivocation

        async def shown() -> str:
            return str((await with_client(node, lambda client: client.models.versions(name))).equivocation)

        assert "signed two lists of versions as number 1" in await soon(shown)
        told = await with_client(node, lambda client: client.models.versions(name))
        assert told.versions == before.versions  # what was published stays
        model = await with_client(node, lambda client: client.models.show(name))
        assert model.cid == before.versions[0].cid
        assert model.equivocation == told.equivocation


# --- jobs ------------------------------------------------------------------------------------------------------------


def job_of(author: Author, folder: Path, *, members: int = 3) -> tuple[JobOrder, list[Digest]]:
    """An order with nobody for coordinator yet, and the roots of what it needs, which the author has."""
    weights = author.weights(TINY)
    model = author.manifest(TINY, weights)
    data, blocks = content_of(folder, b"no dataset, and nobody gets to look")
    author.blocks |= blocks
    document = {
        "apiVersion": "celluler/v1",
        "kind": "TrainJob",
        "name": "job",
        "model": cid_of(model),
        "data": {"cid": cid_of(data)},
        "train": {"rounds": 1, "inner_steps": 1, "batch": 1, "learning_rate": 0.1, "optimizer": "sgd"},
        "resources": {"peers": {"min": members, "max": members}},
    }
    now = int(time.time())
    spec = canonical_job(check_job(document))
    return JobOrder("c", author.identity.peer_id, spec, model, now, now + 600), [weights, data]


async def on_jobs(host: Host, node: NodeProcess, call: Any, *arguments: Any) -> Any:
    """One request of the jobs protocol."""
    with trio.fail_after(WAIT_S):
        return await call(await host.open_stream(PeerId(node.peer_id), jobs.PROTOCOL_ID), *arguments)


async def test_an_order_that_is_not_for_this_node_now_is_refused_and_a_forged_one_named(
    trainer: NodeProcess, tmp_path: Path
) -> None:
    author, now = Author(tmp_path), int(time.time())
    order = replace(job_of(author, tmp_path)[0], coordinator=trainer.peer_id)
    refused = {
        "for another coordinator": replace(order, coordinator=author.identity.peer_id),
        "expired": replace(order, created_s=now - 100, expires_s=now - 10),
        "dated ahead": replace(order, created_s=now + 9000, expires_s=now + 9600),
        "living for ever": replace(order, expires_s=now + 10**9),
    }
    violations = [
        forged(author.identity, order),
        forged(Identity.generate(), order, name=author.identity),
        seal(author.identity, replace(order, spec=b" " + order.spec)),
        seal(author.identity, replace(order, spec=b"{}")),
        seal(author.identity, replace(order, coordinator="1" * 50)),
        seal(author.identity, replace(order, model=block(author.blocks, b"no manifest"))),
        random.Random(SEED).randbytes(200),
    ]
    async with stranger(trainer, protocols={content.PROTOCOL_ID: Provider(author.blocks)}) as mallory:
        for each in refused.values():
            with pytest.raises(Denied):
                await on_jobs(mallory, trainer, jobs.submit, seal(author.identity, each))
        assert await violations_of(trainer, mallory.peer_id) == 0
    for raw in violations:
        async with stranger(trainer, protocols={content.PROTOCOL_ID: Provider(author.blocks)}) as mallory:
            with pytest.raises(CUT_OFF):
                await on_jobs(mallory, trainer, jobs.submit, raw)
            await await_named(trainer, {mallory.peer_id: 1})
    assert await with_client(trainer, lambda client: client.jobs.ls()) == ()


def entry_for(run: bytes) -> RosterEntry:
    return RosterEntry(run, Identity.generate().peer_id, ("/ip4/127.0.0.1/tcp/9",), "mallory")


async def test_a_coordinator_names_who_offers_for_another_and_takes_no_roster_but_its_own(
    trainer: NodeProcess, tmp_path: Path
) -> None:
    author = Author(tmp_path)
    order, _ = job_of(author, tmp_path)
    raw = seal(author.identity, replace(order, coordinator=trainer.peer_id))
    job, victim = digest_of(raw), Identity.generate()
    async with stranger(trainer, author.identity, protocols={content.PROTOCOL_ID: Provider(author.blocks)}) as host:
        assert await on_jobs(host, trainer, jobs.submit, raw) == job
        false_offers = [
            lambda _: seal(victim, entry_for(job)),
            lambda me: forged(me, entry_for(job), name=victim),
            lambda me: forged(me, entry_for(job)),
            lambda me: seal(me, entry_for(bytes(32))),
            lambda me: seal(me, CancelOrder(job, 1)),
        ]
        for offer in false_offers:
            me = Identity.generate()
            async with stranger(trainer, me) as mallory:
                with pytest.raises(CUT_OFF):
                    await on_jobs(mallory, trainer, jobs.offer, job, offer(me))
                await await_named(trainer, {mallory.peer_id: 1})
        me = Identity.generate()
        async with stranger(trainer, me) as mallory:
            with pytest.raises(NotFound):
                await on_jobs(mallory, trainer, jobs.offer, bytes(32), seal(me, entry_for(bytes(32))))
            with pytest.raises(Denied):
                await on_jobs(mallory, trainer, jobs.cancel, seal(me, CancelOrder(job, int(time.time()))))
            roster = seal(me, Roster(job, job, (seal(me, entry_for(job)),), rules_for(1, rounds=1)))
            with pytest.raises(CUT_OFF):
                await on_jobs(mallory, trainer, jobs.send_roster, job, roster)
            await await_named(trainer, {mallory.peer_id: 1})
        _, facts = await on_jobs(host, trainer, jobs.watch, job, 0)
        assert facts.members == ()
        assert (
            await on_jobs(host, trainer, jobs.cancel, seal(author.identity, CancelOrder(job, 1))) is JobState.CANCELLED
        )
        assert await violations_of(trainer, author.identity.peer_id) == 0


class Coordinator:
    """Answers offers, and keeps the first entry."""

    def __init__(self) -> None:
        self.entry, self.offered = b"", trio.Event()

    async def __call__(self, _peer: PeerId, stream: trio.abc.Stream) -> None:
        words = jobs.frames()
        while not (messages := words.feed(bytes(await stream.receive_some()))):
            pass
        self.entry = messages[0].entry
        await stream.send_all(words.encode(Offered()))
        self.offered.set()


async def test_a_member_takes_no_roster_with_a_forged_entry_and_names_its_coordinator(
    trainer: NodeProcess, tmp_path: Path
) -> None:
    author, desk = Author(tmp_path), Coordinator()
    order, _ = job_of(author, tmp_path)
    raw = seal(author.identity, order)
    job, victim, now = block(author.blocks, raw), Identity.generate(), int(time.time())
    serving = {content.PROTOCOL_ID: Provider(author.blocks), jobs.PROTOCOL_ID: desk}

    def roster(*entries: bytes, of: bytes = job, members: int = 2) -> bytes:
        return seal(author.identity, Roster(of, of, entries, rules_for(members, rounds=1)))

    async with stranger(trainer, author.identity, protocols=serving) as mallory:
        await mallory.pubsub.subscribe(TOPIC, lambda *_: True)

        async def offered() -> bool:
            announcement = JobAnnouncement(job, "TrainJob", (), 3, 3, 1, now, now + 600)
            await mallory.pubsub.publish(TOPIC, seal(author.identity, announcement))
            return desk.offered.is_set()

        await soon(offered)
        own = desk.entry
        ordered = [forged(victim, entry_for(job)), own]
        for false in (
            roster(*ordered),
            roster(*reversed(ordered)),
            roster(own, own),
            roster(own, members=4),
        ):
            async with hung_up_on(mallory, trainer):
                with pytest.raises(CUT_OFF):
                    await on_jobs(mallory, trainer, jobs.send_roster, job, false)
        await await_named(trainer, {mallory.peer_id: 4})
    async with stranger(trainer) as bystander:
        _, facts = await on_jobs(bystander, trainer, jobs.watch, job, 0)
        assert facts.members == ()
        order_to_end = seal(author.identity, CancelOrder(job, 1))
        assert await on_jobs(bystander, trainer, jobs.cancel, order_to_end) is JobState.CANCELLED


# --- too much, too slowly --------------------------------------------------------------------------------------------


def memory_of(node: NodeProcess) -> int:
    return int(psutil.Process(node.process.pid).memory_info().rss)


async def open_many(host: Host, node: NodeProcess, protocol: str, count: int, first: bytes) -> None:
    """So many streams at once that say `first`, and neither say more nor read. They last as long as the host."""

    async def one() -> None:
        with trio.move_on_after(5), suppress(CellulerError, trio.BrokenResourceError):
            stream = await host.open_stream(PeerId(node.peer_id), protocol)
            await stream.send_all(first)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)


def almost(size: int) -> bytes:
    """A frame of that size, up to its last byte."""
    return size.to_bytes(4, "big") + bytes(size - 1)


async def test_streams_that_say_nothing_do_not_keep_others_from_being_answered(node: NodeProcess, blob: bytes) -> None:
    """As many of every protocol as one peer can get, for each protocol a peer."""
    async with AsyncExitStack() as stack:
        strangers = [await stack.enter_async_context(stranger(node)) for _ in PROTOCOLS]
        async with trio.open_nursery() as nursery:
            for mallory, spoken in zip(strangers, PROTOCOLS, strict=True):
                nursery.start_soon(open_many, mallory, node, spoken.protocol, HostLimits().streams_a_peer + 8, b"\0")
        await assert_serves(node, blob)


async def test_a_requester_that_never_reads_and_frames_that_never_end_take_bounded_memory(
    node: NodeProcess, blob: bytes, tmp_path: Path
) -> None:
    store = MemoryStore(1 << 26)
    async with stranger(node) as alice:
        with trio.fail_after(WAIT_S):
            await content.fetch(
                blob, store, [PeerId(node.peer_id)], lambda peer: alice.open_stream(peer, content.PROTOCOL_ID)
            )
    chunks = tuple(digest for digest, data in blocks_of(store, blob).items() if len(data) > 1 << 16)
    wants = content.frames().encode(content.Want((chunks * 64)[:64])) * 4  # 256 MiB
    before = memory_of(node)
    async with stranger(node) as mallory, stranger(node) as mallet:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_many, mallory, node, content.PROTOCOL_ID, 24, wants)
            nursery.start_soon(open_many, mallet, node, inference.PROTOCOL_ID, 24, almost(inference.MAX_DATA_BYTES))
            await assert_serves(node, blob)
        assert memory_of(node) - before < MAX_GROWTH_BYTES
    await assert_serves(node, blob)
