"""What a file of data holds, found out by a confined worker: the node parses no table, its user's own included."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from celluler.datasets.schema import Summary, check_summary
from celluler.errors import InvalidSpec, TimedOut, WorkerFailed
from celluler_node.processes.supervisor import open_process
from celluler_node.processes.words import Limits, Program
from celluler_node.processes.worker_words import Summarise
from celluler_node.scratch import ScratchRoot

SUMMARISE_S = 600.0

Summariser = Callable[[Path, str, str], Awaitable[Summary]]
"""(file, format or empty to tell it by the file, label's column or empty). Raises InvalidSpec, TimedOut, WorkerFailed.
"""


def summariser(worker: Program, limits: Limits, scratch: ScratchRoot) -> Summariser:
    """One worker a file, gone when it has answered."""

    async def summarise(path: Path, form: str, label: str) -> Summary:
        async with (
            scratch("summary") as folder,
            open_process(worker, limits=limits, readable=(path,), scratch=folder) as child,
        ):
            try:
                with trio.fail_after(SUMMARISE_S):
                    reply = await child.call(Summarise(str(path), form, label))
            except trio.TooSlowError:
                raise TimedOut(f"the data was not read through within {SUMMARISE_S:g} s") from None
            except WorkerFailed as error:
                if child.reason is None:  # the worker lives: it is the file that is wrong
                    raise InvalidSpec("content", error.reason.partition(": ")[2] or error.reason) from error
                raise
        summary: Summary = reply.record.summary
        check_summary(summary)
        return summary

    return summarise
