"""The aggregation rules once more, as plainly as they can be said: Python integers, one coordinate at a time.

Written from the description of the rules, not from their implementation, to be compared with it bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

ZERO = -1000
T = 2**20
"""Shares of a moving point."""
WIRE = 2**15
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


def slow_winsorised_nk(exponents: list[int], rows: list[Row], f: int) -> Answer:
    """NK of rows that were drawn in and are all written in one unit; rows that are not kept are no rows to it."""
    kept, base = near_the_median(exponents)
    units = [in_units(exponents[row], rows[row], base) for row in kept]
    tail = min(f, (len(kept) - 1) // 2)
    above = sorted(0 if exponents[row] == ZERO else max(0, exponents[row] - base) for row in kept)[len(kept) - 1 - tail]
    columns = [sorted(column) for column in zip(*units, strict=True)]
    bounds = [(column[tail], column[len(kept) - 1 - tail]) for column in columns]
    drawn = [[min(max(value, low), high) for value, (low, high) in zip(row, bounds, strict=True)] for row in units]
    half = 2**above // 2
    whole = {place: [(value + half) // 2**above * 2**above for value in row] for place, row in enumerate(drawn)}
    m = len(kept) - tail
    near = {place: nearest(whole[place], whole, m) for place in whole}
    sums = {place: [sum(column) for column in zip(*(whole[k] for k in near[place]), strict=True)] for place in whole}
    scores = {place: sum(sorted(distance(sums[place], sums[other]) for other in whole)[:m]) for place in whole}
    chosen = sorted(whole, key=lambda place: (scores[place], place))[:m]
    counts = [sum(place in near[one] for one in chosen) for place in whole]
    mixed = [sum(counts[place] * whole[place][at] for place in whole) for at in range(len(rows[0]))]
    weights = tuple(counts[kept.index(row)] if row in kept else 0 for row in range(len(rows)))
    return (*shortened([(2 * value + m * m) // (2 * m * m) for value in mixed], base), weights)


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


def slow_trimmed_mean(exponents: list[int], rows: list[Row], f: int) -> Answer:
    kept, base = near_the_median(exponents)
    units = [in_units(exponents[row], rows[row], base) for row in kept]
    cut = min(f, (len(kept) - 1) // 2)
    rest = len(kept) - 2 * cut
    means = [(2 * sum(sorted(column)[cut : cut + rest]) + rest) // (2 * rest) for column in zip(*units, strict=True)]
    return (*shortened(means, base), tuple(int(row in kept) for row in range(len(rows))))


def slow_krum(exponents: list[int], rows: list[Row], f: int) -> Answer:
    return most_central(exponents, rows, f, several=False)


def slow_multi_krum(exponents: list[int], rows: list[Row], f: int) -> Answer:
    return most_central(exponents, rows, f, several=True)


def most_central(exponents: list[int], rows: list[Row], f: int, *, several: bool) -> Answer:
    kept, base = near_the_median(exponents)
    units = {row: in_units(exponents[row], rows[row], base) for row in kept}
    good = len(kept) - min(f, (len(kept) - 1) // 2)
    scores = {}
    for row in kept:
        others = sorted(distance(units[row], units[other]) for other in kept if other != row)
        scores[row] = sum(others[: max(1, good - 2)])
    chosen = sorted(kept, key=lambda row: (scores[row], row))[: good if several else 1]
    return weighted(units, {row: int(row in chosen) for row in kept}, len(chosen), base, len(rows))


def slow_geometric_median(exponents: list[int], rows: list[Row], f: int) -> Answer:
    kept, base = near_the_median(exponents)
    units = {row: in_units(exponents[row], rows[row], base) for row in kept}
    shares = shared(dict.fromkeys(kept, 1), T)
    for _ in range(16):
        away = {row: distance_to_point(units[row], units, shares) for row in kept}
        least = max(1, sorted(away.values())[(len(kept) - 1) // 2] // 2**10)
        farthest = max(least, *away.values())
        shares = shared({row: farthest * T // max(least, away[row]) for row in kept}, T)
    return weighted(units, shared(shares, WIRE), WIRE, base, len(rows))


def slow_clipping(exponents: list[int], rows: list[Row], f: int) -> Answer:
    kept, base = near_the_median(exponents)
    units = {row: in_units(exponents[row], rows[row], base) for row in kept}
    radius = math.floor(T * 2.0 ** (-3 - base)) if base < 500 else 0
    shares = dict.fromkeys(kept, 0)
    for _ in range(3):
        shares = clipped_step(units, shares, radius)
    nothing = len(rows)
    on_the_wire = shared({**shares, nothing: T - sum(shares.values())}, WIRE)
    return weighted(units, {row: on_the_wire[row] for row in kept}, WIRE, base, len(rows))


def slow_nnm_cc(exponents: list[int], rows: list[Row], f: int) -> Answer:
    kept, base = near_the_median(exponents)
    units = {row: in_units(exponents[row], rows[row], base) for row in kept}
    m = len(kept) - min(f, (len(kept) - 1) // 2)
    near = {row: nearest(units[row], units, m) for row in kept}
    sums = {row: [sum(column) for column in zip(*(units[k] for k in near[row]), strict=True)] for row in kept}
    scores = {row: sum(sorted(distance(sums[row], sums[other]) for other in kept)[:m]) for row in kept}
    centre = min(kept, key=lambda row: (scores[row], row))
    shares = {row: T * (row == centre) for row in kept}
    for _ in range(3):
        away = sorted(distance_to_point(sums[row], sums, shares) for row in kept)
        shares = clipped_step(sums, shares, away[m - 1])
    of_rows = {row: sum(shares[place] for place in kept if row in near[place]) for row in kept}
    return weighted(units, shared(of_rows, WIRE), WIRE, base, len(rows))


SLOW_RULES = {
    "nk": slow_nk,
    "winsorised-nk": slow_winsorised_nk,
    "nnm-cc": slow_nnm_cc,
    "multi-krum": slow_multi_krum,
    "krum": slow_krum,
    "geometric-median": slow_geometric_median,
    "median": slow_median,
    "trimmed-mean": slow_trimmed_mean,
    "clipping": slow_clipping,
    "mean": slow_mean,
}


def clipped_step(units: Mapping[int, Row], shares: Mapping[int, int], radius: int) -> dict[int, int]:
    """v + mean of (x − v)·pull, as shares of the rows; zero holds what they lack to T."""
    away = {row: distance_to_point(units[row], units, shares) for row in units}
    pulls = {row: T if away[row] <= radius else T * radius // away[row] for row in units}
    stays = sum(T - pull for pull in pulls.values())
    zero = max(units) + 1
    parts = {row: shares[row] * stays + pulls[row] * T for row in units}
    moved = shared({**parts, zero: (T - sum(shares.values())) * stays}, T)
    return {row: moved[row] for row in units}


def distance_to_point(row: Row, units: Mapping[int, Row], shares: Mapping[int, int]) -> int:
    """T times the distance between a row and Σ share·row / T, rounded down; by coordinates."""
    point = [sum(shares[other] * units[other][place] for other in units) for place in range(len(row))]
    return math.isqrt(sum((T * value - there) ** 2 for value, there in zip(row, point, strict=True)))


def shared(parts: Mapping[int, int], total: int) -> dict[int, int]:
    """In proportion, rounded down; one more for those that lost most by it, in their order, until the sum is right."""
    whole = sum(parts.values())
    shares = {place: part * total // whole for place, part in parts.items()}
    lost = {place: part * total - shares[place] * whole for place, part in parts.items()}
    for place in sorted(parts, key=lambda place: (-lost[place], place))[: total - sum(shares.values())]:
        shares[place] += 1
    return shares


def weighted(units: Mapping[int, Row], weights: Mapping[int, int], total: int, base: int, inputs: int) -> Answer:
    columns = range(len(next(iter(units.values()))))
    sums = [sum(weights[row] * units[row][place] for row in units) for place in columns]
    means = [(2 * value + total) // (2 * total) for value in sums]
    return (*shortened(means, base), tuple(weights.get(row, 0) for row in range(inputs)))


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
    while largest >= 2 ** (15 + shift) and base + shift < 113:
        shift += 1
    if shift:
        values = [(value + 2 ** (shift - 1)) // 2**shift for value in values]
    return base + shift, [max(-32767, min(32767, value)) for value in values]
