"""Streams of /celluler/infer/1 that are kept for the next request: a fresh one costs five times as much as an answer.

Kept for moments only: each takes one of the places that a server has for all.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from celluler.errors import Busy, LocalError, NotFound, Unavailable
from celluler.identity import PeerId
from celluler_protocols import inference
from celluler_protocols.host import Host
from celluler_protocols.inference import Predict, Predicted

KEPT_S = 2.0
MAX_KEPT = 128
MAX_KEPT_A_PEER = 16


class Streams:
    """`run` closes what nobody has used for a while."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._kept: OrderedDict[trio.abc.Stream, tuple[PeerId, float]] = OrderedDict()

    async def predict(self, peer: PeerId, request: Predict) -> Predicted:
        """Ask once; a kept stream that turns out to be gone is replaced by a fresh one. Raises as `exchange` does."""
        if (kept := self._take(peer)) is not None:
            try:
                return await self._exchange(peer, kept, request)
            except (Unavailable, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                if isinstance(error, Busy | NotFound):
                    raise
        stream = await self._host.open_stream(peer, inference.PROTOCOL_ID)
        return await self._exchange(peer, stream, request)

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
        if len(self._kept) >= MAX_KEPT or of_peer >= MAX_KEPT_A_PEER:
            return False
        self._kept[stream] = peer, trio.current_time()
        return True
