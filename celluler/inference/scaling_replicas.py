"""The replicas of one version, sans-IO: whom to ask to keep it loaded, whom to ask again, whom to let go.

Whoever holds one says `keep` again in time and hears that it is still there; whoever does not, is not among the
candidates any more, or fails, is replaced by another. Time is an argument, in seconds of any clock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from celluler.identity import PeerId
from celluler.inference.scaling import Candidate, place

FOR_S = 60
"""How long a peer is asked to keep it: a node that dies leaves nobody with its models for longer."""
RENEW_S = 20.0
AGAIN_S = 0.5
"""Until a peer that is still loading is asked whether it is ready."""
LOADING_S = 600.0
"""A peer that is not ready by then has failed."""
FIRST_REST_S, LONGEST_REST_S = 2.0, 120.0
"""How long a peer that refused or failed is left alone, longer each time."""
MAX_RESTING = 1024


@dataclass(frozen=True, slots=True)
class Keep:
    """Ask this peer to load the model and keep it; then tell `kept` or `failed`."""

    peer: PeerId
    for_s: int = FOR_S


@dataclass(frozen=True, slots=True)
class LetGo:
    """This peer may unload it; nothing is to be told of that."""

    peer: PeerId


Action = Keep | LetGo


@dataclass(slots=True)
class _Replica:
    """busy: it is being asked. due: when to ask it again. until: when its word ends. since: when it was asked first, or
    was ready last."""

    region: str
    until: float
    since: float
    due: float = 0.0
    ready: bool = False
    busy: bool = True


class Replicas:
    """Of one version of one deployment."""

    def __init__(self) -> None:
        self._all: dict[PeerId, _Replica] = {}
        self._resting: dict[PeerId, tuple[float, int]] = {}  # until when, and how often in a row

    @property
    def ready(self) -> tuple[PeerId, ...]:
        return tuple(peer for peer, one in self._all.items() if one.ready)

    @property
    def all(self) -> tuple[tuple[PeerId, str, bool], ...]:
        """(peer, region, ready)."""
        return tuple((peer, one.region, one.ready) for peer, one in self._all.items())

    def plan(
        self, wanted: int, candidates: Sequence[Candidate], now: float, *, regions: Collection[str] = ()
    ) -> tuple[Action, ...]:
        """What to do now, for as many as are wanted. candidates: every peer that may have one, and lives."""
        there = {one.peer for one in candidates if not regions or one.region in regions}
        actions: list[Action] = []
        for peer, one in tuple(self._all.items()):
            if peer not in there or (now >= one.until and not one.busy):
                del self._all[peer]
                actions.append(LetGo(peer))
            elif not one.ready and not one.busy and now - one.since > LOADING_S:
                self.failed(peer, now)
                actions.append(LetGo(peer))
        for peer in self._too_many(wanted):
            del self._all[peer]
            actions.append(LetGo(peer))
        for peer, one in self._all.items():
            if one.due <= now and not one.busy:
                one.busy = True
                actions.append(Keep(peer))
        rested = [one for one in candidates if self._resting.get(one.peer, (0.0, 0))[0] <= now]
        taken = {peer: one.region for peer, one in self._all.items()}
        region_of = {one.peer: one.region for one in candidates}
        for peer in place(wanted - len(self._all), rested, taken, regions=regions):
            self._all[peer] = _Replica(region_of[peer], now + FOR_S, now)
            actions.append(Keep(peer))
        return tuple(actions)

    def kept(self, peer: PeerId, now: float, *, ready: bool, for_s: float) -> None:
        """It keeps the model for so long; ready: it is loaded. Not ready, it is asked again soon."""
        one = self._all.get(peer)
        if one is None:
            return
        one.busy, one.ready, one.until = False, ready, now + for_s
        one.due = now + (min(RENEW_S, for_s / 2) if ready else AGAIN_S)
        if ready:
            one.since = now
            self._resting.pop(peer, None)

    def failed(self, peer: PeerId, now: float) -> None:
        """It refused, or did not answer."""
        self._all.pop(peer, None)
        times = self._resting.pop(peer, (0.0, 0))[1] + 1
        while len(self._resting) >= MAX_RESTING:
            del self._resting[next(iter(self._resting))]
        self._resting[peer] = now + min(FIRST_REST_S * 2.0 ** (times - 1), LONGEST_REST_S), times

    def doubt(self, peer: PeerId, now: float) -> None:
        """A request failed there: ask nothing of it until it has said anew that it keeps the model."""
        one = self._all.get(peer)
        if one is not None and not one.busy:
            one.ready, one.due = False, now

    def _too_many(self, wanted: int) -> tuple[PeerId, ...]:
        """Whom to let go: first what is not ready, then from the region that has most."""
        going: list[PeerId] = []
        left = dict(self._all)
        while len(left) > max(wanted, 0):
            regions = [one.region for one in left.values()]
            worst = max(left, key=lambda peer: (not left[peer].ready, regions.count(left[peer].region), peer))
            del left[worst]
            going.append(worst)
        return tuple(going)
