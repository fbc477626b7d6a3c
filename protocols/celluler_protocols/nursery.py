"""The nursery of a service that is an async context manager."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def own_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery for the length of a block, cancelled at its end.

    The block's own exception comes out as it is, not in a group; that of a task of the nursery in one.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
