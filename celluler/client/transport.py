"""httpx's failures in our terms, and the settings both clients share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from celluler.client.calls import CONNECT_S, Call, Target
from celluler.errors import NodeNotRunning, TimedOut, Unavailable

UPLOAD_CHUNK_BYTES = 1 << 20


def settings(target: Target) -> dict[str, Any]:
    """Keyword arguments of an httpx client. Proxies of the environment are not for a loopback address."""
    return {
        "base_url": target.url,
        "headers": {"Authorization": f"Bearer {target.token}"},
        "timeout": CONNECT_S,
        "trust_env": False,
    }


def timeouts(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=CONNECT_S)


@contextmanager
def failures(target: Target, call: Call[Any] | None = None) -> Iterator[None]:
    """Raises NodeNotRunning, TimedOut or Unavailable for what httpx raises."""
    try:
        yield
    except httpx.ConnectError as error:
        raise NodeNotRunning(f"no node answers at {target.url}", hint="celluler up") from error
    except httpx.TimeoutException as error:
        what = f"{call.method} {call.path}" if call else "the node"
        raise TimedOut(f"{what} was not answered in time") from error
    except httpx.TransportError as error:
        raise Unavailable(f"the node broke off: {error or type(error).__name__}", hint="celluler status") from error
