"""What is asked of a model that writes, and what comes back, wherever it runs: in this node's worker, at another peer,
in stages over several. `requests.py` has the same of one worker's slots, where a prompt is tokens already.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from celluler.content.digest import Digest
from celluler.errors import InvalidSpec
from celluler.inference.sampling import MAX_CHOICES, USUAL, Chosen, Sampling
from celluler.inference.stops import StopFilter

ROLES = ("system", "user", "assistant", "tool")
MAX_PROMPT_TOKENS = 1 << 17
MAX_PROMPT_BYTES = 1 << 19
MAX_MESSAGES = 512
MAX_TIMEOUT_S = 3600.0
MAX_SCHEMA_BYTES = 64 << 10
MAX_STAGES = 16


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. role: one of `ROLES`."""

    role: str
    text: str


Prompt = str | tuple[int, ...] | tuple[Message, ...]
"""A text, its tokens, or a conversation that the model's chat template makes a text of."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and how it is to be gone on with. Raises InvalidSpec for what no model could do.

    max_tokens: None for as many as the model can look at. sampling: of the first answer, the others have its choice
    counted on; its seed is drawn by whoever asks first, so that every peer draws the same. n: answers. stop: texts at
    which an answer ends, not told. timeout_s: until the last token, from now. given: tokens of the answer that the
    asker has already, with n = 1: what comes goes on behind them, and counts and draws on. schema: JSON Schema that the
    answer must follow, empty for none. stages: over how many peers the model is to be split, 0 for whatever is best; it
    is looked at by the node that is asked, and travels no further.
    """

    prompt: Prompt
    max_tokens: int | None = None
    sampling: Sampling = USUAL
    n: int = 1
    stop: tuple[str, ...] = ()
    timeout_s: float = 300.0
    given: tuple[int, ...] = ()
    schema: bytes = b""
    stages: int = 0

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidSpec("max_tokens", "must be at least 1")
        if not 1 <= self.n <= MAX_CHOICES - self.sampling.choice:
            raise InvalidSpec("n", f"must be 1…{MAX_CHOICES - self.sampling.choice}")
        if not 0.0 < self.timeout_s <= MAX_TIMEOUT_S:
            raise InvalidSpec("timeout_s", f"must be above 0, at most {MAX_TIMEOUT_S:g}")
        if self.given and self.n != 1:
            raise InvalidSpec("given", "goes with one answer alone")
        if self.max_tokens is not None and len(self.given) >= self.max_tokens:
            raise InvalidSpec("given", f"holds {len(self.given)} tokens, and no more than {self.max_tokens} are wanted")
        if len(self.schema) > MAX_SCHEMA_BYTES:
            raise InvalidSpec("schema", f"has {len(self.schema)} bytes, the limit is {MAX_SCHEMA_BYTES}")
        if not 0 <= self.stages <= MAX_STAGES:
            raise InvalidSpec("stages", f"must be 0…{MAX_STAGES}")
        StopFilter(self.stop, "")


def _check_prompt(prompt: Prompt) -> None:
    if not prompt:
        raise InvalidSpec("prompt", "is empty")
    if isinstance(prompt, str):
        byte_count = len(prompt.encode("utf-8", "replace"))
    elif isinstance(prompt[0], Message):
        messages = [one for one in prompt if isinstance(one, Message)]
        if len(messages) > MAX_MESSAGES:
            raise InvalidSpec("messages", f"holds {len(messages)}, at most {MAX_MESSAGES}")
        for place, one in enumerate(messages):
            if one.role not in ROLES:
                raise InvalidSpec(f"messages[{place}].role", f"is {one.role[:32]!r}, none of {', '.join(ROLES)}")
        byte_count = sum(len(one.text.encode("utf-8", "replace")) for one in messages)
    else:
        if len(prompt) > MAX_PROMPT_TOKENS:
            raise InvalidSpec("prompt", f"holds {len(prompt)} tokens, at most {MAX_PROMPT_TOKENS}")
        return
    if byte_count > MAX_PROMPT_BYTES:
        raise InvalidSpec("prompt", f"has {byte_count} bytes, the limit is {MAX_PROMPT_BYTES}")


@dataclass(frozen=True, slots=True)
class Begun:
    """It has a slot, or waits for one. model: digest of the manifest of the model that answers. prompt: the tokens that
    the prompt came to."""

    model: Digest
    prompt: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """The next tokens of an answer, and the text that may be read with them: empty while a character is not complete,
    and less than that of the tokens where a text stop holds some back. choice: from 0."""

    choice: int
    text: str
    tokens: tuple[Chosen, ...]


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing more comes of this answer. reason: see `requests`. generated: tokens drawn, those given included."""

    choice: int
    reason: str
    generated: int


@dataclass(frozen=True, slots=True)
class Finished:
    """All answers are over. prompt, generated: tokens. shared: of prompts, not computed again. receipt: what another
    peer that answered has signed of it, empty for nothing."""

    prompt: int
    generated: int
    shared: int
    receipt: bytes = b""


Event = Said | Over | Finished
"""Of each answer any number of Said and one Over; after all of them one Finished, and then the iteration ends."""


class Answering(Protocol):
    """An answer under way: iterate over it to the end. Who leaves its context before has cancelled it.

    Iterating raises what `Answerer` raises, when it fails in the middle.
    """

    @property
    def begun(self) -> Begun: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def stop(self, choice: int) -> None:
        """This answer is wanted no further: its Over, with reason `stop`, is all that still comes of it."""
        ...


class Generated(Answering, Protocol):
    """An answer as `Operations.generate` gives it. model: `author/name:version`. cid: of its manifest. peer: who
    answers now."""

    @property
    def model(self) -> str: ...

    @property
    def cid(self) -> str: ...

    @property
    def peer(self) -> str: ...


class Answerer(Protocol):
    """Whoever answers questions: a model server, another peer, a line of stages, all of them behind one that chooses.

    Raises NotFound, InvalidSpec, Denied, Busy, TimedOut, WorkerFailed, Unavailable, PeerViolation.
    """

    def __call__(self, model: str, question: Question) -> AbstractAsyncContextManager[Answering]: ...
