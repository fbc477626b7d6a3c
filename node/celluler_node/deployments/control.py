"""Gets replicas for this node's deployments and keeps them: what `Scaler` and `Replicas` decide, asked of peers.

One pass a second, and one whenever something changed; every word to a peer is bounded, and so is their number. What a
peer refuses or does not answer is asked of another. A version that is no part of its deployment any more keeps its
replicas until its last request is answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog
import trio

from celluler.content.digest import Digest, parse_cid
from celluler.errors import CellulerError, PeerViolation
from celluler.identity import PeerId, short
from celluler.inference.deployments import Deployment, Scale, arrive
from celluler.inference.scaling import Candidate
from celluler.inference.scaling_replicas import Keep, LetGo
from celluler_node.bounded import bounded
from celluler_node.deployments.book import ArmState, Deployments
from celluler_protocols import leases
from celluler_protocols.host import Host
from celluler_protocols.leases import Kept, Lessor

PASS_S = 1.0
WAIT_S = 10.0
"""How long a peer may wait with its answer for the model to be loaded."""
REACH_S = 10.0
"""To reach a peer, and for its answer, beside that."""
LOOK_EVERY_S = 120.0
LOOK_S = 10.0
MAX_AT_ONCE = 32
"""Words to peers under way."""

log = structlog.get_logger()


class Leases(Protocol):
    """How peers are asked; this node itself is one of them."""

    async def keep(self, peer: PeerId, model: Digest, for_s: int) -> Kept: ...

    async def let_go(self, peer: PeerId, model: Digest) -> None: ...


class PeerLeases:
    """Over the network, and at this node without it. lessor: None where it does not serve."""

    def __init__(self, host: Host, own: PeerId, lessor: Lessor | None) -> None:
        self._host, self._own, self._lessor = host, own, lessor

    async def keep(self, peer: PeerId, model: Digest, for_s: int) -> Kept:
        if peer == self._own and self._lessor is not None:
            return await self._lessor.keep(peer, model, for_s, WAIT_S)
        with bounded(REACH_S + WAIT_S, "lease", peer=peer):
            return await leases.keep(await self._stream(peer), model, for_s, WAIT_S)

    async def let_go(self, peer: PeerId, model: Digest) -> None:
        if peer == self._own and self._lessor is not None:
            self._lessor.release(peer, model)
            return
        with bounded(REACH_S, "lease", peer=peer):
            await leases.release(await self._stream(peer), model)

    async def _stream(self, peer: PeerId) -> trio.abc.Stream:
        return await self._host.open_stream(peer, leases.PROTOCOL_ID)


class Controller:
    def __init__(
        self,
        deployments: Deployments,
        peers: Leases,
        servers: Callable[[], Sequence[Candidate]],
        holders: Callable[[str], Awaitable[frozenset[PeerId]]],
        penalise: Callable[[PeerId, PeerViolation], None],
        nursery: trio.Nursery,
        wall_s: Callable[[], float],
    ) -> None:
        """servers: peers that may have replicas, this node among them if it serves; what they hold and have is found
        out here. holders: who has the weights of a model, by CID. wall_s: Unix seconds."""
        self._deployments, self._peers, self._servers, self._holders = deployments, peers, servers, holders
        self._penalise, self._nursery, self._wall_s = penalise, nursery, wall_s
        self._places = trio.CapacityLimiter(MAX_AT_ONCE)

    async def run(self) -> None:
        """As long as the node."""
        while True:
            self._deployments.woken = trio.Event()
            self._pass(trio.current_time())
            with trio.move_on_after(PASS_S):
                await self._deployments.woken.wait()

    def _pass(self, now: float) -> None:
        servers = self._servers()
        load = Counter(peer for _, _, state in self._deployments.states for peer, _, _ in state.replicas.all)
        wanted: set[tuple[str, str]] = set()
        for deployment in self._deployments.all:
            arms = (*deployment.arms, deployment.incoming) if deployment.incoming else deployment.arms
            for arm in arms:
                wanted.add((deployment.name, arm.cid))
                self._tend(deployment, arm.cid, servers, load, now)
            if deployment.incoming is not None:
                self._bring_in(deployment)
        for name, cid, state in self._deployments.states:
            if (name, cid) not in wanted and not state.demand.under_way:
                self._act(cid, state, state.replicas.plan(0, (), now))
                self._deployments.forget(name, cid)

    def _tend(
        self, deployment: Deployment, cid: str, servers: Sequence[Candidate], load: Counter[PeerId], now: float
    ) -> None:
        state = self._deployments.state(deployment.name, cid)
        state.wanted = state.scaler.decide(_scale(deployment, cid), state.demand, now)
        if state.wanted and now - state.looked_s > LOOK_EVERY_S:
            state.looked_s = now
            self._nursery.start_soon(self._look, cid, state)
        idle = not state.wanted and not state.replicas.all
        candidates = [
            replace(one, holds=one.peer in state.holders, replicas=load[one.peer]) for one in (() if idle else servers)
        ]
        self._act(cid, state, state.replicas.plan(state.wanted, candidates, now, regions=deployment.regions))
        hopeless = state.wanted > 0 and not state.replicas.all
        if hopeless != state.hopeless:
            state.hopeless = hopeless
            state.move()

    def _bring_in(self, deployment: Deployment) -> None:
        """Switch to what was brought in once it has as many replicas as it is to have."""
        assert deployment.incoming is not None
        state = self._deployments.state(deployment.name, deployment.incoming.cid)
        if len(state.replicas.ready) >= max(1, state.wanted):
            self._nursery.start_soon(self._arrive, deployment)

    async def _arrive(self, deployment: Deployment) -> None:
        def change(now: Deployment) -> Deployment:
            return arrive(now, self._wall_s()) if now.incoming == deployment.incoming and now.incoming else now

        try:
            await self._deployments.change(deployment.name, change)
        except CellulerError as error:  # removed meanwhile, or no room on the disk: tried again in a second
            log.warning("deployment_not_switched", deployment=deployment.name, reason=str(error))

    def _act(self, cid: str, state: ArmState, actions: Sequence[Keep | LetGo]) -> None:
        model = parse_cid(cid)
        for action in actions:
            match action:
                case Keep(peer, for_s):
                    self._nursery.start_soon(partial(self._keep, state, peer, model, for_s))
                case LetGo(peer):
                    self._nursery.start_soon(self._let_go, peer, model)

    async def _keep(self, state: ArmState, peer: PeerId, model: Digest, for_s: int) -> None:
        try:
            async with self._places:
                kept = await self._peers.keep(peer, model, for_s)
            state.replicas.kept(peer, trio.current_time(), ready=kept.ready, for_s=kept.for_s)
            state.failure = ""
        except CellulerError as error:
            if isinstance(error, PeerViolation):
                self._penalise(peer, error)
            log.info("replica_failed", peer=short(peer), reason=str(error))
            state.failure = f"{short(peer)}: {error}"
            state.replicas.failed(peer, trio.current_time())
        state.move()
        self._deployments.wake()

    async def _let_go(self, peer: PeerId, model: Digest) -> None:
        try:
            async with self._places:
                await self._peers.let_go(peer, model)
        except CellulerError as error:  # it ends by itself
            log.debug("lease_not_released", peer=short(peer), reason=str(error))

    async def _look(self, cid: str, state: ArmState) -> None:
        """Who has the weights; without an answer, whoever had them last."""
        try:
            with bounded(LOOK_S, "looking for the weights"):
                state.holders = await self._holders(cid)
        except CellulerError as error:
            log.debug("holders_unknown", reason=str(error))


def _scale(deployment: Deployment, cid: str) -> Scale:
    """What is being brought in has at least one replica, to be ready."""
    if deployment.incoming is None or deployment.incoming.cid != cid or deployment.scale.least:
        return deployment.scale
    scale = deployment.scale
    return Scale(1, scale.most, scale.in_flight, scale.latency_ms, scale.keep_warm_s)
