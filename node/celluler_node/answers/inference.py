"""What all answers that a model gives share: what a name means, whom to ask, and how one peer is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from celluler.content.digest import Codec, cid_of
from celluler.errors import NotFound, Unavailable
from celluler.identity import PeerId
from celluler.inference.questions import Answering, Question
from celluler.models.manifest import OpenedManifest
from celluler_node.answers.services import Answers, Services
from celluler_node.bounded import bounded
from celluler_node.checks.wiring import spot_checks
from celluler_node.placement.chooser import Chooser
from celluler_node.placement.names import Names
from celluler_node.placement.race import ANSWER_S, Race
from celluler_node.placement.streams import Streams
from celluler_node.serving.server import ModelServer
from celluler_protocols import generation
from celluler_protocols.inference import Predict, Predicted

RESOLVE_S = 30.0


class InferenceAnswers(Answers):
    """Asks models. chooser: knows the peers that serve. checks: of what they answered; who lied is asked last."""

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        core = services.core
        self.chooser = Chooser(
            core.host,
            core.repository,
            services.members,
            core.nursery,
            server=services.server if "serve" in core.config.roles else None,
            region=core.config.region,
            joined_by=services.joined_by,
        )
        self._names = Names(self._ask_swarm, core.identity.peer_id, core.nursery)
        self._streams = Streams(core.host)
        core.nursery.start_soon(self._streams.run)
        self.checks = spot_checks(core, self.chooser, services.server)
        core.nursery.start_soon(self.checks.run)

    async def _resolved(self, ref: str) -> OpenedManifest:
        """What a name means now, or moments ago; of a model that is loaded here, until a newer version is.

        Raises InvalidSpec, NotFound, Unavailable.
        """
        server = self._of.server
        if server is not None and (here := server.current(ref)) is not None:
            return here
        opened = await self._names.resolve(ref)
        if server is not None:
            server.follow(ref, opened)
        return opened

    async def _ask_swarm(self, ref: str) -> OpenedManifest:
        with bounded(RESOLVE_S, f"looking up {ref[:128]}"):
            return await self._core.repository.resolve(ref, hints=self._hints())

    def _named(self, peer: str) -> PeerId | None:
        """The peer that somebody named, None for nobody. Raises NotFound."""
        if not peer:
            return None
        with suppress(NotFound):
            return self._member(peer)
        if peer == self._core.nickname:
            return self._core.identity.peer_id
        raise NotFound(f"peer {peer}", hint="celluler peer ls")

    async def _first_prediction(
        self, opened: OpenedManifest, request: Predict, only: PeerId | None = None
    ) -> tuple[PeerId, Predicted]:
        """The first good answer of the best peers. Raises as `Race.run`."""

        async def ask(peer: PeerId) -> Predicted:
            began = trio.current_time()
            with self.chooser.attempt(peer, opened), bounded(ANSWER_S, "prediction", peer=peer):
                if peer == self._core.identity.peer_id:
                    answer = await self._own_server(peer).predict(request)
                else:
                    answer = await self._streams.predict(peer, request)
            self.chooser.answered(peer, opened, trio.current_time() - began)
            return answer

        peers = await self.chooser.ranked(opened, only)
        peer, answer = await Race(opened.digest, peers, ask, self.chooser.hedging).run()
        if peer != self._core.identity.peer_id:
            self.checks.predicted(peer, request, answer)
        return peer, answer

    @asynccontextmanager
    async def _ask_peer(self, cid: str, digest: bytes, peer: PeerId, question: Question) -> AsyncIterator[Answering]:
        """One peer, or this node's own server; raw, as `Answerer`."""
        if peer == self._core.identity.peer_id:
            async with self._own_server(peer).generate(cid, question) as answering:
                yield answering
            return
        patience = generation.Patience(stall_s=self.chooser.hedging.stall_after(digest))
        stream = await self._core.host.open_stream(peer, generation.PROTOCOL_ID)
        async with generation.ask(stream, cid, question, patience) as answering:
            yield self.checks.watched(peer, question, answering)

    def _own_server(self, peer: PeerId) -> ModelServer:
        if self.chooser.server is None:
            raise Unavailable("this node runs no models", peer=peer, hint='roles = ["serve"] in its configuration')
        return self.chooser.server


def cid_text(opened: OpenedManifest) -> str:
    return cid_of(opened.digest, Codec.MANIFEST)
