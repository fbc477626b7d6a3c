"""Whether an answer is one that its model gives, by scores of the claimed tokens.

Who scores computes on logits of his own, which differ from those of whoever answered as far as machines, threads and
batches do: by at most `slack`, which `TOLERANCES` has by how the model's weights are stored. Within it everything
counts for whoever answered; beyond it no honest peer comes. Few tokens that are only just plausible prove nothing, many
do: how often an honest peer draws another token than we do is known as well, and far more often than that is a lie.

Not told here: whether an answer follows a schema, or was long enough. Spec: docs/explanation/checked-answers.md
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from celluler.inference.borders import mass_slack
from celluler.inference.sampling import LOWEST_LOGPROB, Chosen, Sampling
from celluler.inference.scores import TOP, Scores

ALPHA = 1e-9
"""How likely it may be, at most, that an honest answer is called a lie by chance."""
LEAST_TOP_TOKENS = 16
"""Tokens with told likeliest, from which on those are compared."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """slack: of each logit. misses: share of tokens, at most, in which an honest peer draws another than we do.
    overlap: of the likeliest that were told with those that we find, on average, at least."""

    slack: float
    misses: float
    overlap: float

    @property
    def gap(self) -> float:
        """Between a greedy token and the likeliest: two logits, both off."""
        return 2.0 * self.slack


_NARROW = Tolerance(slack=0.25, misses=0.6, overlap=0.75)
"""Of int4, whose activations are bfloat16, an honest batch drew 22 % of other tokens, where many are as likely."""
TOLERANCES = {
    "float32": Tolerance(slack=5e-4, misses=1e-3, overlap=0.9),
    "bfloat16": _NARROW,
    "float16": _NARROW,
    "int8": _NARROW,
    "int4": _NARROW,
}
"""By `Architecture.dtype`; what was measured is in docs/explanation/checked-answers.md."""


class Outcome(StrEnum):
    PLAUSIBLE = "plausible"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Verdict:
    """tokens: looked at until it was known. misses: in how many of them another token is drawn here. why: in words,
    empty of what is plausible."""

    outcome: Outcome
    tokens: int
    misses: int
    why: str = ""

    @property
    def wrong(self) -> bool:
        return self.outcome is Outcome.WRONG


def judge(
    scores: Scores, sampling: Sampling, tolerance: Tolerance, told: Sequence[Chosen] = (), *, ended: bool = False
) -> Verdict:
    """scores: (tokens,), with borders by `tolerance.slack`. told: the claimed tokens with what was told of them, where
    logprobs were asked for. ended: the last row is of the token that ended the answer. The first token that shows a lie
    ends the check."""
    misses, overlaps, tokens = 0, list[float](), len(scores) - ended
    for place, score in enumerate(scores):
        misses += not score["same"]
        one = told[place] if place < len(told) else None
        if one is not None and len(one.top) >= TOP:
            likeliest = {token for token, _ in one.top[:TOP]}
            overlaps.append(len(likeliest & set(score["top"].tolist())) / len(likeliest))
        why = _implausible(float(score["gap"]), float(score["off"]), sampling, tolerance)
        why = why or _told_wrong(one, float(score["logprob"]), tolerance)
        why = why or _too_many(misses, place + 1, tolerance) or _too_different(overlaps, tolerance)
        if why:
            name = f"token {place}" if place < tokens else "the end"
            return Verdict(Outcome.WRONG, min(tokens, place + 1), misses, f"{name}: {why}")
    return Verdict(Outcome.PLAUSIBLE, tokens, misses)


def _implausible(gap: float, off: float, sampling: Sampling, tolerance: Tolerance) -> str:
    """One token on its own. What is drawn is hardly ever less likely than `ALPHA`."""
    most = tolerance.gap - sampling.temperature * math.log(ALPHA)
    if gap > most:
        return f"its logit is {gap:.3g} below the largest, {most:.3g} at most is honest"
    if sampling.temperature and off > (moved := mass_slack(tolerance.slack, sampling.temperature)):
        return f"the draw misses it by a probability of {off:.3g}, {moved:.3g} at most is honest"
    return ""


def _told_wrong(one: Chosen | None, logprob: float, tolerance: Tolerance) -> str:
    if one is None or one.logprob is None:
        return ""
    found = max(logprob, LOWEST_LOGPROB)
    if abs(one.logprob - found) <= 2.0 * tolerance.slack:
        return ""
    return f"its logprob was told to be {one.logprob:.4f} and is {found:.4f}"


def _too_many(misses: int, tokens: int, tolerance: Tolerance) -> str:
    if misses and (chance := tail(misses, tokens, tolerance.misses)) < ALPHA:
        return f"{misses} of {tokens} tokens are not what is drawn here, which is honest with a chance of {chance:.1g}"
    return ""


def _too_different(overlaps: Sequence[float], tolerance: Tolerance) -> str:
    mean = sum(overlaps) / max(1, len(overlaps))
    if len(overlaps) < LEAST_TOP_TOKENS or mean >= tolerance.overlap:
        return ""
    return f"of the likeliest that were told {mean:.2f} are likeliest, {tolerance.overlap:g} at least is honest"


def tail(misses: int, tokens: int, rate: float) -> float:
    """The chance of so many misses or more (binomial), by Chernoff's bound, which is never below it.

    Source: Chernoff 1952; P(X ≥ m) ≤ exp(−n·KL(m/n ‖ rate)) for m/n > rate.
    """
    share = misses / tokens
    if share <= rate:
        return 1.0
    rest = (1.0 - share) * math.log((1.0 - share) / (1.0 - rate)) if share < 1.0 else 0.0
    return math.exp(-tokens * (share * math.log(share / rate) + rest))
