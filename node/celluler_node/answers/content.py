"""Answers about contents."""

from __future__ import annotations

from pathlib import Path

import trio

from celluler.content.digest import Codec, cid_of, parse_cid
from celluler.errors import BlockAbsent, NotFound
from celluler.views import Blob
from celluler_node.answers.services import Answers
from celluler_node.network_views import blob_view


class ContentAnswers(Answers):
    """The part of `Operations` about contents by CID."""

    async def add_blob(self, path: Path, kind: str, *, move: bool = False) -> Blob:
        root = await trio.to_thread.run_sync(self._of.store.add, path, kind)
        self._announce(root)
        return await self.blob_stat(cid_of(root, Codec.MANIFEST))

    async def read_blob(self, cid: str) -> Path:
        return await self._of.fetcher.content(parse_cid(cid))

    async def blob_stat(self, cid: str) -> Blob:
        root = parse_cid(cid)
        try:
            stat = await trio.to_thread.run_sync(self._of.store.stat, root)
        except BlockAbsent:
            raise NotFound(f"content {cid}", hint=f"celluler blob get {cid}") from None
        return blob_view(stat)
