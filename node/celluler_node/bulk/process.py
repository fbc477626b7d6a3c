"""The bulk process: all the TLS sockets of a node and the files behind them, and no key of its identity.

The main thread reads the channel and does only what takes no time; a transfer has a thread, a served connection two,
strangers share one (`lobby`), news is told by one. All are daemons: the process ends with its channel.
"""

from __future__ import annotations

import os
import ssl
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from celluler.content.reader import StoreReader
from celluler.errors import LocalError
from celluler_node.bulk import walls
from celluler_node.bulk.lobby import Lobby, listen
from celluler_node.bulk.news import Bulletin
from celluler_node.bulk.server import Serving
from celluler_node.bulk.throttle import Throttle
from celluler_node.bulk.tls import client_context, server_context
from celluler_node.bulk.transfer import Transfer
from celluler_node.bulk.words import (
    BULK,
    MAX_TRANSFERS,
    Admit,
    Await,
    Dial,
    Dialled,
    Done,
    Fetch,
    Hang,
    Open,
    Opened,
    Patience,
    Spend,
    Spent,
    unpack_chunks,
)
from celluler_node.processes.frames import Frame, FrameReader, encode, record_of
from celluler_node.processes.serving import Link, failure_pieces, receive, reply_pieces
from celluler_node.processes.words import Kind, Ready

Answer = Callable[[Any], None]
"""Answers one request, from any thread."""

STACK_BYTES = 512 << 10


def main(link: Link) -> None:
    threading.stack_size(STACK_BYTES)
    process = _Process(Path(link.boot.scratch))
    link.transmit(encode(Kind.READY, Ready(link.isolation)))
    reader = FrameReader(link.boot.max_blob_bytes)
    while (frames := receive(link.sock, reader)) is not None:
        for frame in frames:
            if frame.kind == Kind.REQUEST:
                _handle(link, frame, process.handlers)
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads that wait for strangers


Handler = Callable[[Any, bytearray, Answer], None]


def _handle(link: Link, frame: Frame, handlers: Mapping[type, Handler]) -> None:
    def answer(reply: Any) -> None:
        link.transmit(reply_pieces(link, BULK.replies, reply, frame.call))

    try:
        request = record_of(BULK.requests, frame)
        handlers[type(request)](request, frame.blobs[0] if frame.blobs else bytearray(), answer)
    except Exception as error:  # the boundary: an error is the caller's answer
        traceback.print_exc(file=sys.stderr)
        link.transmit(failure_pieces(link, error, frame.call))


class _Process:
    """What lives between two requests."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._bulletin = Bulletin()
        self._transfers: dict[int, Transfer] = {}
        self._serving: Serving | None = None
        self._up = self._down = Throttle(0)
        self._patience = Patience()
        self._client: ssl.SSLContext = client_context()

    @property
    def handlers(self) -> Mapping[type, Handler]:
        return {
            Open: self._open,
            Admit: self._admit,
            Dial: self._dial,
            Fetch: self._fetch,
            Hang: self._hang,
            Spend: self._spend,
            Await: lambda _, __, answer: self._bulletin.wanted(answer),
        }

    def _open(self, request: Open, _: bytearray, answer: Answer) -> None:
        if self._serving is not None:
            raise LocalError("open already")
        self._patience = request.patience
        self._up, self._down = Throttle(request.up_bytes_s), Throttle(request.down_bytes_s)
        context, pin = server_context(self._scratch)
        try:
            listeners, reason = listen(request.hosts, request.port), ""
        except OSError as error:
            listeners, reason = [], str(error)[:300]
        confined = walls.close(Path(request.store), self._scratch)
        self._serving = Serving(StoreReader(Path(request.store)), self._bulletin, self._up, self._patience)
        _start(_vital, self._bulletin.tell)
        if listeners:
            lobby = Lobby(listeners, context, self._serving.redeem, self._serving.expire, self._patience)
            _start(_vital, lobby.run)
        port = listeners[0].getsockname()[1] if listeners else 0
        answer(Opened(port, pin, confined, reason))

    def _admit(self, request: Admit, _: bytearray, answer: Answer) -> None:
        if self._serving is None:
            raise LocalError("not open yet")
        answer(self._serving.admit(request.peer, request.root))

    def _dial(self, request: Dial, _: bytearray, answer: Answer) -> None:
        if len(self._transfers) >= MAX_TRANSFERS:
            answer(Dialled(f"{MAX_TRANSFERS} transfers are running", impostor=False))
            return
        transfer = Transfer(request, self._client, self._bulletin, self._down, self._patience)
        self._transfers[request.transfer] = transfer
        _start(transfer.run, answer)

    def _fetch(self, request: Fetch, blob: bytearray, answer: Answer) -> None:
        transfer = self._transfers.get(request.transfer)
        if transfer is not None:  # else it was hung up
            transfer.ask(list(unpack_chunks(blob)))
        answer(Done())

    def _hang(self, request: Hang, _: bytearray, answer: Answer) -> None:
        transfer = self._transfers.get(request.transfer)
        if transfer is None:
            answer(Done())
            return
        transfer.stop()
        _start(self._bury, request.transfer, transfer, answer)

    def _bury(self, number: int, transfer: Transfer, answer: Answer) -> None:
        transfer.ended.wait()
        self._transfers.pop(number, None)
        answer(Done())

    def _spend(self, request: Spend, _: bytearray, answer: Answer) -> None:
        answer(Spent(self._up.take(request.up_bytes), self._down.take(request.down_bytes)))


def _vital(run: Callable[[], None]) -> None:
    """Without this thread the process would be there and do nothing: better it goes, and is started anew."""
    try:
        run()
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)


def _start(run: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=run, args=arguments, daemon=True).start()
