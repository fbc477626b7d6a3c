"""Stages of models at work for other peers, and for this one: of each the layers asked for, in a worker of its own.

Only the tensors of those layers are fetched; every byte that is read was hashed again. A stage is shared by those who
ask for the same layers, as long as it has slots; what nobody asks for is let go. Refused: what leaves no memory for it,
what may not run here, what cannot be split, and the first time of a model what fails its test against the whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import structlog
import trio

from celluler.content.digest import Codec, Digest, cid_of
from celluler.errors import Busy, CellulerError, Denied, InvalidSpec, WorkerFailed
from celluler.identity import PeerId
from celluler.inference.hidden import WIRES
from celluler.inference.memory import WORKER_BYTES
from celluler.inference.stages import Stage, stage_of
from celluler.models.beside import CHAT_TEMPLATE, TOKENIZER
from celluler.models.manifest import OpenedManifest
from celluler.models.memory import RUNTIME_BYTES
from celluler_node.processes.confinement import Confinement
from celluler_node.processes.words import Isolation, Limits, Program
from celluler_node.processes.worker_stages_words import LoadStage
from celluler_node.repository import Repository
from celluler_node.scratch import ScratchRoot
from celluler_node.serving.spares import Spares
from celluler_node.stages.held import Held, HeldStage
from celluler_node.stages.running import RunningStage
from celluler_protocols.stages_messages import OpenStage

MAX_STAGES_HELD = 4
MOST_SLOTS = 8
"""Of one worker."""
IDLE_S = 60.0
CALL_S = 60
GIVE_BACK_S = 5.0
CHECK_S = 15.0

log = structlog.get_logger("celluler.stages")
Key = tuple[Digest, int, int, int]
"""Model, blocks, places of a slot."""


class StageServer:
    """Stages of the models of one repository. `nursery` carries their workers."""

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
        memory_bytes: int,
        on_start: Callable[[Isolation], None],
    ) -> None:
        """memory_bytes: that all stages here may take together. Others as of `ModelServer`."""
        self._repository, self._nursery, self._own = repository, nursery, own
        self._confinement, self._on_start, self._memory = confinement, on_start, memory_bytes
        self._worker_memory = limits.memory_bytes
        self._workers = Spares(program, replace(limits, call_s=CALL_S), scratch, nursery, 0)
        self._held: dict[Key, Held] = {}
        self._tested: set[bytes] = set()

    @property
    def held(self) -> tuple[Stage, ...]:
        """That are loaded."""
        return tuple(one.stage for one in self._held.values() if one.running is not None)

    @asynccontextmanager
    async def open(
        self, request: OpenStage, *, asker: PeerId | None = None, hints: tuple[PeerId, ...] = ()
    ) -> AsyncIterator[HeldStage]:
        """A stage with slots of its own for this asker, until the context is left. asker: None for our own user.

        Raises NotFound, InvalidSpec for a model that cannot be split, or not so, Denied, Busy without memory or slots,
        WorkerFailed.
        """
        if request.wire not in WIRES:
            raise InvalidSpec("wire", f"is {request.wire[:16]!r}, must be one of {', '.join(WIRES)}")
        held = await self._hold(request, asker, hints)
        held.users += 1
        slots: list[int] = []
        try:
            await held.ready.wait()
            if held.failure is not None:
                raise held.failure
            assert held.running is not None
            slots = held.running.take(request.slots)
            if not slots:
                raise Busy("all slots of this stage are in use")
            yield HeldStage(held, held.running, slots, request.wire)
        finally:
            held.users -= 1
            held.used_at = trio.current_time()
            if held.running is not None and slots:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + GIVE_BACK_S), suppress(CellulerError):
                    await held.running.give_back(slots)

    async def unload_idle(self) -> None:
        """Let go of what nobody asked for lately; runs as long as the node."""
        while True:
            await trio.sleep(CHECK_S)
            for one in tuple(self._held.values()):
                if not one.users and one.ready.is_set() and trio.current_time() - one.used_at > IDLE_S:
                    self._let_go(one)

    async def _hold(self, request: OpenStage, asker: PeerId | None, hints: tuple[PeerId, ...]) -> Held:
        opened = await self._allowed(request.model, asker, hints)
        key = Digest(request.model), request.first, request.until, request.length
        if (known := self._held.get(key)) is not None and known.failure is None:
            return known
        stage = stage_of(opened.architecture, request.first, request.until)
        longest = stage.body.input.shape[0]
        if request.length > longest:
            raise InvalidSpec("stages", f"of {request.length} places, this model looks at {longest}")
        slots, needed = self._room(stage, request)
        held = self._held[key] = Held(opened, stage, slots, request.length, needed, used_at=trio.current_time())
        self._nursery.start_soon(self._keep, key, held, hints)
        return held

    async def _allowed(self, model: bytes, asker: PeerId | None, hints: tuple[PeerId, ...]) -> OpenedManifest:
        opened = await self._repository.resolve(cid_of(Digest(model), Codec.MANIFEST), hints=hints)
        if opened.record.sealed:
            if asker is not None and asker not in opened.record.readers:
                raise Denied("this model is encrypted, and its author has not named you among its readers")
            raise InvalidSpec("stages", "an encrypted model is not split: its layers cannot be fetched apart")
        self._confinement.require(opened.interface.kind, own=opened.signed.signer == self._own)
        return opened

    def _room(self, stage: Stage, request: OpenStage) -> tuple[int, int]:
        """(slots, bytes of memory) that there is room for. Raises Busy."""
        free = self._memory - sum(one.needed_bytes for one in self._held.values())
        idle = sorted((one for one in self._held.values() if not one.users), key=lambda one: one.used_at)
        body = stage.body
        # Of narrow weights also what they become where nothing computes on them as they are stored.
        weights = stage.weight_bytes + (sum(4 * one.elements for one in stage.tensors) if body.narrow else 0)
        for slots in range(max(request.slots, MOST_SLOTS), 0, -1):
            taken = weights + stage.cached.byte_count(slots, request.length)
            if self._worker_memory is not None and RUNTIME_BYTES + taken > self._worker_memory:
                continue
            needed = WORKER_BYTES + taken
            gone: list[Held] = []
            while (needed > free or len(self._held) - len(gone) >= MAX_STAGES_HELD) and len(gone) < len(idle):
                gone.append(idle[len(gone)])
                free += gone[-1].needed_bytes
            if needed <= free and len(self._held) - len(gone) < MAX_STAGES_HELD:
                for one in gone:
                    self._let_go(one)
                return slots, needed
            free -= sum(one.needed_bytes for one in gone)
        raise Busy("there is not the memory for this stage here")

    def _let_go(self, held: Held) -> None:
        held.scope.cancel()
        self._held = {key: one for key, one in self._held.items() if one is not held}

    async def _keep(self, key: Key, held: Held, hints: tuple[PeerId, ...]) -> None:
        """The life of one worker."""
        try:
            with held.scope, self._repository.hold(held.opened):
                weights = await self._repository.sound_part(held.opened, held.stage.names, hints=hints)
                beside = {}
                if held.stage.is_first or held.stage.is_last:
                    for name in (TOKENIZER, CHAT_TEMPLATE):
                        if (file := await self._repository.file(held.opened, name, hints=hints)) is not None:
                            beside[name] = file
                async with self._workers.open(weights, *beside.values()) as (child, paths):
                    self._on_start(child.isolation)
                    record, own = held.opened.record, held.opened.signed.signer == self._own
                    found = self._confinement.as_found(child.isolation)
                    found.require(held.opened.interface.kind, own=own)
                    path, *others = map(str, paths)
                    given = dict(zip(beside, others, strict=True))
                    held.templated = CHAT_TEMPLATE not in given or found.may_run(CHAT_TEMPLATE, own)
                    loaded = await child.call(
                        LoadStage(
                            spec=record.spec,
                            weights=path,
                            first=held.stage.first,
                            until=held.stage.until,
                            slots=held.slots,
                            length=held.length,
                            preprocess=record.preprocess,
                            postprocess=record.postprocess,
                            tokenizer=given.get(TOKENIZER, ""),
                            template=given.get(CHAT_TEMPLATE, "") if held.templated else "",
                            check=record.spec not in self._tested,
                        )
                    )
                    self._tested.add(record.spec)
                    held.loaded = loaded.record
                    running = held.running = RunningStage(child.call, held.slots)
                    log.info("stage_loaded", model=record.name, first=held.stage.first, until=held.stage.until)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(running.run)
                        held.ready.set()
                        await child.ended.wait()
                        running.fail(WorkerFailed(child.reason or "the worker of a stage ended"))
                        nursery.cancel_scope.cancel()
        except CellulerError as error:
            held.failure = error
        finally:
            held.failure = held.failure or WorkerFailed("the stage was unloaded")
            if held.running is not None:
                held.running.fail(WorkerFailed("the stage was unloaded"))
            held.running = None
            held.ready.set()
            if self._held.get(key) is held:
                del self._held[key]
