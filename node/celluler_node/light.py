"""A light peer: joins by an address, does one thing for its user, leaves. It is no member, and listens on nothing.

Its home keeps key and content like a node's, so that what one command adds the next one can hand over.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from celluler.errors import CellulerError, LocalError, NodeNotRunning, NoPeers
from celluler.home import read_node_file
from celluler_node.bounded import bounded
from celluler_node.config import NodeConfig
from celluler_node.core import open_core
from celluler_node.job_client import JobClient
from celluler_node.node import Node, Services
from celluler_node.summarising import summariser
from celluler_protocols.host import Host
from celluler_protocols.membership import Member, ask_members

JOIN_S = 15.0


@asynccontextmanager
async def open_light(config: NodeConfig, join: Sequence[str]) -> AsyncIterator[Node]:
    """Connected on entry. Raises NoPeers when no address answers, LocalError when a node runs in this home."""
    _refuse_beside_node(config)
    config.home.mkdir(parents=True, exist_ok=True)
    known: list[Member] = []
    async with open_core(config, light=True, members=lambda: tuple(known)) as core:
        known += await _join(core.host, join)
        for member in known:
            core.host.learn(member.peer, member.addresses)
        for peer in core.host.connected():
            with bounded(JOIN_S, "asking for announcements", peer=peer):
                await core.gossip.compare_with(peer)
        yield Node(
            Services(
                core=core,
                jobs=JobClient(core.identity, core.host, core.fetcher, lambda: [member.peer for member in known]),
                members=lambda: tuple(known),
                summarise=summariser(core.worker, core.limits, core.scratch),
                membership=None,
                desk=None,
                joined_by=known[0].peer if known else None,
                server=None,
                isolation=lambda: "runs no model",
                stopping=trio.Event(),
                started_s=time.time(),
            )
        )
        core.save()


async def _join(host: Host, addresses: Sequence[str]) -> tuple[Member, ...]:
    """The members that the first address that answers tells of, itself first."""
    failure: CellulerError = NoPeers("no address to join by", hint="--join /ip4/…/tcp/…/p2p/…")
    for address in addresses:
        try:
            with bounded(JOIN_S, f"joining by {address}"):
                peer = await host.connect(address)
                members = await ask_members(host, peer)
            return tuple(sorted(members, key=lambda member: member.peer != peer))
        except LocalError:
            raise
        except CellulerError as error:
            failure = error
    raise NoPeers(f"no address to join by answers: {failure}", hint="is the node up? celluler status") from failure


def _refuse_beside_node(config: NodeConfig) -> None:
    try:
        running = read_node_file(config.home)
    except (NodeNotRunning, CellulerError):
        return
    raise LocalError(
        f"a node runs in this home (process {running.pid}) and holds its store", hint="leave out --join: ask the node"
    )
