"""What a person may ask of a node, done: `Operations` over the node's services.

The same class serves a running node and a light peer. A light peer is no member, runs nothing itself and keeps what
is added until somebody who runs a job has fetched it.
"""

from __future__ import annotations

import trio

from celluler.identity import PeerId
from celluler_node.answers.content import ContentAnswers
from celluler_node.answers.datasets import DatasetAnswers
from celluler_node.answers.deployments import DeploymentAnswers
from celluler_node.answers.ensembles import EnsembleAnswers
from celluler_node.answers.generation import GenerationAnswers
from celluler_node.answers.jobs import JobAnswers
from celluler_node.answers.services import Services
from celluler_node.answers.serving import ServingAnswers
from celluler_node.answers.swarm import SwarmAnswers
from celluler_node.answers.transcripts import TranscriptAnswers
from celluler_node.answers.versions import VersionAnswers

__all__ = ["Node", "Services"]


class Node(
    DeploymentAnswers,
    SwarmAnswers,
    ContentAnswers,
    EnsembleAnswers,
    GenerationAnswers,
    ServingAnswers,
    VersionAnswers,
    DatasetAnswers,
    JobAnswers,
    TranscriptAnswers,
):
    """Implements `celluler_node.operations.Operations`."""

    @property
    def peer_id(self) -> PeerId:
        return self._core.identity.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._core.host.addresses

    @property
    def stopping(self) -> trio.Event:
        """Set when the node is asked to end."""
        return self._of.stopping

    async def joined(self) -> None:
        """Wait until somebody of the swarm is known, if there is a swarm to join."""
        assert self._of.membership is not None
        async with self._of.membership.changes() as changes:
            while not (await self.readiness()).ready:
                await changes.receive()
