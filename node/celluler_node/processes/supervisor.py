"""Starts a process of ours, speaks with it, knows why it ended, and leaves nothing of it behind.

One for all kinds. What a process is and which words it knows stands in its `Program`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
import trio

from celluler.errors import LocalError, ProtocolViolation, WorkerFailed
from celluler_node.processes import launch
from celluler_node.processes.channel import Channel, printable
from celluler_node.processes.exits import End, end_of, kill_session
from celluler_node.processes.frames import Blob, encode
from celluler_node.processes.stderr import Tail
from celluler_node.processes.watching import LOOK_S, Watch
from celluler_node.processes.words import Isolation, Kind, Limits, Program, Reply

POLITE_S = 2.0
"""From the end of the channel to SIGTERM."""
TERMINATE_S = 1.0
"""From SIGTERM to SIGKILL."""
REAP_S = 5.0
"""From SIGKILL until we give up on a process that the kernel does not let go."""
DRAIN_S = 0.5
"""For what is still in the socket and in stderr once the process has ended."""

_POLL_S = 0.05

_log = structlog.get_logger("celluler.processes")


class Child:
    """A process that runs. `events` holds what it says unasked. When it has gone `ended` is set, `reason` says why,
    and `limit` which of its limits it ran into, if that was it."""

    def __init__(
        self, program: Program, pid: int, channel: Channel, call_s: float | None, end: Callable[[End], None]
    ) -> None:
        """end: has it killed, for a reason."""
        self.program, self.pid = program, pid
        self.events: trio.MemoryReceiveChannel[Any] = channel.events
        self.ended = trio.Event()
        self.reason: str | None = None
        self.limit: str | None = None
        self._channel, self._call_s, self._end = channel, call_s, end

    @property
    def isolation(self) -> Isolation:
        """Which walls stand around it."""
        assert self._channel.isolation is not None, "a child is handed out when it is ready"
        return self._channel.isolation

    async def call(self, request: Any, *blobs: Blob) -> Reply:
        """Ask, and wait for the answer; calls may run side by side. The blobs must not change until this returns.

        Raises WorkerFailed with the reason when the process answers with an error, or ends, or does not answer within
        `Limits.call_s`: then it is killed, since nothing else stops what it does.
        """
        if self._call_s is None:
            return await self._channel.call(request, *blobs)
        with trio.move_on_after(self._call_s):
            return await self._channel.call(request, *blobs)
        self._end(End(f"time limit of {self._call_s:g} s for one call", "time"))
        await self.ended.wait()
        raise WorkerFailed(f"{self.program.name}: {self.reason}", limit=self.limit)


@asynccontextmanager
async def open_process(
    program: Program, *, limits: Limits, readable: Sequence[Path] = (), scratch: Path
) -> AsyncIterator[Child]:
    """Ready on entry, gone with all its descendants on exit.

    readable: what a confined process may read beside Python and our own code. scratch: an existing folder, its
    working and temporary folder and the only one that a confined process may write; the caller removes it.
    Raises WorkerFailed when it does not become ready.
    """
    keeper = _Keeper(program, limits, readable, scratch)
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.attend)
        try:
            await keeper.ready()
            yield keeper.child
        except BaseException as error:  # raised below as it is: the nursery would wrap it in a group
            failure = error
        await keeper.stop()
    keeper.close()
    if failure is not None:
        raise failure


class _Keeper:
    """Owns the process, its socket and its output."""

    def __init__(self, program: Program, limits: Limits, readable: Sequence[Path], scratch: Path) -> None:
        if not scratch.is_dir():
            raise LocalError(f"no such folder: {scratch}")
        for path in readable:
            if not os.access(path, os.R_OK):
                raise LocalError(f"cannot be read: {path}")
        boot = encode(Kind.BOOT, launch.boot(program, limits, readable, scratch))
        self._program, self._limits = program, limits
        self._scope = trio.CancelScope(shield=True)
        self._exited, self._received = trio.Event(), trio.Event()
        self._scratch = scratch
        self._stopping = False
        self._fault: End | None = None
        self._cpu_s = 0.0
        self._popen, self._channel = _start(program, limits, scratch)
        self._log = _log.bind(process=program.name, pid=self._popen.pid)
        assert self._popen.stdout is not None
        with self._popen.stdout:
            self._tail = Tail(self._popen.stdout.fileno(), self._log)
        self.child = Child(program, self._popen.pid, self._channel, limits.call_s, self._put_an_end)
        self._channel.open(boot)

    async def ready(self) -> None:
        with trio.move_on_after(self._program.ready_s):
            isolation = await self._channel.ready()
            self._log.info("process.ready", isolated=isolation.full, missing=isolation.missing)
            return
        last = next(reversed(self._tail.lines), "")
        raise WorkerFailed(
            f"{self._program.name}: not ready within {self._program.ready_s:g} s" + (last and f": {last}")
        )

    async def attend(self) -> None:
        """All that goes on beside the caller. Shielded: it ends when the process has, and `stop` sees to that."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tail.read)
                nursery.start_soon(self._channel.send)
                nursery.start_soon(self._receive)
                if self._program.confined or self._limits.disk_bytes is not None:
                    nursery.start_soon(self._watch)
                await self._exit()
                for drained in (self._received, self._tail.ended):  # a descendant may hold either open
                    with trio.move_on_after(DRAIN_S):
                        await drained.wait()
                self._conclude(
                    self._fault or end_of(self._popen.returncode, self._tail.lines, self._limits, self._cpu_s)
                )
                nursery.cancel_scope.cancel()

    async def stop(self) -> None:
        """End of the channel, then SIGTERM, then SIGKILL, each under its deadline; then nothing of it is left."""
        with trio.CancelScope(shield=True):
            self._stopping = True
            self._channel.finish()
            if self._channel.isolation is None:  # still importing: it reads nothing yet, and holds nothing
                self._signal(signal.SIGKILL)
            for wait_s, then in ((POLITE_S, signal.SIGTERM), (TERMINATE_S, signal.SIGKILL), (REAP_S, None)):
                with trio.move_on_after(wait_s):
                    await self.child.ended.wait()
                    break
                if then is not None:
                    self._signal(then)
            else:
                self._log.warning("process.stuck")
                self._conclude(End("the kernel does not let go of it"))
            self._scope.cancel()

    def close(self) -> None:
        """Only when `attend` has returned: a task that waits for a socket must not find another one in its place."""
        self._channel.close()

    async def _receive(self) -> None:
        """Run the channel to its end. A process that ends it unasked, or breaks its rules, has to go."""
        try:
            await self._channel.receive()
        except ProtocolViolation as error:
            self._put_an_end(End(f"broke the protocol of its channel: {printable(str(error))}"))
        self._received.set()
        with trio.move_on_after(POLITE_S):
            await self._exited.wait()
        if not self._exited.is_set() and not self._stopping:
            self._put_an_end(End("closed its channel and stayed"))

    async def _watch(self) -> None:
        watch = Watch(self._popen.pid, self._limits, self._scratch)
        while not self._exited.is_set():
            await trio.sleep(LOOK_S)
            if self._channel.isolation is None:
                continue  # it sets itself up, under a deadline of its own
            if (
                passed := await trio.to_thread.run_sync(watch.look, self._channel.work, trio.current_time())
            ) is not None:
                self._put_an_end(passed)
                return

    def _put_an_end(self, why: End) -> None:
        """Kill it. What is wrong with it first is the reason that counts."""
        if not self._exited.is_set():
            self._fault = self._fault or why
            self._signal(signal.SIGKILL)

    async def _exit(self) -> None:
        """Wait until the process has ended, take its descendants with it, and only then give up its number."""
        if hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(self._popen.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
            kill_session(self._popen.pid)
            self._reap()
        else:
            while self._popen.poll() is None:  # noqa: ASYNC110  there is no event to wait for on this system
                await trio.sleep(_POLL_S)
            kill_session(self._popen.pid)
        self._exited.set()

    def _reap(self) -> None:
        """As `Popen.wait`, which does not tell what the process has used."""
        try:
            _, status, used = os.wait4(self._popen.pid, 0)
        except ChildProcessError:  # reaped already, by whoever polled it
            self._popen.wait()
            return
        self._popen.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_s = used.ru_utime + used.ru_stime

    def _conclude(self, end: End) -> None:
        self.child.reason, self.child.limit = end.reason, end.limit
        self._channel.fail(f"{self._program.name}: {end.reason}", end.limit)
        self._log.info("process.ended", reason=end.reason, limit=end.limit, asked=self._stopping)
        self.child.ended.set()

    def _signal(self, number: signal.Signals) -> None:
        if not self._exited.is_set():
            with contextlib.suppress(OSError):
                os.killpg(self._popen.pid, number)


def _start(program: Program, limits: Limits, scratch: Path) -> tuple[subprocess.Popen[bytes], Channel]:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            return launch.start(program, limits, scratch, theirs), Channel(ours, program)
        except OSError as error:
            ours.close()
            raise WorkerFailed(f"{program.name}: cannot be started: {error.strerror}") from error
