"""From the logits of one place to a token, as the OpenAI API's parameters ask for it.

A draw is a function of seed, choice and place in the answer alone: what else is in the batch does not move it. It is
held against probabilities summed in the order of the tokens, in float64, so that logits that differ in their last bits
give another token only where a draw falls within those bits of a border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from celluler.errors import InvalidSpec, LocalError

MAX_TOP_LOGPROBS = 20
MAX_TEMPERATURE = 2.0
MAX_CHOICES = 16
MAX_TOP_K = 1 << 20
LOWEST_LOGPROB = -9999.0
"""What stands for the logarithm of nothing."""

Logits = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
_FIRST_SORTED = (256, 4096)
"""Of the likeliest, before all: sorting a large vocabulary takes milliseconds, and few tokens hold most of it."""


class UndefinedLogits(LocalError):
    """A model gave no finite logit at all: there is nothing to draw from."""


def _need(name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise InvalidSpec(name, f"must be {allowed}")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Raises InvalidSpec for a value out of range.

    temperature: 0 takes the likeliest, else logits are divided by it. top_k: of how many likeliest, 0 for all; top_p:
    of the fewest likeliest that hold this share of what `top_k` left. seed: 64 bits; choice: which answer of a request.
    logprobs: tell of each token its logarithm of probability, and that of so many likeliest; None: of none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    choice: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _need("temperature", 0.0 <= self.temperature <= MAX_TEMPERATURE, f"0…{MAX_TEMPERATURE:g}")
        _need("top_p", 0.0 < self.top_p <= 1.0, "above 0, at most 1")
        _need("top_k", 0 <= self.top_k <= MAX_TOP_K, f"0…{MAX_TOP_K}")
        _need("seed", 0 <= self.seed < 1 << 64, "0…2^64 - 1")
        _need("choice", 0 <= self.choice < MAX_CHOICES, f"0…{MAX_CHOICES - 1}")
        _need("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS, f"0…{MAX_TOP_LOGPROBS}")


USUAL, GREEDY = Sampling(), Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Chosen:
    """logprob: of the token in what the model says, before temperature and cuts; None unless asked for. top: the
    likeliest tokens with theirs, the likeliest first, the lower token first among equals. text: what may be read with
    it; empty while a character is not complete, and where a model has no texts. top_texts: the same of each of top, had
    it been drawn; none where a model has no texts."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    text: str = ""
    top_texts: tuple[str, ...] = ()


def choose(logits: Logits, sampling: Sampling, place: int, allowed: npt.NDArray[np.bool_] | None = None) -> Chosen:
    """logits: (vocabulary) float; what is no number counts as impossible. place: of the token in its answer, from 0.
    allowed: (vocabulary), what may be drawn; logarithms of probability are told as the model says them all the same.

    Raises UndefinedLogits when no logit is finite, of those that are allowed.
    """
    told = finite(logits)
    drawable = told if allowed is None else finite(np.where(allowed, told, -np.inf))
    if sampling.temperature == 0.0:
        token = int(drawable.argmax())
    else:
        token = _at(_kept(drawable, sampling), draw(sampling.seed, sampling.choice, place))
    return Chosen(token) if sampling.logprobs is None else _with_logprobs(told, token, sampling.logprobs)


def draw(seed: int, choice: int, place: int) -> float:
    """A number in 0 ≤ x < 1, of 53 bits."""
    words = b"celluler-token-1\0" + b"".join(one.to_bytes(8, "little") for one in (seed, choice, place))
    return (int.from_bytes(blake3(words).digest(length=8), "little") >> 11) * 2.0**-53


def log_probabilities(logits: Logits) -> Doubles:
    """(vocabulary) float64: logarithms of what a softmax makes of them."""
    told = finite(logits)
    shifted = told - told.max()
    logs: Doubles = shifted - math.log(float(np.exp(shifted).sum()))
    return logs


def finite(logits: Logits) -> Doubles:
    """(vocabulary) float64: what is no number is minus infinity. Raises UndefinedLogits when all of it is."""
    told = np.array(logits, dtype=np.float64)
    told[~np.isfinite(told)] = -np.inf
    if not len(told) or told.max() == -np.inf:
        raise UndefinedLogits("the model gave no logit that is a number")
    return told


def _kept(told: Doubles, sampling: Sampling) -> Doubles:
    """(vocabulary) weights, zero where top_k or top_p cut; they need not sum to one. Which are likeliest the logits
    say: of some that differ the weights are equal."""
    with np.errstate(over="ignore"):  # a temperature next to zero
        weights: Doubles = np.exp((told - told.max()) / sampling.temperature)
    if 0 < sampling.top_k < len(weights):
        weights = _only(weights, likeliest(told, sampling.top_k))
    if sampling.top_p < 1.0:
        wanted = sampling.top_p * float(weights.sum())
        for count in _FIRST_SORTED:
            order = likeliest(told, count)
            sums = np.cumsum(weights[order])
            if sums[-1] >= wanted:
                break
        else:
            order = np.argsort(-told, kind="stable")
            sums = np.cumsum(weights[order])
        weights = _only(weights, order[: int(np.searchsorted(sums, wanted)) + 1])
    return weights


def likeliest(values: Doubles, count: int) -> npt.NDArray[np.int64]:
    """Places of the `count` largest, largest first, the lower place first among equals."""
    count = min(count, len(values))
    if not count:
        return np.empty(0, dtype=np.int64)
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    at = np.flatnonzero(values == least)[: count - len(above)]
    places = np.concatenate((above, at))
    order: npt.NDArray[np.int64] = places[np.lexsort((places, -values[places]))]
    return order


def _only(weights: Doubles, places: npt.NDArray[np.int64]) -> Doubles:
    kept = np.zeros_like(weights)
    kept[places] = weights[places]
    return kept


def _at(weights: Doubles, share: float) -> int:
    """The token in whose part of the sum the share falls; never one of weight zero."""
    sums = np.cumsum(weights)
    found = int(np.searchsorted(sums, share * sums[-1], side="right"))
    return found if found < len(weights) else int(np.flatnonzero(weights)[-1])


def _with_logprobs(told: Doubles, token: int, count: int) -> Chosen:
    logs = np.maximum(log_probabilities(told), LOWEST_LOGPROB)
    top = tuple((int(place), float(logs[place])) for place in likeliest(told, count))
    return Chosen(token, float(logs[token]), top)
