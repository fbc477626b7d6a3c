"""What verification asks of aggregation, over bytes: the port `celluler.learning.verify.Arithmetic`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from celluler.aggregation.digests import mantissas_of, part_hash, reduced_digest, wire_bytes
from celluler.aggregation.rules import rule_named


class IntegerArithmetic:
    """The shipped rules. Same bits on any machine."""

    part_hash = staticmethod(part_hash)
    reduced_digest = staticmethod(reduced_digest)

    def reduce(
        self, rule: str, f: int, exponents: Sequence[int], rows: Sequence[bytes]
    ) -> tuple[int, bytes, tuple[int, ...]]:
        matrix = np.stack([mantissas_of(row) for row in rows])
        reduced = rule_named(rule)(np.array(exponents, dtype=np.int16), matrix, f)
        return reduced.exponent, bytes(wire_bytes(reduced.mantissas)), reduced.weights
