"""The shipped node, in a hurry to replicate: what takes minutes in the field takes seconds here.

`python -m tests.support.hasty_node up --json --nickname NAME --listen ADDR --api-port PORT --join ADDR …`
"""

from __future__ import annotations

import argparse
import json
import os

import trio

from celluler.content.replication import Policy
from celluler.home import NodeFile
from celluler.views import to_json
from celluler_node.app import Parts
from celluler_node.config import load_config
from celluler_node.logs import LogConfig, set_up
from celluler_node.running import run_node

HASTE = Parts(replicate_every_s=1.0, replication=Policy(patience_s=1.0, jitter_s=0.5, step_s=3.0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["up"])
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
    trio.run(lambda: run_node(config, parts=HASTE, on_ready=_announce))


def _announce(node: NodeFile) -> None:
    document = to_json(node)
    del document["token"]
    print(json.dumps({"ready": True, **document}), flush=True)


if __name__ == "__main__":
    main()
