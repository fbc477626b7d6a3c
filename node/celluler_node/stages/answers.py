"""The answers to one question that are written by a line of stages, side by side."""

from __future__ import annotations

from dataclasses import replace

import trio

from celluler.content.digest import Digest
from celluler.errors import CellulerError, InvalidSpec
from celluler.inference.questions import Begun, Event, Finished, Over, Question, Said
from celluler.inference.requests import DEADLINE, ERROR, LENGTH, STOP
from celluler.inference.sampling import Chosen
from celluler_node.bounded import plain
from celluler_node.stages.lines import Line
from celluler_node.stages.sequences import Measured, StagedSequence


def check_tokens(tokens: tuple[int, ...], line: Line) -> None:
    """Raises InvalidSpec for a prompt that the model cannot take."""
    if not tokens:
        raise InvalidSpec("prompt", "holds no token")
    if len(tokens) > line.length:
        raise InvalidSpec("prompt", f"holds {len(tokens)} tokens, this model takes {line.length}")
    if not all(0 <= token < line.body.vocabulary for token in tokens):
        raise InvalidSpec("prompt", f"holds a token that is not below {line.body.vocabulary}")


class StagedAnswers:
    """`celluler.inference.questions.Answering` of a line. `run` must run."""

    def __init__(
        self,
        measured: Measured,
        line: Line,
        prompt: tuple[int, ...],
        question: Question,
        ends: frozenset[int],
        model: Digest,
        deadline_s: float,
    ) -> None:
        self.begun = Begun(model, prompt)
        self._measured, self._line, self._question, self._ends = measured, line, question, ends
        self._deadline_s = deadline_s
        most = question.n * (line.length + 2) + 1
        self._send, self._receive = trio.open_memory_channel[Event](most)
        self._failure: CellulerError | None = None
        self._stopped: set[int] = set()
        self._scopes: dict[int, trio.CancelScope] = {}
        self._generated = 0

    def __aiter__(self) -> StagedAnswers:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self._failure is not None:
                raise self._failure from None
            raise StopAsyncIteration from None

    def stop(self, choice: int) -> None:
        self._stopped.add(choice)
        if choice in self._scopes:
            self._scopes[choice].cancel()

    async def run(self) -> None:
        """All answers, side by side."""
        try:
            async with trio.open_nursery() as nursery:
                for choice in range(self._question.n):
                    nursery.start_soon(self._answer, choice)
            self._tell(Finished(len(self.begun.prompt), self._generated, 0))
        except BaseExceptionGroup as group:
            error = plain(group)
            if not isinstance(error, CellulerError):
                raise
            self._failure = error
        finally:
            self._send.close()

    async def _answer(self, choice: int) -> None:
        generated, reason = [len(self._question.given)], DEADLINE
        with trio.CancelScope(deadline=self._deadline_s) as scope:
            self._scopes[choice] = scope
            if choice in self._stopped:
                scope.cancel()
            async with self._line.sequence() as number:
                reason = await self._write(choice, number, generated)
        if scope.cancelled_caught and choice in self._stopped:
            reason = STOP
        self._generated += generated[0]
        self._tell(Over(choice, reason, generated[0]))

    async def _write(self, choice: int, number: int, generated: list[int]) -> str:
        """Why it ended. generated: counted there, so that it is known wherever this is cut off."""
        question, tokens = self._question, self.begun.prompt + self._question.given
        sampling = replace(question.sampling, choice=question.sampling.choice + choice)
        most = question.max_tokens or len(question.given) + 1 + self._line.length
        sequence = StagedSequence(self._line, number, tokens, len(question.given), sampling, self._measured)
        chosen = await sequence.first()
        while chosen is not None:
            generated[0] += 1
            if chosen.token in self._ends:
                await sequence.end()
                return STOP
            self._say(choice, chosen)
            if generated[0] >= most or sequence.places >= self._line.length:
                await sequence.end()
                return LENGTH
            chosen = await sequence.next()
        await sequence.end()
        return ERROR

    def _say(self, choice: int, chosen: Chosen) -> None:
        self._tell(Said(choice, chosen.text, (chosen,)))

    def _tell(self, event: Event) -> None:
        self._send.send_nowait(event)
