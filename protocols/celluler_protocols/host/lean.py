"""Imports libp2p without the parts celluler never runs, and says so to nobody: 28 MB and a third of the start-up time.

`import libp2p` loads every transport, TLS certificates, mDNS, UPnP, relays and an own DNS resolver, and with them
aioquic, dnspython, requests, httpx and zeroconf. We speak TCP, Noise and Yamux, and resolve names ourselves. While
libp2p is imported here, those modules are empty and any name taken from them is a class of its own, which nothing
ever makes or raises. If someone imported libp2p before, it is whole and all works the same.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

_UNUSED = (
    "libp2p.discovery.bootstrap",
    "libp2p.discovery.mdns",
    "libp2p.discovery.upnp",
    "libp2p.peer.persistent",
    "libp2p.relay",
    "libp2p.security.secio",
    "libp2p.security.tls",
    "libp2p.transport.cmux",
    "libp2p.transport.quic",
    "libp2p.transport.websocket",
    "multiaddr.resolvers",
)


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (Exception,), {"__module__": self.__name__})  # libp2p names some in `except` clauses
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        unused = any(name == part or name.startswith(f"{part}.") for part in _UNUSED)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if unused else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def import_libp2p() -> None:
    """Before any other import of libp2p; done once, when this package is imported."""
    if "libp2p" in sys.modules:
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        for name in ("libp2p", "libp2p.kad_dht.kad_dht", "libp2p.pubsub.gossipsub"):
            importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
