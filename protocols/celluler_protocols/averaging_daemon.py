"""hivemind's P2P as averagers use it: the only module that imports hivemind. asyncio.

It gives us authenticated streams between averagers through its p2pd and nothing else: no DHT, no matchmaking, no
trusted leader, no protobuf. Never imported into a process that imports libp2p: both register the same protobuf symbols.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from celluler.errors import Unavailable
from celluler.identity import Identity
from celluler_protocols import p2pd_guard


def _enter_without_running(*packages: str) -> None:
    """Make packages importable from, without their `__init__`, unless somebody imported them whole before.

    Those of hivemind import torch and everything that averages with it, of which its P2P needs nothing: measured
    0.08 s and 36 MiB against 2.3 s and 280 MiB, in every averager.
    """
    for name in packages:
        spec = importlib.util.find_spec(name) if name not in sys.modules else None
        if spec is not None:
            sys.modules[name] = importlib.util.module_from_spec(spec)


_enter_without_running("hivemind", "hivemind.utils")

from hivemind.p2p import P2P, PeerID  # noqa: E402
from hivemind.p2p.p2p_daemon_bindings.utils import (  # noqa: E402
    P2PDaemonError,
    raise_if_failed,
    read_pbmsg_safe,
    write_pbmsg,
)
from hivemind.proto import p2pd_pb2  # noqa: E402
from hivemind.utils.multiaddr import Multiaddr  # noqa: E402

START_S = 20.0
CONNECT_S = 10.0

_LONGEST_FOLDER = 107 - len("/p2pclient-0123456789a.sock")

DaemonError: type[Exception] = P2PDaemonError
"""What p2pd answers to what it cannot do, such as reaching a peer."""

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handler = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Called with the peer, whose identity p2pd has verified."""


@asynccontextmanager
async def open_daemon(seed: bytes, listen: Sequence[str], scratch: Path | None) -> AsyncIterator[Daemon]:
    """A p2pd that listens; on exit it and its files are gone. As `open_averager`."""
    identity = Identity(seed)
    scratch = scratch or Path(tempfile.gettempdir())
    folder = _socket_folder(scratch)
    p2p = await _start_daemon(identity, listen, scratch, folder)
    try:
        daemon = Daemon(p2p, tuple(str(address) for address in await p2p.get_visible_maddrs()))
        if daemon.peer_id != identity.peer_id:
            raise Unavailable("p2pd runs under another identity")
        yield daemon
    finally:
        await p2p.shutdown()
        shutil.rmtree(folder, ignore_errors=True)  # should the guard have been killed


class Daemon:
    """One p2pd."""

    def __init__(self, p2p: P2P, addresses: tuple[str, ...]) -> None:
        self.peer_id: str = p2p.peer_id.to_base58()
        self.addresses = addresses
        self._p2p = p2p

    async def serve(self, protocol: str, handler: Handler) -> None:
        async def handle(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await handler(info.peer_id.to_base58(), reader, writer)

        await self._p2p.add_binary_stream_handler(protocol, handle)

    async def open_stream(self, peer: str, protocol: str) -> Pair:
        """As hivemind's `call_binary_stream_handler`, which leaves the socket open when the peer cannot be reached."""
        reader, writer = await self._p2p._client.control.daemon_connector.open_connection()
        opening = p2pd_pb2.StreamOpenRequest(peer=PeerID.from_base58(peer).to_bytes(), proto=[protocol])
        try:
            await write_pbmsg(writer, p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=opening))
            response = p2pd_pb2.Response()
            await read_pbmsg_safe(reader, response)
            raise_if_failed(response)
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def connect(self, peer: str, addresses: Sequence[str]) -> None:
        """hivemind connects to given addresses only when it starts; its daemon can at any time."""
        dialable = _dialable(addresses, peer)
        if dialable:
            async with asyncio.timeout(CONNECT_S):
                await self._p2p._client.connect(PeerID.from_base58(peer), dialable)

    async def ended(self) -> int:
        """Wait until p2pd has ended, which it should not; its exit status."""
        return int(await self._p2p._child.wait())


def _dialable(addresses: Sequence[str], peer: str) -> list[Multiaddr]:
    """Those that p2pd can dial; a peer wrote them, so nothing but `/ip4|ip6|dns…/…/tcp/…` gets as far as a parser.

    Without `/p2p/…` at the end: hivemind writes it in a form that p2pd does not read, and names the peer beside it.
    """
    plain = (address.removesuffix(f"/p2p/{peer}") for address in addresses)
    return [Multiaddr(address) for address in plain if _is_dialable(address)]


def _is_dialable(address: str) -> bool:
    match address.split("/"):
        case ["", "ip4" | "ip6" as family, host, "tcp", port]:
            kind = ipaddress.IPv4Address if family == "ip4" else ipaddress.IPv6Address
            with contextlib.suppress(ValueError):
                return str(kind(host)) == host.lower() and _is_port(port)
        case ["", "dns" | "dns4" | "dns6", host, "tcp", port]:
            return re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,250}[A-Za-z0-9])?", host) is not None and _is_port(port)
    return False


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[1-9][0-9]{0,4}", text) is not None and int(text) < 1 << 16


async def _start_daemon(identity: Identity, listen: Sequence[str], scratch: Path, folder: Path) -> P2P:
    descriptor, key = tempfile.mkstemp(prefix="averager-key-", dir=scratch)  # readable by us alone
    with os.fdopen(descriptor, "wb") as file:
        file.write(b"\x08\x01\x12\x40" + identity.seed + identity.public_key)  # libp2p's protobuf of a private key
    try:
        return await _daemon_class(folder).create(
            host_maddrs=list(listen),
            identity_path=key,
            dht_mode="none",
            check_if_identity_free=False,
            nat_port_map=False,
            auto_nat=False,
            use_relay=False,
            use_auto_relay=False,
            use_ipfs=False,
            startup_timeout=START_S,
        )
    except (P2PDaemonError, OSError) as error:
        raise Unavailable(f"p2pd does not start: {error}") from error
    finally:
        os.unlink(key)


def _daemon_class(folder: Path) -> type[P2P]:
    """hivemind's P2P with its sockets in our own folder, no DHT, TLS 1.3 alone, and our guard in front of p2pd.

    Where Noise is offered too it is taken, and costs a third more than AES does on a processor that knows it.
    """

    class Daemon(P2P):  # type: ignore[misc]  # hivemind ships no types
        _UNIX_SOCKET_PREFIX = f"/unix{folder}/"
        DHT_MODE_MAPPING: dict[str, dict[str, int]] = {"none": {"noise": 0}}  # noqa: RUF012  its own name and type

        @staticmethod
        def _make_process_args(*args: Any, **kwargs: Any) -> list[str]:
            guard = [sys.executable, "-I", "-S", p2pd_guard.__file__, str(os.getpid()), str(folder)]
            return guard + list(P2P._make_process_args(*args, **kwargs))

    return Daemon


def _socket_folder(scratch: Path) -> Path:
    """A name for a folder that the guard makes, and removes; the path of a Unix socket has at most 107 bytes."""
    folder = scratch.resolve() / f"p2pd-{secrets.token_hex(8)}"
    if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
        return folder
    return Path("/tmp") / f"celluler-{folder.name}"  # noqa: S108  the name cannot be guessed
