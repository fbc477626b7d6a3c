"""Answers about the node itself and the peers it knows."""

from __future__ import annotations

import time
from collections import Counter

import trio

import celluler
from celluler.errors import NotFound
from celluler.identity import PeerId
from celluler.views import Check, Peer, PeerTraffic, Ping, Readiness, Status, StoreUsage, ViolationReport
from celluler_node.answers.services import Answers
from celluler_node.bounded import bounded
from celluler_node.doctor import examine
from celluler_node.network_views import member_view
from celluler_protocols.membership import ask_members

PING_S = 10.0


class SwarmAnswers(Answers):
    """The part of `Operations` that needs no content."""

    async def status(self) -> Status:
        of = self._of
        states = Counter(record.life.state.value for record in of.desk.records.values()) if of.desk else Counter[str]()
        used = await trio.to_thread.run_sync(of.store.used_bytes)
        return Status(
            peer_id=of.identity.peer_id,
            nickname=of.nickname,
            version=celluler.__version__,
            addresses=of.host.addresses,
            started_s=of.started_s,
            uptime_s=time.time() - of.started_s,
            members=len(of.members()) + (of.membership is not None),
            hardware=of.hardware,
            isolation=of.isolation(),
            models=len(of.repository.local()),
            jobs=dict(states),
            store=StoreUsage(used, of.config.store_quota_bytes),
            violations=len(of.host.violations),
            traffic=tuple(
                PeerTraffic(peer, moved.sent_bytes, moved.received_bytes) for peer, moved in of.host.traffic.items()
            ),
        )

    async def readiness(self) -> Readiness:
        of = self._of
        if of.config.join and not of.members():
            return Readiness(False, "has not joined: none of the addresses to join by has answered yet")
        return Readiness(True)

    async def doctor(self) -> tuple[Check, ...]:
        of = self._of
        return await examine(of.config, of.host, of.store, of.members(), of.membership is not None)

    async def shutdown(self) -> None:
        self._of.stopping.set()

    async def peers(self) -> tuple[Peer, ...]:
        host = self._of.host
        connected, traffic = host.connected(), host.traffic
        others = (
            member_view(member, connected=member.peer in connected, moved=traffic.get(member.peer))
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
            await ask_members(self._of.host, PeerId(found.peer_id))
        return Ping(found.peer_id, trio.current_time() - began)

    async def violations(self) -> tuple[ViolationReport, ...]:
        told = self._of.host.violations
        age = time.time() - trio.current_time()
        return tuple(ViolationReport(one.peer, one.reason, one.at_s + age, one.count) for one in told)

    def _own_view(self) -> tuple[Peer, ...]:
        """Ourselves as others see us; nothing at a light peer, which is no member."""
        of = self._of
        if of.membership is None:
            return ()
        return (
            Peer(
                peer_id=of.identity.peer_id,
                nickname=of.nickname,
                addresses=of.host.addresses,
                status="self",
                incarnation=of.membership.own.incarnation,
                connected=True,
                hardware=of.hardware,
                roles=of.config.roles,
            ),
        )
