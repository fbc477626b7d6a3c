"""What the node asks of a worker that scores claimed answers, and what it answers. Imports no torch.

Tokens travel as blobs, (tokens,) uint32, little-endian; a table of scores in the form of `celluler.inference.scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from celluler.inference.sampling import Sampling
from celluler.inference.scores import Claim
from celluler.wire import U8, U32, U64
from celluler_node.processes.words import Answer
from celluler_node.processes.worker_generate_words import blob_of, tokens_of


@dataclass(frozen=True, slots=True)
class Score:
    """With three blobs: the prompt, the claimed tokens, and those of which one is said to end the answer, or none.
    Give them to the model that is loaded as they stand. → Scored

    temperature … choice: see `Sampling`; place: see `Claim`; slack: by how much each logit may be off.
    """

    temperature: float
    top_p: float
    top_k: U32
    seed: U64
    choice: U8
    place: U32
    slack: float


@dataclass(frozen=True, slots=True)
class Scored:
    """With a table of scores as one blob. rows: that it has."""

    rows: U32


SCORE_REQUESTS = (Score,)
SCORE_REPLIES = (Scored,)
SCORE_ANSWERS: dict[type, Answer] = {Score: Answer((Scored,), blobs=1)}


def score_call(claim: Claim, slack: float) -> tuple[Score, tuple[bytes, bytes, bytes]]:
    its = claim.sampling
    request = Score(
        float(its.temperature), float(its.top_p), its.top_k, its.seed, its.choice, claim.place, float(slack)
    )  # fmt: skip
    return request, (blob_of(claim.prompt), blob_of(claim.tokens), blob_of(claim.ends))


def claim_of(request: Score, blobs: Sequence[bytearray]) -> Claim:
    """Raises InvalidSpec for a value out of range."""
    prompt, tokens, ends = (tuple(tokens_of(blob)) for blob in blobs)
    sampling = Sampling(request.temperature, request.top_p, request.top_k, request.seed, request.choice)
    return Claim(prompt, tokens, sampling, request.place, ends)
