"""How far what a member sent lies from what its work comes to when it is done again.

The measure is a length: of the difference between the two updates on the wire, in units of what the member's own
steps added to it. Momentum is not counted in: it is copied, not worked for, and would hide laziness behind it.

On the same machine, build and threads a replay gives the same bits, and the measure is 0. Elsewhere sums are taken in
another order, and a value may be rounded to the neighbouring mantissa. Where the replayed value lies at the border
between the two mantissas, that is no difference.

Knows nothing of wires: values, and the unit in which they were rounded, come in.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Steps = npt.NDArray[np.float32]

BORDER = 1 / 64
"""How close, in units of the wire, a replayed value must lie to where rounding changes."""
WORST = 1e9
"""Reported where nothing was worked for and something else was sent, and for whatever is larger."""
_BLOCK = 1 << 16  # values compared at a time, in float64


def deviation(
    sent: Vector, again: Vector, exact: Vector, added: Vector, unit: float, steps: Steps | None = None
) -> float:
    """‖sent − again‖ / ‖added‖ over one part, 0…WORST.

    All (d,) float32. sent, again: what the two wires stand for. exact: the replayed update before it was rounded;
    added: the part of it that the member's steps gave. unit: between neighbouring mantissas; 0 forgives no rounding.
    steps: (d,) float32, of a wire that rounds mantissas once more: between neighbouring values of it, in mantissas.
    """
    difference = worked = 0.0
    for start in range(0, sent.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        one, other = sent[block].astype(np.float64), again[block].astype(np.float64)
        apart = one - other
        reach = 0.5 if steps is None else 0.5 * steps[block] + 0.5
        apart[np.abs(one - exact[block]) <= (reach + BORDER) * unit] = 0
        difference += float(apart @ apart)
        work = added[block].astype(np.float64)
        worked += float(work @ work)
    if difference == 0.0:
        return 0.0
    return min(WORST, math.sqrt(difference / worked)) if worked > 0.0 else WORST
