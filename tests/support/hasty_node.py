"""The shipped node, in a hurry to replicate: what takes minutes in the field takes seconds here.

`python -m tests.support.hasty_node up --json --nickname NAME --listen ADDR --api-port PORT --join ADDR …`
"""

from __future__ import annotations

import argparse

from celluler.content.replication import Policy
from celluler_node.app import Parts
from simulations.node import add_options, up

HASTE = Parts(replicate_every_s=1.0, replication=Policy(patience_s=1.0, jitter_s=0.5, step_s=3.0))


def main() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    up(parser.parse_args(), HASTE)


if __name__ == "__main__":
    main()
