"""Models in workers, within a budget of memory: one worker a model, from fetching its weights to the worker's end.

    fetching → verifying → building → warming → ready → leaving

Whoever asks for a model waits until it is ready, and it stays while anybody asks or keeps it. One that must make room,
was idle too long or is told to go is found no longer by new requests, ends what it has, and then ends. A model that
comes in the place of others waits until their memory is free. What goes wrong on the way, a full disk included, is told
to those who wait, and the next request begins anew.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import CellulerError, InvalidSpec, Unavailable, WorkerFailed
from celluler.identity import PeerId
from celluler.inference.memory import Room, bytes_served
from celluler.inference.rates import Rate
from celluler.inference.together import needs_trial
from celluler.models.beside import CHAT_TEMPLATE, TOKENIZER
from celluler.models.body import Body
from celluler.models.manifest import OpenedManifest
from celluler_node.processes.confinement import Confinement
from celluler_node.processes.supervisor import Child
from celluler_node.processes.words import Isolation
from celluler_node.processes.worker_words import LoadModel, WarmUp
from celluler_node.repository import Repository
from celluler_node.serving.batching import Batching, open_batching
from celluler_node.serving.spares import Spares
from celluler_node.serving.writing import Writing, bytes_beside_slots, open_writing, room_of

CACHE_SHARE = 4
"""Keys and values of one model's sequences take so great a part of the budget at most: a quarter."""
MIN_SWEEP_S, MAX_SWEEP_S = 0.5, 30.0
"""Between two looks for models that are idle."""

log = structlog.get_logger()


class State(StrEnum):
    """Where a model is on its way."""

    FETCHING = "fetching"
    VERIFYING = "verifying"
    BUILDING = "building"
    WARMING = "warming"
    READY = "ready"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class ServingRules:
    """memory_bytes: of all workers that serve models. idle_s: after which a model that nobody asks for is unloaded, 0
    for never. batch: samples computed together, 1 to compute every prediction alone. queue: predictions of one model
    that may wait. preload: models that are loaded at the start and stay."""

    memory_bytes: int = 8 << 30
    idle_s: float = 300.0
    batch: int = 32
    queue: int = 256
    preload: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Loaded:
    """A model in its worker, or on its way there. failure: why it did not get there, or is there no more.

    writing: None of a model that does not tell the next token. loading_s: from the first request to ready. device,
    dtype: on what and in what it computes, once it is built.
    """

    opened: OpenedManifest
    byte_count: int
    began_s: float
    used_s: float
    state: State = State.FETCHING
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ready: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    child: Child | None = None
    batching: Batching | None = None
    writing: Writing | None = None
    failure: CellulerError | None = None
    loading_s: float | None = None
    device: str = ""
    dtype: str = ""
    requests: Rate = field(default_factory=Rate)
    batches: Rate = field(default_factory=Rate)
    samples: Rate = field(default_factory=Rate)
    tokens: Rate = field(default_factory=Rate)
    at_work: int = 0

    @property
    def serves(self) -> bool:
        return self.state is State.READY and self.child is not None and not self.child.ended.is_set()


class LoadedModels:
    """Those of one node. `nursery` carries them.

    on_start: told which walls every worker has found. on_batch: the samples of every batch. on_loaded: seconds that a
    model took to be ready, or None for one that did not get there.
    """

    def __init__(
        self,
        repository: Repository,
        workers: Spares,
        nursery: trio.Nursery,
        rules: ServingRules,
        *,
        own: PeerId,
        confinement: Confinement,
        worker_bytes: int | None,
        on_start: Callable[[Isolation], None],
        on_batch: Callable[[int], None] = lambda _: None,
        on_loaded: Callable[[float | None], None] = lambda _: None,
    ) -> None:
        """worker_bytes: what one worker may take."""
        self._repository, self._workers, self._nursery, self._rules = repository, workers, nursery, rules
        self._own, self._confinement, self._worker_bytes = own, confinement, worker_bytes
        self._on_start, self._on_batch, self._on_loaded = on_start, on_batch, on_loaded
        self._room: Room[Loaded] = Room(rules.memory_bytes)
        self._found: dict[Digest, Loaded] = {}

    def __iter__(self) -> Iterator[Loaded]:
        """Those that can be asked for, in the order in which they were."""
        return iter(tuple(self._found.values()))

    @property
    def used_bytes(self) -> int:
        return self._room.used_bytes

    @property
    def limit_bytes(self) -> int:
        return self._room.limit_bytes

    def find(self, digest: Digest) -> Loaded | None:
        """One that is ready or on its way."""
        loaded = self._found.get(digest)
        return None if loaded is None or (loaded.child is not None and loaded.child.ended.is_set()) else loaded

    def kept_until(self, loaded: Loaded) -> float | None:
        """By trio's clock, infinite for one that stays; None for one that nobody keeps."""
        held = self._room.of(loaded)
        return None if held is None else held.kept_until(trio.current_time())

    @asynccontextmanager
    async def using(self, opened: OpenedManifest, hints: tuple[PeerId, ...] = ()) -> AsyncIterator[Loaded]:
        """The model at work, loaded first if need be; it does not go before the end.

        Raises Busy, Unavailable when there is no room for it, WorkerFailed, and as `Repository.sound`.
        """
        loaded = self.find(opened.digest) or self._begin(opened, hints)
        with self._at_work(loaded):
            await loaded.ready.wait()
            if loaded.failure is not None:
                raise loaded.failure
            yield loaded

    def keep(self, digest: Digest, until_s: float, who: str = "") -> bool:
        """It does not make room for others before then, by trio's clock. who: each that keeps it lets go of it by
        itself. False for a model that is not loaded."""
        loaded = self.find(digest)
        if loaded is not None:
            self._room.keep(loaded, until_s, who)
        return loaded is not None

    def let_go(self, digest: Digest, who: str = "") -> None:
        """That one keeps it no more."""
        if (loaded := self.find(digest)) is not None:
            self._room.let_go(loaded, who)

    def unload(self, digest: Digest) -> trio.Event | None:
        """It serves no new request, ends those it has, and then ends; kept or not. None for one that is not loaded.

        The event is set when its memory is free.
        """
        if (loaded := self.find(digest)) is None:
            return None
        self._leave(loaded)
        return loaded.gone

    async def unload_idle(self) -> None:
        """Let go of what nobody asked for lately; runs as long as the node."""
        while True:
            await trio.sleep(min(MAX_SWEEP_S, max(MIN_SWEEP_S, self._rules.idle_s / 4)))
            for loaded in self._room.idle(trio.current_time(), self._rules.idle_s):
                log.info("model_idle", model=loaded.opened.record.name)
                self._leave(loaded)

    # --- coming and going ------------------------------------------------------------------------------------------

    def _begin(self, opened: OpenedManifest, hints: tuple[PeerId, ...]) -> Loaded:
        body, now = opened.interface.body, trio.current_time()
        loaded = Loaded(opened, self._byte_count(body), now, time.time())
        going = self._room.take(loaded, loaded.byte_count, now)
        for one in going:
            log.info("model_makes_room", model=one.opened.record.name, for_model=opened.record.name)
            self._leave(one)
        self._found[opened.digest] = loaded
        self._nursery.start_soon(self._live, loaded, hints, going)
        return loaded

    def _byte_count(self, body: Body) -> int:
        try:
            room = room_of(body, self._writing_bytes(body))
        except InvalidSpec:  # it does not generate
            return bytes_served(body)
        return bytes_served(body, room.slots, room.length)

    def _writing_bytes(self, body: Body) -> int:
        """What a worker may take that holds sequences too: those of one model are not to fill the whole budget."""
        most = bytes_beside_slots(body) + self._rules.memory_bytes // CACHE_SHARE
        return most if self._worker_bytes is None else min(self._worker_bytes, most)

    def _leave(self, loaded: Loaded) -> None:
        if self._found.get(loaded.opened.digest) is loaded:
            del self._found[loaded.opened.digest]
        loaded.state = State.LEAVING
        if not loaded.at_work:
            loaded.scope.cancel()

    @contextmanager
    def _at_work(self, loaded: Loaded) -> Iterator[None]:
        self._room.begin(loaded, trio.current_time())
        loaded.at_work += 1
        try:
            yield
        finally:
            loaded.at_work -= 1
            loaded.used_s = time.time()
            self._room.end(loaded, trio.current_time())
            if loaded.state is State.LEAVING and not loaded.at_work:
                loaded.scope.cancel()

    async def _live(self, loaded: Loaded, hints: tuple[PeerId, ...], before: tuple[Loaded, ...]) -> None:
        """The life of one worker: from the first request to its end, its crash, or its unloading."""
        name = loaded.opened.record.name
        try:
            with loaded.scope, self._repository.hold(loaded.opened):
                await self._serve(loaded, hints, before)
        except CellulerError as error:
            loaded.failure = error
        except OSError as error:  # of our store: a full or broken disk is no reason for the node to end
            log.warning("model_not_loaded", model=name, error=str(error))
            loaded.failure = Unavailable(f"{name} cannot be loaded here: {error.strerror or error}")
        finally:
            if loaded.loading_s is None and loaded.state is not State.LEAVING:
                self._on_loaded(None)
            loaded.child = loaded.batching = loaded.writing = None
            loaded.failure = loaded.failure or WorkerFailed("the model was unloaded")
            loaded.state = State.LEAVING
            if self._found.get(loaded.opened.digest) is loaded:
                del self._found[loaded.opened.digest]
            self._room.drop(loaded)
            loaded.ready.set()
            loaded.gone.set()

    async def _serve(self, loaded: Loaded, hints: tuple[PeerId, ...], before: tuple[Loaded, ...]) -> None:
        """Until its scope is cancelled. Raises why it was not loaded, WorkerFailed once it has ended."""
        opened, repository = loaded.opened, self._repository
        record, interface, own = opened.record, opened.interface, opened.signed.signer == self._own
        weights = await repository.sound(opened, hints=hints, on_fetched=lambda: _reach(loaded, State.VERIFYING))
        beside = {}
        for name in (TOKENIZER, CHAT_TEMPLATE):
            if (file := await repository.file(opened, name, hints=hints)) is not None:
                beside[name] = file
        for one in before:
            await one.gone.wait()  # bounded by how the supervisor ends a process
        _reach(loaded, State.BUILDING)
        async with self._workers.open(weights, *beside.values()) as (child, paths):
            self._on_start(child.isolation)
            found = self._confinement.as_found(child.isolation)
            found.require(interface.kind, own=own)
            path, *others = map(str, paths)
            given = dict(zip(beside, others, strict=True))
            transforms = record.preprocess, record.postprocess
            load = LoadModel(record.spec, path, record.body, *transforms, given.get(TOKENIZER, ""))
            built = (await child.call(load)).record
            loaded.device, loaded.dtype = built.device, built.dtype
            _reach(loaded, State.WARMING)
            warm = (await child.call(WarmUp(trial=needs_trial(interface)))).record
            template = given.get(CHAT_TEMPLATE, "")
            async with (
                open_batching(
                    child.call,
                    interface,
                    samples=self._rules.batch,
                    queue=self._rules.queue,
                    apart=warm.apart,
                    ended=child.ended.is_set,
                    on_batch=lambda samples: self._note_batch(loaded, samples),
                ) as loaded.batching,
                open_writing(
                    child.call,
                    interface,
                    opened.digest,
                    self._writing_bytes(interface.body),
                    template=template if not template or found.may_run(CHAT_TEMPLATE, own) else None,
                    on_failure=loaded.scope.cancel,
                ) as loaded.writing,
            ):
                loaded.child = child
                loaded.loading_s = trio.current_time() - loaded.began_s
                self._on_loaded(loaded.loading_s)
                _reach(loaded, State.READY)
                loaded.ready.set()
                await child.ended.wait()
                log.info("worker_ended", model=record.name, reason=child.reason)
                raise WorkerFailed(f"worker: {child.reason}", limit=child.limit)  # what all who wait are told

    def _note_batch(self, loaded: Loaded, samples: int) -> None:
        now = trio.current_time()
        loaded.batches.add(1, now)
        loaded.samples.add(samples, now)
        self._on_batch(samples)


def _reach(loaded: Loaded, state: State) -> None:
    if loaded.state is not State.LEAVING:
        loaded.state = state
