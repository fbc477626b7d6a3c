"""Random numbers that are a function of what they are for: of a key, a purpose, and the number of the sample.

They come from BLAKE3, as a round's batches do, and go through operations that IEEE 754 fixes alone: the same bits on
every machine, and for each sample, however a batch is cut. So whoever does a member's round again draws what it drew.
Knows nothing of objectives or rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor

Doubles = npt.NDArray[np.float64]

_BLOCK = 1 << 13  # pairs at a time: what is held in double precision stays small
_SQRT_HALF = math.sqrt(0.5)
_LOG_TERMS = tuple(2 / n for n in range(19, 0, -2))
_SINE_TERMS = tuple((-1) ** (n // 2) / math.factorial(n) for n in range(17, 0, -2))
_COSINE_TERMS = tuple((-1) ** (n // 2) / math.factorial(n) for n in range(16, -1, -2))


class Draws:
    """For some samples: each has numbers of its own, which do not depend on those beside it."""

    def __init__(self, key: bytes, place: bytes, numbers: Sequence[int]) -> None:
        """key: 32 bytes. place: what all samples share, such as round and step. numbers: of the samples, 64 bits."""
        self._key, self._place, self._numbers = key, place, numbers

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """(samples, *shape) float32, from the normal distribution with mean 0 and variance 1."""
        count = math.prod(shape)
        half = (count + 1) // 2
        words = self._words(purpose, 2 * half).reshape(-1, 2)
        pairs = np.empty((2, len(words)), dtype=np.float32)
        for start in range(0, len(words), _BLOCK):
            block = words[start : start + _BLOCK].astype(np.float64)
            length = np.sqrt(-2.0 * _log((block[:, 0] + 1.0) * 2.0**-32))  # Box and Muller 1958
            cosine, sine = _turned(block[:, 1] * 2.0**-32)
            pairs[:, start : start + _BLOCK] = length * cosine, length * sine
        drawn = np.concatenate((pairs[0].reshape(-1, half), pairs[1].reshape(-1, half)), axis=1)[:, :count]
        return torch.from_numpy(drawn).reshape(-1, *shape)

    def uniform(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """(samples, *shape) float32 in 0 ≤ x < 1."""
        words = self._words(purpose, math.prod(shape)) >> 8  # 24 bits fit float32 exactly
        return torch.from_numpy(words.astype(np.float32) * np.float32(2.0**-24)).reshape(-1, *shape)

    def below(self, purpose: str, end: int) -> Tensor:
        """(samples,) int64 in 0…end − 1; end: at most 2^20."""
        words = self._words(purpose, 2).astype(np.uint64)
        drawn = (words[:, 0] | words[:, 1] << np.uint64(32)) % np.uint64(end)  # bias below 2^-44
        return torch.from_numpy(drawn.astype(np.int64))

    def _words(self, purpose: str, count: int) -> npt.NDArray[np.uint32]:
        """(samples, count)"""
        head = b"celluler-" + purpose.encode("ascii") + b"-1\0" + self._place
        places = (head + (number % (1 << 64)).to_bytes(8, "little") for number in self._numbers)
        drawn = b"".join(blake3(place, key=self._key).digest(length=4 * count) for place in places)
        return np.frombuffer(drawn, dtype="<u4").astype(np.uint32, copy=False).reshape(-1, count)


# --- functions whose last bit a library would leave open -------------------------------------------------------------


def _log(x: Doubles) -> Doubles:
    """Of positive numbers: the series of atanh, about the nearest power of two."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < _SQRT_HALF
    mantissa, exponent = np.where(small, 2.0 * mantissa, mantissa), exponent - small
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * math.log(2.0) + ratio * _polynomial(_LOG_TERMS, ratio * ratio)


def _turned(turns: Doubles) -> tuple[Doubles, Doubles]:
    """Cosine and sine of 2π·turns, 0 ≤ turns < 1: the series about the nearest quarter."""
    quarter = np.floor(4.0 * turns + 0.5)
    angle = (turns - quarter / 4.0) * (2.0 * math.pi)
    square = angle * angle
    cosine, sine = _polynomial(_COSINE_TERMS, square), angle * _polynomial(_SINE_TERMS, square)
    odd, far = quarter % 2.0 == 1.0, quarter % 4.0 >= 2.0
    sign = np.where(far, -1.0, 1.0)
    return sign * np.where(odd, -sine, cosine), sign * np.where(odd, cosine, sine)


def _polynomial(terms: tuple[float, ...], x: Doubles) -> Doubles:
    """terms: of the highest power first."""
    value = np.full_like(x, terms[0])
    for term in terms[1:]:
        value = value * x + term
    return value
