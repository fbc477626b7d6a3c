"""/celluler/score/1: ask a peer what a model says of claimed tokens. Spec: docs/reference/protocols/scoring.md

Participants: an *asker*, who has an answer of a third peer, and a *scorer*, who serves the model. One stream carries
one claim and its scores. Not promised: that the scores are right. One scorer's word convicts nobody: whoever has no
worker of his own asks several.
Knows nothing of who gave the answer, which the scorer is not told, nor of what scores mean (`celluler.inference`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import trio

from celluler.errors import CellulerError, InvalidSpec, ProtocolViolation, Unavailable
from celluler.inference.questions import MAX_PROMPT_TOKENS
from celluler.inference.sampling import Sampling
from celluler.inference.scores import MAX_SCORED, SCORE, Claim, Scores, open_scores
from celluler.models.names import ModelName, parse_reference
from celluler.wire import U8, U32, U64, Bytes32, Frames, Length
from celluler_protocols.generation.messages import TOKEN_BYTES, pack_tokens, unpack_tokens
from celluler_protocols.inference import Refusal, Refused, error_of, refusal_of, refuse

PROTOCOL_ID = "/celluler/score/1"
OPEN_S = 30.0
"""How long a claim may take to come whole."""
SEND_S = 15.0
MAX_SLACK = 1.0
MAX_FRAME_BYTES = TOKEN_BYTES * (MAX_PROMPT_TOKENS + MAX_SCORED) + 4096


@dataclass(frozen=True, slots=True)
class Score:
    """A `Claim`. model: `author/name[:version|@alias]`, or the CID of a manifest. prompt, tokens: 4 bytes each,
    little-endian. ended: behind the tokens one is said to have come that ends answers of this model. slack: by how much
    logits may be off."""

    model: Annotated[str, Length(1, 256)]
    prompt: Annotated[bytes, Length(TOKEN_BYTES, TOKEN_BYTES * MAX_PROMPT_TOKENS)]
    tokens: Annotated[bytes, Length(0, TOKEN_BYTES * MAX_SCORED)]
    ended: bool
    temperature: float
    top_p: float
    top_k: U32
    seed: U64
    choice: U8
    place: U32
    slack: float


@dataclass(frozen=True, slots=True)
class Scored:
    """model: digest of the manifest of the model that scored. table: see `celluler.inference.scores`, a row for each
    token and for the end."""

    model: Bytes32
    table: Annotated[bytes, Length(SCORE.itemsize, SCORE.itemsize * MAX_SCORED)]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a scorer is asked. claim: where `ended`, its `ends` are for the scorer to put in place."""

    model: str
    claim: Claim
    ended: bool
    slack: float


Scorer = Callable[[Wanted], Awaitable[tuple[bytes, Scores]]]
"""(digest of the model's manifest, scores), or raises a CellulerError, which becomes a Refused."""


def frames() -> Frames:
    return Frames((Score, Scored, Refused), limit=MAX_FRAME_BYTES)  # wire tag = position


def score_words(model: str, claim: Claim, slack: float, *, ended: bool) -> Score:
    """Raises InvalidSpec for what no server could score."""
    parse_reference(model)
    its = claim.sampling
    if not 1 <= len(claim.tokens) + ended <= MAX_SCORED:
        raise InvalidSpec("tokens", f"holds {len(claim.tokens)}, must be 1…{MAX_SCORED}")
    return Score(
        model, pack_tokens("prompt", claim.prompt), pack_tokens("tokens", claim.tokens), ended, float(its.temperature),
        float(its.top_p), its.top_k, its.seed, its.choice, claim.place, float(slack),
    )  # fmt: skip


def wanted_of(request: Score) -> Wanted:
    """Raises InvalidSpec for what no model could score, ProtocolViolation for tokens that are not whole."""
    if not 0.0 <= request.slack <= MAX_SLACK:
        raise InvalidSpec("slack", f"must be 0…{MAX_SLACK:g}")
    sampling = Sampling(request.temperature, request.top_p, request.top_k, request.seed, request.choice)
    prompt, tokens = unpack_tokens(request.prompt), unpack_tokens(request.tokens)
    claim = Claim(prompt, tokens, sampling, request.place, ends=(0,) if request.ended else ())
    return Wanted(request.model, claim, request.ended, request.slack)


# --- adapters --------------------------------------------------------------------------------------------------------


async def score(stream: trio.abc.Stream, request: Score) -> tuple[bytes, Scores]:
    """Ask one peer. Closes the stream; the deadline is the caller's.

    Raises ProtocolViolation for what answers no such request, and for a Refused what it stands for.
    """
    words, wanted = frames(), parse_reference(request.model)
    count = len(request.tokens) // TOKEN_BYTES + request.ended
    async with stream:
        await stream.send_all(words.encode(request))
        while chunk := await stream.receive_some():
            match words.feed(bytes(chunk)):
                case []:
                    continue
                case [Scored(model, table)] if words.idle:
                    if not isinstance(wanted, ModelName) and model != wanted:
                        raise ProtocolViolation("scored by another model than the one asked for")
                    return model, open_scores(table, count)
                case [Refused(code, text)] if code < len(Refusal):
                    raise error_of(Refusal(code), text, request.model)
                case _:
                    raise ProtocolViolation("no answer to a claim")
    raise Unavailable("the stream ended before the scores")


async def serve_scoring(stream: trio.abc.Stream, scorer: Scorer) -> None:
    """Answer one claim. Raises ProtocolViolation for what no honest peer sends.

    How long it may take is the scorer's own to bound.
    """
    words = frames()
    async with stream:
        if (request := await _request(stream, words)) is None:
            return
        answer: Scored | Refused
        try:
            parse_reference(request.model)
            model, scores = await scorer(wanted_of(request))
            answer = Scored(model, scores.tobytes())
        except ProtocolViolation:
            raise
        except CellulerError as error:
            answer = refusal_of(error)
        with trio.move_on_after(SEND_S):
            await stream.send_all(words.encode(answer))


async def turn_away(stream: trio.abc.Stream) -> None:
    """Tell an asker that there is no room, and close the stream."""
    async with stream:
        with trio.move_on_after(SEND_S):
            await stream.send_all(frames().encode(refuse(Refusal.BUSY, "too many claims at once")))


async def _request(stream: trio.abc.Stream, words: Frames) -> Score | None:
    """None when whoever opened the stream has gone, in order or by silence."""
    with trio.move_on_after(OPEN_S):
        while chunk := await stream.receive_some():
            match words.feed(bytes(chunk)):
                case []:
                    continue
                case [Score() as request] if words.idle:
                    return request
                case _:
                    raise ProtocolViolation("no claim")
        if not words.idle:
            raise ProtocolViolation("stream ended inside a claim")
    return None
