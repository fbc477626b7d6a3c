"""A real node that lies: everything of the shipped node but what its attacker puts in its place.

`python -m simulations.attacks.node --attack scale:-1000 up --join ADDR …`; `catalogue.py` has the names.
"""

from __future__ import annotations

import argparse
from typing import Any

from celluler_node.app import Parts
from celluler_node.processes.averager_words import AVERAGER
from celluler_node.training.trainer import TrainerFactory
from celluler_node.training.worker_trainer import worker_trainer
from celluler_protocols.averaging_exchange import Exchange
from simulations.attacks.averager_hands import program_of
from simulations.attacks.catalogue import parse_attack, parse_attacker
from simulations.attacks.protocol.attacker import possessed
from simulations.attacks.trainer import WATCHED, lying
from simulations.node import add_options, up


def lying_parts(attack: str, *, liars: int = 1, watched: int = WATCHED) -> Parts:
    """The shipped parts, but for those that the attack is about. Each run has a fresh attacker."""
    attacker = parse_attacker(attack)
    make_run = possessed(lambda: parse_attacker(attack))
    if attacker.update is None:
        return Parts(make_run=make_run, averager=AVERAGER if attacker.hands is Exchange else program_of(attack))

    def trainer(*of: Any) -> TrainerFactory:
        return lying(worker_trainer(*of), parse_attack(attack), liars=liars, watched=watched)

    return Parts(make_run=make_run, trainer=trainer)


def main() -> None:
    parser = argparse.ArgumentParser(prog="simulations.attacks.node", description=__doc__)
    parser.add_argument("--attack", type=_checked, required=True, help="by its name in `simulations.attacks --list`")
    add_options(parser)
    parser.add_argument("--liars", type=int, default=1, help="how many nodes attack alike")
    parser.add_argument("--watched", type=int, default=WATCHED, help="in the place of how many others to train as well")
    given = parser.parse_args()
    up(given, lying_parts(given.attack, liars=given.liars, watched=given.watched))


def _checked(attack: str) -> str:
    parse_attacker(attack)
    return attack


if __name__ == "__main__":
    main()
