"""The shipped node with other parts, as a process: what attackers and swarms in a hurry are made of.

Takes the options that `simulations.swarm` starts a node with, and prints the line that it waits for.
"""

from __future__ import annotations

import argparse
import json
import os

import trio

from celluler.home import NodeFile
from celluler.views import to_json
from celluler_node.app import Parts
from celluler_node.config import load_config
from celluler_node.logs import LogConfig, set_up
from celluler_node.running import run_node


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("command", choices=["up"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--nickname")
    parser.add_argument("--listen", action="append")
    parser.add_argument("--join", action="append")
    parser.add_argument("--api-port", type=int)


def up(given: argparse.Namespace, parts: Parts) -> None:
    """Run it until it is asked to end."""
    flags = {
        "nickname": given.nickname,
        "network.listen": given.listen,
        "network.join": given.join,
        "api.port": given.api_port,
    }
    config = load_config(os.environ, flags)
    set_up(LogConfig())
    trio.run(lambda: run_node(config, parts=parts, on_ready=_announce))


def _announce(node: NodeFile) -> None:
    document = to_json(node)
    del document["token"]
    print(json.dumps({"ready": True, **document}), flush=True)
