"""A real node that lies: everything of the shipped node but its trainer.

`python -m simulations.attacks.node scale:-1000 up --nickname mallory --join ADDR …`; `catalogue.py` names the attacks.
"""

from __future__ import annotations

import argparse

from celluler_node.app import Parts
from celluler_node.training.worker_trainer import worker_trainer
from simulations.attacks.catalogue import ATTACKS, parse_attack
from simulations.attacks.trainer import WATCHED, lying
from simulations.node import add_options, up


def lying_parts(attack: str, *, liars: int = 1, watched: int = WATCHED) -> Parts:
    """The shipped parts, with a trainer that carries out an attack: a fresh one for each run."""
    return Parts(trainer=lambda *of: lying(worker_trainer(*of), parse_attack(attack), liars=liars, watched=watched))


def main() -> None:
    parser = argparse.ArgumentParser(prog="simulations.attacks.node", description=__doc__)
    parser.add_argument("attack", type=_checked, help=f"such as scale:-1000; there are {', '.join(ATTACKS)}")
    add_options(parser)
    parser.add_argument("--liars", type=int, default=1, help="how many nodes attack alike")
    parser.add_argument("--watched", type=int, default=WATCHED, help="in the place of how many others to train as well")
    given = parser.parse_args()
    up(given, lying_parts(given.attack, liars=given.liars, watched=given.watched))


def _checked(attack: str) -> str:
    parse_attack(attack)
    return attack


if __name__ == "__main__":
    main()
