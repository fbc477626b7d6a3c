"""Workers that wait: started, confined and prepared before anybody needs them, each for the one model it will serve.

A spare is what any worker is, only earlier: a process of its own from `exec` on, in its sandbox before torch is
imported, and with nothing of a stranger's in it. It may read one folder, empty until it is taken; then the node puts
the model's files there, by links. It is handed out once and never comes back.
See docs/decisions/workers-wait-and-are-not-forked.md.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import trio

from celluler.errors import CellulerError
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits, Program
from celluler_node.processes.worker_words import Prepare
from celluler_node.scratch import ScratchRoot

QUIET_S = 20.0
"""From the last model that was begun to the next spare: whoever waits for an answer has the processor first."""
WEIGHTS_NAME = "weights"

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Spare:
    """given: the folder that it may read."""

    child: Child
    given: Path
    scope: trio.CancelScope
    gone: trio.Event = field(default_factory=trio.Event)


class Spares:
    """Opens workers, for one model each; `wanted` of them wait once there has been a first. `nursery` carries them."""

    def __init__(self, program: Program, limits: Limits, scratch: ScratchRoot, nursery: trio.Nursery, wanted: int):
        self._program, self._limits, self._scratch, self._nursery = program, limits, scratch, nursery
        self._wanted, self._starting = wanted, False
        self._idle: list[_Spare] = []
        self._began_at = 0.0

    @property
    def waiting(self) -> int:
        """How many could be taken now."""
        return len(self._idle)

    @asynccontextmanager
    async def open(self, *files: Path) -> AsyncIterator[tuple[Child, tuple[Path, ...]]]:
        """A worker that has served nobody, and the paths by which it reads these files. It ends on exit.

        Raises WorkerFailed when none can be started.
        """
        self._began_at = trio.current_time()
        if self._wanted and not self._starting:
            self._starting = True
            self._nursery.start_soon(self._refill)
        spare = await self._take(files)
        if spare is not None:
            try:
                yield spare.child, _places(spare.given, files)
            finally:
                spare.scope.cancel()
                with trio.CancelScope(shield=True):  # bounded by how the supervisor ends a process
                    await spare.gone.wait()
            return
        async with (
            self._scratch("serve") as scratch,
            open_process(self._program, limits=self._limits, readable=files, scratch=scratch) as child,
        ):
            yield child, files

    async def start_one(self) -> bool:
        """Another spare, now. True when it waits, False when it could not be started."""
        return bool(await self._nursery.start(self._wait))

    async def _take(self, files: tuple[Path, ...]) -> _Spare | None:
        """None when none waits, or when no link can be made: on another disk they would be of no use."""
        while self._idle and self._idle[-1].child.ended.is_set():
            self._idle.pop()
        if not self._idle:
            return None
        spare = self._idle.pop()
        try:
            for file, place in zip(files, _places(spare.given, files), strict=True):
                await trio.to_thread.run_sync(os.link, file.resolve(), place)
        except OSError as error:
            log.info("no_spare_workers", reason=error.strerror)
            self._wanted = 0
            spare.scope.cancel()
            return None
        except trio.Cancelled:
            spare.scope.cancel()  # nobody else knows of it any more
            raise
        return spare

    async def _refill(self) -> None:
        try:
            while trio.current_time() < (quiet_at := self._began_at + QUIET_S):  # noqa: ASYNC110  it moves on
                await trio.sleep_until(quiet_at)
            while len(self._idle) < self._wanted and await self.start_one():
                pass
        finally:
            self._starting = False

    async def _wait(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """The life of one spare. Started when it waits (True), or has failed (False): then the next model is tried."""
        started, spare = False, None
        try:
            with trio.CancelScope() as scope:
                async with self._scratch("spare") as folder:
                    given, work = folder / "given", folder / "work"
                    given.mkdir()
                    work.mkdir()
                    async with open_process(
                        self._program, limits=self._limits, readable=(given,), scratch=work
                    ) as child:
                        await child.call(Prepare())
                        spare = _Spare(child, given, scope)
                        self._idle.append(spare)
                        started = True
                        task_status.started(True)
                        await child.ended.wait()
        except (CellulerError, OSError) as error:  # such as a full disk: whoever asks next is told
            log.info("spare_worker_failed", reason=str(error))
        finally:
            if spare is not None:
                spare.gone.set()
                if spare in self._idle:
                    self._idle.remove(spare)
        if not started:
            task_status.started(False)


def _places(folder: Path, files: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(folder / (WEIGHTS_NAME if place == 0 else str(place)) for place in range(len(files)))
