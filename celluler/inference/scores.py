"""What a model says of tokens that somebody claims it gave: of each, how far it is from what it would have given.

A table of scores has a row for each claimed token; it is its own form on the wire, 49 bytes a token, little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.inference.sampling import Sampling

TOP, MAX_ENDS = 8, 16
MAX_SCORED = 8192
"""Tokens that are scored at once."""
SCORE = np.dtype(
    [("gap", "<f4"), ("logprob", "<f4"), ("off", "<f4"), ("rank", "<u4"), ("same", "u1"), ("top", "<u4", (TOP,))]
)
"""gap: logits between the token and the likeliest. logprob: of the token, before temperature and cuts. off: probability
between the draw and the token's part, see `borders`; 0 of a greedy answer. rank: tokens that are likelier. same: this
very token is what is drawn here. top: the likeliest, filled up with the first where a vocabulary is smaller."""

Scores = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """An answer somebody gave. prompt: what it goes on from, tokens given to it included. tokens: that were claimed.
    sampling: of this answer, with its choice. place: of the first claimed token in its answer. ends: tokens that end an
    answer of this model, where the claim is that one of them was drawn behind the last token; else none. Of that one,
    whichever is the best, there is a score behind all others.

    Raises InvalidSpec for what cannot be scored.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    sampling: Sampling
    place: int = 0
    ends: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Of its table of scores."""
        return len(self.tokens) + bool(self.ends)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InvalidSpec("prompt", "holds no token")
        if not 1 <= self.rows <= MAX_SCORED:
            raise InvalidSpec("tokens", f"holds {len(self.tokens)}, must be 1…{MAX_SCORED}")
        if len(self.ends) > MAX_ENDS:
            raise InvalidSpec("ends", f"holds {len(self.ends)}, at most {MAX_ENDS}")


def table(count: int) -> Scores:
    return np.zeros(count, dtype=SCORE)


def open_scores(raw: bytes | bytearray, count: int) -> Scores:
    """Raises ProtocolViolation for what is no table of so many rows."""
    if len(raw) != count * SCORE.itemsize:
        raise ProtocolViolation(f"{len(raw)} bytes, {count} scores have {count * SCORE.itemsize}")
    scores = np.frombuffer(bytes(raw), dtype=SCORE)
    told = (scores["gap"], scores["off"])
    if any(np.isnan(one).any() or (one < 0).any() for one in told) or np.isnan(scores["logprob"]).any():
        raise ProtocolViolation("scores with what is no number, or below zero")
    if (scores["same"] > 1).any():
        raise ProtocolViolation("scores that are neither the same nor not")
    return scores
