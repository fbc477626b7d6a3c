"""How many bytes a member sends in a round, against synchronous training that averages float32 at every step.

`python -m simulations.bench.traffic [--steps 30] [--values 1000000] [--measure N] [--json]`

Counted from the plans of rounds as nodes make them: the parts or updates, the aggregates, and the inputs that checkers
fetch, by each wire. Beside them: a ring all-reduce of float32 gradients, 2·4·d·(n−1)/n bytes a member a step, for as
many steps as a member makes on its own in a round. `--measure N` runs rounds of N real averagers and prints what their
streams have counted, frames among it. Commits, votes and certificates, kilobytes, are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from celluler.aggregation.wires import WIRES
from celluler.learning.checks import checks_for
from celluler_node.training.averaging import inputs_go_to_all
from celluler_protocols.averaging_messages import Assignment, Member, Plan
from simulations.bench.rounds_peers import Group

MEMBERS = (5, 8, 16)
AIMS = {"q8": 100.0, "q4-sparse": 400.0}
"""How many times fewer bytes by these wires, without checks."""
SLACK = 1.01


def plan_for(members: int, values: int, wire: str, *, to_all: bool) -> Plan:
    """As `plan_of` makes it, as far as bytes are concerned."""
    nobody = tuple(Member("", bytes(32), (), (), ()) for _ in range(members))
    assignments = tuple(Assignment(part, part) for part in range(members))
    return Plan(
        bytes(32), 1, 0, bytes(32), 0, nobody, values, members, assignments, "nk", 0, 1, 1.0, 1.0, wire, to_all
    )  # fmt: skip


def exchange_bytes(plan: Plan) -> int:
    """What member 0 sends of its own accord."""
    others = len(plan.members) - 1
    if plan.to_all:
        return others * sum(plan.bytes_of(each.part) for each in plan.assignments)
    return sum(
        plan.bytes_of(each.part) * (others if each.reducer == plan.me else 1) for each in plan.assignments
    )  # its aggregate to all others, its other parts to their reducers


def check_bytes(plan: Plan) -> int:
    """What member 0 sends to checkers: as much as it fetches, all members being alike. None where all have all."""
    if plan.to_all:
        return 0
    others = len(plan.members) - 1
    return min(checks_for(len(plan.members), plan.parts), others) * others * plan.bytes_of(0)


def ring_bytes(members: int, values: int, steps: int) -> int:
    return steps * 2 * 4 * values * (members - 1) // members


def figures(values: int, steps: int) -> list[dict[str, Any]]:
    rows = []
    for members in MEMBERS:
        ring = ring_bytes(members, values, steps)
        for wire in WIRES:
            unchecked = exchange_bytes(plan_for(members, values, wire, to_all=False))
            checked = plan_for(members, values, wire, to_all=inputs_go_to_all(members, members, values))
            rows.append(_row(f"{wire}, {members} members, without checks", unchecked, ring, AIMS.get(wire)))
            whole = exchange_bytes(checked) + check_bytes(checked)
            rows.append(_row(f"{wire}, {members} members, with all checks", whole, ring))
    return rows


def measured(members: int, values: int) -> list[dict[str, Any]]:
    rows = []
    for wire in WIRES:
        group = Group("robust", members, values, {"wire": wire})
        try:
            group.round(1)
            sent = group.round(2)["sent_bytes"]
        finally:
            group.close()
        plan = plan_for(members, values, wire, to_all=inputs_go_to_all(members, members, values))
        computed = exchange_bytes(plan) + check_bytes(plan)
        rows.append(
            {
                "name": f"{wire}, {members} members, {values:,} values: counted by the streams of the busiest",
                "value": sent,
                "unit": "B",
                "against": f"computed, {computed:,} B",
                "ratio": round(sent / computed, 4),
                "aim": SLACK,
                "met": sent / computed <= SLACK,
            }
        )
    return rows


def _row(name: str, sent: int, ring: int, aim: float | None = None) -> dict[str, Any]:
    fewer = ring / sent
    return {
        "name": f"bytes a member sends a round, {name}",
        "value": sent,
        "unit": "B",
        "against": "synchronous float32 ring all-reduce, times fewer",
        "ratio": round(fewer, 1),
        "aim": aim,
        "met": None if aim is None else fewer >= aim,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="that a member makes on its own in a round")
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--measure", type=int, default=0, metavar="N", help="run so many averagers too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = figures(options.values, options.steps)
    if options.measure:
        rows += measured(options.measure, options.values)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{options.steps} steps a round, {options.values:,} values")
    for row in rows:
        met = {True: "met", False: "MISSED", None: ""}[row["met"]]
        aim = f"aim {row['aim']:g} {met}" if row["aim"] else ""
        print(f"{row['name']:75} {row['value']:>12,.0f} B  {row['ratio']:>7} x  {aim}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
