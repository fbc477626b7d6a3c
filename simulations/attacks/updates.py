"""Attacks on a member's update: each turns the honest update into what is sent instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from celluler.aggregation.q16 import Mantissas, Values, decode_parts, encode_parts


class UpdateAttack(Protocol):
    """What a lying trainer does to its update. values: (dimension,) float32."""

    def __call__(self, values: Values) -> Values: ...


@dataclass(frozen=True, slots=True)
class Scale:
    """The own update times a factor: −1000 is sign flipping with force."""

    factor: float = -1000.0

    def __call__(self, values: Values) -> Values:
        return (values * np.float32(self.factor)).astype(np.float32)


def attacked(
    attack: UpdateAttack, exponents: tuple[int, ...], mantissas: Mantissas
) -> tuple[tuple[int, ...], Mantissas]:
    """The attack on an update in its wire form: well-formed, committed to, and wrong."""
    return encode_parts(attack(decode_parts(exponents, mantissas)), len(exponents))


def parse_attack(text: str) -> UpdateAttack:
    """`scale:-1000`. Raises ValueError."""
    name, _, argument = text.partition(":")
    if name != "scale":
        raise ValueError(f"no attack is called {name!r}; there is scale")
    return Scale(float(argument or -1000))
