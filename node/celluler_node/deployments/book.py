"""This node's deployments: what they are, kept in a file of their own, and what became of their requests since it runs.

Knows neither peers nor models: replicas are got by `control`, answers by `answers/deployments`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from celluler.errors import Busy, CellulerError, InvalidSpec, LocalError, NotFound, PeerViolation, Unavailable
from celluler.failures import describe_error
from celluler.identity import PeerId
from celluler.inference.deployments import WHOLE, Arm, Deployment, arm_of
from celluler.inference.deployments_counts import ArmCounts
from celluler.inference.deployments_file import MAX_DEPLOYMENTS, read_deployments, write_deployments
from celluler.inference.scaling import Demand, Scaler
from celluler.inference.scaling_replicas import Replicas
from celluler_node.callers import caller

COLD_START_S = 60.0
"""How long a request waits for the first replica. Then it is asked as any model is, here or at whoever serves."""
MAX_COMPARING = 4
"""Questions asked of a second arm at once; one more is not asked."""

log = structlog.get_logger()

Change = Callable[[Deployment], Deployment]


@dataclass(slots=True)
class ArmState:
    """One version of one deployment at work. failure: of the last attempt to get a replica. hopeless: as things are,
    nobody is being asked for one. holders: peers that have the weights, as of `looked_s`. moved: set, and replaced,
    when replicas come or go."""

    counts: ArmCounts = field(default_factory=ArmCounts)
    demand: Demand = field(default_factory=Demand)
    scaler: Scaler = field(default_factory=Scaler)
    replicas: Replicas = field(default_factory=Replicas)
    wanted: int = 0
    failure: str = ""
    hopeless: bool = False
    holders: frozenset[PeerId] = frozenset()
    looked_s: float = float("-inf")
    moved: trio.Event = field(default_factory=trio.Event)

    def move(self) -> None:
        self.moved.set()
        self.moved = trio.Event()


@dataclass(frozen=True, slots=True)
class Asked:
    """A request under way, and the arm that it goes to."""

    deployment: Deployment
    arm: Arm
    state: ArmState

    def answered(self, began: float, *, samples: int = 0, prompt: int = 0, generated: int = 0) -> None:
        self.state.counts.answered(trio.current_time() - began, samples=samples, prompt=prompt, generated=generated)

    def failed(self, error: CellulerError) -> None:
        self.state.counts.failed(str(describe_error(error)["type"]))


class Deployments:
    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, trio.Lock()
        self._all = _load(file)
        self._states: dict[tuple[str, str], ArmState] = {}
        self._compare_due: dict[str, int] = {}
        self.woken = trio.Event()
        self.comparing = trio.CapacityLimiter(MAX_COMPARING)

    @property
    def all(self) -> tuple[Deployment, ...]:
        return tuple(self._all[name] for name in sorted(self._all))

    def get(self, name: str) -> Deployment:
        """Raises NotFound."""
        if name not in self._all:
            raise NotFound(f"deployment {name[:64]}", hint="celluler deploy ls")
        return self._all[name]

    async def add(self, deployment: Deployment) -> Deployment:
        """Raises LocalError for a name that is taken, or when there are too many."""
        async with self._lock:
            if deployment.name in self._all:
                raise LocalError(f"{deployment.reference} is there already", hint="celluler deploy update")
            if len(self._all) >= MAX_DEPLOYMENTS:
                raise LocalError(f"there are {MAX_DEPLOYMENTS} deployments, as many as may be")
            await self._keep({**self._all, deployment.name: deployment})
        return deployment

    async def change(self, name: str, change: Change) -> Deployment:
        """What it is after the change, written down. Raises NotFound, and what `change` raises."""
        async with self._lock:
            changed = change(self.get(name))
            await self._keep({**self._all, name: changed})
        return changed

    async def remove(self, name: str) -> None:
        """Raises NotFound."""
        async with self._lock:
            self.get(name)
            await self._keep({key: one for key, one in self._all.items() if key != name})

    def wake(self) -> None:
        """Something changed that replicas depend on."""
        self.woken.set()

    def state(self, name: str, cid: str) -> ArmState:
        return self._states.setdefault((name, cid), ArmState())

    @property
    def states(self) -> tuple[tuple[str, str, ArmState], ...]:
        """(deployment, cid, state), of versions that are no part of it any more, too."""
        return tuple((name, cid, state) for (name, cid), state in self._states.items())

    def forget(self, name: str, cid: str) -> None:
        self._states.pop((name, cid), None)

    @contextmanager
    def asked(self, name: str, session: str) -> Iterator[Asked]:
        """A request, from its coming to its end. Raises NotFound."""
        deployment = self.get(name)
        arm = arm_of(deployment, session)
        state = self.state(name, arm.cid)
        began, failed = trio.current_time(), True
        state.demand.begin()
        if not (state.replicas.all or state.hopeless):
            self.wake()
        try:
            yield Asked(deployment, arm, state)
            failed = False
        finally:
            now = trio.current_time()
            state.demand.end(None if failed else now - began, now)

    async def warm(self, asked: Asked) -> None:
        """Wait for a replica, as long as one is on its way and it is worth it."""
        state = asked.state
        if state.replicas.ready or state.hopeless:
            return
        with trio.move_on_after(COLD_START_S):
            while not (state.replicas.ready or state.hopeless):
                await state.moved.wait()

    @contextmanager
    def preferring(self, asked: Asked) -> Iterator[None]:
        """A block whose questions go to the replicas before others. What fails in it makes them doubtful."""
        one, state = caller(), asked.state
        before, one.preferred = one.preferred, state.replicas.ready
        try:
            yield
        except (PeerViolation, Unavailable) as error:
            if not isinstance(error, Busy):
                self.doubt(asked)
            raise
        finally:
            one.preferred = before

    def answered_by(self, asked: Asked, peer: str) -> None:
        """Another than the replicas had to answer: let them say anew that they are there."""
        if asked.state.replicas.ready and peer not in asked.state.replicas.ready:
            self.doubt(asked)

    def doubt(self, asked: Asked) -> None:
        for peer in asked.state.replicas.ready:
            asked.state.replicas.doubt(peer, trio.current_time())
        self.wake()

    def due_for_comparison(self, deployment: Deployment, arm: Arm) -> Arm | None:
        """The arm that this request is to be asked of, too: every so many of them, as its share says."""
        if not deployment.compare or len(deployment.arms) < 2:
            return None
        due = self._compare_due.get(deployment.name, 0) + deployment.compare
        self._compare_due[deployment.name] = due % WHOLE
        if due < WHOLE:
            return None
        return deployment.stable if arm.name != deployment.stable.name else deployment.arms[1]

    async def _keep(self, after: dict[str, Deployment]) -> None:
        data = write_deployments(after.values())
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_replace, self._file, data)
                self._all = after
        except OSError as error:
            raise LocalError(f"cannot write {self._file}: {error.strerror}") from None
        self.wake()


def _load(file: Path) -> dict[str, Deployment]:
    """Those in the file. One that cannot be read is laid aside, and said so: a node starts without its deployments."""
    try:
        return read_deployments(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, InvalidSpec) as error:
        aside = file.with_suffix(".damaged")
        log.warning("deployments_unreadable", file=str(file), aside=str(aside), reason=str(error))
        try:
            file.replace(aside)
        except OSError as failure:
            raise LocalError(f"cannot read {file}, nor lay it aside: {failure.strerror}") from error
        return {}


def _replace(file: Path, data: bytes) -> None:
    """In one step: a crash leaves the old file or the new one."""
    new = file.with_name(f".{file.name}.new")
    with new.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
