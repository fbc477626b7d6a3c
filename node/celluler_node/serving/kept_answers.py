"""Answers that this node gave before, given again: what is kept of a prediction and of a text, and of which models.

Nothing of an encrypted model is kept unless the operator says so, nor of a request that wants no kept answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import trio

from celluler.errors import CellulerError
from celluler.identity import PeerId
from celluler.inference.caching_answers import AnswerCache, prediction_key, question_key
from celluler.inference.questions import Begun, Event, Finished, Generated, Over, Question, Said
from celluler.inference.requests import LENGTH, STOP
from celluler.models.manifest import OpenedManifest
from celluler.tensors import Tensor
from celluler.views import AnswerCacheUsage, Prediction
from celluler_node.callers import caller
from celluler_node.deployments.book import Asked

TOKEN_BYTES = 96
"""What a token of a kept text takes, about; with the likely ones beside it, so much for each of them."""
EVENT_BYTES = 160


class Text:
    """A whole text, as it was said. name: `author/name:version`."""

    def __init__(self, begun: Begun, name: str, cid: str, peer: PeerId, events: tuple[Event, ...]) -> None:
        self.begun, self.name, self.cid, self.peer, self.events = begun, name, cid, peer, events

    @property
    def byte_count(self) -> int:
        tokens = [one for event in self.events if isinstance(event, Said) for one in event.tokens]
        return (
            EVENT_BYTES * len(self.events)
            + TOKEN_BYTES * (len(tokens) + sum(len(one.top) for one in tokens))
            + 32 * len(self.begun.prompt)
        )


class KeptAnswers:
    """private: answers of encrypted models are kept, too."""

    def __init__(self, limit_bytes: int, *, private: bool) -> None:
        self._cache: AnswerCache[Prediction | Text] = AnswerCache(limit_bytes)
        self._private = private

    @property
    def usage(self) -> AnswerCacheUsage:
        cache = self._cache
        return AnswerCacheUsage(
            cache.limit_bytes, cache.used_bytes, len(cache), cache.hits, cache.misses, cache.evicted
        )

    async def prediction(
        self, opened: OpenedManifest, inputs: Tensor, output: str, ask: Callable[[], Awaitable[Prediction]]
    ) -> Prediction:
        """The kept one, or what `ask` gives, kept."""
        one, began = caller(), trio.current_time()
        if not self._may(opened):
            return await ask()
        key = prediction_key(one.client, opened.digest, inputs, output)
        kept = self._cache.get(key, began)
        one.told["cache"] = "miss" if kept is None else "hit"
        if isinstance(kept, Prediction):
            return replace(kept, elapsed_s=trio.current_time() - began, cached=True)
        prediction = await ask()
        self._cache.put(key, prediction, len(prediction.outputs.data), trio.current_time())
        return prediction

    def text(self, opened: OpenedManifest, question: Question) -> Generated | None:
        """The kept one; None for what must be asked."""
        key = self._key(opened, question)
        if key is None:
            return None
        kept = self._cache.get(key, trio.current_time())
        caller().told["cache"] = "miss" if kept is None else "hit"
        return Replayed(kept) if isinstance(kept, Text) else None

    def recording(self, opened: OpenedManifest, question: Question, generated: Generated) -> Generated:
        """The same answer, kept once it has come to its end."""
        key = self._key(opened, question)
        if key is None:
            return generated

        def keep(events: tuple[Event, ...]) -> None:
            text = Text(generated.begun, generated.model, generated.cid, PeerId(generated.peer), events)
            self._cache.put(key, text, text.byte_count, trio.current_time())

        return Recording(generated, keep)

    def _key(self, opened: OpenedManifest, question: Question) -> bytes | None:
        one = caller()
        return question_key(one.client, opened.digest, question, seeded=one.seeded) if self._may(opened) else None

    def _may(self, opened: OpenedManifest) -> bool:
        return not caller().fresh and (self._private or not opened.record.encrypted)


class Passing:
    """`Generated`, as another one says it."""

    def __init__(self, generated: Generated) -> None:
        self._generated = generated
        self._events = aiter(generated)

    @property
    def begun(self) -> Begun:
        return self._generated.begun

    @property
    def model(self) -> str:
        return self._generated.model

    @property
    def cid(self) -> str:
        return self._generated.cid

    @property
    def peer(self) -> str:
        return self._generated.peer

    def stop(self, choice: int) -> None:
        self._generated.stop(choice)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)


class Recording(Passing):
    """keep: told all of it at its end; nothing of one that was cut short."""

    def __init__(self, generated: Generated, keep: Callable[[tuple[Event, ...]], None]) -> None:
        super().__init__(generated)
        self._keep, self._said = keep, list[Event]()
        self._whole = True

    def stop(self, choice: int) -> None:
        self._whole = False
        super().stop(choice)

    async def __anext__(self) -> Event:
        event = await super().__anext__()
        if isinstance(event, Over) and event.reason not in (STOP, LENGTH):
            self._whole = False
        if self._whole:
            self._said.append(replace(event, receipt=b"") if isinstance(event, Finished) else event)
            if isinstance(event, Finished):
                self._keep(tuple(self._said))
        return event


class Replayed:
    """`Generated` of a kept text."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self.begun, self.model, self.cid, self.peer = text.begun, text.name, text.cid, text.peer
        self._events = iter(text.events)
        self._stopped: set[int] = set()

    def stop(self, choice: int) -> None:
        self._stopped.add(choice)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        await trio.lowlevel.checkpoint()
        for event in self._events:
            match event:
                case Said(choice) if choice in self._stopped:
                    continue
                case Over(choice) if choice in self._stopped:
                    return replace(event, reason=STOP)
            return event
        raise StopAsyncIteration


class Counted(Passing):
    """What it comes to is counted of the arm that it was asked of."""

    def __init__(self, generated: Generated, asked: Asked, began: float) -> None:
        super().__init__(generated)
        self._asked, self._began = asked, began

    async def __anext__(self) -> Event:
        try:
            event = await super().__anext__()
        except CellulerError as error:
            self._asked.failed(error)
            raise
        if isinstance(event, Finished):
            self._asked.answered(self._began, samples=1, prompt=event.prompt, generated=event.generated)
        return event


def is_kept(generated: Generated) -> bool:
    """It was said before."""
    return isinstance(generated, Replayed)
