"""A real node that lies: everything of the shipped node but its trainer.

`python -m simulations.attacks.node scale:-1000 up --nickname mallory --join ADDR …`; `catalogue.py` names the attacks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import trio

from celluler.home import NodeFile
from celluler.views import to_json
from celluler_node.app import Parts
from celluler_node.config import load_config
from celluler_node.logs import LogConfig, set_up
from celluler_node.running import run_node
from celluler_node.training.worker_trainer import worker_trainer
from simulations.attacks.catalogue import ATTACKS, parse_attack
from simulations.attacks.trainer import WATCHED, lying


def lying_parts(attack: str, *, liars: int = 1, watched: int = WATCHED) -> Parts:
    """The shipped parts, with a trainer that carries out an attack: a fresh one for each run."""
    return Parts(trainer=lambda *of: lying(worker_trainer(*of), parse_attack(attack), liars=liars, watched=watched))


def main() -> None:
    parser = argparse.ArgumentParser(prog="simulations.attacks.node", description=__doc__)
    parser.add_argument("attack", type=_checked, help=f"such as scale:-1000; there are {', '.join(ATTACKS)}")
    parser.add_argument("command", choices=["up"])
    parser.add_argument("--liars", type=int, default=1, help="how many nodes attack alike")
    parser.add_argument("--watched", type=int, default=WATCHED, help="in the place of how many others to train as well")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--nickname")
    parser.add_argument("--listen", action="append")
    parser.add_argument("--join", action="append")
    parser.add_argument("--api-port", type=int)
    given = parser.parse_args()
    flags = {
        "nickname": given.nickname,
        "network.listen": given.listen,
        "network.join": given.join,
        "api.port": given.api_port,
    }
    config = load_config(os.environ, flags)
    set_up(LogConfig())
    parts = lying_parts(given.attack, liars=given.liars, watched=given.watched)
    trio.run(lambda: run_node(config, parts=parts, on_ready=_announce))


def _checked(attack: str) -> str:
    parse_attack(attack)
    return attack


def _announce(node: NodeFile) -> None:
    document = to_json(node)
    del document["token"]
    print(json.dumps({"ready": True, **document}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
