"""The content plane of one peer: what fetches, what serves, and the bulk process between them, wired together.

Small blocks and fallbacks go over libp2p streams, large content through the bulk process; one bandwidth limit holds for
both. A light peer fetches like anybody and serves over the connections it opened itself, but grants no bulk transfers:
nobody could reach its port.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from celluler.content.movers import Meter
from celluler.content.store import Store
from celluler.errors import CellulerError
from celluler.identity import PeerId, short
from celluler_node.bulk.service import Bulk, open_bulk
from celluler_node.config import NodeConfig
from celluler_node.fetching import Fetcher
from celluler_node.scratch import ScratchRoot
from celluler_protocols import bulk as bulk_protocol
from celluler_protocols import content
from celluler_protocols.directory import Directory
from celluler_protocols.gossip import Gossip
from celluler_protocols.host import Host, Slots

MAX_CONTENT_STREAMS, MAX_CONTENT_STREAMS_A_PEER = 64, 8
"""Requesters of content answered at once: in all, and of one peer, so that nobody takes the room of the others."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ContentPlane:
    """bulk: None when it is switched off."""

    fetcher: Fetcher
    bulk: Bulk | None


@asynccontextmanager
async def open_content_plane(
    config: NodeConfig,
    host: Host,
    store: Store,
    directory: Directory,
    gossip: Gossip,
    members: Callable[[], Iterable[PeerId]],
    scratch: ScratchRoot,
    nursery: trio.Nursery,
    *,
    light: bool,
) -> AsyncIterator[ContentPlane]:
    """members: whom to ask for content that no provider is known of. nursery: carries announcements and notes."""
    async with AsyncExitStack() as stack:
        bulk = None
        if config.bulk:
            bulk = await stack.enter_async_context(
                open_bulk(
                    store_folder=config.store_folder,
                    listen_hosts=() if light else listen_hosts(config.listen),
                    port=config.bulk_port,
                    up_bytes_s=config.up_bytes_s,
                    down_bytes_s=config.down_bytes_s,
                    scratch=scratch,
                    serves=lambda root: True,
                    hold=store.hold,
                    hosts_of=host.remote_hosts,
                    open_stream=host.open_stream,
                )
            )
        meter: Meter | None = bulk.meter if bulk else None
        _serve(host, store, meter, None if light else bulk)
        yield ContentPlane(
            Fetcher(
                host.peer_id,
                store,
                directory,
                host.open_stream,
                members,
                nursery,
                penalise=host.penalise,
                provides=not light,
                open_mover=bulk.open_mover if bulk else None,
                meter=meter,
                note=None if light else _tell(gossip, nursery),
                doubts=gossip.doubts,
            ),
            bulk,
        )


def listen_hosts(addresses: Sequence[str]) -> tuple[str, ...]:
    """The IP addresses among those that a node listens on: its other processes are as open as it is, and no more."""
    hosts = (address.split("/")[2] for address in addresses if address.startswith(("/ip4/", "/ip6/")))
    return tuple(dict.fromkeys(hosts)) or ("127.0.0.1",)


def _serve(host: Host, store: Store, meter: Meter | None, bulk: Bulk | None) -> None:
    slots = Slots(MAX_CONTENT_STREAMS, MAX_CONTENT_STREAMS_A_PEER)

    async def answer(peer: PeerId, stream: trio.abc.Stream) -> None:
        with slots.held(peer) as free:
            await (content.serve_content(store, stream, meter=meter) if free else content.turn_away(stream))

    host.serve(content.PROTOCOL_ID, answer)
    if bulk is not None:
        host.serve(bulk_protocol.PROTOCOL_ID, bulk.answer)


def _tell(gossip: Gossip, nursery: trio.Nursery) -> Callable[[PeerId, bytes, bytes, str], None]:
    """Says in the swarm, in the background, that a source gave us false bytes: our word, which others may weigh."""

    async def announce(accused: PeerId, root: bytes, digest: bytes, reason: str) -> None:
        try:
            await gossip.note(accused, root, digest, reason)
        except CellulerError as error:
            log.info("note_not_told", peer=short(accused), error=str(error))

    return partial(nursery.start_soon, announce)
