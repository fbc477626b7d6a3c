"""Answers of models in stages over several peers, as `Operations.generate` gives them."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celluler.content.digest import Codec, cid_of
from celluler.errors import NotSupported
from celluler.identity import PeerId
from celluler.inference.questions import Answering, Begun, Event, Generated, Question
from celluler.inference.text_stops import TextStops
from celluler.models.manifest import OpenedManifest
from celluler_node.stages.answering import StagedAnswerer


@asynccontextmanager
async def generate_staged(
    staged: StagedAnswerer | None, opened: OpenedManifest, name: str, question: Question, own: PeerId
) -> AsyncIterator[Generated]:
    """own: who drives them. Raises as `StagedAnswerer` does, and
    NotSupported where there is none."""
    if staged is None:
        raise NotSupported("a light peer drives no stages", hint="ask a node of your own: celluler up")
    cid = cid_of(opened.digest, Codec.MANIFEST)
    async with staged(cid, question) as answering:
        yield Stopping(answering, question.stop, name, cid, own)


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
