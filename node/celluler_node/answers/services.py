"""What a node is made of, as those who answer for it need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from celluler.content.digest import Digest
from celluler.content.store import Store
from celluler.identity import Identity, PeerId
from celluler.views import Hardware
from celluler_node.config import NodeConfig
from celluler_node.fetching import Fetcher
from celluler_node.job_client import JobClient
from celluler_node.repository import Repository
from celluler_node.serving import ModelServer
from celluler_node.training.desk import TrainingDesk
from celluler_protocols.host import Host
from celluler_protocols.membership import Member, Membership


@dataclass(frozen=True, slots=True)
class Services:
    """What a node is made of.

    membership, desk, server: None at a light peer. joined_by: whom a light peer joined by, None at a node.
    """

    config: NodeConfig
    identity: Identity
    nickname: str
    hardware: Hardware
    host: Host
    store: Store
    fetcher: Fetcher
    repository: Repository
    jobs: JobClient
    members: Callable[[], tuple[Member, ...]]
    membership: Membership | None
    desk: TrainingDesk | None
    joined_by: PeerId | None
    server: ModelServer | None
    isolation: Callable[[], str]
    stopping: trio.Event
    started_s: float


class Answers:
    """What every group of answers shares."""

    def __init__(self, services: Services) -> None:
        self._of = services

    def _announce(self, *digests: Digest) -> None:
        if self._of.membership is not None:
            self._of.fetcher.announce(*digests)

    def _hints(self) -> tuple[PeerId, ...]:
        """A light peer asks whom it joined by first: it is connected, and knows the swarm."""
        return () if self._of.membership is not None else tuple(self._of.host.connected())

    def _distance(self, peer: PeerId) -> tuple[bool, bool]:
        """Least for whom a light peer joined by, then for those we are connected to."""
        return peer != self._of.joined_by, peer not in self._of.host.connected()
