"""Checks of answers, wired: who may judge them here, what becomes of a liar, and scoring for other peers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import trio

from celluler.content.digest import Codec, Digest, cid_of
from celluler.content.store import Store
from celluler.errors import CellulerError, PeerViolation
from celluler.identity import PeerId, short
from celluler.inference.scores import Scores
from celluler.models.manifest import OpenedManifest
from celluler_node.bounded import bounded
from celluler_node.checks.judging import Bench
from celluler_node.checks.spot import Caught, Judges, SpotChecks
from celluler_node.core import Core
from celluler_node.placement.chooser import Chooser
from celluler_node.serving.server import ModelServer
from celluler_node.state import WrongAnswer
from celluler_protocols import inference, scoring
from celluler_protocols.host import Host, Slots
from celluler_protocols.inference import Predict, Predicted
from celluler_protocols.scoring import Wanted

SCORE_S = 60.0
DISTRUST_S = 24 * 3600.0
DISTRUST = 4.0
"""Of one that this node saw lying, or two others: behind all who are trusted, whatever else is known."""
MAX_SCORING_STREAMS, MAX_SCORING_STREAMS_A_PEER = 16, 1
"""Claims of other peers that wait or are scored; one at a time is, since a worker does nothing else meanwhile."""
MAX_REMEMBERED = 64

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class OwnBench:
    """This node's own worker."""

    server: ModelServer

    async def score(self, wanted: Wanted) -> Scores:
        return (await self.server.score(wanted))[1]

    async def predict(self, request: Predict) -> Predicted:
        return await self.server.predict(request)


@dataclass(frozen=True, slots=True)
class PeerBench:
    """Another peer's word."""

    host: Host
    peer: PeerId

    async def score(self, wanted: Wanted) -> Scores:
        request = scoring.score_words(wanted.model, replace(wanted.claim, ends=()), wanted.slack, ended=wanted.ended)
        with bounded(SCORE_S, "scoring", peer=self.peer):
            return (await scoring.score(await self.host.open_stream(self.peer, scoring.PROTOCOL_ID), request))[1]

    async def predict(self, request: Predict) -> Predicted:
        with bounded(SCORE_S, "predicting again", peer=self.peer):
            return await inference.predict(await self.host.open_stream(self.peer, inference.PROTOCOL_ID), request)


class Consequences:
    """What a lie comes to. Every failure of it is a line in the log: the lie is known all the same."""

    def __init__(self, core: Core, chooser: Chooser) -> None:
        self._core, self._chooser = core, chooser

    def remembered(self) -> None:
        """Liars of earlier, as long as what they did counts."""
        now = time.time()
        for one in self._core.state.wrong_answers:
            if one.at_s + DISTRUST_S > now:
                self._chooser.distrust(PeerId(one.peer), DISTRUST, one.at_s + DISTRUST_S - now)

    async def __call__(self, caught: Caught) -> None:
        """It is asked last, and others may see why."""
        core = self._core
        self._chooser.distrust(caught.peer, DISTRUST, DISTRUST_S)
        evidence = await self._kept(caught)
        told = f"wrong answer: {caught.why}" + (f"; evidence {evidence}" if evidence else "")
        others = [one for one in core.state.wrong_answers if one.peer != caught.peer]
        found = WrongAnswer(caught.peer, cid_of(caught.model, Codec.MANIFEST), caught.why, evidence, caught.at_s)
        core.state.wrong_answers = [*others, found][-MAX_REMEMBERED:]
        core.save()
        core.host.penalise(caught.peer, PeerViolation(told, peer=caught.peer))

    async def _kept(self, caught: Caught) -> str:
        """The CID of the evidence, in the store and announced; empty where there is none."""
        if not caught.file:
            return ""
        core = self._core
        try:
            async with core.scratch("evidence") as folder:
                root = await trio.to_thread.run_sync(_add, core.store, folder / "evidence", caught.file)
            core.fetcher.announce(root)
            await core.gossip.note(caught.peer, caught.model, root, "wrong answer")
        except (CellulerError, OSError) as error:
            log.warning("evidence_not_kept", peer=short(caught.peer), reason=str(error))
            return ""
        return cid_of(root, Codec.MANIFEST)


def _add(store: Store, path: Path, file: bytes) -> Digest:
    path.write_bytes(file)
    return store.add(path, "blob", pin=True, move=True)


def spot_checks(core: Core, chooser: Chooser, server: ModelServer | None) -> SpotChecks:
    """server: of this node, whether it serves others or not; None at a light peer."""
    serves = server is not None and "serve" in core.config.roles

    async def resolve(model: Digest) -> OpenedManifest:
        return await core.repository.resolve(cid_of(model, Codec.MANIFEST))

    def first(opened: OpenedManifest) -> bool:
        return serves and core.repository.held(opened).local

    async def others(opened: OpenedManifest) -> Iterable[tuple[PeerId, Bench]]:
        peers = await chooser.ranked(opened)
        return [(peer, PeerBench(core.host, peer)) for peer in peers if peer != core.identity.peer_id]

    consequences = Consequences(core, chooser)
    consequences.remembered()
    own = None if server is None else OwnBench(server)
    return SpotChecks(Judges(resolve, own, first, others), core.config.checks_share, consequences)


def serve_scoring(host: Host, server: ModelServer) -> None:
    """Score claims for other peers, few at once."""
    slots, turn = Slots(MAX_SCORING_STREAMS, MAX_SCORING_STREAMS_A_PEER), trio.Lock()

    async def answer(peer: PeerId, stream: trio.abc.Stream) -> None:
        async def scored(wanted: Wanted) -> tuple[Digest, Scores]:
            with bounded(SCORE_S, "scoring"):
                async with turn:
                    return await server.score(wanted, asker=peer)

        with slots.held(peer) as free:
            await (scoring.serve_scoring(stream, scored) if free else scoring.turn_away(stream))

    host.serve(scoring.PROTOCOL_ID, answer)
