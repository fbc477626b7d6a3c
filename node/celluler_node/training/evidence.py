"""Keeps what proves that a member lied, as content: anybody may fetch it and look for himself."""

from __future__ import annotations

from pathlib import Path

import structlog
import trio

from celluler.content.digest import Codec, Digest, cid_of
from celluler.content.store import Store
from celluler.errors import CellulerError
from celluler.identity import PeerId, short
from celluler_node.training.record import JobRecord
from celluler_node.training.site import Site

log = structlog.get_logger()


async def keep_evidence(site: Site, record: JobRecord, peer: PeerId, file: bytes) -> None:
    """Add it to the store and tell the swarm that it is here. That there is no room for it ends nothing."""
    try:
        async with site.scratch("evidence") as folder:
            root = await trio.to_thread.run_sync(_add, site.store, folder / "evidence", file)
    except (CellulerError, OSError) as error:
        log.warning("evidence_not_kept", peer=short(peer), reason=str(error))
        return
    site.fetcher.announce(root)
    record.evidence[peer] = cid_of(root, Codec.MANIFEST)
    log.info("evidence_kept", peer=short(peer), cid=record.evidence[peer])


def _add(store: Store, path: Path, file: bytes) -> Digest:
    path.write_bytes(file)
    return store.add(path, "blob", pin=True, move=True)
