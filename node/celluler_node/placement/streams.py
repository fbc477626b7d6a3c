"""Streams of /celluler/infer/1 that are kept for the next request: a fresh one costs five times as much as an answer.

Kept for moments only: each takes one of the places that a server has for all.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from celluler.errors import Busy, LocalError, NotFound, Unavailable
from celluler.identity import PeerId
from celluler_protocols import inference
from celluler_protocols.host import Host
from celluler_protocols.inference import Predict, Predicted

KEPT_S = 2.0
MAX_KEPT = 128


class Streams:
    """`run` closes what nobody has used for a while."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._kept: OrderedDict[trio.abc.Stream, tuple[PeerId, float]] = OrderedDict()
        self._limits: dict[PeerId, trio.CapacityLimiter] = {}
        self._asking = Counter[PeerId]()

    async def predict(self, peer: PeerId, request: Predict) -> Predicted:
        """Ask once, as soon as the peer has a place for us. Raises as `exchange` does."""
        async with self._place(peer):
            return await self._predict(peer, request)

    async def _predict(self, peer: PeerId, request: Predict) -> Predicted:
        """A kept stream that turns out to be gone is replaced by a fresh one."""
        if (kept := self._take(peer)) is not None:
            try:
                return await self._exchange(peer, kept, request)
            except (Unavailable, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                if isinstance(error, Busy | NotFound):
                    raise
        stream = await self._host.open_stream(peer, inference.PROTOCOL_ID)
        return await self._exchange(peer, stream, request)

    @asynccontextmanager
    async def _place(self, peer: PeerId) -> AsyncIterator[None]:
        self._asking[peer] += 1
        try:
            async with self._limits.setdefault(peer, trio.CapacityLimiter(inference.STREAMS_A_PEER)):
                yield
        finally:
            self._asking[peer] -= 1
            if not self._asking[peer]:
                del self._asking[peer], self._limits[peer]

    async def run(self) -> None:
        """As long as the node."""
        while True:
            await trio.sleep(KEPT_S / 2)
            now = trio.current_time()
            for stream in [one for one, (_, since) in self._kept.items() if now - since > KEPT_S]:
                if self._kept.pop(stream, None) is not None:
                    await stream.aclose()

    async def _exchange(self, peer: PeerId, stream: trio.abc.Stream, request: Predict) -> Predicted:
        reusable = False
        try:
            answer = await inference.exchange(stream, request)
            reusable = True
            return answer
        except (LocalError, NotFound, Busy):
            reusable = True
            raise
        finally:
            if not (reusable and self._keep(peer, stream)):
                await stream.aclose()

    def _take(self, peer: PeerId) -> trio.abc.Stream | None:
        """The one used last."""
        found = next((one for one, (whose, _) in reversed(self._kept.items()) if whose == peer), None)
        if found is not None:
            del self._kept[found]
        return found

    def _keep(self, peer: PeerId, stream: trio.abc.Stream) -> bool:
        of_peer = sum(whose == peer for whose, _ in self._kept.values())
        if len(self._kept) >= MAX_KEPT or of_peer >= inference.STREAMS_A_PEER:
            return False
        self._kept[stream] = peer, trio.current_time()
        return True
