"""A stage that this node holds, and what of it one asker has."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from celluler.errors import CellulerError, Denied, LocalError, WorkerFailed
from celluler.inference.hidden import check_hidden
from celluler.inference.questions import Message, Prompt
from celluler.inference.sampling import Sampling
from celluler.inference.stages import Stage
from celluler.models.manifest import OpenedManifest
from celluler_node.processes.worker_stages_words import Row, StageLoaded
from celluler_node.serving.server import blamed
from celluler_node.stages.running import RunningStage
from celluler_protocols.generation.messages import TOKEN_BYTES
from celluler_protocols.stages import Answer
from celluler_protocols.stages_messages import DRAW, Forward, StageReady

MAX_READ_BEFORE = 64
"""Tokens of a prompt that what is drawn may be read behind."""


@dataclass(slots=True)
class Held:
    """A stage in its worker, or on its way there. needed_bytes: of memory. users: askers that have slots."""

    opened: OpenedManifest
    stage: Stage
    slots: int
    length: int
    needed_bytes: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ready: trio.Event = field(default_factory=trio.Event)
    running: RunningStage | None = None
    loaded: StageLoaded | None = None
    templated: bool = True
    failure: CellulerError | None = None
    users: int = 0
    used_at: float = 0.0


class HeldStage:
    """`celluler_protocols.stages_serving.Stage`: slots of one asker, numbered from 0."""

    def __init__(self, held: Held, running: RunningStage, slots: list[int], wire: str) -> None:
        self._held, self._running, self._slots, self._wire = held, running, slots, wire

    @property
    def ready(self) -> StageReady:
        loaded = self._held.loaded
        assert loaded is not None
        return StageReady(len(self._slots), loaded.weight_bytes, loaded.cache_bytes, loaded.texts)

    async def read(self, prompt: Prompt) -> tuple[int, ...]:
        """Raises InvalidSpec, Denied for a conversation whose template may not run here."""
        talk = not isinstance(prompt, str) and any(isinstance(one, Message) for one in prompt)
        if talk and not self._held.templated:
            raise Denied("the model's chat template is a program of another peer, and needs the full sandbox")
        try:
            return await self._running.read(prompt)
        except WorkerFailed as error:
            raise blamed(error) from None

    async def begin(self, sequence: int, sampling: Sampling | None, context: tuple[int, ...]) -> None:
        """Raises LocalError for a context that no answer here can have."""
        if len(context) > self._held.length + MAX_READ_BEFORE:
            raise LocalError(f"a context of {len(context)} tokens, a sequence has {self._held.length} places")
        await self._running.open(self._slot(sequence), self._wire, sampling, context)

    async def forward(self, message: Forward) -> Answer:
        """Raises ProtocolViolation for inputs that are not what they say, LocalError for a want that is not this
        stage's."""
        stage = self._held.stage
        if (message.want == DRAW) > stage.is_last:
            raise LocalError("a token is drawn by the last stage alone")
        if stage.given:
            check_hidden(self._wire, message.data, message.count, stage.given)
        elif len(message.data) != TOKEN_BYTES * message.count:
            raise LocalError(f"{len(message.data)} bytes are not {message.count} tokens")
        row = Row(self._slot(message.sequence), message.start, message.count, message.want, message.place)
        return await self._running.step(row, message.data)

    async def end(self, sequence: int) -> None:
        await self._running.close(self._slot(sequence))

    def _slot(self, sequence: int) -> int:
        if not 0 <= sequence < len(self._slots):
            raise LocalError(f"there is no sequence {sequence}, there are {len(self._slots)}")
        return self._slots[sequence]
