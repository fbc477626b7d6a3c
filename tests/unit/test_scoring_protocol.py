from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import memory_stream_pair

from celluler.content.digest import Codec, cid_of, digest_of
from celluler.errors import Busy, CellulerError, InvalidSpec, LocalError, NotFound, ProtocolViolation, Unavailable
from celluler.inference.sampling import Sampling
from celluler.inference.scores import MAX_SCORED, SCORE, Claim, Scores, table
from celluler_protocols.inference import Refusal, refuse
from celluler_protocols.scoring import (
    PROTOCOL_ID,
    Score,
    Scored,
    Scorer,
    Wanted,
    frames,
    score,
    score_words,
    serve_scoring,
    turn_away,
    wanted_of,
)
from tests.support.vectors import check_vectors

MODEL = digest_of(b"a manifest")
CLAIM = Claim((1, 2, 3), (4, 5), Sampling(0.5, 0.9, 7, seed=8, choice=1), place=6)
REQUEST = score_words("alice/prose", CLAIM, 0.25, ended=True)


async def scores(wanted: Wanted) -> tuple[bytes, Scores]:
    found = table(len(wanted.claim.tokens) + wanted.ended)
    found["rank"] = range(len(found))
    return MODEL, found


async def with_server(scorer: Scorer, client: Callable[[trio.abc.Stream], Awaitable[Any]]) -> Any:
    ours, theirs = memory_stream_pair()
    told: list[Any] = []

    async def ask() -> None:
        try:
            told.append(await client(ours))
        except CellulerError as error:
            told.append(error)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_scoring, theirs, scorer)
            nursery.start_soon(ask)
    if isinstance(told[0], CellulerError):
        raise told[0]
    return told[0]


async def test_a_claim_is_scored() -> None:
    model, found = await with_server(scores, lambda stream: score(stream, REQUEST))
    assert model == MODEL
    assert found["rank"].tolist() == [0, 1, 2]


def test_a_claim_comes_back_as_it_was_sent() -> None:
    wanted = wanted_of(REQUEST)
    assert (wanted.model, wanted.ended, wanted.slack) == ("alice/prose", True, 0.25)
    assert replace(wanted.claim, ends=()) == CLAIM
    assert wanted_of(score_words("alice/prose", CLAIM, 0.0, ended=False)).claim == CLAIM


@pytest.mark.parametrize("error", [NotFound("alice/prose"), Busy("full"), InvalidSpec("tokens", "no")])
async def test_what_the_scorer_raises_reaches_the_asker(error: Exception) -> None:
    async def refuses(_: Wanted) -> tuple[bytes, Scores]:
        raise error

    with pytest.raises(type(error)):
        await with_server(refuses, lambda stream: score(stream, REQUEST))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(REQUEST, model="../etc"),
        replace(REQUEST, slack=2.0),
        replace(REQUEST, temperature=3.0),
        replace(REQUEST, tokens=b"", ended=False),
    ],
)
async def test_what_cannot_be_scored_is_refused_before_a_scorer_sees_it(wrong: Score) -> None:
    async def unreachable(_: Wanted) -> tuple[bytes, Scores]:
        raise AssertionError

    async def ask(stream: trio.abc.Stream) -> Any:
        words = frames()
        await stream.send_all(words.encode(wrong))
        return words.feed(bytes(await stream.receive_some()))

    [refused] = await with_server(unreachable, ask)
    assert refused.code == Refusal.BAD_REQUEST.value


@pytest.mark.parametrize(
    "answer",
    [
        Scored(MODEL, bytes(SCORE.itemsize)),
        Scored(MODEL, np.full(3, np.nan, dtype="<f4").tobytes().ljust(3 * SCORE.itemsize, b"\xff")),
        replace(REQUEST),
    ],
)
async def test_scores_that_are_none_are_a_violation(answer: Any) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(frames().encode(answer))
    with trio.fail_after(5), pytest.raises(ProtocolViolation):
        await score(ours, REQUEST)


async def test_another_model_than_was_asked_for_by_its_cid_is_a_violation() -> None:
    other = replace(REQUEST, model=cid_of(digest_of(b"another"), Codec.MANIFEST))
    with pytest.raises(ProtocolViolation):
        await with_server(scores, lambda stream: score(stream, other))


async def test_an_early_end_is_unavailable_and_half_a_claim_a_violation() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_eof()
    with pytest.raises(Unavailable):
        await score(ours, REQUEST)
    ours, theirs = memory_stream_pair()
    await ours.send_all(frames().encode(REQUEST)[:-1])
    await ours.send_eof()
    with pytest.raises(ProtocolViolation):
        await serve_scoring(theirs, scores)


async def test_who_finds_no_room_is_told_so() -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(frames().encode(REQUEST))
    await turn_away(theirs)
    assert frames().feed(bytes(await ours.receive_some())) == [refuse(Refusal.BUSY, "too many claims at once")]


def test_more_tokens_than_are_scored_at_once_are_not_sent() -> None:
    with pytest.raises(LocalError):
        score_words("alice/prose", replace(CLAIM, tokens=(1,) * MAX_SCORED), 0.0, ended=True)


def test_the_golden_bytes_of_the_scoring_protocol() -> None:
    row = table(1)
    row["gap"], row["logprob"], row["rank"], row["same"] = 0.5, -1.25, 3, 1
    row["top"][0] = range(8)
    examples = [
        REQUEST,
        score_words("alice/prose:1.0.0", Claim((1,), (2,), Sampling(temperature=0.0)), 5e-4, ended=False),
        Scored(MODEL, row.tobytes()),
        refuse(Refusal.BUSY, "too many claims at once"),
    ]
    check_vectors("scoring", PROTOCOL_ID, frames(), examples)
