"""Our own peers for the benchmark of content: providers and a client, each a process with a host, a store and bulk.

`python -m simulations.bench.content_peer provide FOLDER [--up BYTES_S] [--lies]` serves the one content of a store;
`… fetch FOLDER` fetches as it is told and forgets again. A provider that lies serves the true manifest and then other
bytes of the right length in answer to every chunk asked of it over TLS.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
import trio

from celluler.content.bulk_frames import MAX_IN_FLIGHT, TICKET_BYTES, Server, Status, encode_head
from celluler.content.digest import Digest
from celluler.content.disk import DiskStore
from celluler.content.progress import Progress
from celluler.content.store import read_layout
from celluler.identity import Identity, PeerId
from celluler_node.bulk.service import Bulk, open_bulk
from celluler_protocols import bulk as bulk_protocol
from celluler_protocols.bulk import Grant, Refused, serve_grants
from celluler_protocols.content import PROTOCOL_ID, fetch, serve_content
from celluler_protocols.host import Host, open_host
from simulations.bench.content_raw import make_certificate
from simulations.bench.content_ways import MIB, orders, say

BYTES_PROTOCOL = "/celluler/bench/bytes/1"
NEWS_S = 0.05
_QUOTA_BYTES = 1 << 40
_LISTEN = ["/ip4/127.0.0.1/tcp/0"]


@asynccontextmanager
async def _peer(store: DiskStore, folder: Path, up_bytes_s: int) -> AsyncIterator[tuple[Host, Bulk]]:
    @asynccontextmanager
    async def scratch(purpose: str) -> AsyncIterator[Path]:
        made = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=folder.parent))  # goes with it if we are killed
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    async with (
        open_host(Identity.generate(), listen=_LISTEN) as host,
        open_bulk(
            store_folder=folder,
            listen_hosts=("127.0.0.1",),
            port=0,
            up_bytes_s=up_bytes_s,
            down_bytes_s=0,
            scratch=scratch,
            serves=lambda _: True,
            hold=store.hold,
            hosts_of=host.remote_hosts,
            open_stream=host.open_stream,
        ) as bulk,
    ):
        yield host, bulk


# --- a provider ----------------------------------------------------------------------------------------------------


async def _provide(folder: Path, up_bytes_s: int, lies: bool) -> None:
    store = DiskStore(folder, _QUOTA_BYTES)
    (root,) = store.roots()
    async with _peer(store, folder, up_bytes_s) as (host, bulk):
        host.serve(PROTOCOL_ID, lambda _, stream: serve_content(store, stream, meter=bulk.meter))
        host.serve(BYTES_PROTOCOL, _send_bytes)
        grants = bulk.answer
        if lies:
            liar = _Liar({piece.digest: piece.length for piece in read_layout(store, root)})
            grants = liar.answer
        host.serve(bulk_protocol.PROTOCOL_ID, grants)
        say(address=host.addresses[0], peer=host.peer_id, root=root.hex())
        await trio.to_thread.run_sync(sys.stdin.read)
    store.close()


async def _send_bytes(_: PeerId, stream: trio.abc.Stream) -> None:
    block = os.urandom(MIB)
    for _mib in range(int.from_bytes(await stream.receive_some(4), "big")):
        await stream.send_all(block)


class _Liar:
    """A bulk server that answers whatever it is asked at once, with zeros."""

    def __init__(self, lengths: Mapping[Digest, int]) -> None:
        self._lengths = lengths
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.num_tickets = 0
        with tempfile.TemporaryDirectory(prefix="celluler-bench-") as folder:
            certificate = make_certificate(Path(folder))
            self._context.load_cert_chain(certificate)
            text = certificate.read_text()
        der = ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE") :])
        self._pin = hashlib.sha256(der).digest()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._listen, daemon=True).start()

    async def answer(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        async def admit(_: Digest) -> Grant | Refused:
            port = self._listener.getsockname()[1]
            return Grant(port, self._pin, os.urandom(TICKET_BYTES), 15, 2, MAX_IN_FLIGHT, b"")

        await serve_grants(stream, peer, admit)

    def _listen(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with suppress(OSError), self._context.wrap_socket(connection, server_side=True) as wire:
                self._serve(wire)

    def _serve(self, wire: ssl.SSLSocket) -> None:
        unread = TICKET_BYTES
        while unread and (data := wire.recv(unread)):
            unread -= len(data)
        machine = Server()
        while data := wire.recv(1 << 14):
            for request in machine.feed(data):
                machine.answered(request.number)
                length = self._lengths[request.digest]
                wire.sendall(encode_head(Status.OK, request.number, length) + bytes(length))


# --- the client ----------------------------------------------------------------------------------------------------


async def _fetch(folder: Path) -> None:
    store = DiskStore(folder, _QUOTA_BYTES)
    async with _peer(store, folder, 0) as (host, bulk):
        host.serve(PROTOCOL_ID, lambda _, stream: serve_content(store, stream))
        client = _Client(host, bulk, store)
        say()
        waiting = iter(orders())
        while (order := await trio.to_thread.run_sync(next, waiting, None)) is not None:
            say(**await client.do(order))
    store.close()


class _Client:
    """Has nothing when it is told what to do, and nothing afterwards."""

    def __init__(self, host: Host, bulk: Bulk, store: DiskStore) -> None:
        self._host, self._bulk, self._store = host, bulk, store
        self._told_s = 0.0

    async def do(self, order: Mapping[str, Any]) -> dict[str, Any]:
        sources = [await self._host.connect(address) for address in order["addresses"]]
        if order["way"] == "bytes":
            return {"seconds": await self._receive_bytes(sources[0], order["mebibytes"])}
        root = bytes.fromhex(order["root"])
        before = self._bulk.traffic
        began = time.perf_counter()
        report = await fetch(
            root,
            self._store,
            sources,
            lambda peer: self._host.open_stream(peer, PROTOCOL_ID),
            open_mover=self._bulk.open_mover if order["way"] == "bulk" else None,
            on_progress=self._tell if order.get("tells") else None,
        )
        took = time.perf_counter() - began
        assert self._store.stat(root).complete
        await trio.to_thread.run_sync(self._store.remove, root)
        nothing = (0, 0)
        moved = sum(total[1] - before.get(peer, nothing)[1] for peer, total in self._bulk.traffic.items())
        return {"seconds": took, "received": dict(report.received), "liars": list(report.liars), "bulk_bytes": moved}

    def _tell(self, progress: Progress) -> None:
        if time.monotonic() > self._told_s + NEWS_S:
            self._told_s = time.monotonic()
            say(news=True, kept=progress.kept_bytes, wanted=progress.wanted_bytes)

    async def _receive_bytes(self, source: PeerId, mebibytes: int) -> float:
        began = time.perf_counter()
        async with await self._host.open_stream(source, BYTES_PROTOCOL) as stream:
            await stream.send_all(mebibytes.to_bytes(4, "big"))
            received = 0
            while received < mebibytes * MIB:
                received += len(await stream.receive_some(MIB))
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("provide", "fetch"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--up", type=int, default=0)
    parser.add_argument("--lies", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if options.role == "provide":
        trio.run(_provide, options.folder, options.up, options.lies)
    else:
        trio.run(_fetch, options.folder)


if __name__ == "__main__":
    main()
