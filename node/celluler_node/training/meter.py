"""Bytes that a training moves."""

from __future__ import annotations

from celluler_node.training.averaging import Averaging
from celluler_node.training.site import Site


class Meter:
    """Bytes this node has moved since the job began here, averaging included."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.averaging: Averaging | None = None
        self._began = self._streams()

    def moved(self) -> tuple[int, int]:
        """(sent, received)."""
        sent, received = self._streams()
        averaged = (0, 0) if self.averaging is None else (self.averaging.sent_bytes, self.averaging.received_bytes)
        return sent - self._began[0] + averaged[0], received - self._began[1] + averaged[1]

    def _streams(self) -> tuple[int, int]:
        moved = self._site.host.traffic.values()
        return sum(one.sent_bytes for one in moved), sum(one.received_bytes for one in moved)
