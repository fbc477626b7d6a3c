"""One tensor of a weights file."""

from __future__ import annotations

import math
from dataclasses import dataclass

from celluler.models.graph_ops import DTYPES


@dataclass(frozen=True, slots=True)
class Stored:
    """dtype: key of `DTYPES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def byte_count(self) -> int:
        return DTYPES[self.dtype][1] * math.prod(self.shape)
