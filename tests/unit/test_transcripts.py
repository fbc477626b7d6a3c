"""Members announce their transcripts of a job, and strangers find them by the job and the members alone."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from celluler.content.digest import Codec, Digest, cid_of, digest_of
from celluler.content.memory import MemoryStore
from celluler.errors import InvalidSpec, TimedOut
from celluler.identity import Identity, PeerId
from celluler.learning.transcript import head_name
from celluler.models.names import ModelName
from celluler_node.answers.transcripts import TranscriptAnswers
from celluler_node.gateway.app import gateway_app
from celluler_node.transcripts import FIND_S, MAX_ASKED, Transcripts
from celluler_protocols.directory import Directory, HeadBook, HeadValidator, open_directory
from tests.support.operations import MemoryNode

ALICE, BOB, MALLORY = Identity(b"a" * 32), Identity(b"b" * 32), Identity(b"m" * 32)
JOB, ROOT, LATER = digest_of(b"job"), digest_of(b"transcript"), digest_of(b"another")


class Dht:
    """Shared by all: stores what its validator lets pass, as the nodes near a key do."""

    routing_peers = 50
    addresses = ("/ip4/192.0.2.1/tcp/1",)

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.silent: set[str] = set()
        self.fails = False

    @property
    def dht(self) -> Dht:
        return self

    def connected(self) -> frozenset[PeerId]:
        return frozenset()

    async def put(self, key: str, value: bytes) -> None:
        await trio.sleep(0.1)
        if self.fails:
            raise TimedOut("nobody answers")
        HeadValidator(HeadBook()).validate(key, value)
        self.values[key] = value

    async def get(self, key: str) -> bytes | None:
        if any(peer in key for peer in self.silent):
            await trio.sleep_forever()
        await trio.sleep(0.1)
        return self.values.get(key)

    async def provide(self, digest: bytes) -> None:
        await trio.sleep(0.1)

    def withdraw(self, digest: bytes) -> None:
        pass

    async def providers(self, digest: bytes) -> tuple[PeerId, ...]:
        return ()


@asynccontextmanager
async def at(
    dht: Dht, identity: Identity, *, book: HeadBook | None = None, held: tuple[bytes, ...] = (), clock_s: float = 1e9
) -> AsyncIterator[tuple[Transcripts, Directory, list[Digest]]]:
    """A node: its transcripts, its directory, and what it was asked to provide."""
    store, provided = MemoryStore(1 << 20), list[Digest]()
    for block in held:
        store.put_block(block)
    async with open_directory(dht, identity, book, rng=random.Random(1), clock=lambda: clock_s) as directory:
        yield Transcripts(identity, store, directory, provided.append, lambda: clock_s), directory, provided


async def test_what_members_announced_is_found_by_the_job_and_the_members(autojump_clock: MockClock) -> None:
    dht = Dht()
    async with at(dht, ALICE) as (alice, _, provided), at(dht, BOB) as (bob, _, _), at(dht, MALLORY) as (carol, _, _):
        await alice.announce(JOB, ROOT)
        await bob.announce(JOB, LATER)
        await bob.announce(digest_of(b"another job"), ROOT)
        assert provided == [ROOT]
        found = await carol.find(JOB, [BOB.peer_id, MALLORY.peer_id, ALICE.peer_id, BOB.peer_id])
        assert [(one.peer, one.root) for one in found] == [(BOB.peer_id, LATER), (ALICE.peer_id, ROOT)]
        assert [(one.peer, one.root) for one in await alice.find(JOB, [ALICE.peer_id])] == [(ALICE.peer_id, ROOT)]
        assert await carol.find(digest_of(b"no job"), [ALICE.peer_id]) == ()


async def test_the_last_transcript_counts_also_when_the_first_was_forgotten(autojump_clock: MockClock) -> None:
    dht = Dht()
    async with at(dht, ALICE) as (alice, _, _), at(dht, BOB) as (bob, _, _):
        await alice.announce(JOB, ROOT)
        await alice.announce(JOB, LATER)  # within one second
        assert [one.root for one in await bob.find(JOB, [ALICE.peer_id])] == [LATER]
        await alice.announce(JOB, LATER)
    async with at(dht, ALICE, clock_s=1e9 + 60) as (alice, _, _), at(dht, BOB) as (bob, _, _):
        await alice.announce(JOB, ROOT)
        assert [one.root for one in await bob.find(JOB, [ALICE.peer_id])] == [ROOT]


async def test_what_the_directory_does_not_take_is_told_later(autojump_clock: MockClock) -> None:
    dht = Dht()
    dht.fails = True
    async with at(dht, ALICE) as (alice, _, provided), at(dht, BOB) as (bob, _, _):
        await alice.announce(JOB, ROOT)
        assert (provided, dht.values) == ([ROOT], {})
        dht.fails = False
        await trio.sleep(120)
        assert [one.root for one in await bob.find(JOB, [ALICE.peer_id])] == [ROOT]


async def test_after_a_restart_those_that_are_still_here_are_told_of_again(autojump_clock: MockClock) -> None:
    dht, book = Dht(), HeadBook()
    gone = digest_of(b"gone")
    async with at(dht, ALICE, book=book) as (alice, directory, _):
        await alice.announce(JOB, ROOT)
        await alice.announce(digest_of(b"old job"), gone)
        await directory.publish_head("digits", 1, ROOT)
    dht.values.clear()
    again = HeadBook()
    again.load(book.dump())
    async with at(dht, ALICE, book=again, held=(b"transcript",)) as (alice, _, _):
        await alice.resume()
        assert [key.rpartition("/")[2] for key in dht.values] == [head_name(JOB)]


async def test_looking_is_bounded_in_peers_and_in_time(autojump_clock: MockClock) -> None:
    dht = Dht()
    async with at(dht, ALICE) as (alice, _, _), at(dht, BOB) as (bob, _, _):
        await alice.announce(JOB, ROOT)
        silent = [Identity(bytes((number,)) * 32).peer_id for number in range(MAX_ASKED)]
        dht.silent.update(silent)
        began = trio.current_time()
        found = await bob.find(JOB, [*silent[1:], ALICE.peer_id])
        assert [one.peer for one in found] == [ALICE.peer_id]
        assert trio.current_time() - began < FIND_S
        assert await bob.find(JOB, [*silent, ALICE.peer_id]) == ()


def test_the_name_is_that_of_no_model_and_fits_a_head() -> None:
    name = head_name(JOB)
    assert len(name) <= 64
    with pytest.raises(Exception, match="name"):
        ModelName("alice", name)


# --- what a person may ask --------------------------------------------------------------------------------------------


async def test_a_person_asks_by_job_and_peers(autojump_clock: MockClock) -> None:
    async with at(Dht(), ALICE) as (alice, _, _):
        await alice.announce(JOB, ROOT)
        answers = TranscriptAnswers(SimpleNamespace(core=SimpleNamespace(transcripts=alice)))  # type: ignore[arg-type]
        (told,) = await answers.transcripts(cid_of(JOB), [BOB.peer_id, ALICE.peer_id])
        assert (told.job, told.peer, told.cid) == (cid_of(JOB), ALICE.peer_id, cid_of(ROOT, Codec.MANIFEST))
        for job, peers in (("job", []), (cid_of(JOB), ["alice"]), (cid_of(JOB), [ALICE.peer_id] * (MAX_ASKED + 1))):
            with pytest.raises(InvalidSpec):
                await answers.transcripts(job, peers)


@pytest.mark.parametrize(
    "body",
    [{}, {"job": cid_of(JOB)}, {"job": 1, "peers": []}, {"job": cid_of(JOB), "peers": [1]}, {"peers": "x" * 99999}],
)
async def test_the_endpoint_refuses_what_is_no_question(body: dict[str, Any]) -> None:
    node = MemoryNode()
    transport = httpx.ASGITransport(app=gateway_app(node, "t"))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers={"Authorization": "Bearer t"}
    ) as http:
        assert (await http.post("/api/v1/transcripts", json=body)).status_code in (400, 422)
    node.close()
