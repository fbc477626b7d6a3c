"""`/celluler/bulk/1` over streams in memory, and its golden bytes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from celluler.content.bulk_frames import ABSENT, OFF, REFUSED_BUSY
from celluler.content.digest import Digest, digest_of
from celluler.errors import Busy, CellulerError, NotFound, ProtocolViolation, Unavailable
from celluler.identity import PeerId
from celluler_protocols.bulk import (
    PROTOCOL_ID,
    Ask,
    Grant,
    Refused,
    ask_grant,
    frames,
    serve_grants,
)
from tests.support.vectors import check_vectors

ALICE, BOB = PeerId("alice"), PeerId("bob")
ROOT = digest_of(b"root")
GRANT = Grant(4041, bytes(range(32)), bytes(range(32, 64)), 15, 2, 64, b"\xff\x0f")


def test_the_golden_bytes_of_the_bulk_protocol() -> None:
    check_vectors(
        "bulk", PROTOCOL_ID, frames(), [Ask(ROOT), GRANT, Refused(ABSENT), Refused(REFUSED_BUSY), Refused(OFF)]
    )


async def exchange(answer: Grant | Refused) -> Grant:
    ours, theirs = trio.testing.memory_stream_pair()
    asked: list[Digest] = []

    async def admit(root: Digest) -> Grant | Refused:
        asked.append(root)
        return answer

    outcome: Grant | CellulerError
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_grants, theirs, ALICE, admit)
        try:
            outcome = await ask_grant(ours, ROOT, peer=BOB)
        except CellulerError as error:
            outcome = error
    assert asked == [ROOT]
    if isinstance(outcome, CellulerError):
        raise outcome
    return outcome


async def test_who_is_admitted_gets_a_grant() -> None:
    assert await exchange(GRANT) == GRANT


@pytest.mark.parametrize(("reason", "error"), [(ABSENT, NotFound), (REFUSED_BUSY, Busy), (OFF, Unavailable)])
async def test_a_refusal_says_why(reason: int, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        await exchange(Refused(reason))
    assert caught.value.peer == BOB


@pytest.mark.parametrize(
    "answer",
    [b"\x00\x00\x00\x01\xc0", b"\xff\xff\xff\xff", frames().encode(Ask(ROOT)), 2 * frames().encode(GRANT)],
    ids=["no message", "too long", "a question", "two grants"],
)
async def test_an_answer_that_is_none_names_the_peer(answer: bytes) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(answer)
    with pytest.raises(ProtocolViolation) as caught:
        await ask_grant(ours, ROOT, peer=BOB)
    assert caught.value.peer == BOB


async def test_a_peer_that_closes_without_an_answer_is_unavailable() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(Unavailable):
        await ask_grant(ours, ROOT, peer=BOB)
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(frames().encode(GRANT)[:10])
    await theirs.send_eof()
    with pytest.raises(Unavailable):
        await ask_grant(ours, ROOT, peer=BOB)


@pytest.mark.parametrize(
    "question",
    [
        frames().encode(GRANT),
        2 * frames().encode(Ask(ROOT)),
        frames().encode(Ask(ROOT)) + b"x",
        b"\x00\x00\xff\xff",
        frames().encode(Ask(ROOT))[:-1],
    ],
    ids=["a grant", "two questions", "more than a question", "too long", "half a question"],
)
async def test_a_question_that_is_none_is_a_violation_of_the_one_who_asked(question: bytes) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(question)
    await ours.send_eof()

    async def admit(root: Digest) -> Grant | Refused:
        raise AssertionError("nothing was asked")

    with pytest.raises(ProtocolViolation) as caught:
        await serve_grants(theirs, ALICE, admit)
    assert caught.value.peer == ALICE


async def test_a_requester_that_asks_nothing_is_no_error() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.aclose()

    async def admit(root: Digest) -> Grant | Refused:
        raise AssertionError("nothing was asked")

    await serve_grants(theirs, ALICE, admit)
