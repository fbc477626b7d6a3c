"""Stands for a node that is killed: opens the program named by its argument, prints its process's number, and waits."""

import signal
import sys
import tempfile
from pathlib import Path

import trio

from celluler_node.processes.supervisor import open_process
from celluler_node.processes.words import Limits
from tests.support import process_children
from tests.support.process_children import Sleep


async def main(name: str, scratch: Path) -> None:
    program = getattr(process_children, name)
    async with open_process(program, limits=Limits(), scratch=scratch) as child, trio.open_nursery() as nursery:
        nursery.start_soon(child.call, Sleep(60))
        await trio.lowlevel.checkpoint()
        print(child.pid, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests in the background made us deaf
    with tempfile.TemporaryDirectory() as folder:
        trio.run(main, sys.argv[1], Path(folder))
