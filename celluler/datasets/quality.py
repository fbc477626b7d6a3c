"""Figures about a column, in one pass over batches of its values, in little memory whatever the file holds.

Takes NumPy arrays and counts of words; knows neither files nor formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.datasets.schema import MAX_DISTINCT, MAX_LABELS, MAX_NAME_BYTES, WHOLE, Column, ColumnQuality, LabelCount
from celluler.errors import InvalidSpec

Mask = npt.NDArray[np.bool_]


class Figures:
    """Of one column, growing with every batch."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self._missing = self._used = 0
        self._low, self._high, self._mean = np.inf, -np.inf, 0.0
        self._counts: dict[Any, int] | None = None if column.shape else {}

    @property
    def counting(self) -> bool:
        """Distinct values are still few enough to be counted."""
        return self._counts is not None

    def add_numbers(self, values: npt.NDArray[Any], valid: Mask | None = None) -> None:
        """values: (n, *shape). valid: of the same shape, False where there is no value."""
        if not values.size:
            return
        good: Mask = np.ones(values.shape, dtype=np.bool_)
        if values.dtype.kind == "f":
            np.isfinite(values, out=good)
        if valid is not None:
            good &= valid
        rows = np.logical_and.reduce(good.reshape(len(values), -1), axis=1)
        self._missing += len(rows) - int(np.count_nonzero(rows))
        used = values.reshape(-1) if rows.all() else values[good]
        if used.size:
            self._measure(used)
            self._count_numbers(used)

    def add_words(self, missing: int, counts: Mapping[str | bytes, int] | None) -> None:
        """One batch of text or bytes. counts: how often each word is there; None for too many to count."""
        self._missing += missing
        self._merge(counts)

    def quality(self) -> ColumnQuality:
        low, high, mean = float(self._low), float(self._high), self._mean
        any_used = self._used > 0
        return ColumnQuality(
            name=self._column.name,
            missing=self._missing,
            minimum=low if any_used else None,
            maximum=high if any_used else None,
            mean=min(max(mean, low), high) if any_used else None,  # rounding may carry it beyond
            distinct=None if self._counts is None else len(self._counts),
        )

    def balance(self) -> tuple[LabelCount, ...]:
        """Rows by label, when these are labels at all: text or whole numbers, and few.

        Raises InvalidSpec for text that is no label.
        """
        if self._counts is None or len(self._counts) > MAX_LABELS or self._column.dtype not in (*WHOLE, "text"):
            return ()
        texts = {label if isinstance(label, str) else str(int(label)): rows for label, rows in self._counts.items()}
        if any(len(text.encode()) > MAX_NAME_BYTES or not text.isprintable() for text in texts):
            raise InvalidSpec("label", f"a label is one line of printable text of at most {MAX_NAME_BYTES} bytes")
        return tuple(LabelCount(text, texts[text]) for text in sorted(texts))

    def _measure(self, used: npt.NDArray[Any]) -> None:
        low, high = float(used.min()), float(used.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._used += used.size
        share = used.size / self._used
        # Each value is divided before it is added: a sum of large doubles would overflow where their mean does not,
        # but for the last bit.
        with np.errstate(over="ignore"):
            mean = float((used.astype(np.float64) / used.size).sum())
        self._mean = self._mean * (1 - share) + min(max(mean, low), high) * share

    def _count_numbers(self, used: npt.NDArray[Any]) -> None:
        if self._counts is not None:
            values, counts = np.unique(used, return_counts=True)
            few = len(values) <= MAX_DISTINCT
            self._merge(dict(zip(values.tolist(), counts.tolist(), strict=True)) if few else None)

    def _merge(self, counts: Mapping[Any, int] | None) -> None:
        if self._counts is None or counts is None:
            self._counts = None
            return
        for value, count in counts.items():
            self._counts[value] = self._counts.get(value, 0) + count
        if len(self._counts) > MAX_DISTINCT:
            self._counts = None
