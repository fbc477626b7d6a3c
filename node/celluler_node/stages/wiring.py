"""Stages at a node that runs: for other peers where it serves, and for its own questions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import trio

from celluler.errors import NoPeers
from celluler.identity import PeerId
from celluler_node.core import Core
from celluler_node.limits import serving_limits, serving_rules
from celluler_node.processes.words import Isolation
from celluler_node.processes.worker_stages_words import STAGE_WORKER
from celluler_node.stages.answering import StagedAnswerer
from celluler_node.stages.peers import SERVES, StagePeers
from celluler_node.stages.server import StageServer
from celluler_protocols.host import Slots
from celluler_protocols.membership import Capabilities, Member
from celluler_protocols.stages import Widths, open_link
from celluler_protocols.stages_messages import PROTOCOL_ID, OpenStage
from celluler_protocols.stages_serving import Stage, serve_stage, turn_away

MAX_STREAMS, MAX_STREAMS_A_PEER = 32, 8


def start_stages(
    core: Core,
    able: Capabilities,
    members: Callable[[], tuple[Member, ...]],
    nursery: trio.Nursery,
    *,
    on_start: Callable[[Isolation], None],
) -> StagedAnswerer:
    """able: what this node says it can do; it takes stages where it serves. members: the others."""
    server = _server(core, nursery, on_start) if SERVES in able.roles else None
    if server is not None:
        _serve(core, server)
        nursery.start_soon(server.unload_idle)

    @asynccontextmanager
    async def open_at(peer: PeerId, request: OpenStage, widths: Widths) -> AsyncIterator[Stage]:
        if peer != core.identity.peer_id:
            stream = await core.host.open_stream(peer, PROTOCOL_ID)
            async with open_link(stream, request, widths) as link:
                yield link
        elif server is None:
            raise NoPeers("this node takes no stages")
        else:
            async with server.open(request) as held:
                yield held

    peers = StagePeers(core.identity.peer_id, able, members, core.host.penalise)
    answerer = StagedAnswerer(core.repository, open_at, peers, nursery)
    nursery.start_soon(answerer.keep)
    return answerer


def _server(core: Core, nursery: trio.Nursery, on_start: Callable[[Isolation], None]) -> StageServer:
    return StageServer(
        core.repository,
        replace(STAGE_WORKER, confined=core.worker.confined),
        serving_limits(core.config),
        core.scratch,
        nursery,
        own=core.identity.peer_id,
        confinement=core.confinement,
        memory_bytes=serving_rules(core.config, core.hardware).memory_bytes,
        on_start=on_start,
    )


def _serve(core: Core, server: StageServer) -> None:
    slots = Slots(MAX_STREAMS, MAX_STREAMS_A_PEER)

    async def answer(peer: PeerId, stream: trio.abc.Stream) -> None:
        with slots.held(peer) as free:
            # Whoever asks has the manifest: it has resolved the name.
            opener = partial(server.open, asker=peer, hints=(peer,))
            await (serve_stage(stream, opener) if free else turn_away(stream))

    core.host.serve(PROTOCOL_ID, answer)
