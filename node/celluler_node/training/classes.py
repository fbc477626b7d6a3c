"""How the workers of this node compute: asked of one once, for each precision."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from celluler.errors import CellulerError
from celluler_node.processes.supervisor import open_process
from celluler_node.processes.words import Limits, Program
from celluler_node.processes.worker_words import Describe
from celluler_node.scratch import ScratchRoot

Describer = Callable[[str], Awaitable[str]]
"""From a precision to the audit class of this node's workers; "" when it could not be found out."""

log = structlog.get_logger()


def describer(program: Program, limits: Limits, scratch: ScratchRoot) -> Describer:
    """program: the worker."""
    known: dict[str, str] = {}
    asking = trio.Lock()

    async def describe(precision: str) -> str:
        async with asking:
            if precision not in known:
                try:
                    known[precision] = await _ask(precision)
                except CellulerError as error:
                    log.warning("audit_class_unknown", reason=str(error))
                    return ""
            return known[precision]

    async def _ask(precision: str) -> str:
        async with scratch("describe") as folder, open_process(program, limits=limits, scratch=folder) as child:
            found: str = (await child.call(Describe(precision))).record.audit_class
            return found

    return describe
