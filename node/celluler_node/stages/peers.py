"""Peers that might take stages, as a plan needs to know them: memory, speed, way, and who failed lately."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from celluler.errors import CellulerError, PeerViolation
from celluler.identity import PeerId
from celluler.inference.stages_planning import Candidate
from celluler_protocols.membership import Capabilities, Member

DOUBT_S = 30.0
"""For which a peer that failed is not planned with, unless nobody else is there."""
CORE_BYTES_S, DEVICE_BYTES_S, FAR_S = 4e9, 4e11, 0.05
"""Until it is measured: weights that a core or another device goes through in a second; and the way to a peer."""
STEP_COSTS_S = 0.002
"""Of a token at a stage, whatever its size."""
SERVES = "serve"


@dataclass(slots=True)
class _Known:
    """Of a peer. weight_bytes, elapsed_s: of the stage that it had last, and of a token there, smoothed; 0 before it
    had one. doubted_until: by trio's clock."""

    weight_bytes: int = 0
    elapsed_s: float = 0.0
    doubted_until: float = 0.0

    def note(self, weight_bytes: int, elapsed_s: float) -> None:
        if weight_bytes != self.weight_bytes:
            self.weight_bytes, self.elapsed_s = weight_bytes, elapsed_s
        self.elapsed_s += (elapsed_s - self.elapsed_s) / 8

    def speed(self, away_s: float) -> float | None:
        """Bytes of weights in a second, without the way there and what every token costs."""
        if not self.weight_bytes:
            return None
        return self.weight_bytes / max(self.elapsed_s / 4, self.elapsed_s - away_s - STEP_COSTS_S, 1e-6)


class StagePeers:
    """What is known of members that serve."""

    def __init__(
        self,
        own: PeerId,
        able: Capabilities,
        members: Callable[[], tuple[Member, ...]],
        penalise: Callable[[PeerId, Exception], None],
    ) -> None:
        """able: what this node says it can do. members: the others."""
        self._own, self._able, self._members, self._penalise = own, able, members, penalise
        self._known: dict[str, _Known] = {}

    def candidates(self, *, doubted: bool = False) -> tuple[Candidate, ...]:
        """Those that serve, this node too if it does. doubted: those too that failed lately."""
        own = [(self._own, self._able, 0.0)] if SERVES in self._able.roles else []
        others = [
            (one.peer, one.capabilities, FAR_S if one.round_trip_s is None else one.round_trip_s)
            for one in self._members()
            if SERVES in one.capabilities.roles
        ]
        # As a node does by default, of memory a quarter is left to everything else.
        now, found = trio.current_time(), []
        for peer, able, away_s in (*own, *others):
            its = self._known.get(peer, _Known())
            if doubted or its.doubted_until <= now:
                found.append((peer, (able.memory_mb << 20) * 3 // 4, its.speed(away_s), _usual(able), away_s))
        # What was measured tells how far the usual figures are off for those of which nothing was.
        ratios = sorted(speed / usual for _, _, speed, usual, _ in found if speed is not None)
        ratio = ratios[len(ratios) // 2] if ratios else 1.0
        return tuple(
            Candidate(peer, memory_bytes, speed or usual * ratio, away_s)
            for peer, memory_bytes, speed, usual, away_s in found
        )

    def measured(self, peer: str, weight_bytes: int, elapsed_s: float) -> None:
        """A token took a stage so long, the way there included."""
        self._known.setdefault(peer, _Known()).note(weight_bytes, elapsed_s)

    def doubt(self, peer: PeerId, error: CellulerError) -> None:
        """It failed: not planned with for a while."""
        self._known.setdefault(peer, _Known()).doubted_until = trio.current_time() + DOUBT_S
        if isinstance(error, PeerViolation) and peer != self._own:
            self._penalise(peer, error)


def _usual(able: Capabilities) -> float:
    """Bytes of weights in a second, by what a peer says of itself."""
    return CORE_BYTES_S * max(1, able.cores) if able.device == "cpu" else DEVICE_BYTES_S
