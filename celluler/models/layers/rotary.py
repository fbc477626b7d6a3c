"""Rotary positions stretched over longer texts than a model was first made for: how slowly each pair turns.

A head of width w turns its pair i by `base ** (-2i / w)` a place; a scaling multiplies each of these by a number of its
own, and cosines and sines by one for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from celluler.errors import InvalidSpec
from celluler.models.fields import MAX_SIZE, Flag, Real, Whole, declare, read_fields

_FACTOR = Real(1.0, 1e4)
_LONGEST = MAX_SIZE


class Scaling(Protocol):
    KIND: ClassVar[str]

    @property
    def amplitude(self) -> float:
        """Of cosines and sines."""

    def check(self, path: str) -> None:
        """Raises InvalidSpec for fields that contradict each other."""

    def multipliers(self, base: float, width: int) -> list[float]:
        """Of the speed of each pair. base above 1; width: of a head, even."""


@dataclass(frozen=True, slots=True)
class Linear:
    """All pairs turn slower by one factor. Source: Chen et al. 2023."""

    KIND: ClassVar[str] = "linear"
    factor: float = declare(_FACTOR, "by which places lie closer together")

    @property
    def amplitude(self) -> float:
        return 1.0

    def check(self, path: str) -> None:
        pass

    def multipliers(self, base: float, width: int) -> list[float]:
        return [1.0 / self.factor] * (width // 2)


@dataclass(frozen=True, slots=True)
class Llama3:
    """Pairs that turn fewer than `low` times over the first length turn slower by the factor, those that turn more than
    `high` times as before, and those between by something between. Source: Grattafiori et al. 2024 (Llama 3.1)."""

    KIND: ClassVar[str] = "llama3"
    factor: float = declare(_FACTOR, "by which slow pairs are slower")
    original: int = declare(Whole(1, _LONGEST), "places that the model was first made for")
    low: float = declare(Real(1e-3, 1e6), "turns", default=1.0)
    high: float = declare(Real(1e-3, 1e6), "turns; more than `low`", default=4.0)

    @property
    def amplitude(self) -> float:
        return 1.0

    def check(self, path: str) -> None:
        if self.high <= self.low:
            raise InvalidSpec(f"{path}.high", f"must be more than `low`, {self.low}")

    def multipliers(self, base: float, width: int) -> list[float]:
        told = []
        for pair in range(width // 2):
            turns = self.original * base ** (-2 * pair / width) / (2 * math.pi)
            kept = min(1.0, max(0.0, (turns - self.low) / (self.high - self.low)))
            told.append((1.0 - kept) / self.factor + kept)
        return told


@dataclass(frozen=True, slots=True)
class Yarn:
    """From the pair that turns `fast` times over the first length to the one that turns `slow` times, speeds go over,
    pair by pair, from what they were to what the factor makes of them; cosines and sines grow with the factor. Source:
    Peng et al. 2023, section 3."""

    KIND: ClassVar[str] = "yarn"
    factor: float = declare(_FACTOR, "by which slow pairs are slower")
    original: int = declare(Whole(1, _LONGEST), "places that the model was first made for")
    fast: float = declare(Real(1e-3, 1e6), "turns", default=32.0)
    slow: float = declare(Real(1e-3, 1e6), "turns; at most `fast`", default=1.0)
    attention: float | None = declare(
        Real(1e-3, 1e3), "of cosines and sines; 0.1 · ln(factor) + 1 when absent", default=None
    )
    whole: bool = declare(Flag(), "the two pairs are rounded, outwards", default=True)

    @property
    def amplitude(self) -> float:
        return 0.1 * math.log(self.factor) + 1.0 if self.attention is None else self.attention

    def check(self, path: str) -> None:
        if self.fast < self.slow:
            raise InvalidSpec(f"{path}.fast", f"must be at least `slow`, {self.slow}")

    def multipliers(self, base: float, width: int) -> list[float]:
        first, last = (self._pair(turns, base, width) for turns in (self.fast, self.slow))
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        wide = 0.001 if first == last else last - first
        told = []
        for pair in range(width // 2):
            slower = min(1.0, max(0.0, (pair - first) / wide))
            told.append(slower / self.factor + (1.0 - slower))
        return told

    def _pair(self, turns: float, base: float, width: int) -> float:
        """The one that turns so often over the first length; a fraction."""
        return width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(base))


SCALINGS: dict[str, type[Scaling]] = {cls.KIND: cls for cls in (Linear, Llama3, Yarn)}


@dataclass(frozen=True, slots=True)
class ScalingRule:
    """The rule of a field that holds a scaling."""

    @property
    def text(self) -> str:
        return "object with a kind: " + " · ".join(f"`{kind}`" for kind in SCALINGS)

    def read(self, value: Any, path: str) -> Scaling:
        if not isinstance(value, dict):
            raise InvalidSpec(path, "must be an object")
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in SCALINGS:
            raise InvalidSpec(f"{path}.kind", f"must be one of {', '.join(SCALINGS)}")
        scaling = SCALINGS[kind](**read_fields(SCALINGS[kind], value, path, besides=("kind",)))
        scaling.check(path)
        return scaling
