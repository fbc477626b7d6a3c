"""What is asked of a generating model, and what those who asked are told."""

from __future__ import annotations

from dataclasses import dataclass

from celluler.errors import InvalidSpec
from celluler.inference.sampling import MAX_CHOICES, USUAL, Chosen, Sampling

STOP, LENGTH, CANCELLED, DEADLINE, ERROR = "stop", "length", "cancelled", "deadline", "error"
"""Why an answer ended: at a stop sequence or a token that ends it; at as many tokens as asked for, or as the model can
look at; because its client went; because its time was up; because the model failed."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how it is to be gone on with. Raises InvalidSpec for what no model could do.

    number: unique among those that are not over. client: who shares fairly. sampling: of the first answer; the others
    have its choice counted on. n: answers. deadline_s: by the caller's clock. stops: sequences of tokens, none of which
    is told. ends: tokens that end an answer, not told either. given: tokens of the answer, of one alone and without
    stops, that were drawn before; what comes goes on behind them, and they count and are not told again. schema: that
    the answers follow, one that the worker has read already; empty for none.
    """

    number: int
    client: str
    prompt: tuple[int, ...]
    max_tokens: int
    deadline_s: float
    sampling: Sampling = USUAL
    n: int = 1
    stops: tuple[tuple[int, ...], ...] = ()
    ends: frozenset[int] = frozenset()
    given: tuple[int, ...] = ()
    schema: bytes = b""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InvalidSpec("prompt", "holds no token")
        if self.max_tokens < 1:
            raise InvalidSpec("max_tokens", "must be at least 1")
        if not 1 <= self.n <= MAX_CHOICES - self.sampling.choice:
            raise InvalidSpec("n", f"must be 1…{MAX_CHOICES - self.sampling.choice}")
        if self.given and (self.n != 1 or self.stops or len(self.given) >= self.max_tokens):
            raise InvalidSpec("given", "goes with one answer, without stops, of which more is wanted")

    @property
    def read(self) -> tuple[int, ...]:
        """Tokens that the model reads before it draws one."""
        return self.prompt + self.given


@dataclass(frozen=True, slots=True)
class Told:
    """The next tokens of an answer. choice: from 0."""

    number: int
    choice: int
    tokens: tuple[Chosen, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more comes of this answer. generated: tokens drawn for it, those of a stop sequence and those that were
    given included."""

    number: int
    choice: int
    reason: str
    generated: int


@dataclass(frozen=True, slots=True)
class Done:
    """All answers of a request have ended. shared: tokens of its prompt that were not computed again, of all answers
    together."""

    number: int
    prompt: int
    generated: int
    shared: int


Event = Told | Ended | Done


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence begins in a slot. source, shared, drawn: see `GeneratingSlots.admit`."""

    slot: int
    prompt: tuple[int, ...]
    sampling: Sampling
    source: int | None
    shared: int
    drawn: int = 0
    schema: bytes = b""


@dataclass(frozen=True, slots=True)
class Tick:
    """What the worker is to do next, in this order: release, admit, prefill one slot by at most `count` tokens, decode
    all of `decode` (ascending) by one token."""

    releases: tuple[int, ...]
    admissions: tuple[Admission, ...]
    prefill: int | None
    count: int
    decode: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The next token of a slot; chosen None: the model gave no logit that is a number; the slot is to be released.
    last: a schema lets nothing come behind it."""

    slot: int
    chosen: Chosen | None
    last: bool = False


@dataclass(frozen=True, slots=True)
class Stepped:
    """left: tokens of the prompt that was prefilled which are still to come. drawn: of that slot, if none is left, and
    of each that decoded."""

    left: int
    drawn: tuple[Drawn, ...]
