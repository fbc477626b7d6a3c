"""Who wrote a run down: members announce their transcripts of a job, and strangers find them.

A member that has finished signs a head of the directory under a name that follows from the job alone; it points at the
content that is the member's transcript. Nobody else can move it, it lies in the DHT as any head does, also while the
member is away, and whoever knows the job and a member can ask for it. Who the members were stands in any transcript.

Knows nothing of what is in a transcript: what comes is believed by its signatures, or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from celluler.content.digest import Digest, cid_of
from celluler.content.store import Store
from celluler.errors import CellulerError
from celluler.identity import Identity, PeerId, Signed
from celluler.learning.transcript import HEAD_PREFIX, head_name
from celluler_protocols.directory import Head, HeadBook

MAX_RESUMED = 256
"""Transcripts of ours that are told of again after a restart, the newest: each is a record in the DHT."""
MAX_ASKED = 64
"""Peers asked for at a time: no run has more members."""
ASKED_AT_ONCE = 16
ANNOUNCE_S = 20.0
ASK_S = 6.0
"""For one peer's head: of 64 that are silent all have had their turn after 24 s."""
FIND_S = 30.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Transcribed:
    """What a peer signed: the content `root` is its transcript of the job asked for. issued_s: Unix time."""

    peer: PeerId
    root: Digest
    issued_s: int


class Names(Protocol):
    """What is needed of the directory."""

    heads: HeadBook

    async def publish_head(self, name: str, number: int, index: bytes) -> Signed[Head]: ...

    async def resolve_head(self, author: PeerId, name: str) -> Signed[Head]: ...


class Transcripts:
    """One node's, its own and those it looks for."""

    def __init__(
        self,
        identity: Identity,
        store: Store,
        directory: Names,
        provide: Callable[[Digest], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """provide: tells the swarm, in the background, that a content is here. clock: Unix seconds."""
        self._own, self._store, self._directory, self._provide = identity.peer_id, store, directory, provide
        self._clock = clock

    async def announce(self, job: Digest, root: Digest) -> None:
        """Our transcript of a job is this content, which is here. Of several the last one counts.

        Waits a while until the directory has it. That it has not taken it is no error: it is told again later.
        """
        self._provide(root)
        name = head_name(job)
        known = self._directory.heads.best(self._own, name)
        if known is not None and known.record.index == root:
            number = known.record.number
        else:  # a number that grows even if we forgot the last one
            number = max(int(self._clock()), 0 if known is None else known.record.number + 1)
        try:
            with trio.move_on_after(ANNOUNCE_S):
                await self._directory.publish_head(name, number, root)
        except CellulerError as error:
            log.info("transcript_not_announced", job=cid_of(job)[-8:], reason=str(error))

    async def resume(self) -> None:
        """After a start: go on telling of those that are still here."""
        ours = [head for head in self._directory.heads.of(self._own) if head.record.name.startswith(HEAD_PREFIX)]
        newest = sorted(ours, key=lambda head: head.record.issued_s)[-MAX_RESUMED:]
        for head in newest:
            root = Digest(head.record.index)
            if not await trio.to_thread.run_sync(self._store.has, root):
                continue
            try:
                with trio.move_on_after(ANNOUNCE_S):
                    await self._directory.publish_head(head.record.name, head.record.number, root)
            except CellulerError as error:
                log.info("transcript_not_announced", name=head.record.name[-8:], reason=str(error))

    async def find(self, job: Digest, peers: Sequence[PeerId]) -> tuple[Transcribed, ...]:
        """What these peers say is their transcript, in their order; who says nothing is left out. Bounded in time.

        peers: of more than MAX_ASKED the first ones are asked.
        """
        name, found, room = head_name(job), dict[PeerId, Transcribed](), trio.CapacityLimiter(ASKED_AT_ONCE)

        async def ask(peer: PeerId) -> None:
            async with room:
                try:
                    with trio.fail_after(ASK_S):
                        head = (await self._directory.resolve_head(peer, name)).record
                except (CellulerError, trio.TooSlowError) as error:
                    log.debug("no_transcript_known", peer=peer[-8:], reason=str(error))
                    return
            found[peer] = Transcribed(peer, Digest(head.index), head.issued_s)

        asked = tuple(dict.fromkeys(peers))[:MAX_ASKED]
        with trio.move_on_after(FIND_S):
            async with trio.open_nursery() as nursery:
                for peer in asked:
                    nursery.start_soon(ask, peer)
        return tuple(found[peer] for peer in asked if peer in found)
