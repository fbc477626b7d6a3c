"""Answers about writing: a question goes to whoever answers it best, and on to the next one where that one fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import trio

from celluler.errors import InvalidSpec, TimedOut
from celluler.inference.questions import Generated, Question
from celluler_node.answers.inference import InferenceAnswers, cid_text
from celluler_node.answers.staged import generate_staged
from celluler_node.bounded import bounded
from celluler_node.placement.talk import Heard, Talk
from celluler_protocols.nursery import own_nursery


class GenerationAnswers(InferenceAnswers):
    """The part of `Operations` about writing."""

    @asynccontextmanager
    async def generate(self, ref: str, question: Question, *, peer: str = "") -> AsyncIterator[Generated]:
        began = trio.current_time()
        with bounded(question.timeout_s, "looking a model up"):
            opened = await self._resolved(ref)
        left_s = question.timeout_s - (trio.current_time() - began)
        if left_s <= 0.0:
            raise TimedOut("no time was left when the model had been looked up")
        if question.stages and peer:
            raise InvalidSpec("stages", "are of peers that are found: name no peer, or no stages")
        if question.stages or (self._of.staged is not None and not peer and self._of.staged.needed(opened)):
            name, asked = self._core.repository.held(opened).name, replace(question, timeout_s=left_s)
            async with generate_staged(self._of.staged, opened, name, asked, self._core.identity.peer_id) as written:
                yield written
            return
        cid = cid_text(opened)
        ask = partial(self._ask_peer, cid, opened.digest)
        talk = Talk(self.chooser, opened, replace(question, timeout_s=left_s), ask, self._named(peer))
        async with own_nursery() as nursery:
            nursery.start_soon(talk.run)
            await talk.begun.wait()
            if (begun := talk.journal.begun) is None:
                assert talk.told.failure is not None
                raise talk.told.failure
            yield Heard(talk, self._core.repository.held(opened).name, cid, begun)
