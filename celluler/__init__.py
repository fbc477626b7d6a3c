"""celluler: a peer-to-peer network that trains, stores and serves AI models with no server in the middle.

`from celluler import Client` is all that a user's program needs, and `celluler.publish` what an author's does; they
are loaded when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celluler.client import AsyncClient, Client
    from celluler.publishing import publish

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__", "publish"]


def __getattr__(name: str) -> Any:
    if name in ("AsyncClient", "Client"):
        from celluler import client  # noqa: PLC0415  # httpx is not paid for by whoever imports celluler.wire

        return getattr(client, name)
    if name == "publish":
        from celluler.publishing import publish  # noqa: PLC0415

        return publish
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
