"""Whether a prediction is one that its model gives, beside the same prediction made again.

Numbers may differ by as much as `checking.Tolerance` grants logits, relative to the largest value of their sample.
A label may be another one where the two are as close to each other. What steps behind the model make of numbers, and
what is drawn from seeds, may differ by anything: of those, only equal bytes say something.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.inference.checking import Outcome, Tolerance, Verdict

Array = npt.NDArray[Any]
_NUMBERS = ("raw", "probabilities", "next_token", "embedding", "reconstruction")
LABELS = "labels"


def needs_raw(output: str, theirs: Array, ours: Array) -> bool:
    """What the model gives as `raw` decides, since the labels differ."""
    return output == LABELS and theirs.shape == ours.shape and bool((theirs != ours).any())


def compare(
    output: str, theirs: Array, ours: Array, tolerance: Tolerance, *, own: bool, raw: Array | None = None
) -> Verdict | None:
    """None where nothing can be said. theirs, ours: (batch, ...). own: the output is one of the model's, nothing stands
    behind it. raw: (batch, classes), of labels that differ. A sample that shows a lie ends it; its place is told."""
    if theirs.dtype != ours.dtype or theirs.shape != ours.shape:
        told = f"{theirs.dtype.name} {theirs.shape} is no such answer, {ours.dtype.name} {ours.shape} is"
        return Verdict(Outcome.WRONG, 1, 1, told) if own else None
    if theirs.tobytes() == ours.tobytes():
        return Verdict(Outcome.PLAUSIBLE, len(ours), 0)
    if not own:
        return None
    if output == LABELS and raw is not None and raw.ndim == 2:
        return _labels(theirs, raw, tolerance)
    return _numbers(theirs, ours, tolerance) if output in _NUMBERS and ours.dtype.kind == "f" else None


def _numbers(theirs: Array, ours: Array, tolerance: Tolerance) -> Verdict:
    flat = [one.reshape(len(one), -1).astype(np.float64) for one in (theirs, ours)]
    with np.errstate(invalid="ignore"):
        apart = np.abs(flat[0] - flat[1])
    same = flat[0] == flat[1]
    same |= np.isnan(flat[0]) & np.isnan(flat[1])
    apart = np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf)).max(1)
    largest = np.abs(np.where(np.isfinite(flat[1]), flat[1], 0.0)).max(1)
    allowed = tolerance.slack * np.maximum(1.0, largest)
    return _verdict(apart > allowed, ~same.all(1), lambda at: f"off by {apart[at]:.3g}, {allowed[at]:.3g} are honest")


def _labels(theirs: Array, raw: Array, tolerance: Tolerance) -> Verdict:
    known = (theirs >= 0) & (theirs < raw.shape[1])
    told = raw[np.arange(len(raw)), np.where(known, theirs, 0)].astype(np.float64)
    gaps = np.where(known, raw.max(1).astype(np.float64) - told, np.inf)
    return _verdict(gaps > tolerance.gap, gaps > 0.0, lambda at: f"label {theirs[at]} is {gaps[at]:.3g} below the best")


def _verdict(wrong: npt.NDArray[np.bool_], misses: npt.NDArray[np.bool_], why: Any) -> Verdict:
    count = int(misses.sum())
    if not wrong.any():
        return Verdict(Outcome.PLAUSIBLE, len(wrong), count)
    at = int(np.argmax(wrong))
    return Verdict(Outcome.WRONG, at + 1, count, f"sample {at}: {why(at)}")
