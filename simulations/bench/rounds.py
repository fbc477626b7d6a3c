"""How long a verified round takes, with every check made, against hivemind's own averaging and against the limits.

`python -m simulations.bench.rounds [--quick] [--peers 3 5 8] [--millions 1 10 25] [--repeats 5] [--only KIND…]`

For each size all kinds run at the same time of day, in an order shuffled anew for each repeat: `robust` (our averager,
rule NK, commitments hashed, each member computing anew what `checks_for` says), `averager` (hivemind's stock
DecentralizedAverager in a group that stands), `runner` (its AllReduceRunner alone), `gloo` (torch.distributed), `floor`
(the stock round's bytes over bare TCP). Medians; a round is as long as its slowest peer. What each counts is said in
`rounds_<kind>.py`. A size that this machine's memory may not hold is left out, and that is said.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from typing import Any

import psutil

from celluler.aggregation.wires import FINEST
from simulations.bench.rounds_nk import figures as nk_figures
from simulations.bench.rounds_peers import Group

KINDS = ("robust", "robust:q8", "robust:q4", "averager", "runner", "gloo", "floor")
USUAL = ("robust", "averager", "runner", "gloo", "floor")
NAMES = {
    "robust": "verified round",
    "robust:q8": "verified round by q8",
    "robust:q4": "verified round by q4",
    "averager": "hivemind's DecentralizedAverager",
    "runner": "hivemind's AllReduceRunner",
    "gloo": "torch.distributed gloo",
    "floor": "bare sockets",
}
AIM = 1.0
AIM_AT = (5, 10)
"""Peers and millions of values for which an aim is set."""
SPARE_BYTES = 3 << 30
SEED = 11


def needed_bytes(count: int, size: int, kinds: list[str]) -> int:
    """Roughly, from what processes of each kind were seen to take: at rest, and for each value."""
    kinds = [kind.partition(":")[0] for kind in kinds]
    idle = {"robust": 160e6, "averager": 1.1e9, "runner": 0.5e9, "gloo": 0.35e9, "floor": 30e6}
    a_value = {"robust": 14 + 6 * count, "averager": 28, "runner": 24, "gloo": 12, "floor": 4}
    return int(sum(count * (idle[kind] + a_value[kind] * size) for kind in kinds))


def measure(count: int, size: int, repeats: int, kinds: list[str]) -> list[dict[str, Any]]:
    """Rows of the report. The first round of each kind warms up and does not count."""
    groups: dict[str, Group] = {}
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    order, shuffled = list(kinds), random.Random(SEED)
    try:
        for kind in kinds:
            groups[kind] = Group(kind, count, size, {"wire": kind.partition(":")[2] or FINEST})
        for number in range(1, repeats + 2):
            shuffled.shuffle(order)
            for kind in order:
                rounds[kind].append(groups[kind].round(number))
    finally:
        for group in groups.values():
            group.close()
    medians = {
        kind: {phase: statistics.median(one[phase] for one in made[1:]) for phase in made[0]}
        for kind, made in rounds.items()
    }
    return rows(medians, f"{count} peers x {size:,} values", AIM if (count, size / 1e6) == AIM_AT else None)


def rows(medians: dict[str, dict[str, float]], shape: str, aim: float | None) -> list[dict[str, Any]]:
    def seconds(kind: str, phase: str = "seconds") -> float | None:
        return medians[kind][phase] if kind in medians else None

    made = []
    for kind in medians:
        for other in KINDS[KINDS.index(kind) + 1 :] if kind.startswith("robust") else ("floor",):
            if other != kind and other in medians:
                wanted = aim if (kind, other) == ("robust", "averager") else None
                made.append(row(f"{NAMES[kind]}, {shape}", seconds(kind), NAMES[other], seconds(other), wanted))
        if kind.startswith("robust"):
            for phase in ("encode", "exchange", "check"):
                made.append(row(f"  of which {phase}, {shape}", seconds(kind, phase), NAMES[kind], seconds(kind)))
            made += [
                row(f"  processor time of all, {shape}", seconds(kind, "cpu"), NAMES[other], seconds(other, "cpu"))
                for other in ("runner", "gloo")
                if other in medians
            ]
    if "floor" in medians:
        made.append(row(f"{NAMES['floor']}, {shape}", seconds("floor")))
    return made


def row(
    name: str,
    value: float | None,
    against: str | None = None,
    other: float | None = None,
    aim: float | None = None,
) -> dict[str, Any]:
    ratio = None if value is None or other is None else value / other
    return {
        "name": name,
        "value": None if value is None else round(value, 4),
        "unit": "s",
        "against": against,
        "ratio": None if ratio is None else round(ratio, 3),
        "aim": aim,
        "met": None if aim is None or ratio is None else ratio <= aim,
    }


def main() -> int:
    options = _arguments()
    figures = nk_figures()
    for count in options.peers:
        for millions in options.millions:
            size = int(millions * 1e6)
            free, needed = psutil.virtual_memory().available - SPARE_BYTES, needed_bytes(count, size, options.only)
            if needed > free:
                figures.append(row(f"{count} peers x {size:,} values: left out, {needed >> 30} GiB of memory", None))
                continue
            print(f"— {count} peers x {size:,} values", file=sys.stderr, flush=True)
            figures += measure(count, size, options.repeats, options.only)
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        show(figures)
    return 0 if all(one["met"] is not False for one in figures) else 1


def show(figures: list[dict[str, Any]]) -> None:
    for one in figures:
        value = "" if one["value"] is None else f"{one['value']:9.3f} {one['unit']}"
        compared = f"{one['ratio']:.2f} x {one['against']}" if one["ratio"] is not None else ""
        aim = f"aim <= {one['aim']:g}: {'met' if one['met'] else 'MISSED'}" if one["aim"] else ""
        print(f"{one['name']:64} {value:12}  {compared:42} {aim}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[3, 5, 8])
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10, 25])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(USUAL))
    parser.add_argument("--quick", action="store_true", help="5 peers x 1 million values, two repeats")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.peers, options.millions, options.repeats = [5], [1], 2
    return options


if __name__ == "__main__":
    sys.exit(main())
