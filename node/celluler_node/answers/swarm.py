"""Answers about the node itself and the peers it knows."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import trio

import celluler
from celluler.errors import NotFound
from celluler.identity import PeerId
from celluler.views import Check, Peer, PeerTraffic, Ping, Readiness, Status, StoreUsage, ViolationReport
from celluler_node.answers.services import Answers
from celluler_node.bounded import bounded
from celluler_node.doctor import examine
from celluler_node.network_views import member_view
from celluler_protocols.host import Traffic
from celluler_protocols.membership import ask_members

PING_S = 10.0


class SwarmAnswers(Answers):
    """The part of `Operations` that needs no content."""

    async def status(self) -> Status:
        states = (
            Counter(record.life.state.value for record in self._of.desk.records.values())
            if self._of.desk
            else Counter[str]()
        )
        used = await trio.to_thread.run_sync(self._core.store.used_bytes)
        return Status(
            peer_id=self._core.identity.peer_id,
            nickname=self._core.nickname,
            version=celluler.__version__,
            addresses=self._core.host.addresses,
            started_s=self._of.started_s,
            uptime_s=time.time() - self._of.started_s,
            members=len(self._of.members()) + (self._of.membership is not None),
            hardware=self._core.hardware,
            isolation=self._of.isolation(),
            models=len(self._core.repository.local()),
            jobs=dict(states),
            store=StoreUsage(used, self._core.config.store_quota_bytes),
            violations=len(self._core.host.violations),
            traffic=tuple(
                PeerTraffic(peer, moved.sent_bytes, moved.received_bytes) for peer, moved in self._moved().items()
            ),
            region=self._core.config.region,
            **self._engine(),
        )

    def _engine(self) -> dict[str, Any]:
        """What models are run by here; nothing where none are."""
        server = self._of.server
        if server is None or "serve" not in self._core.config.roles:
            return {}
        threads = self._core.config.serve_threads
        return {
            "engine": f"torch on cpu, {threads} thread{'' if threads == 1 else 's'} a model, weights as stored",
            "loaded": sum(1 for _ in server.models),
            "loaded_bytes": server.models.used_bytes,
            "loaded_limit_bytes": server.models.limit_bytes,
        }

    async def readiness(self) -> Readiness:
        if self._core.config.join and not self._of.members():
            return Readiness(False, "has not joined: none of the addresses to join by has answered yet")
        return Readiness(True)

    async def doctor(self) -> tuple[Check, ...]:
        return await examine(
            self._core.config, self._core.host, self._core.store, self._of.members(), self._of.membership is not None
        )

    async def shutdown(self) -> None:
        self._of.stopping.set()

    async def peers(self) -> tuple[Peer, ...]:
        connected, moved = self._core.host.connected(), self._moved()
        wrong = {one.peer: one for one in self._core.state.wrong_answers}
        others = (
            member_view(
                member,
                connected=member.peer in connected,
                moved=moved.get(member.peer),
                doubts=self._core.gossip.doubts(member.peer),
                wrong=wrong.get(member.peer),
            )
            for member in self._of.members()
        )
        return (*self._own_view(), *others)

    async def peer(self, peer: str) -> Peer:
        known = await self.peers()
        found = [one for one in known if peer in (one.peer_id, one.nickname)]
        found = found or [one for one in known if len(peer) >= 6 and one.peer_id.endswith(peer)]
        if len(found) != 1:
            raise NotFound(f"peer {peer}", hint="celluler peer ls")
        return found[0]

    async def ping(self, peer: str) -> Ping:
        found = await self.peer(peer)
        began = trio.current_time()
        with bounded(PING_S, "ping", peer=found.peer_id):
            await ask_members(self._core.host, PeerId(found.peer_id))
        return Ping(found.peer_id, trio.current_time() - began)

    async def violations(self) -> tuple[ViolationReport, ...]:
        told = self._core.host.violations
        age = time.time() - trio.current_time()
        return tuple(ViolationReport(one.peer, one.reason, one.at_s + age, one.count) for one in told)

    def _moved(self) -> dict[PeerId, Traffic]:
        """Bytes between each peer and us: of libp2p streams, and in bulk."""
        moved = dict(self._core.host.traffic)
        for peer, (sent, received) in (self._core.bulk.traffic if self._core.bulk else {}).items():
            known = moved.get(peer, Traffic())
            moved[peer] = Traffic(known.sent_bytes + sent, known.received_bytes + received)
        return moved

    def _own_view(self) -> tuple[Peer, ...]:
        """Ourselves as others see us; nothing at a light peer, which is no member."""
        if self._of.membership is None:
            return ()
        return (
            Peer(
                peer_id=self._core.identity.peer_id,
                nickname=self._core.nickname,
                addresses=self._core.host.addresses,
                status="self",
                incarnation=self._of.membership.own.incarnation,
                connected=True,
                hardware=self._core.hardware,
                roles=self._core.config.roles,
                region=self._core.config.region,
                isolation=self._core.confinement.level,
            ),
        )
