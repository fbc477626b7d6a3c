"""What a node is made of, as those who answer for it need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from celluler.content.digest import Digest
from celluler.errors import Denied, InvalidSpec, NotFound, PeerViolation, Unavailable
from celluler.identity import PeerId
from celluler.models.index import VersionIndex
from celluler.models.manifest import MAX_CARD_BYTES
from celluler.models.names import PEER_ID_START, ModelName
from celluler_node.bounded import bounded
from celluler_node.core import Core
from celluler_node.deployments.book import Deployments
from celluler_node.job_client import JobClient
from celluler_node.repository import Held, HeldDataset
from celluler_node.serving.kept_answers import KeptAnswers
from celluler_node.serving.server import ModelServer
from celluler_node.stages.answering import StagedAnswerer
from celluler_node.summarising import Summariser
from celluler_node.training.desk import TrainingDesk
from celluler_protocols.membership import Member, Membership


@dataclass(frozen=True, slots=True)
class Services:
    """core: what every peer has. membership, desk, server, staged: None at a light peer. joined_by: whom a light peer
    joined by, None at a node. deployments: None at a light peer. kept_answers: None where none are kept.
    """

    core: Core
    jobs: JobClient
    members: Callable[[], tuple[Member, ...]]
    summarise: Summariser
    membership: Membership | None
    desk: TrainingDesk | None
    joined_by: PeerId | None
    server: ModelServer | None
    isolation: Callable[[], str]
    stopping: trio.Event
    started_s: float
    staged: StagedAnswerer | None = None
    deployments: Deployments | None = None
    kept_answers: KeptAnswers | None = None


ASK_S = 10.0
"""For what the swarm may add to an answer that can be given without it."""


class Answers:
    """What every group of answers shares."""

    def __init__(self, services: Services) -> None:
        self._of, self._core = services, services.core

    def _announce(self, *digests: Digest) -> None:
        if self._of.membership is not None:
            self._core.fetcher.announce(*digests)

    def _hints(self) -> tuple[PeerId, ...]:
        """A light peer asks whom it joined by first: it is connected, and knows the swarm."""
        return () if self._of.membership is not None else tuple(self._core.host.connected())

    def _distance(self, peer: PeerId) -> tuple[bool, bool]:
        """Least for whom a light peer joined by, then for those we are connected to."""
        return peer != self._of.joined_by, peer not in self._core.host.connected()

    def _member(self, text: str) -> PeerId:
        """A peer by its id, or by a nickname that only one member bears. Raises NotFound."""
        if text.startswith(PEER_ID_START):
            return PeerId(text)
        found = [member.peer for member in self._of.members() if member.nickname == text]
        if len(found) != 1:
            raise NotFound(f"peer {text}: {len(found)} members are called so", hint="celluler peer ls")
        return found[0]

    def _own_name(self, text: str) -> ModelName:
        """A name under which this node publishes. Raises InvalidSpec, Denied for somebody else's."""
        name = ModelName.parse(text)
        if name.author not in (self._core.nickname, self._core.identity.peer_id):
            raise Denied(
                f"{name.author!r} is somebody else: only the author's node changes what a name means",
                hint=f"{self._core.nickname}/{name.name}",
            )
        return name

    def _new_name(self, text: str) -> ModelName:
        """The same, for a version to publish."""
        name = self._own_name(text)
        if name.version is None:
            raise InvalidSpec("name", "needs a version", hint=f"{text}:1.0.0")
        return name

    async def _card(self, text: str) -> Digest | None:
        """Keep a Markdown text as a block. Raises InvalidSpec when it is too long."""
        raw = text.encode()
        if len(raw) > MAX_CARD_BYTES:
            raise InvalidSpec("card", f"has {len(raw)} bytes, limit {MAX_CARD_BYTES}")
        if not raw:
            return None
        digest = await trio.to_thread.run_sync(self._core.store.put_block, raw)
        self._announce(digest)
        return digest

    async def _told_of(self, held: Held | HeldDataset) -> tuple[tuple[PeerId, ...], VersionIndex | None]:
        """Who provides it, and the index of its name, as far as somebody can be asked."""
        repository, author = self._core.repository, held.opened.signed.signer
        providers: tuple[PeerId, ...] = ()
        index = None
        try:
            with bounded(ASK_S, f"asking about {held.name}"):
                providers = await repository.providers(held.opened)
                index = (await repository.resolver.index(author, held.opened.record.name, hints=self._hints()))[0]
        except (Unavailable, PeerViolation):
            pass
        return providers, None if index is None else index.record
