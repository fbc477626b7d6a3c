"""Whether a token is what a draw gives, on logits that may differ a little from those it was drawn from.

A draw (`sampling.draw`) is a number that anybody can compute; the token is the one in whose part of the probability it
falls. Where logits are known to within `slack`, a part's borders are known to within as much as that moves them, and
whether a token near a cut (top_k, top_p) was kept is not known at all: what is not known counts for whoever drew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from celluler.inference.sampling import Doubles, Logits, Sampling, choose, draw, finite, likeliest

_FIRST_SORTED = (256, 4096)
_Places = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Part:
    """Of the probability, from `low` to `high`, that a token may have at most."""

    low: float
    high: float

    def off(self, share: float) -> float:
        """How much probability lies between the share and this part; 0 inside."""
        return max(0.0, self.low - share, share - self.high)


def mass_slack(slack: float, temperature: float) -> float:
    """How much the probability of any set of tokens moves, at most, when no logit moves by more than `slack`.

    Odds move by a factor of exp(2 · slack / temperature) at most.
    """
    return math.tanh(min(slack / (2.0 * temperature), 50.0)) if slack else 0.0


def part_of(logits: Logits, sampling: Sampling, token: int, slack: float) -> Part | None:
    """logits: (vocabulary). None where the token was cut off for certain. Raises UndefinedLogits.

    sampling: with a temperature above 0. slack: by how much each logit may be off.
    """
    told = finite(logits)
    with np.errstate(over="ignore"):  # a temperature next to zero
        weights: Doubles = np.exp((told - told.max()) / sampling.temperature)
    kept, maybe = _cut(told, weights, sampling, slack)
    if not (kept[token] or maybe[token]):
        return None
    certain = np.where(kept, weights, 0.0) if not kept.all() else weights
    before, own, behind = _around(certain, token)
    own = own or float(weights[token])
    more_before = more_behind = 0.0
    if maybe.any():
        more_before, _, more_behind = _around(np.where(maybe, weights, 0.0), token)
    with np.errstate(invalid="ignore", divide="ignore"):
        low = before / max(before + own + behind + more_behind, math.ulp(0.0))
        high = (before + more_before + own) / max(before + more_before + own + behind, math.ulp(0.0))
    return Part(low, high)


def off_by(logits: Logits, sampling: Sampling, place: int, token: int, slack: float) -> tuple[float, bool]:
    """(probability between the draw at this place and the token's part, whether the draw gives it on these very
    logits). Infinity where the token was cut off for certain."""
    if choose(logits, replace(sampling, logprobs=None), place).token == token:
        return 0.0, True
    part = part_of(logits, sampling, token, slack)
    return (math.inf if part is None else part.off(draw(sampling.seed, sampling.choice, place))), False


def _around(weights: Doubles, token: int) -> tuple[float, float, float]:
    return float(weights[:token].sum()), float(weights[token]), float(weights[token + 1 :].sum())


def _cut(told: Doubles, weights: Doubles, sampling: Sampling, slack: float) -> tuple[_Places, _Places]:
    """(kept for certain, perhaps kept), both (vocabulary)."""
    possible = weights > 0.0
    certain = possible.copy()
    if 0 < sampling.top_k < len(told):
        bound = np.partition(told, (len(told) - sampling.top_k - 1, len(told) - sampling.top_k))
        next_out, last_in = bound[len(told) - sampling.top_k - 1], bound[len(told) - sampling.top_k]
        certain &= told > next_out + 2.0 * slack
        possible &= told >= last_in - 2.0 * slack
    if sampling.top_p < 1.0:
        least = float(weights[certain].sum())
        kept, perhaps = _nucleus(told, np.where(possible, weights, 0.0), least, sampling, slack)
        certain, possible = certain & kept, possible & perhaps
    return certain, possible & ~certain


def _nucleus(
    told: Doubles, weights: Doubles, least_total: float, sampling: Sampling, slack: float
) -> tuple[_Places, _Places]:
    """What top_p keeps for certain, and what it may keep. A token is kept where those before it hold less than the
    share; which of two comes first is not known where their logits are closer than twice the slack."""
    total, moved = float(weights.sum()), mass_slack(slack, sampling.temperature)
    order, sums = _sorted(told, weights, (sampling.top_p + moved) * total, 2.0 * slack)
    values = told[order]
    surely = np.searchsorted(-values, -(values + 2.0 * slack), side="left")  # come before it
    maybe = np.searchsorted(-values, -(values - 2.0 * slack), side="right")
    held = np.concatenate(([0.0], sums))
    kept, perhaps = np.zeros(len(told), dtype=np.bool_), np.zeros(len(told), dtype=np.bool_)
    most = held[maybe] - weights[order] if slack else held[:-1]
    least = held[surely] if slack else held[:-1]
    kept[order] = most < (sampling.top_p - moved) * least_total
    perhaps[order] = least < (sampling.top_p + moved) * total
    return kept, perhaps | kept


def _sorted(told: Doubles, weights: Doubles, wanted: float, within: float) -> tuple[npt.NDArray[np.int64], Doubles]:
    """The likeliest that hold so much, and those within a distance of the last of them; with the sums so far."""
    for count in (*(one for one in _FIRST_SORTED if one < len(told)), len(told)):
        order = likeliest(told, count)
        sums: Doubles = np.cumsum(weights[order])
        reached = int(np.searchsorted(sums, wanted))
        if count == len(told) or (reached < count and told[order[reached]] - told[order[-1]] > within):
            break
    return order, sums
