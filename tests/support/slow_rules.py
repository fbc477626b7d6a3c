"""The aggregation rules once more, as plainly as they can be said: Python integers, one coordinate at a time.

Written from the description of the rules, not from their implementation, to be compared with it bit for bit.
"""

from __future__ import annotations

ZERO = -1000
Row = list[int]
Answer = tuple[int, Row, tuple[int, ...]]


def slow_nk(exponents: list[int], rows: list[Row], f: int) -> Answer:
    kept, base = near_the_median(exponents)
    units = {row: in_units(exponents[row], rows[row], base) for row in kept}
    m = len(kept) - min(f, (len(kept) - 1) // 2)
    near = {row: nearest(units[row], units, m) for row in kept}
    sums = {row: [sum(column) for column in zip(*(units[k] for k in near[row]), strict=True)] for row in kept}
    scores = {row: sum(sorted(distance(sums[row], sums[other]) for other in kept)[:m]) for row in kept}
    chosen = sorted(kept, key=lambda row: (scores[row], row))[:m]
    weights = [sum(row in near[place] for place in chosen) if row in kept else 0 for row in range(len(rows))]
    mixed = [sum(weights[row] * units[row][place] for row in kept) for place in range(len(rows[0]))]
    return (*shortened([(2 * value + m * m) // (2 * m * m) for value in mixed], base), tuple(weights))


def has_tie(exponents: list[int], rows: list[Row], f: int) -> bool:
    """Whether NK gives two rows of different neighbourhoods the same score."""
    kept, base = near_the_median(exponents)
    units = {row: in_units(exponents[row], rows[row], base) for row in kept}
    m = len(kept) - min(f, (len(kept) - 1) // 2)
    near = {row: frozenset(nearest(units[row], units, m)) for row in kept}
    sums = {row: [sum(column) for column in zip(*(units[k] for k in near[row]), strict=True)] for row in kept}
    scores = {row: sum(sorted(distance(sums[row], sums[other]) for other in kept)[:m]) for row in kept}
    return any(scores[a] == scores[b] and near[a] != near[b] for a in kept for b in kept)


def slow_median(exponents: list[int], rows: list[Row], f: int) -> Answer:
    kept, base = near_the_median(exponents)
    units = [in_units(exponents[row], rows[row], base) for row in kept]
    middles = []
    for column in zip(*units, strict=True):
        ordered = sorted(column)
        low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
        middles.append((low + high + 1) // 2)
    return (*shortened(middles, base), tuple(int(row in kept) for row in range(len(rows))))


def slow_mean(exponents: list[int], rows: list[Row], f: int) -> Answer:
    present = [exponent for exponent in exponents if exponent != ZERO]
    base = max(present) - 14 if present else 0
    units = [in_units(exponent, row, base) for exponent, row in zip(exponents, rows, strict=True)]
    n = len(rows)
    means = [(2 * sum(column) + n) // (2 * n) for column in zip(*units, strict=True)]
    return (*shortened(means, base), (1,) * n)


SLOW_RULES = {"nk": slow_nk, "median": slow_median, "mean": slow_mean}


def near_the_median(exponents: list[int]) -> tuple[list[int], int]:
    present = sorted(exponent for exponent in exponents if exponent != ZERO)
    middle = present[(len(present) - 1) // 2] if present else 0
    return [row for row, exponent in enumerate(exponents) if exponent <= middle + 6], middle - 8


def in_units(exponent: int, row: Row, base: int) -> Row:
    if exponent in (ZERO, base):
        return row
    if exponent > base:
        return [value * 2 ** (exponent - base) for value in row]
    return [value // 2 ** (base - exponent) for value in row]


def nearest(row: Row, units: dict[int, Row], m: int) -> set[int]:
    return set(sorted(units, key=lambda other: (distance(row, units[other]), other))[:m])


def distance(left: Row, right: Row) -> int:
    return sum((a - b) ** 2 for a, b in zip(left, right, strict=True))


def shortened(values: Row, base: int) -> tuple[int, Row]:
    largest = max(abs(value) for value in values)
    if largest == 0:
        return ZERO, values
    shift = 0
    while largest >= 2 ** (15 + shift):
        shift += 1
    if shift:
        values = [(value + 2 ** (shift - 1)) // 2**shift for value in values]
    return base + shift, [max(-32767, min(32767, value)) for value in values]
