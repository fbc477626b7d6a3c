"""What verification asks of aggregation, over bytes: the port `celluler.learning.verify.Arithmetic`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from celluler.aggregation.digests import mantissas_of, part_hash, reduced_digest, wire_bytes
from celluler.aggregation.rules import rule_named
from celluler.aggregation.wires import FINEST, round_to, wire_named


class IntegerArithmetic:
    """The shipped rules, and what the run's wire can say of what they give. Same bits on any machine."""

    def __init__(self, wire: str = FINEST) -> None:
        """Raises LocalError for a wire that nobody knows."""
        self._wire = wire_named(wire).name

    part_hash = staticmethod(part_hash)
    reduced_digest = staticmethod(reduced_digest)

    def reduce(
        self, rule: str, f: int, exponents: Sequence[int], rows: Sequence[bytes]
    ) -> tuple[int, bytes, tuple[int, ...]]:
        matrix = np.stack([mantissas_of(row) for row in rows])
        reduced = rule_named(rule)(np.array(exponents, dtype=np.int16), matrix, f)
        mantissas = round_to(self._wire, reduced.mantissas)
        return reduced.exponent, bytes(wire_bytes(mantissas)), reduced.weights
