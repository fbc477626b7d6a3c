"""A run that goes on here, for whoever comes late, comes back, or wants to see what has come of it so far."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from celluler.content.digest import Digest
from celluler.content.store import Store
from celluler.errors import Denied
from celluler.identity import PeerId
from celluler.learning.run import Run
from celluler.wire import pack
from celluler_node.training.trainer import Trainer
from celluler_protocols.jobs_messages import MAX_CHAIN_BYTES, MAX_LINKS_AN_ANSWER, ChainTold, Checkpointed, StateTold


class LiveRun:
    """One member's view of a run. A new one each time that the member begins to follow it."""

    def __init__(
        self,
        run: Run,
        trainer: Trainer,
        store: Store,
        folder: Path,
        *,
        checkpoint: Callable[[], Awaitable[Checkpointed]],
        admit: Callable[[bytes], None],
    ) -> None:
        """folder: an existing one for files on their way into the store. checkpoint: publishes the newest state.
        admit: hands an admission to the run."""
        self.run, self._trainer, self._store, self._folder = run, trainer, store, folder
        self.checkpoint, self.admit = checkpoint, admit
        self._telling = trio.Lock()
        self._state: StateTold | None = None

    def chain(self, start: int) -> ChainTold:
        """The roster, and as many certificates from height `start` on as one answer holds."""
        certificates, links, size = self.run.certificates, list[bytes](), 0
        for certificate in certificates[start : start + MAX_LINKS_AN_ANSWER]:
            link = pack(certificate)
            size += len(link)
            if links and size > MAX_CHAIN_BYTES:
                break
            links.append(link)
        return ChainTold(self.run.roster.raw, len(certificates), tuple(links))

    async def state(self, asker: PeerId) -> StateTold:
        """The newest state as content of this node's store. Raises Denied for strangers."""
        if self.run.standing.roster.index_of(asker) is None:
            raise Denied("the state of a run is for its members")
        async with self._telling:
            if self._state is None or self._state.round < self.run.round:
                number, data = await self._trainer.state()
                self._state = StateTold(number, await trio.to_thread.run_sync(self._add, number, data))
            return self._state

    def _add(self, number: int, data: bytes) -> Digest:
        path = self._folder / f"state-{number}"
        path.write_bytes(data)
        try:
            return self._store.add(path, "blob", pin=False, move=True)
        finally:
            path.unlink(missing_ok=True)
