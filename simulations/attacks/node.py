"""A real node that lies: the shipped node with another trainer.

`python -m simulations.attacks.node scale:-1000 up …`: everything after the attack is the shipped command line.
"""

from __future__ import annotations

import sys

from celluler_node.app import Parts
from celluler_node.cli import main as shipped
from celluler_node.training.worker_trainer import worker_trainer
from simulations.attacks.trainer import lying
from simulations.attacks.updates import parse_attack


def main() -> None:
    attack = parse_attack(sys.argv.pop(1))
    shipped(parts=Parts(trainer=lambda limits, scratch: lying(worker_trainer(limits, scratch), attack)))


if __name__ == "__main__":
    main()
