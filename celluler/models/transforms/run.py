"""Running a chain on a batch. Programs are run by whom the caller names; what they give is held against the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from celluler.errors import InvalidSpec
from celluler.models.layers import Signal
from celluler.models.transforms.base import TEXT, Array, NumberStep, numpy_dtype
from celluler.models.transforms.document import Chain

CHUNK_BYTES = 8 << 20
"""Of one value of the samples that are held at once, as far as more than one sample is."""
Program = Callable[[Array], Array]
"""(n, *given) → (n, *gives)."""


def run_chain(chain: Chain, x: Array, programs: Mapping[int, Program]) -> Array:
    """x: (n, *given), of a text up to that. programs: by the place of the step.

    Raises InvalidSpec for values that a step does not take, and for a program that gives another thing than it says.
    """
    most = max(1, CHUNK_BYTES // chain.largest_bytes)
    parts = [_run(chain, x[start : start + most], programs) for start in range(0, len(x), most)]
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


def raw_input(given: Signal, x: Array) -> Array:
    """A raw batch as the first step takes it. Raises InvalidSpec: `input[k]` is the sample that is wrong."""
    if given.dtype == TEXT:
        for place, row in enumerate(x):
            try:
                row.tobytes().decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidSpec(f"input[{place}]", "is not UTF-8") from None
        return np.pad(x, ((0, 0), (0, given.shape[0] - x.shape[1])))
    if given.dtype == "float32":
        finite = np.isfinite(x.reshape(len(x), -1)).all(axis=1)
        if not finite.all():
            raise InvalidSpec(f"input[{int(np.argmin(finite))}]", "holds values that are not finite")
    return x


def _run(chain: Chain, x: Array, programs: Mapping[int, Program]) -> Array:
    for place, (step, planned) in enumerate(zip(chain.steps, chain.signals[1:], strict=True)):
        path = f"{chain.path}.steps[{place}]"
        run = programs[place] if place in programs else cast(NumberStep, step).run
        try:
            with np.errstate(all="ignore"):
                made = run(x)
        except InvalidSpec as error:
            raise InvalidSpec(f"{path}.{error.path}" if error.path else path, error.problem) from error
        _check(made, len(x), planned, path)
        x = made
    return x


def _check(made: np.ndarray[Any, Any], samples: int, planned: Signal, path: str) -> None:
    if made.shape != (samples, *planned.shape) or made.dtype != numpy_dtype(planned.dtype):
        told = f"{made.dtype} {made.shape[1:]}, and should give {planned.dtype} {planned.shape}"
        raise InvalidSpec(path, f"gives {told}")
