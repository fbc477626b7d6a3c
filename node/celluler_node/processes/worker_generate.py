"""The worker's part of generating: slots on the model that is loaded, moved as the node says, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celluler.engines.generation.slots import GeneratingSlots
from celluler.engines.predict import Predictor
from celluler.engines.transforms.served import Served
from celluler.errors import InvalidSpec, LocalError
from celluler.inference.questions import MAX_PROMPT_BYTES, Message
from celluler.models.transforms.decoding import TextCodec
from celluler_node.processes.words import Reply
from celluler_node.processes.worker_generate_words import (
    Admit,
    Admitted,
    Converse,
    Encode,
    Encoded,
    OpenSlots,
    Release,
    Released,
    SlotsOpen,
    SlotsStepped,
    Step,
    blob_of,
    reply_of,
    sampling_of,
    tokens_of,
)

if TYPE_CHECKING:
    from celluler.engines.generation.conversation import Conversation

Blobs = tuple[bytearray, ...]


class Generator:
    """Made with the worker, which closes it when another model is loaded."""

    def __init__(self, model: Callable[[], tuple[Predictor, Served]], memory_bytes: int | None) -> None:
        """model: that is loaded. Raises LocalError while there is none. memory_bytes: what this process may take."""
        self._model, self._memory = model, memory_bytes
        self._open: GeneratingSlots | None = None
        self._template: Path | None = None
        self._conversation: Conversation | None = None

    @property
    def handlers(self) -> Mapping[type, Callable[[Any, Blobs], Any]]:
        return {
            OpenSlots: self.open,
            Admit: self.admit,
            Step: self.step,
            Release: self.release,
            Encode: self.encode,
            Converse: self.converse,
        }

    def open(self, request: OpenSlots, _: Blobs) -> SlotsOpen:
        (model, served), self._open = self._model(), None  # not two caches at once
        slots = GeneratingSlots(
            model.architecture,
            model.module,
            slots=request.slots,
            length=request.length,
            memory_bytes=self._memory,
            codec=served.codec,
        )
        self._open = slots
        self._template, self._conversation = Path(request.template) if request.template else None, None
        why, texts = slots.why_not_cached, served.codec is not None
        return SlotsOpen(slots.length, slots.vocabulary, slots.cache_bytes, why, texts)

    def close(self) -> None:
        """Let go of the slots, and of the model that they are on."""
        self._open = self._template = self._conversation = None

    def admit(self, request: Admit, blobs: Blobs) -> Admitted:
        if len(blobs) != 1:
            raise LocalError(f"{len(blobs)} blobs, a prompt is one")
        prompt = tokens_of(blobs[0])
        self._slots().admit(
            request.slot,
            prompt,
            sampling_of(request),
            source=request.source,
            shared=request.shared,
            drawn=request.drawn,
        )
        return Admitted()

    def step(self, request: Step, _: Blobs) -> SlotsStepped:
        return reply_of(self._slots().step(request.prefill, request.count, request.decode))

    def release(self, request: Release, _: Blobs) -> Released:
        self._slots().release(request.slot)
        return Released()

    def encode(self, _: Encode, blobs: Blobs) -> Reply:
        codec = self._codec("prompt")
        if len(blobs) != 1 or len(blobs[0]) > MAX_PROMPT_BYTES:
            raise InvalidSpec("prompt", f"must be one text of at most {MAX_PROMPT_BYTES} bytes")
        try:
            text = blobs[0].decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidSpec("prompt", "is not UTF-8") from None
        try:
            return Reply(Encoded(), (blob_of(codec.encode(text)),))
        except InvalidSpec as error:
            raise InvalidSpec("prompt", error.problem) from error

    def converse(self, request: Converse, _: Blobs) -> Reply:
        from celluler.engines.generation.conversation import plain, read_conversation  # noqa: PLC0415  few need it

        codec = self._codec("messages")
        messages = [Message(one.role, one.text) for one in request.turns]
        if self._template is not None and self._conversation is None:
            self._conversation = read_conversation(self._template, codec.marks)
        try:
            if self._conversation is None:
                return Reply(Encoded(), (blob_of(codec.encode(plain(messages))),))
            text = self._conversation.text(messages)
            return Reply(Encoded(), (blob_of(codec.encode(text, marked=True)),))
        except InvalidSpec as error:
            raise InvalidSpec("messages", error.problem) from error

    def _codec(self, asked: str) -> TextCodec:
        codec = self._model()[1].codec
        if codec is None:
            raise InvalidSpec(asked, "holds a text, and this model makes no tokens of texts")
        return codec

    def _slots(self) -> GeneratingSlots:
        if self._open is None:
            raise LocalError("no slots are open on this model")
        return self._open
