"""The worker's part of generating: slots on the model that is loaded, moved as the node says, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celluler.engines.generation.constraint import Constraint, Schemas, available
from celluler.engines.generation.slots import GeneratingSlots
from celluler.engines.predict import Predictor
from celluler.engines.transforms.served import Served
from celluler.errors import InvalidSpec, LocalError
from celluler.inference.questions import MAX_SCHEMA_BYTES
from celluler_node.processes.worker_generate_words import (
    Admit,
    Admitted,
    Bind,
    Bound,
    OpenSlots,
    Release,
    Released,
    SlotsOpen,
    SlotsStepped,
    Step,
    reply_of,
    sampling_of,
    tokens_of,
)
from celluler_node.processes.worker_texts import Texts

Blobs = tuple[bytearray, ...]


class Generator:
    """Made with the worker, which closes it when another model is loaded."""

    def __init__(self, model: Callable[[], tuple[Predictor, Served]], memory_bytes: int | None) -> None:
        """model: that is loaded. Raises LocalError while there is none. memory_bytes: what this process may take."""
        self._model, self._memory = model, memory_bytes
        self._open: GeneratingSlots | None = None
        self._schemas: Schemas | None = None
        self._texts = Texts(lambda: self._model()[1].codec)

    @property
    def handlers(self) -> Mapping[type, Callable[[Any, Blobs], Any]]:
        return {
            OpenSlots: self.open,
            Admit: self.admit,
            Step: self.step,
            Release: self.release,
            Bind: self.bind,
            **self._texts.handlers,
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
        self._texts.use(request.template)
        why, texts = slots.why_not_cached, served.codec is not None
        return SlotsOpen(slots.length, slots.vocabulary, slots.cache_bytes, why, texts, texts and available())

    def close(self) -> None:
        """Let go of the slots, and of the model that they are on."""
        self._open = self._schemas = None
        self._texts.use("")

    def admit(self, request: Admit, blobs: Blobs) -> Admitted:
        if not 1 <= len(blobs) <= 2:
            raise LocalError(f"{len(blobs)} blobs, a prompt is one, and a schema another")
        prompt = tokens_of(blobs[0])
        self._slots().admit(
            request.slot,
            prompt,
            sampling_of(request),
            source=request.source,
            shared=request.shared,
            drawn=request.drawn,
            constraint=self._bound(bytes(blobs[1])) if len(blobs) > 1 else None,
        )
        return Admitted()

    def step(self, request: Step, _: Blobs) -> SlotsStepped:
        return reply_of(self._slots().step(request.prefill, request.count, request.decode))

    def release(self, request: Release, _: Blobs) -> Released:
        self._slots().release(request.slot)
        return Released()

    def bind(self, _: Bind, blobs: Blobs) -> Bound:
        if len(blobs) != 1 or len(blobs[0]) > MAX_SCHEMA_BYTES:
            raise InvalidSpec("schema", f"must be one of at most {MAX_SCHEMA_BYTES} bytes")
        self._bound(bytes(blobs[0]))
        return Bound()

    def _bound(self, schema: bytes) -> Constraint:
        if self._schemas is None:
            model, served = self._model()
            if served.codec is None:
                raise InvalidSpec("schema", "is of texts, and this model makes no tokens of texts")
            self._schemas = Schemas(served.codec, model.architecture.vocabulary, sorted(served.ends))
        return self._schemas.bind(schema)

    def _slots(self) -> GeneratingSlots:
        if self._open is None:
            raise LocalError("no slots are open on this model")
        return self._open
