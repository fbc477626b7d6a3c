"""Answers about writing: a question goes to a model here, and its stop texts are looked for on the way back."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celluler.content.digest import Codec, cid_of
from celluler.errors import NotSupported
from celluler.identity import PeerId
from celluler.inference.questions import Answering, Begun, Event, Generated, Question
from celluler.inference.text_stops import TextStops
from celluler_node.answers.services import Answers


class GenerationAnswers(Answers):
    """The part of `Operations` about writing."""

    @asynccontextmanager
    async def generate(self, ref: str, question: Question) -> AsyncIterator[Generated]:
        opened = await self._core.repository.resolve(ref, hints=self._hints())
        server = self._of.server
        if server is None or "serve" not in self._core.config.roles:
            raise NotSupported("this node runs no models", hint='roles = ["serve"] in its configuration')
        cid, name = cid_of(opened.digest, Codec.MANIFEST), self._core.repository.held(opened).name
        async with server.generate(cid, question) as answering:
            yield Stopping(answering, question.stop, name, cid, self._core.identity.peer_id)


class Stopping:
    """`celluler.inference.questions.Generated` of an answer whose stop texts nobody has looked for."""

    def __init__(self, answering: Answering, stops: tuple[str, ...], model: str, cid: str, peer: PeerId) -> None:
        self.model, self.cid, self.peer = model, cid, peer
        self._answering, self._stops = answering, TextStops(stops)
        self._events = aiter(answering)
        self._told: deque[Event] = deque()

    @property
    def begun(self) -> Begun:
        return self._answering.begun

    def __aiter__(self) -> Stopping:
        return self

    async def __anext__(self) -> Event:
        while not self._told:
            event = await anext(self._events)
            self._told.extend(self._stops.feed(event))
            for choice in self._stops.take():
                self._answering.stop(choice)
        return self._told.popleft()

    def stop(self, choice: int) -> None:
        self._answering.stop(choice)
