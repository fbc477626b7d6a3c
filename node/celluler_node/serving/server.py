"""Models at work for whoever asks: what may be asked of which, by whom, and what comes of it.

Resolve, load, predict: a model is loaded when it is first asked for (`loading`), predictions are computed together
(`batching`), texts gone on with side by side (`writing`), and a name goes on meaning the version that is loaded until a
newer one is ready (`following`). A worker serves one model only, so nothing of one author's model ever shares a process
with another's; one may wait, prepared, before there is a model for it (`spares`). A worker that dies fails the requests
it had and is started anew by the next.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import Denied, InvalidSpec, NotFound, ProtocolViolation, WorkerFailed
from celluler.identity import PeerId
from celluler.inference.caching import longest_of
from celluler.inference.questions import Answering, Event, Question, Said
from celluler.inference.scores import Scores, open_scores
from celluler.models.manifest import OpenedManifest
from celluler.models.names import ModelName
from celluler_node.bounded import bounded
from celluler_node.callers import caller
from celluler_node.processes.confinement import Confinement
from celluler_node.processes.words import Isolation, Limits, Program
from celluler_node.processes.worker_score_words import score_call
from celluler_node.processes.worker_words import Predict as PredictCall
from celluler_node.repository import Repository
from celluler_node.scratch import ScratchRoot
from celluler_node.serving.figures import Figures
from celluler_node.serving.following import Following, parsed
from celluler_node.serving.loading import Loaded, LoadedModels, ServingRules
from celluler_node.serving.preloading import Preloading
from celluler_node.serving.spares import Spares
from celluler_protocols.generation import Load
from celluler_protocols.inference import MAX_DATA_BYTES, Predict, Predicted
from celluler_protocols.scoring import Wanted

CALL_S = 60
"""To load a model, and to predict once. A worker that takes longer is ended, and the next request gets a fresh one."""
MAX_BATCH_ITEMS = 1 << 22
MOST_TOLD = (1 << 16) - 1
MAX_ANSWER_BYTES = 1 << 28
"""For our own user; for other peers what the protocol carries. A seed of 8 bytes may ask for a large sample."""
LEASE = "lease"
LOAD_S = 600.0

_VALUES = re.compile(
    r"worker: InvalidSpec: ((?:input|prompt|tokens|messages|schema|preprocess|postprocess)[\w.\[\]]{0,128}): (.+)",
    re.DOTALL,
)

log = structlog.get_logger()


def blamed(error: WorkerFailed) -> InvalidSpec | WorkerFailed:
    """Of a worker that refused the values it was asked with, or whose transforms did: asked elsewhere they would be
    refused again."""
    told = None if error.limit else _VALUES.fullmatch(error.reason)
    return error if told is None else InvalidSpec(told[1], told[2])


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
        rules: ServingRules | None = None,
    ) -> None:
        """program: the worker, confined or not. confinement: which models of others than `own` may run here.

        spares: workers that wait for the next model. on_start: told which walls every worker has found.
        """
        self._own, self._confinement, self._repository, self._nursery = own, confinement, repository, nursery
        self.rules, self.figures = rules or ServingRules(), Figures()
        # What a worker may have this node hold is no more than an answer may have.
        worker = replace(program, max_blob_bytes=MAX_ANSWER_BYTES)
        self.models = LoadedModels(
            repository,
            Spares(worker, replace(limits, call_s=CALL_S), scratch, nursery, spares),
            nursery,
            self.rules,
            own=own,
            confinement=confinement,
            worker_bytes=limits.memory_bytes,
            on_start=on_start,
            on_batch=self.figures.batch,
            on_loaded=self.figures.loaded,
        )
        self.following = Following(repository, self.models, nursery, self._may_run)
        self.preloading = Preloading(self.models, self.following, lambda model: self._allowed(model, None, ()))

    @property
    def loaded(self) -> tuple[OpenedManifest, ...]:
        return tuple(one.opened for one in self.models if one.serves)

    def busyness(self) -> dict[Digest, Load]:
        """Of each loaded model. What is asked of one is under way or waits in its slots, or else is a prediction."""
        loads = {}
        for one in self.models:
            if one.serves:
                running, waiting, slots = (0, 0, 0) if one.writing is None else one.writing.occupied
                queued = 0 if one.batching is None else one.batching.waiting
                predicting = max(0, one.at_work - running - waiting - queued)
                waiting += queued
                loads[one.opened.digest] = Load(min(running + predicting, MOST_TOLD), min(waiting, MOST_TOLD), slots)
        return loads

    # --- asking ------------------------------------------------------------------------------------------------------

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
        async with self.models.using(opened, hints) as loaded:
            if asker is None:
                self.following.follow(request.model, opened)
            if loaded.batching is None:
                raise loaded.failure or WorkerFailed("the model was unloaded")
            loaded.requests.add(1, trio.current_time())
            call = PredictCall(request.dtype, request.shape, request.output)
            try:
                told = await loaded.batching.ask(call, request.data, _client(asker))
            except WorkerFailed as error:
                raise blamed(error) from None
        served_ms = int(1000 * (trio.current_time() - began))
        return Predicted(told.dtype, told.shape, told.data, opened.digest, served_ms)

    @asynccontextmanager
    async def generate(
        self, model: str, question: Question, *, asker: PeerId | None = None, hints: tuple[PeerId, ...] = ()
    ) -> AsyncIterator[Answering]:
        """What the model writes, raw: stop texts are not looked for. asker: as of `predict`.

        Raises as `predict`, InvalidSpec also for a model that does not write, and TimedOut before the answer has begun;
        one that has ends with `deadline`.
        """
        deadline_s = trio.current_time() + question.timeout_s
        async with AsyncExitStack() as stack:
            with bounded(question.timeout_s, "beginning to write"):
                opened = await self._allowed(model, asker, hints)
                longest_of(opened.interface.body)
                loaded = await stack.enter_async_context(self.models.using(opened, hints))
            if asker is None:
                self.following.follow(model, opened)
            if loaded.writing is None:
                raise loaded.failure or WorkerFailed("the model was unloaded")
            loaded.requests.add(1, trio.current_time())
            try:
                async with loaded.writing.ask(question, _client(asker), deadline_s) as answering:
                    yield _Counted(answering, loaded)
            except WorkerFailed as error:
                raise blamed(error) from None

    async def score(
        self, wanted: Wanted, *, asker: PeerId | None = None, hints: tuple[PeerId, ...] = ()
    ) -> tuple[Digest, Scores]:
        """(the model that scored, what it says of claimed tokens). asker: as of `predict`.

        Raises as `predict`, InvalidSpec also for a model that does not write, or that no token ends answers of.
        """
        opened = await self._allowed(wanted.model, asker, hints)
        longest_of(opened.interface.body)
        claim = replace(wanted.claim, ends=tuple(sorted(opened.interface.ends)) if wanted.ended else ())
        if wanted.ended and not claim.ends:
            raise InvalidSpec("ended", "and no token ends answers of this model")
        async with self.models.using(opened, hints) as loaded:
            if loaded.child is None:
                raise loaded.failure or WorkerFailed("the model was unloaded")
            request, blobs = score_call(claim, wanted.slack)
            try:
                reply = await loaded.child.call(request, *blobs)
            except WorkerFailed as error:
                raise blamed(error) from None
        try:
            return opened.digest, open_scores(bytes(reply.blobs[0]), claim.rows)
        except ProtocolViolation as error:
            raise WorkerFailed(f"the worker's scores are none: {error}") from None

    # --- loading -----------------------------------------------------------------------------------------------------

    async def load(self, model: str) -> OpenedManifest:
        """Have it ready for our own user. Raises as `predict`, TimedOut."""
        with bounded(LOAD_S, f"loading {model}"):
            opened = await self._allowed(model, None, ())
            self.preloading.dismissed.discard(opened.digest)
            async with self.models.using(opened):
                self.following.follow(model, opened)
        return opened

    async def unload(self, model: str) -> OpenedManifest:
        """It ends what it has, and then its worker ends. Raises NotFound for one that is not loaded."""
        opened = await self._resolved(model, ())
        gone = self.models.unload(opened.digest)
        if gone is None:
            raise NotFound(f"{model} among the loaded models", hint="celluler ps")
        self.preloading.dismissed.add(opened.digest)
        with bounded(LOAD_S, f"unloading {model}"):
            await gone.wait()
        return opened

    async def keep(self, model: str, until_s: float, *, asker: PeerId | None, hints: tuple[PeerId, ...] = ()) -> None:
        """Load it, if it is not, and let it stay until then (`trio.current_time`) at least: no other model takes its
        place. Of several calls the last counts. Raises as `predict`."""
        opened = await self._allowed(model, asker, hints)
        async with self.models.using(opened, hints):
            self.models.keep(opened.digest, until_s, LEASE)

    def let_go(self, model: Digest) -> None:
        """What `keep` has asked for is wanted no more."""
        self.models.let_go(model, LEASE)

    async def unload_idle(self) -> None:
        """Let go of what nobody asked for lately; runs as long as the node."""
        await self.models.unload_idle()

    async def run(self) -> None:
        """Preload, follow names, and unload what is idle; runs as long as the node."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.models.unload_idle)
            nursery.start_soon(self.following.watch)
            for model in self.rules.preload:
                nursery.start_soon(self.preloading.stay, model)

    # --- who may -----------------------------------------------------------------------------------------------------

    def current(self, model: str) -> OpenedManifest | None:
        """What a name or a CID means by what is loaded here, without asking anybody; None where that is nothing."""
        if (opened := self.following.current(model)) is not None:
            return opened
        meant = parsed(model)
        if isinstance(meant, ModelName):
            return None
        loaded = self.models.find(meant)
        return None if loaded is None else loaded.opened

    def follow(self, model: str, opened: OpenedManifest) -> None:
        """A name that our own user asked by goes on meaning what is loaded here, if that is, until a newer one is."""
        if self.models.find(opened.digest) is not None:
            self.following.follow(model, opened)

    async def _resolved(self, model: str, hints: tuple[PeerId, ...]) -> OpenedManifest:
        return self.current(model) or await self._repository.resolve(model, hints=hints)

    async def _allowed(self, model: str, asker: PeerId | None, hints: tuple[PeerId, ...]) -> OpenedManifest:
        """The model, if whoever asks may use it and it may run here. Raises NotFound, Denied."""
        opened = await self._resolved(model, hints)
        if asker is not None and opened.record.encrypted and asker not in opened.record.readers:
            raise Denied("this model is encrypted, and its author has not named you among its readers")
        self._may_run(opened)
        return opened

    def _may_run(self, opened: OpenedManifest) -> None:
        self._confinement.require(opened.interface.kind, own=opened.signed.signer == self._own)


def _client(asker: PeerId | None) -> str:
    """Who shares fairly, and beginnings of prompts with nobody else: a peer, an API key, or our own user."""
    return asker or (f"key {client}" if (client := caller().client) else "")


class _Counted:
    """An answer of which the tokens are counted."""

    def __init__(self, answering: Answering, loaded: Loaded) -> None:
        self._answering, self._loaded = answering, loaded
        self._events, self.begun = aiter(answering), answering.begun

    def __aiter__(self) -> _Counted:
        return self

    async def __anext__(self) -> Event:
        event = await anext(self._events)
        if isinstance(event, Said):
            self._loaded.tokens.add(len(event.tokens), trio.current_time())
        return event

    def stop(self, choice: int) -> None:
        self._answering.stop(choice)
