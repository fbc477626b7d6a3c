"""Models at work: one confined worker a loaded model, loaded when it is first asked for and let go when idle.

Resolve, fetch, verify, load, predict: every byte of the weights is hashed again before a worker reads them. A worker
serves one model only, so nothing of one author's model ever shares a process with another's; one may wait, prepared,
before there is a model for it (`spares`). A worker that dies fails the requests it had and is started anew by the next.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import Busy, CellulerError, Denied, InvalidSpec, WorkerFailed
from celluler.identity import PeerId
from celluler.inference.caching import longest_of
from celluler.inference.questions import Answering, Question
from celluler.models.beside import CHAT_TEMPLATE, TOKENIZER
from celluler.models.manifest import OpenedManifest
from celluler_node.bounded import bounded
from celluler_node.processes.confinement import Confinement
from celluler_node.processes.supervisor import Child
from celluler_node.processes.words import Isolation, Limits, Program
from celluler_node.processes.worker_words import LoadModel
from celluler_node.processes.worker_words import Predict as PredictCall
from celluler_node.repository import Repository
from celluler_node.scratch import ScratchRoot
from celluler_node.spares import Spares
from celluler_node.writing import Writing, open_writing
from celluler_protocols.generation import Load
from celluler_protocols.inference import MAX_DATA_BYTES, Predict, Predicted

MAX_LOADED = 4
IDLE_S = 300.0
CALL_S = 60
"""To load a model, and to predict once. A worker that takes longer is ended, and the next request gets a fresh one."""
MAX_BATCH_ITEMS = 1 << 22
MOST_TOLD = (1 << 16) - 1
MAX_ANSWER_BYTES = 1 << 28
"""For our own user; for other peers what the protocol carries. A seed of 8 bytes may ask for a large sample."""

_VALUES = re.compile(
    r"worker: InvalidSpec: ((?:input|prompt|messages|preprocess|postprocess)[\w.\[\]]{0,128}): (.+)", re.DOTALL
)

log = structlog.get_logger()


def blamed(error: WorkerFailed) -> InvalidSpec | WorkerFailed:
    """Of a worker that refused the values it was asked with, or whose transforms did: asked elsewhere they would be
    refused again."""
    told = None if error.limit else _VALUES.fullmatch(error.reason)
    return error if told is None else InvalidSpec(told[1], told[2])


@dataclass(slots=True)
class _Loaded:
    """A model in its worker, or on its way there. failure: why it did not get there. writing: None of a model that
    does not tell the next token."""

    opened: OpenedManifest
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ready: trio.Event = field(default_factory=trio.Event)
    child: Child | None = None
    failure: CellulerError | None = None
    used_at: float = 0.0
    in_flight: int = 0
    writing: Writing | None = None


class ModelServer:
    """Runs the models of one repository. `nursery` carries the workers."""

    def __init__(
        self,
        repository: Repository,
        program: Program,
        limits: Limits,
        scratch: ScratchRoot,
        nursery: trio.Nursery,
        *,
        own: PeerId,
        confinement: Confinement,
        spares: int,
        on_start: Callable[[Isolation], None],
    ) -> None:
        """program: the worker, confined or not. confinement: which models of others than `own` may run here.

        spares: workers that wait for the next model. on_start: told which walls every worker has found.
        """
        self._on_start, self._own, self._confinement = on_start, own, confinement
        self._repository, self._nursery = repository, nursery
        # What a worker may have this node hold is no more than an answer may have.
        worker = replace(program, max_blob_bytes=MAX_ANSWER_BYTES)
        self._memory = limits.memory_bytes
        self._workers = Spares(worker, replace(limits, call_s=CALL_S), scratch, nursery, spares)
        self._loaded: dict[Digest, _Loaded] = {}

    @property
    def loaded(self) -> tuple[OpenedManifest, ...]:
        return tuple(one.opened for one in self._loaded.values() if one.child is not None)

    def busyness(self) -> dict[Digest, Load]:
        """Of each loaded model. What is asked of one is under way or waits in its slots, or else is a prediction."""
        loads = {}
        for digest, one in self._loaded.items():
            if one.child is not None:
                running, waiting, slots = (0, 0, 0) if one.writing is None else one.writing.occupied
                predicting = max(0, one.in_flight - running - waiting)
                loads[digest] = Load(min(running + predicting, MOST_TOLD), min(waiting, MOST_TOLD), slots)
        return loads

    async def predict(
        self, request: Predict, *, asker: PeerId | None = None, hints: tuple[PeerId, ...] = ()
    ) -> Predicted:
        """asker: another peer that asks, None for our own user.

        Raises NotFound, InvalidSpec for another input than the model's, Denied for an encrypted one that is not for us
        or not for the asker, and for one that needs more walls than there are here, Busy, WorkerFailed.
        """
        began = trio.current_time()
        if math.prod(request.shape) > MAX_BATCH_ITEMS:
            raise InvalidSpec("input.shape", f"{request.shape} has more than {MAX_BATCH_ITEMS} items")
        opened = await self._allowed(request.model, asker, hints)
        opened.interface.check(request.dtype, request.shape, request.output)
        answer_bytes = opened.interface.answer(request.shape[0], request.output)[2]
        if answer_bytes > (limit := MAX_ANSWER_BYTES if asker is None else MAX_DATA_BYTES):
            raise InvalidSpec("input.shape", f"asks for an answer of {answer_bytes} bytes, limit {limit}")
        loaded = await self._load(opened, hints)
        assert loaded.child is not None
        loaded.in_flight += 1
        try:
            reply = await loaded.child.call(PredictCall(request.dtype, request.shape, request.output), request.data)
        except WorkerFailed as error:
            raise blamed(error) from None
        finally:
            loaded.in_flight -= 1
            loaded.used_at = trio.current_time()
        served_ms = int(1000 * (trio.current_time() - began))
        answer = reply.record
        return Predicted(answer.dtype, answer.shape, bytes(reply.blobs[0]), opened.digest, served_ms)

    @asynccontextmanager
    async def generate(
        self, model: str, question: Question, *, asker: PeerId | None = None, hints: tuple[PeerId, ...] = ()
    ) -> AsyncIterator[Answering]:
        """What the model writes, raw: stop texts are not looked for. asker: as of `predict`.

        Raises as `predict`, InvalidSpec also for a model that does not write, and TimedOut before the answer has begun;
        one that has ends with `deadline`.
        """
        deadline_s = trio.current_time() + question.timeout_s
        with bounded(question.timeout_s, "beginning to write"):
            opened = await self._allowed(model, asker, hints)
            longest_of(opened.interface.body)
            loaded = await self._load(opened, hints)
        if loaded.writing is None:
            raise WorkerFailed("the model was unloaded")
        loaded.in_flight += 1
        try:
            async with loaded.writing.ask(question, asker or "", deadline_s) as answering:
                yield answering
        except WorkerFailed as error:
            raise blamed(error) from None
        finally:
            loaded.in_flight -= 1
            loaded.used_at = trio.current_time()

    async def unload_idle(self) -> None:
        """Let go of what nobody asked for lately; runs as long as the node."""
        while True:
            await trio.sleep(IDLE_S / 4)
            for loaded in tuple(self._loaded.values()):
                if not loaded.in_flight and loaded.ready.is_set() and trio.current_time() - loaded.used_at > IDLE_S:
                    loaded.scope.cancel()

    async def _allowed(self, model: str, asker: PeerId | None, hints: tuple[PeerId, ...]) -> OpenedManifest:
        """The model, if whoever asks may use it and it may run here. Raises NotFound, Denied."""
        opened = await self._repository.resolve(model, hints=hints)
        if asker is not None and opened.record.encrypted and asker not in opened.record.readers:
            raise Denied("this model is encrypted, and its author has not named you among its readers")
        self._confinement.require(opened.interface.kind, own=opened.signed.signer == self._own)
        return opened

    async def _load(self, opened: OpenedManifest, hints: tuple[PeerId, ...]) -> _Loaded:
        loaded = self._loaded.get(opened.digest)
        if loaded is None or (loaded.child is not None and loaded.child.ended.is_set()):  # its keeper is not done yet
            self._make_room()
            loaded = self._loaded[opened.digest] = _Loaded(opened, used_at=trio.current_time())
            self._nursery.start_soon(self._keep, loaded, hints)
        await loaded.ready.wait()
        if loaded.failure is not None:
            raise loaded.failure
        return loaded

    def _make_room(self) -> None:
        """Let the least recently used model go. Raises Busy when all are at work."""
        if len(self._loaded) < MAX_LOADED:
            return
        idle = [one for one in self._loaded.values() if not one.in_flight and one.ready.is_set()]
        if not idle:
            raise Busy(f"{MAX_LOADED} models are at work here")
        oldest = min(idle, key=lambda one: one.used_at)
        oldest.scope.cancel()
        del self._loaded[oldest.opened.digest]

    async def _keep(self, loaded: _Loaded, hints: tuple[PeerId, ...]) -> None:
        """The life of one worker: from the first request to its end, its crash, or its unloading."""
        try:
            with loaded.scope, self._repository.hold(loaded.opened):
                weights = await self._repository.sound(loaded.opened, hints=hints)
                beside = {}
                for name in (TOKENIZER, CHAT_TEMPLATE):
                    if (file := await self._repository.file(loaded.opened, name, hints=hints)) is not None:
                        beside[name] = file
                async with self._workers.open(weights, *beside.values()) as (child, paths):
                    self._on_start(child.isolation)
                    record, own = loaded.opened.record, loaded.opened.signed.signer == self._own
                    found = self._confinement.as_found(child.isolation)
                    found.require(loaded.opened.interface.kind, own=own)
                    transforms = record.preprocess, record.postprocess
                    path, *others = map(str, paths)
                    given = dict(zip(beside, others, strict=True))
                    await child.call(LoadModel(record.spec, path, record.body, *transforms, given.get(TOKENIZER, "")))
                    template = given.get(CHAT_TEMPLATE, "")
                    async with open_writing(
                        child.call,
                        loaded.opened.interface,
                        loaded.opened.digest,
                        self._memory,
                        template=template if not template or found.may_run(CHAT_TEMPLATE, own) else None,
                        on_failure=loaded.scope.cancel,
                    ) as loaded.writing:
                        loaded.child = child
                        loaded.ready.set()
                        await child.ended.wait()
                    log.info("worker_ended", model=loaded.opened.record.name, reason=child.reason)
        except CellulerError as error:
            loaded.failure = error
        finally:
            loaded.child = loaded.writing = None
            loaded.failure = loaded.failure or WorkerFailed("the model was unloaded")
            loaded.ready.set()
            if self._loaded.get(loaded.opened.digest) is loaded:
                del self._loaded[loaded.opened.digest]
