"""`celluler chat` at a terminal, as a person meets it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

from celluler.home import NodeFile, write_node_file
from celluler.inference.questions import Message
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.server import serve_gateway
from simulations.swarm import SHIPPED, environment
from tests.support.jobs import ALICE
from tests.support.serving_node import ServingNode
from tests.support.terminal import CTRL_C, CTRL_D, open_terminal
from tests.support.writing import TALE


async def test_at_a_terminal_ctrl_c_ends_the_answer_and_not_the_chat(nursery: trio.Nursery, tmp_path: Path) -> None:
    node = ServingNode()
    await node.publish()
    node.writer.pause_after = 10
    port = await nursery.start(serve_gateway, gateway_app(node, "t"), "127.0.0.1", 0)
    write_node_file(tmp_path, NodeFile(os.getpid(), f"http://127.0.0.1:{port}", "t", ALICE.peer_id, (), 0.0))

    def talk() -> None:
        command = [sys.executable, *SHIPPED, "chat", "alice/tales", "--temperature", "0"]
        with open_terminal(command, environment(tmp_path)) as terminal:
            terminal.until(">>> ")
            terminal.type("Hello\n")
            terminal.until(TALE[:9])
            terminal.type(CTRL_C)
            terminal.until("(ended)")
            terminal.until(">>> ")
            terminal.type("half a li")
            terminal.until("half a li")
            terminal.type(CTRL_C)
            terminal.until("/exit or Ctrl-D leaves")
            terminal.until(">>> half a li")
            terminal.type('\x15"""two\n')  # Ctrl-U: not that
            terminal.until("… ")
            trio.from_thread.run_sync(node.writer.gate.set)
            terminal.type('lines"""\n')
            terminal.until(TALE)
            terminal.until("tokens/s")
            terminal.type(CTRL_D)
            assert terminal.end() == 0

    with trio.fail_after(60):
        await trio.to_thread.run_sync(talk)
    node.close()
    said = Message("user", "Hello"), Message("assistant", TALE[:9]), Message("user", "two\nlines")
    assert node.writer.questions[-1].prompt == said
