"""The lessor: what this node keeps loaded because somebody asked for it, itself included.

Who may ask is the operator's word (`serve.leases`); how much, the book's and the memory's of the model server. A lease
says only that a model stays loaded: whoever predicts by it is judged as any asker is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from celluler.content.digest import Codec, Digest, cid_of
from celluler.errors import CellulerError, Denied
from celluler.identity import PeerId, short
from celluler.inference.leases import MAX_LEASES, MAX_LEASES_AN_ASKER, LeaseBook
from celluler_node.bounded import bounded
from celluler_protocols.leases import Kept

LOAD_S = 300.0
"""To get the weights and load them. It goes on after an asker has been told that it is not ready yet."""
MEMBERS, NONE = "members", "none"

log = structlog.get_logger()


class Keeper(Protocol):
    """A model server, as far as a lessor needs it."""

    async def keep(self, model: str, until_s: float, *, asker: PeerId | None, hints: tuple[PeerId, ...]) -> None:
        """Load it, if it is not, and let it stay until then (`trio.current_time`) at least. model: a CID.

        Raises NotFound, Denied, InvalidSpec, Busy where there is no room for it, WorkerFailed, Unavailable.
        """
        ...

    def let_go(self, model: Digest) -> None:
        """Nobody keeps it any more."""
        ...


@dataclass(slots=True)
class _Loading:
    """done: it is loaded, or has failed."""

    done: trio.Event = field(default_factory=trio.Event)
    failure: CellulerError | None = None


class Lessor:
    """`celluler_protocols.leases.Lessor` over one model server. nursery: carries what is being loaded."""

    def __init__(
        self,
        keeper: Keeper,
        own: PeerId,
        granted: tuple[str, ...],
        members: Callable[[], tuple[PeerId, ...]],
        nursery: trio.Nursery,
    ) -> None:
        """granted: `members`, `none`, or peer ids. members: of the swarm, now."""
        self._keeper, self._own, self._granted, self._members = keeper, own, granted, members
        self._nursery, self._book = nursery, LeaseBook()
        self._loading: dict[tuple[PeerId, Digest], _Loading] = {}

    async def keep(self, asker: PeerId, model: Digest, for_s: int, wait_s: float) -> Kept:
        self._require(asker)
        now = trio.current_time()
        most = MAX_LEASES if asker == self._own else MAX_LEASES_AN_ASKER
        self._book.grant(asker, model, now + for_s, now, an_asker=most)
        loading = self._loading.get((asker, model))
        if loading is None:
            loading = self._loading[asker, model] = _Loading()
            self._nursery.start_soon(self._load, asker, model, loading)
        with trio.move_on_after(wait_s):
            await loading.done.wait()
        if loading.failure is not None:
            self._book.release(asker, model)
            raise loading.failure
        return Kept(for_s, ready=loading.done.is_set())

    def release(self, asker: PeerId, model: Digest) -> None:
        self._book.release(asker, model)
        if self._book.until(model, trio.current_time()) is None:
            self._keeper.let_go(model)

    def _require(self, asker: PeerId) -> None:
        """Raises Denied for whom nothing is kept here."""
        if asker == self._own or asker in self._granted:
            return
        if MEMBERS in self._granted and asker in self._members():
            return
        raise Denied("this node keeps no models loaded for you", hint="its operator sets serve.leases")

    async def _load(self, asker: PeerId, model: Digest, loading: _Loading) -> None:
        try:
            with bounded(LOAD_S, "loading"):
                until = self._book.until(model, trio.current_time()) or trio.current_time()
                other, hints = (None, ()) if asker == self._own else (asker, (asker,))
                await self._keeper.keep(cid_of(model, Codec.MANIFEST), until, asker=other, hints=hints)
            if self._book.until(model, trio.current_time()) is None:
                self._keeper.let_go(model)  # nobody wants it any more
        except CellulerError as error:
            log.info("lease_failed", asker=short(asker), reason=str(error))
            loading.failure = error
        finally:
            del self._loading[asker, model]
            loading.done.set()
