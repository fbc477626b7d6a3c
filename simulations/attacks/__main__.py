"""`python -m simulations.attacks`: what becomes of each attacker, and what it costs the group.

Seven members, two of which are of the kind in question, in virtual time (`stage.py`). A real node that lies is
`python -m simulations.attacks.node`.
"""

from __future__ import annotations

import argparse
import sys

from simulations.attacks.catalogue import ATTACKS, PROTOCOL, listed, parse_attacker
from simulations.attacks.stage import MEMBERS, ROUNDS, Outcome, Stage

PLACES = (1, 2)
"""Early leaders."""
HONEST = "none"
AUDITS = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulations.attacks", description=__doc__)
    parser.add_argument("attacks", nargs="*", type=_known, help="only these")
    parser.add_argument("--list", action="store_true", help="only say which attackers there are")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--audits", type=float, default=AUDITS, help="of a member's steps, expected in each round")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.list:
        print(listed())
        return 0
    print(f"{MEMBERS} members, two attackers, {given.rounds} rounds, {given.audits:g} audits in each\n")
    print("| attacker | what becomes of it | out from round | views | virtual s | its share of the weights |")
    print("|---|---|---|---|---|---|")
    lost = False
    for name in given.attacks or (HONEST, *PROTOCOL, *ATTACKS):
        liars = {} if name == HONEST else dict.fromkeys(PLACES, name)
        outcome = Stage(liars, rounds=given.rounds, audits=given.audits, seed=given.seed).play()
        lost |= not holds(outcome)
        print(_row(name, outcome), flush=True)
    return 1 if lost else 0


def holds(outcome: Outcome) -> bool:
    """Every honest member finished, all with one state, and none of them is excluded."""
    finished, blamed = outcome.finished, outcome.excluded.keys() | outcome.expelled.keys()
    return finished.keys() == outcome.honest and len(set(finished.values())) == 1 and blamed <= outcome.liars


def _row(name: str, outcome: Outcome) -> str:
    places = sorted(outcome.liars) or [0]
    ends = " / ".join(dict.fromkeys(outcome.end_of(place).value for place in places)) if outcome.liars else ""
    out = {**outcome.suspended, **outcome.expelled}
    rounds = ", ".join(str(out[place] + 1) if place in out else "–" for place in places) if outcome.liars else ""
    share = sum(outcome.share[place] for place in places) / len(places)
    broken = "" if holds(outcome) else "**broken**, "
    return (
        f"| `{name}` | {broken}{ends} | {rounds} | {sum(outcome.views)} | {outcome.seconds:.0f} | {100 * share:.0f} % |"
    )


def _known(attack: str) -> str:
    if attack != HONEST:
        parse_attacker(attack)
    return attack


if __name__ == "__main__":
    sys.exit(main())
