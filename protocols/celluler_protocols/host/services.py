"""Runs libp2p's services (swarm, pubsub, gossip router, DHT) so that no task of theirs takes the host down.

libp2p's own runner ends a whole service at the first exception of any of its tasks, and many of those tasks
handle bytes of one peer. Here such a task ends alone, with a line in the log; only the service's main task
ends the service. It also stops in two steps: the service is told and may clean up, then it is cancelled.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

log = logging.getLogger(__name__)


class Runner:
    """The part of libp2p's ManagerAPI that its services use."""

    def __init__(self, service: Any, nursery: trio.Nursery) -> None:
        """Starts the service in `nursery`, whose cancellation is the last resort to end it."""
        self._service, self._nursery = service, nursery
        self._stopping, self._ended = trio.Event(), trio.Event()
        self.is_started = True
        service._manager = self
        nursery.start_soon(self._run)

    @property
    def is_running(self) -> bool:
        return not self._stopping.is_set()

    @property
    def is_cancelled(self) -> bool:
        return self._stopping.is_set()

    @property
    def is_finished(self) -> bool:
        return self._stopping.is_set()

    def run_task(self, function: Callable[..., Awaitable[Any]], *arguments: Any, **_: Any) -> None:
        if self.is_running:
            self._nursery.start_soon(self._alone, function, arguments)

    run_daemon_task = run_task

    def cancel(self) -> None:
        self._stopping.set()

    async def stop(self) -> None:
        self._stopping.set()

    async def wait_started(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_finished(self) -> None:
        """Services wait here for the order to stop."""
        await self._stopping.wait()

    async def wait_ended(self) -> None:
        await self._ended.wait()

    async def _run(self) -> None:
        try:
            await self._service.run()
        finally:
            self._stopping.set()
            self._ended.set()

    async def _alone(self, function: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> None:
        try:
            await function(*arguments)
        except Exception as error:
            name = getattr(function, "__qualname__", repr(function))
            log.info("libp2p_task_failed task=%s error=%r", name, error)
