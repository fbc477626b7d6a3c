"""A chooser over peers that are scripts: what it needs of a host and a repository, and nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import trio

from celluler.identity import PeerId
from celluler_node.placement.chooser import Chooser
from celluler_protocols.nursery import own_nursery
from tests.support.answering import MODEL

OPENED: Any = SimpleNamespace(digest=MODEL)
OWN = PeerId("own")


class Host:
    """Reaches nobody; notes who was penalised."""

    peer_id = OWN

    def __init__(self) -> None:
        self.penalised: list[PeerId] = []

    def connected(self) -> frozenset[PeerId]:
        return frozenset()

    def penalise(self, peer: PeerId, error: Exception) -> None:
        self.penalised.append(peer)

    async def open_stream(self, peer: PeerId, protocol: str) -> Any:
        await trio.sleep_forever()


class Repository:
    def __init__(self, holders: Sequence[str]) -> None:
        self._holders = tuple(map(PeerId, holders))

    async def providers(self, opened: Any) -> tuple[PeerId, ...]:
        return self._holders

    def held(self, opened: Any) -> Any:
        return SimpleNamespace(local=False)


def member(peer: str, trip_s: float) -> Any:
    capabilities = SimpleNamespace(roles=("serve",))
    return SimpleNamespace(peer=PeerId(peer), capabilities=capabilities, region="", round_trip_s=trip_s)


@asynccontextmanager
async def open_chooser(*peers: str, host: Host | None = None) -> AsyncIterator[Chooser]:
    """Who is named first is asked first: it is the nearest by far."""
    members = tuple(member(peer, 0.01 * 10**place) for place, peer in enumerate(peers))
    async with own_nursery() as nursery:
        repository: Any = Repository(peers)
        given: Any = host or Host()
        yield Chooser(given, repository, lambda: members, nursery, server=None)
