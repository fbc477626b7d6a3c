"""Which peer is asked: what each is expected to take, from what it did before and says of itself.

    began(peer) → answered | failed | busy;   told(peer, load);   distrust(peer, weight, until)
    rank(model, candidates, now) → peers, whom to ask first first

The cost of a peer is the seconds until it is expected to have answered: round trip and service time (smoothed, by
model), times how full it is, and what loading or fetching the model would add; past failures, distance and a price add
to it. Who has just failed, refused for want of room, or is distrusted comes behind all others, and never is left out:
when nobody else is there, it is asked. Of the two that a seeded draw picks among those nearly as good as the best the
better comes first, so that many who ask at once with the same knowledge do not all go to the same peer.
Source of the two choices: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 12(10), 2001.

Tables are bounded. Knows no clock, no network and nothing of why a peer is distrusted.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from celluler.wire import U16

UNKNOWN_SLOTS = 8
"""What a peer is taken to do at once that does not say."""


@dataclass(frozen=True, slots=True)
class Load:
    """running: answers under way. waiting: behind them. slots: how many may be under way at once, 0 for unknown. A
    peer's own word, as it travels."""

    running: U16
    waiting: U16
    slots: U16


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that may be asked. own: this node itself. holds: it has the model's weights; loaded: in a worker, None
    when that is not known. round_trip_s: None while not measured. price: for an answer, in any unit."""

    peer: str
    own: bool = False
    holds: bool = False
    loaded: bool | None = None
    region: str = ""
    round_trip_s: float | None = None
    price: float = 0.0


@dataclass(frozen=True, slots=True)
class PlacementConfig:
    """peers, models: how many are remembered, of a peer. smoothing: weight of the newest measurement.
    failure_half_life_s: in which half of a failure is forgotten; failure_s: what one adds to the cost. busy_s: how long
    one that refused for want of room comes last. load_age_s: after which what a peer said of its load is forgotten.

    service_s, round_trip_s: where nothing is known. service_half_life_s: in which half of what is known of a service
    time is forgotten; first_s: as what a first one counts at most, since it may have been of loading the model. load_s,
    fetch_s: for a model that is not loaded, not held. region_s: for a peer of another region. price_s: for a unit of
    price. own_gain: by which factor others must be cheaper than this node itself; own_loaded_gain: with the model
    loaded. near: what is nearly as good as the best, as a factor, and near_s beside it.
    """

    peers: int = 1024
    models: int = 64
    smoothing: float = 0.3
    failure_half_life_s: float = 30.0
    failure_s: float = 2.0
    busy_s: float = 1.0
    load_age_s: float = 10.0
    service_s: float = 0.1
    service_half_life_s: float = 60.0
    first_s: float = 1.0
    round_trip_s: float = 0.05
    load_s: float = 1.0
    fetch_s: float = 5.0
    region_s: float = 0.05
    price_s: float = 0.0
    own_gain: float = 1.5
    own_loaded_gain: float = 3.0
    near: float = 1.5
    near_s: float = 0.005


USUAL = PlacementConfig()


@dataclass(slots=True)
class _Told:
    load: Load
    at: float
    in_flight: int
    """Of ours, when it said so: it had counted them."""


@dataclass(slots=True)
class _Known:
    """Of one peer."""

    in_flight: int = 0
    round_trip_s: float | None = None
    service: OrderedDict[bytes, tuple[float, float]] = field(default_factory=OrderedDict)
    """By model: seconds, and when they were measured."""
    loads: OrderedDict[bytes, _Told] = field(default_factory=OrderedDict)
    failures: float = 0.0
    failed_at: float = -math.inf
    busy_until: float = -math.inf
    distrust: list[tuple[float, float]] = field(default_factory=list)


class Placement:
    """What one node knows of the peers that it asks."""

    def __init__(self, *, region: str = "", seed: int = 0, config: PlacementConfig = USUAL) -> None:
        """region: of this node, empty for none. seed: of the draws."""
        self._region, self._config = region, config
        self._draws = random.Random(seed)  # noqa: S311  # spreads load, hides nothing
        self._peers: OrderedDict[str, _Known] = OrderedDict()

    # --- what happened -----------------------------------------------------------------------------------------------

    def began(self, peer: str) -> None:
        """It is being asked; `ended` must follow."""
        self._of(peer).in_flight += 1

    def ended(self, peer: str) -> None:
        known = self._of(peer)
        known.in_flight = max(0, known.in_flight - 1)

    def answered(self, peer: str, model: bytes, service_s: float, now: float) -> None:
        """service_s: until its first token or its prediction, round trip included."""
        known = self._of(peer)
        before = self._service(known, model, now)
        known.service.pop(model, None)
        seconds = min(service_s, self._config.first_s) if before is None else self._smoothed(before, service_s)
        known.service[model] = self._smoothed(None, seconds), now
        if len(known.service) > self._config.models:
            known.service.popitem(last=False)
        known.failures = self._failures(known, now) / 2
        known.failed_at = now
        known.busy_until = -math.inf

    def failed(self, peer: str, now: float, weight: float = 1.0) -> None:
        """It was gone, stalled, or answered what is no answer."""
        known = self._of(peer)
        known.failures = self._failures(known, now) + max(0.0, weight)
        known.failed_at = now

    def busy(self, peer: str, now: float) -> None:
        """It refused for want of room."""
        self._of(peer).busy_until = now + self._config.busy_s

    def told(self, peer: str, model: bytes, load: Load, now: float) -> None:
        """What it says of its load with this model."""
        known = self._of(peer)
        known.loads.pop(model, None)
        known.loads[model] = _Told(load, now, known.in_flight)
        if len(known.loads) > self._config.models:
            known.loads.popitem(last=False)

    def measured(self, peer: str, round_trip_s: float) -> None:
        known = self._of(peer)
        known.round_trip_s = self._smoothed(known.round_trip_s, round_trip_s)

    def distrust(self, peer: str, weight: float, until: float) -> None:
        """It was found to answer wrongly. weight: 1 and above puts it behind all who are trusted, less adds to its
        cost; weights of one peer add up. until: when this is forgotten."""
        known = self._of(peer)
        known.distrust = [*known.distrust[-15:], (max(0.0, weight), until)]

    # --- who is asked ------------------------------------------------------------------------------------------------

    def rank(self, model: bytes, candidates: Sequence[Candidate], now: float) -> tuple[str, ...]:
        """All of them, each once, whom to ask first first."""
        unique = {one.peer: one for one in candidates}.values()
        ordered = sorted(unique, key=lambda one: (self._tier(one, now), self.cost(model, one, now), one.peer))
        return tuple(one.peer for one in self._with_first(model, ordered, now))

    def cost(self, model: bytes, one: Candidate, now: float) -> float:
        """Seconds until it is expected to have answered, and what is as bad as so many seconds."""
        config, known = self._config, self._peers.get(one.peer) or _Known()
        trip = 0.0 if one.own else self._trip(known, one)
        served = self._service(known, model, now)
        service = config.service_s + trip if served is None else served
        told = self._fresh(known, model, now)
        seconds = service * (1.0 + self._fullness(known, told))
        if told is None and served is None:
            seconds += 0.0 if one.loaded else config.load_s
            seconds += 0.0 if one.holds or one.loaded else config.fetch_s
        if self._region and not one.own and one.region != self._region:
            seconds += config.region_s
        seconds += config.failure_s * self._failures(known, now) + config.price_s * one.price
        return seconds * (1.0 + self.distrusted(one.peer, now))

    def distrusted(self, peer: str, now: float) -> float:
        """The weights that still hold, added up."""
        known = self._peers.get(peer)
        return sum(weight for weight, until in known.distrust if now < until) if known else 0.0

    def in_flight(self, peer: str) -> int:
        """Of ours, at this peer."""
        known = self._peers.get(peer)
        return known.in_flight if known else 0

    def stale(self, peer: str, model: bytes, now: float) -> bool:
        """Nothing is known of its load with this model that is not too old."""
        known = self._peers.get(peer)
        return known is None or self._fresh(known, model, now) is None

    # --- inside ------------------------------------------------------------------------------------------------------

    def _of(self, peer: str) -> _Known:
        known = self._peers.pop(peer, None) or _Known()
        self._peers[peer] = known
        while len(self._peers) > self._config.peers:
            idle = (name for name, one in self._peers.items() if not one.in_flight and name != peer)
            if (gone := next(idle, None)) is None:
                break
            del self._peers[gone]
        return known

    def _smoothed(self, before: float | None, seconds: float) -> float:
        seconds = max(0.0, seconds) if math.isfinite(seconds) else self._config.service_s
        return seconds if before is None else before + self._config.smoothing * (seconds - before)

    def _trip(self, known: _Known, one: Candidate) -> float:
        measured = known.round_trip_s if known.round_trip_s is not None else one.round_trip_s
        return self._config.round_trip_s if measured is None else measured

    def _service(self, known: _Known, model: bytes, now: float) -> float | None:
        """Its service time, nearer to the usual one the longer ago it was measured: a peer that once was slow is tried
        again."""
        if (found := known.service.get(model)) is None:
            return None
        seconds, at = found
        usual, age = self._config.service_s, max(0.0, now - at)
        return float(usual + (seconds - usual) * 0.5 ** (age / self._config.service_half_life_s))

    def _failures(self, known: _Known, now: float) -> float:
        age = max(0.0, now - known.failed_at)
        return known.failures * 0.5 ** (age / self._config.failure_half_life_s) if known.failures else 0.0

    def _fresh(self, known: _Known, model: bytes, now: float) -> _Told | None:
        told = known.loads.get(model)
        return told if told is not None and now - told.at <= self._config.load_age_s else None

    def _fullness(self, known: _Known, told: _Told | None) -> float:
        """Answers before a new one, in lots of as many as the peer does at once."""
        if told is None:
            return known.in_flight / UNKNOWN_SLOTS
        since = max(0, known.in_flight - told.in_flight)
        return (told.load.running + told.load.waiting + since) / (told.load.slots or UNKNOWN_SLOTS)

    def _tier(self, one: Candidate, now: float) -> int:
        """0 for whom nothing speaks against; then who just refused or failed; last who is distrusted."""
        known = self._peers.get(one.peer)
        if known is None:
            return 0
        if self.distrusted(one.peer, now) >= 1.0:
            return 2
        return int(now < known.busy_until or self._failures(known, now) >= 0.5)

    def _with_first(self, model: bytes, ordered: list[Candidate], now: float) -> list[Candidate]:
        """This node itself first, unless another is clearly better; else the better of two that are nearly the best."""
        if len(ordered) < 2:
            return ordered
        first = self._first(model, ordered, now)
        return [first, *(one for one in ordered if one is not first)]

    def _first(self, model: bytes, ordered: list[Candidate], now: float) -> Candidate:
        config, best = self._config, self.cost(model, ordered[0], now)
        tier = self._tier(ordered[0], now)
        good = [one for one in ordered if self._tier(one, now) == tier]
        for one in good:
            gain = config.own_loaded_gain if one.loaded else config.own_gain
            if one.own and self.cost(model, one, now) <= gain * best + config.near_s:
                return one
        near = [one for one in good if self.cost(model, one, now) <= config.near * best + config.near_s]
        drawn = self._draws.sample(near, 2) if len(near) > 2 else near
        return min(drawn, key=lambda one: self.cost(model, one, now))
