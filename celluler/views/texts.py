"""What models wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer. text: what may be read with it, empty while a character is not complete. logprob: natural
    logarithm of its probability. likeliest: the same of the likeliest ones, by text or as `token_id:N`."""

    text: str
    logprob: float
    likeliest: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Piece:
    """What comes next of an answer. choice: of which, from 0. reason: `stop` or `length` where it is over, else empty.
    tokens: where their probabilities were asked for."""

    text: str
    choice: int = 0
    reason: str = ""
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer. reason: `stop`, `length`, or empty for one that was broken off."""

    text: str
    reason: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model wrote. model: `author/name:version`; cid: the exact one; peer: who answered. seed: with which the
    same is drawn again. prompt_tokens: of these `cached_tokens` were not computed again. generated_tokens: of all
    answers. elapsed_s: as the client waited; first_s: until the first word, of a stream."""

    answers: tuple[Answer, ...]
    model: str
    cid: str
    peer: str
    seed: int
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    elapsed_s: float
    first_s: float | None = None

    @property
    def text(self) -> str:
        """Of the first answer."""
        return self.answers[0].text
