"""The direct streams of a run, over in-memory streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from celluler.errors import BlockAbsent, LocalError, PeerViolation, ProtocolViolation, Unavailable
from celluler.identity import PeerId
from celluler_protocols import rounds as rounds_module
from celluler_protocols.rounds import MAX_ASKS_A_PART, QUEUE_MESSAGES, Rounds, RoundsHub, open_rounds
from celluler_protocols.rounds_messages import PROTOCOL_ID, Have, Piece, Say, Talk, Want, frames
from simulations.rounds import identity

RUN, OTHER_RUN = b"r" * 32, b"o" * 32
ALICE, BOB, CAROL, MALLORY = (identity(number).peer_id for number in range(4))


class Wire:
    """Hosts joined by in-memory streams."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.hosts: dict[PeerId, FakeHost] = {}
        self.away: set[frozenset[PeerId]] = set()
        self.streams: list[tuple[frozenset[PeerId], trio.StapledStream[Any, Any]]] = []

    def host(self, peer: PeerId) -> FakeHost:
        return self.hosts.setdefault(peer, FakeHost(self, peer))

    def part(self, one: PeerId, other: PeerId) -> None:
        pair = frozenset((one, other))
        self.away.add(pair)
        for between, stream in self.streams:
            if between == pair:
                stream.send_stream.close()
                stream.receive_stream.close()


class FakeHost:
    def __init__(self, wire: Wire, peer: PeerId) -> None:
        self.wire, self.peer_id = wire, peer
        self.violations: list[tuple[PeerId, PeerViolation]] = []
        self.handler: Callable[[PeerId, Any], Awaitable[None]] | None = None

    def serve(self, protocol: str, handler: Callable[[PeerId, Any], Awaitable[None]], /) -> None:
        assert protocol == PROTOCOL_ID
        self.handler = handler

    async def open_stream(self, peer: PeerId, protocol: str, /) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        pair = frozenset((self.peer_id, peer))
        host = self.wire.hosts.get(peer)
        if host is None or host.handler is None or pair in self.wire.away:
            raise Unavailable("not here", peer=peer)
        near, far = trio.testing.memory_stream_pair()
        self.wire.streams += [(pair, near), (pair, far)]
        self.wire.nursery.start_soon(host.answer, self.peer_id, far)
        return near

    async def answer(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        assert self.handler is not None
        try:
            await self.handler(peer, stream)
        except PeerViolation as error:
            self.violations.append((peer, error))
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.aclose()


@pytest.fixture
def wire(nursery: trio.Nursery) -> Wire:
    return Wire(nursery)


@asynccontextmanager
async def members_of(
    wire: Wire, *peers: PeerId, parts: Callable[[bytes], bytes | None] = lambda digest: None
) -> AsyncIterator[list[Rounds]]:
    """One `Rounds` a peer, all of them able to speak to all others."""
    async with AsyncExitStack() as stack:
        opened = []
        for peer in peers:
            hub = RoundsHub(wire.host(peer))
            opened.append(await stack.enter_async_context(open_rounds(hub, RUN, peers, parts=parts)))
        with trio.fail_after(60):
            while any(len(rounds.connected) < len(peers) - 1 for rounds in opened):  # noqa: ASYNC110
                await trio.sleep(0.1)
        yield opened


async def test_what_one_member_says_reaches_all_others_and_nobody_else(wire: Wire, autojump_clock: Any) -> None:
    async with members_of(wire, ALICE, BOB, CAROL) as (alice, bob, carol):
        alice.broadcast(b"to all")
        alice.broadcast(b"not to bob", skip=(BOB,))
        alice.send(BOB, b"to bob alone")
        with trio.fail_after(5):
            assert [await bob.receive() for _ in range(2)] == [(ALICE, b"to all"), (ALICE, b"to bob alone")]
            assert [await carol.receive() for _ in range(2)] == [(ALICE, b"to all"), (ALICE, b"not to bob")]


async def test_a_broken_stream_is_opened_again(wire: Wire, autojump_clock: Any) -> None:
    async with members_of(wire, ALICE, BOB) as (alice, bob):
        wire.part(ALICE, BOB)
        await trio.sleep(30)
        assert not alice.connected
        wire.away.clear()
        alice.send(BOB, b"back")
        with trio.fail_after(30):
            assert await bob.receive() == (ALICE, b"back")


async def test_a_stranger_is_not_listened_to_until_it_is_a_member(wire: Wire, autojump_clock: Any) -> None:
    async with members_of(wire, ALICE, BOB) as (alice, _):
        stream = await wire.host(MALLORY).open_stream(ALICE, PROTOCOL_ID)
        await stream.send_all(frames().encode(Talk(RUN)) + frames().encode(Say(b"too early")))
        with trio.fail_after(5):
            assert await stream.receive_some(1) == b""
        assert wire.host(ALICE).violations == []
        alice.add((MALLORY,))
        assert MALLORY in alice.members
        again = await wire.host(MALLORY).open_stream(ALICE, PROTOCOL_ID)
        await again.send_all(frames().encode(Talk(RUN)) + frames().encode(Say(b"here")))
        with trio.fail_after(5):
            assert await alice.receive() == (MALLORY, b"here")


async def test_who_is_added_is_called_and_told_what_is_said(wire: Wire, autojump_clock: Any) -> None:
    async with members_of(wire, ALICE, BOB) as (alice, _), members_of(wire, CAROL) as (carol,):
        carol.add((ALICE,))
        alice.add((CAROL, BOB, ALICE))
        alice.broadcast(b"welcome")
        with trio.fail_after(30):
            assert await carol.receive() == (ALICE, b"welcome")
        assert alice.members == (BOB, CAROL)


async def test_a_run_that_is_not_open_here_is_no_violation(wire: Wire, autojump_clock: Any) -> None:
    async with members_of(wire, ALICE, BOB):
        stream = await wire.host(BOB).open_stream(ALICE, PROTOCOL_ID)
        await stream.send_all(frames().encode(Talk(OTHER_RUN)))
        with trio.fail_after(5):
            assert await stream.receive_some(1) == b""
        assert wire.host(ALICE).violations == []


@pytest.mark.parametrize(
    "noise", [b"\x00\x00\x00\x00", b"\xff" * 64, frames().encode(Say(b"x")), frames().encode(Have(1))]
)
async def test_noise_ends_the_stream_and_names_its_author(wire: Wire, autojump_clock: Any, noise: bytes) -> None:
    async with members_of(wire, ALICE, BOB) as (alice, bob):
        stream = await wire.host(BOB).open_stream(ALICE, PROTOCOL_ID)
        await stream.send_all(noise)
        with trio.fail_after(5):
            assert await stream.receive_some(1) == b""
        assert [peer for peer, _ in wire.host(ALICE).violations] == [BOB]
        alice.send(BOB, b"still here")
        with trio.fail_after(5):
            assert await bob.receive() == (ALICE, b"still here")


async def test_a_stream_that_says_nothing_is_closed(wire: Wire, autojump_clock: Any) -> None:
    async with members_of(wire, ALICE, BOB):
        stream = await wire.host(BOB).open_stream(ALICE, PROTOCOL_ID)
        with trio.fail_after(60):
            assert await stream.receive_some(1) == b""


async def test_a_flood_of_one_member_is_bounded_and_does_not_crowd_out_another(wire: Wire, autojump_clock: Any) -> None:
    async with members_of(wire, ALICE, BOB, CAROL) as (alice, bob, carol):
        for number in range(3 * QUEUE_MESSAGES):
            bob.send(ALICE, number.to_bytes(4, "big"))
            await trio.lowlevel.checkpoint()
        carol.send(ALICE, b"one word")
        await trio.sleep(5)
        with trio.fail_after(5):
            first_words = [await alice.receive() for _ in range(3)]
        assert (CAROL, b"one word") in first_words
        assert alice.lost + bob.lost >= QUEUE_MESSAGES


async def test_a_part_is_fetched_by_digest_and_served_only_so_often(wire: Wire, autojump_clock: Any) -> None:
    part = bytes(range(256)) * 3000
    async with members_of(wire, ALICE, BOB, parts={b"p" * 32: part}.get) as (alice, _):
        with trio.fail_after(60):
            for _ in range(MAX_ASKS_A_PART):
                assert await alice.fetch_part(BOB, b"p" * 32, length=len(part)) == part
            for digest in (b"p" * 32, b"absent" * 5 + b"__"):
                with pytest.raises(BlockAbsent):
                    await alice.fetch_part(BOB, digest, length=len(part))


@pytest.mark.parametrize("words", [(Have(9),), (Have(8), Piece(b"123456789")), (Piece(b"12345678"),), (Say(b"x"),)])
async def test_a_part_of_another_length_is_a_violation(
    wire: Wire, nursery: trio.Nursery, autojump_clock: Any, words: tuple[Any, ...]
) -> None:
    async def lie(peer: PeerId, stream: Any) -> None:
        vocabulary = frames()
        for word in words:
            await stream.send_all(vocabulary.encode(word))
        await stream.receive_some(64)

    wire.host(BOB).serve(PROTOCOL_ID, lie)
    rounds = Rounds(wire.host(ALICE), RUN, (ALICE, BOB), lambda digest: None)
    with trio.fail_after(5), pytest.raises(ProtocolViolation):
        await rounds.fetch_part(BOB, b"p" * 32, length=8)


async def test_a_provider_that_breaks_off_is_unavailable(wire: Wire, autojump_clock: Any) -> None:
    async def hang_up(peer: PeerId, stream: Any) -> None:
        await stream.send_all(frames().encode(Have(8)))

    wire.host(BOB).serve(PROTOCOL_ID, hang_up)
    rounds = Rounds(wire.host(ALICE), RUN, (ALICE, BOB), lambda digest: None)
    with trio.fail_after(5), pytest.raises(Unavailable):
        await rounds.fetch_part(BOB, b"p" * 32, length=8)


async def test_a_member_asks_for_one_part_on_one_stream(wire: Wire, autojump_clock: Any) -> None:
    async with members_of(wire, ALICE, BOB):
        stream = await wire.host(BOB).open_stream(ALICE, PROTOCOL_ID)
        want = frames().encode(Want(RUN, b"p" * 32))
        await stream.send_all(want + want)
        with trio.fail_after(5):
            assert await stream.receive_some(1) == b""
        assert len(wire.host(ALICE).violations) == 1


async def test_a_run_is_opened_once_and_leaves_nothing_behind(wire: Wire, autojump_clock: Any) -> None:
    hub = RoundsHub(wire.host(ALICE))
    for _ in range(2):
        async with open_rounds(hub, RUN, (ALICE, BOB), parts=lambda digest: None):
            with pytest.raises(LocalError):
                async with open_rounds(hub, RUN, (ALICE, BOB), parts=lambda digest: None):
                    pass
        assert hub.runs == {}


async def test_only_members_can_be_spoken_to_and_only_within_the_limit(wire: Wire) -> None:
    rounds = Rounds(wire.host(ALICE), RUN, (ALICE, BOB), lambda digest: None)
    with pytest.raises(LocalError):
        rounds.send(CAROL, b"hello")
    with pytest.raises(LocalError):
        rounds.broadcast(b"x" * (rounds_module.MAX_ENVELOPE_BYTES + 1))
