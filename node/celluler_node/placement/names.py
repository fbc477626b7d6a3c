"""What names of others' models mean, remembered for moments: looking one up asks the swarm, at each request.

Between FRESH_S and KEPT_S what was known answers at once and is looked up beside it, so that a name means a new version
at most one request after FRESH_S. When nobody can be asked, what was known holds until KEPT_S. Our own are not
remembered: they cost nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

from celluler.errors import CellulerError, PeerViolation, Retracted, Unavailable
from celluler.identity import PeerId
from celluler.models.manifest import OpenedManifest

FRESH_S, KEPT_S = 5.0, 60.0
MAX_KEPT = 256
LOOK_UP_S = 30.0

Resolve = Callable[[str], Awaitable[OpenedManifest]]


class Names:
    def __init__(self, resolve: Resolve, own: PeerId, nursery: trio.Nursery) -> None:
        """resolve: asks the swarm. nursery: carries what is looked up beside a request."""
        self._resolve, self._own, self._nursery = resolve, own, nursery
        self._known: OrderedDict[str, tuple[float, OpenedManifest]] = OrderedDict()
        self._looking: set[str] = set()

    async def resolve(self, ref: str) -> OpenedManifest:
        """Raises as what it was made with."""
        known = self._known.get(ref)
        age = float("inf") if known is None else trio.current_time() - known[0]
        if known is None or age > KEPT_S:
            return await self._look_up(ref)
        if age > FRESH_S and ref not in self._looking:
            self._looking.add(ref)
            self._nursery.start_soon(self._renew, ref)
        return known[1]

    async def _look_up(self, ref: str) -> OpenedManifest:
        opened = await self._resolve(ref)
        self._known.pop(ref, None)
        if opened.signed.signer != self._own:
            self._known[ref] = trio.current_time(), opened
        if len(self._known) > MAX_KEPT:
            self._known.popitem(last=False)
        return opened

    async def _renew(self, ref: str) -> None:
        try:
            with trio.move_on_after(LOOK_UP_S):
                await self._look_up(ref)
        except (Retracted, PeerViolation):
            self._known.pop(ref, None)
        except Unavailable:
            pass  # nobody can be asked at the moment
        except CellulerError:
            self._known.pop(ref, None)
        finally:
            self._looking.discard(ref)
