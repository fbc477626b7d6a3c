"""Waiting for a peer: bounded, and failing in our own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from celluler.errors import CellulerError, TimedOut, Unavailable


@contextmanager
def bounded(seconds: float, what: str, *, peer: str | None = None) -> Iterator[None]:
    """A block that talks to a peer. Raises TimedOut when it takes longer, Unavailable when the stream breaks."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise TimedOut(f"{what}: no answer within {seconds:g} s", peer=peer) from None
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel):
        raise Unavailable(f"{what}: the stream broke", peer=peer) from None


def plain(error: BaseException) -> BaseException:
    """What a nursery wrapped in groups: the first of our own errors in it, else the first of any, else itself."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    ours = error.split(CellulerError)[0] or error
    found: BaseException = ours
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
