"""One answer of several: what peers, or models, make of the same batch, put together, and how far they were apart.

`vote` takes of each sample what most say: of class probabilities the class, of labels and texts the whole answer.
`median` and `mean` go element by element. One liar among three changes neither a vote nor, beyond what honest answers
span, a median; a mean it moves as far as it likes. What is no number counts for nothing, and against whoever gave it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.errors import InvalidSpec

MEAN, VOTE, MEDIAN = "mean", "vote", "median"
RULES = (MEAN, VOTE, MEDIAN)
MAX_MEMBERS = 16
CLOSE = 1e-3
"""Relative to the largest value of a sample: ten times what machines and batches make of one model in float32."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """values: (batch, ...), as each member's are. disagreement: (batch,) float64; of a vote the share of members who
    were outvoted, else how far the farthest member is from the result, relative to the result's largest value.
    dissent: of each member, in how many samples it was outvoted, or farther than `CLOSE` from the median."""

    values: Array
    disagreement: npt.NDArray[np.float64]
    dissent: tuple[int, ...]


def quorum_of(members: int) -> int:
    """How many answers will do: more than half of those asked, of two both."""
    return members // 2 + 1


def check_rule(rule: str, dtype: str) -> None:
    """Raises InvalidSpec for a rule there is not, or that means nothing for answers of this dtype."""
    if rule not in RULES:
        raise InvalidSpec("aggregate", f"is {rule[:16]!r}, must be one of {', '.join(RULES)}")
    if rule != VOTE and dtype != "float32":
        raise InvalidSpec("aggregate", f"is {rule}, and what the model gives are no numbers to be averaged", hint=VOTE)


def aggregated(rule: str, answers: Sequence[Array]) -> Aggregate:
    """answers: of each member (batch, ...), the likelier to be trusted first: of as many votes the earlier wins. All of
    one dtype and shape, but that bytes of texts may be fewer in some.

    Raises InvalidSpec for answers that do not go together.
    """
    if not 1 <= len(answers) <= MAX_MEMBERS:
        raise InvalidSpec("ensemble", f"has {len(answers)} members, must be 1…{MAX_MEMBERS}")
    answers = _alike(answers)
    check_rule(rule, answers[0].dtype.name)
    stacked = np.stack(answers)  # (members, batch, ...)
    if stacked.dtype.kind != "f":
        return _voted(stacked, [[row.tobytes() for row in one] for one in stacked])
    sound = np.isfinite(stacked).reshape(*stacked.shape[:2], -1).all(2)  # (members, batch)
    if rule == VOTE:
        if stacked.ndim != 3 or stacked.shape[2] < 2:
            raise InvalidSpec("aggregate", "is vote, and what the model gives are no classes", hint=MEDIAN)
        classes = np.where(sound, np.nan_to_num(stacked).argmax(2), -1)
        return _voted(stacked, classes.tolist(), sound)
    return _averaged(rule, stacked, sound)


def _alike(answers: Sequence[Array]) -> list[Array]:
    first = answers[0]
    if first.dtype.kind == "u" and first.ndim == 2 and all(one.ndim == 2 for one in answers):
        width = max(one.shape[1] for one in answers)
        answers = [np.pad(one, ((0, 0), (0, width - one.shape[1]))) for one in answers]
    for one in answers:
        if one.dtype != first.dtype or one.shape != answers[0].shape:
            told = f"give {one.dtype.name} {one.shape} and {first.dtype.name} {first.shape}"
            raise InvalidSpec("ensemble", f"members {told}")
    return list(answers)


def _voted(stacked: Array, votes: Sequence[Sequence[Any]], sound: npt.NDArray[np.bool_] | None = None) -> Aggregate:
    """votes: of each member, of each sample. What is told is the median of those who won where there are numbers."""
    members, batch = stacked.shape[:2]
    values, disagreement, dissent = np.empty_like(stacked[0]), np.zeros(batch), [0] * members
    for sample in range(batch):
        cast = [votes[member][sample] for member in range(members)]
        valid = [vote for member, vote in enumerate(cast) if sound is None or sound[member, sample]]
        if not valid:
            values[sample], disagreement[sample] = np.nan, 1.0
            dissent = [count + 1 for count in dissent]
            continue
        winner = Counter(valid).most_common(1)[0][0]  # in order of first appearance among as many
        won = [member for member in range(members) if cast[member] == winner]
        rows = stacked[won, sample]
        values[sample] = np.median(rows, axis=0) if stacked.dtype.kind == "f" else rows[0]
        disagreement[sample] = 1.0 - len(won) / members
        dissent = [count + (member not in won) for member, count in enumerate(dissent)]
    return Aggregate(values, disagreement, tuple(dissent))


def _averaged(rule: str, stacked: Array, sound: npt.NDArray[np.bool_]) -> Aggregate:
    members, batch = stacked.shape[:2]
    flat = stacked.reshape(members, batch, -1).astype(np.float64)
    centre, values = np.full(flat.shape[1:], np.nan), np.full(flat.shape[1:], np.nan)
    for sample in range(batch):
        rows = flat[sound[:, sample], sample]
        if len(rows):
            centre[sample] = np.median(rows, axis=0)
            values[sample] = centre[sample] if rule == MEDIAN else rows.mean(axis=0)
    away, apart = _distance(flat, centre, sound), _distance(flat, values, sound)
    dissent = tuple(int(count) for count in (away > CLOSE).sum(1))
    told = values.reshape(stacked.shape[1:]).astype(stacked.dtype)
    return Aggregate(told, apart.max(0), dissent)


def _distance(flat: Array, values: Array, sound: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(members, batch): of each from the values, relative to their largest; 1 of what is no number."""
    scale = np.maximum(np.abs(values).max(1), np.finfo(np.float32).tiny)
    with np.errstate(invalid="ignore"):
        found: npt.NDArray[np.float64] = np.abs(flat - values).max(2) / scale
    return np.where(sound, found, 1.0)
