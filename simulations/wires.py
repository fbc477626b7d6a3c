"""What coarser wires cost in accuracy: the same runs by q16, q8 and q4, honest and attacked, by the shipped code.

`python -m simulations.wires [--data digits] [--seeds 3] [--rounds 40] [--json]`. Rule NK, 16 peers. IID with nobody
lying and with 7 liars; on shards of their own (Dirichlet 0.3) with nobody lying and with 3. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from statistics import fmean, stdev

from celluler.aggregation.wires import WIRES
from simulations.accuracy import DATA, Results, measure
from simulations.federation import HONEST, ROUNDS, Setting

CASES = (
    ("iid", 0, HONEST),
    ("iid", 7, "ipm:0.6"),
    ("iid", 7, "alie"),
    ("dirichlet", 0, HONEST),
    ("dirichlet", 3, "alie"),
)


def settings(data: str, seeds: int, rounds: int) -> list[Setting]:
    return [
        Setting(data, partition, liars, attack, "nk", seed, rounds, wire)
        for seed in range(seeds)
        for partition, liars, attack in CASES
        for wire in WIRES
    ]


def table(results: Results) -> str:
    lines = [f"| | {' | '.join(WIRES)} |", f"|---|{'---|' * len(WIRES)}"]
    for partition, liars, attack in CASES:
        cells = []
        for wire in WIRES:
            found = [
                100 * outcome.accuracy
                for one, outcome in results.outcomes.items()
                if (one.partition, one.liars, one.attack, one.wire) == (partition, liars, attack, wire)
            ]
            cells.append(f"{fmean(found):.1f} ± {stdev(found) if len(found) > 1 else 0:.1f}")
        name = f"{partition}, {liars} of 16 lie{': ' + attack if liars else ''}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulations.wires", description=__doc__)
    parser.add_argument("--data", choices=DATA, default=DATA[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results = Results(None)
    measure(settings(given.data, given.seeds, given.rounds), results, processes=given.processes, within_s=float("inf"))
    if given.json:
        found = [{**asdict(one), **asdict(outcome)} for one, outcome in results.outcomes.items()]
        print(json.dumps(found, indent=1))
    else:
        print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
