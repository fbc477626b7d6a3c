"""A node in memory that knows a model, its members' transcripts, and what they announced: for `celluler verify`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from celluler.client import AsyncClient
from celluler.content.digest import Codec, Digest, cid_of, digest_of
from celluler.content.manifest import describe
from celluler.models.manifest import OpenedManifest
from celluler.views import Model, TranscriptNote
from celluler_node.gateway.app import gateway_app
from celluler_node.model_views import model_view
from celluler_node.repository import Held
from tests.support.operations import MemoryNode
from tests.support.transcripts import Played


def cid_of_file(path: Path, kind: str = "blob") -> str:
    return cid_of(Digest(describe(path, kind).root), Codec.MANIFEST)


class KnowingNode(MemoryNode):
    """`asked`: whom it was asked about, each time."""

    def __init__(self, played: Played) -> None:
        super().__init__()
        self.job_id = cid_of(digest_of(played.opening.order))
        self.asked: list[Sequence[str]] = []

    async def transcripts(self, job: str, peers: Sequence[str]) -> tuple[TranscriptNote, ...]:
        self.asked.append(peers)
        return await super().transcripts(job, peers)

    def publish(self, opened: OpenedManifest) -> Model:
        model = model_view(Held(opened, None), with_spec=True)
        self.known[model.reference] = model
        return model

    def hold(self, path: Path, kind: str = "blob") -> str:
        """Have a content; its CID."""
        cid = cid_of_file(path, kind)
        self.blobs[cid] = (kind, path.read_bytes())
        return cid

    def announce(self, peer: str, path: Path) -> str:
        """A peer says that this is its transcript, and it can be had."""
        cid = self.hold(path)
        self.written[self.job_id, peer] = TranscriptNote(self.job_id, peer, cid, 1.0)
        return cid

    @asynccontextmanager
    async def session(self, _join: Any = ()) -> AsyncIterator[AsyncClient]:
        """In place of `open_session`."""
        transport = httpx.ASGITransport(app=gateway_app(self, "t"), raise_app_exceptions=False)
        async with AsyncClient("http://localhost", "t", transport=transport) as client:
            yield client
