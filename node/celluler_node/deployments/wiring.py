"""The parts of this node's deployments, put together: what is written down, who keeps models for it, and for whom it
keeps some."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from celluler.identity import PeerId
from celluler.inference.scaling import Candidate
from celluler_node.core import Core
from celluler_node.deployments.book import Deployments
from celluler_node.deployments.control import Controller, PeerLeases
from celluler_node.deployments.leases import Lessor
from celluler_node.serving.kept_answers import KeptAnswers
from celluler_node.serving.server import ModelServer
from celluler_protocols import leases
from celluler_protocols.host import Slots
from celluler_protocols.membership import Member

MAX_STREAMS, MAX_STREAMS_A_PEER = 16, 2


def start_deployments(
    core: Core, members: Callable[[], tuple[Member, ...]], server: ModelServer | None, nursery: trio.Nursery
) -> Deployments:
    """Serves leases, if this node serves, and tends its own deployments for as long as the nursery. members: others."""
    own = core.identity.peer_id
    lessor = None
    if server is not None:
        lessor = Lessor(server, own, core.config.serve_leases, lambda: tuple(one.peer for one in members()), nursery)
        _serve(core, lessor)
    deployments = Deployments(core.config.deployments_file)

    async def holders(cid: str) -> frozenset[PeerId]:
        opened = await core.repository.resolve(cid)
        return frozenset(await core.repository.providers(opened))

    def servers() -> tuple[Candidate, ...]:
        others = tuple(_candidate(one) for one in members() if "serve" in one.capabilities.roles)
        here = Candidate(own, core.config.region, memory_mb=core.hardware.memory_mb, own=True)
        return others if server is None else (here, *others)

    controller = Controller(
        deployments,
        PeerLeases(core.host, own, lessor),
        servers,
        holders,
        core.host.penalise,
        nursery,
        wall_s=time.time,
    )
    nursery.start_soon(controller.run)
    return deployments


def _candidate(member: Member) -> Candidate:
    return Candidate(member.peer, member.region, memory_mb=member.capabilities.memory_mb)


def kept_answers(core: Core) -> KeptAnswers | None:
    """None where the operator keeps none."""
    config = core.config
    return (
        KeptAnswers(config.serve_cache_bytes, private=config.serve_cache_private) if config.serve_cache_bytes else None
    )


def _serve(core: Core, lessor: Lessor) -> None:
    slots = Slots(MAX_STREAMS, MAX_STREAMS_A_PEER)

    async def answer(peer: PeerId, stream: trio.abc.Stream) -> None:
        with slots.held(peer) as free:
            await (leases.serve_leases(stream, peer, lessor) if free else leases.turn_away(stream))

    core.host.serve(leases.PROTOCOL_ID, answer)
