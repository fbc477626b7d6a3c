"""A model that writes without one: the next token is a function of what stands before it, of the seed and the choice.

As of a real one, whoever goes on from `given` says what would have been said. Told in pieces whose sizes a test gives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle

import trio
from blake3 import blake3

from celluler.content.digest import Digest, digest_of
from celluler.inference.questions import Begun, Event, Finished, Over, Question, Said
from celluler.inference.sampling import Chosen

MODEL = digest_of(b"a manifest")
END = 5
"""The token that ends an answer. Others read as letters, and one in seven as nothing by itself."""
LONGEST = 40


def token_of(question: Question, choice: int, place: int) -> int:
    drawn = f"{question.sampling.seed} {question.sampling.choice + choice} {place}"
    return blake3(drawn.encode()).digest()[0] % 30


def chosen_of(question: Question, choice: int, place: int) -> Chosen:
    token = token_of(question, choice, place)
    before = token_of(question, choice, place - 1) if place else 0
    text = "" if token % 7 == 6 else chr(97 + token % 26)
    if before % 7 == 6:
        text = "é" + text
    if question.sampling.logprobs is None:
        return Chosen(token, text=text)
    return Chosen(token, -0.5, ((token, -0.5), (token + 1, -1.0))[: question.sampling.logprobs], text)


def prompt_of(question: Question) -> tuple[int, ...]:
    match question.prompt:
        case str(text):
            return tuple(text.encode())
        case (int(), *_):
            return tuple(one for one in question.prompt if isinstance(one, int))
        case _:
            return (1, 2, 3)


def events_of(question: Question, sizes: Sequence[int] = (1,)) -> Iterator[Event]:
    """An undisturbed raw answer, in pieces of these sizes, in turn; its choices take turns."""
    piece, most = cycle(sizes), min(question.max_tokens or LONGEST, LONGEST)
    at = {choice: len(question.given) for choice in range(question.n)}
    generated: dict[int, int] = {}
    while at:
        for choice in tuple(at):
            said: list[Chosen] = []
            for _ in range(next(piece)):
                if at[choice] >= most:  # also for whoever goes on behind an answer that was complete
                    generated[choice], reason = at[choice], "length"
                    break
                if token_of(question, choice, at[choice]) == END:
                    generated[choice], reason = at[choice] + 1, "stop"
                    break
                said.append(chosen_of(question, choice, at[choice]))
                at[choice] += 1
            if said:
                yield Said(choice, "".join(one.text for one in said), tuple(said))
            if choice in generated:
                del at[choice]
                yield Over(choice, reason, generated[choice])
    yield Finished(len(prompt_of(question)), sum(generated.values()), 0)


@dataclass(slots=True)
class Script:
    """An `Answerer` that a test steers. before: awaited before each event, by its place. asked: what it was asked."""

    sizes: Sequence[int] = (1,)
    model: Digest = MODEL
    before: Callable[[int], Awaitable[None]] | None = None
    asked: list[Question] = field(default_factory=list)
    left: int = 0
    stopped: list[int] = field(default_factory=list)

    @asynccontextmanager
    async def __call__(self, model: str, question: Question) -> AsyncIterator[_Scripted]:
        self.asked.append(question)
        try:
            yield _Scripted(self, question)
        finally:
            self.left += 1


class _Scripted:
    def __init__(self, script: Script, question: Question) -> None:
        self._script, self._question = script, question
        self.begun = Begun(script.model, prompt_of(question))

    async def __aiter__(self) -> AsyncIterator[Event]:
        for place, event in enumerate(events_of(self._question, self._script.sizes)):
            await trio.lowlevel.checkpoint()
            if self._script.before is not None:
                await self._script.before(place)
            yield event

    def stop(self, choice: int) -> None:
        self._script.stopped.append(choice)
