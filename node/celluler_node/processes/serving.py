"""A process's side of the channel, for a process that does one thing at a time (the worker).

The program's module has `main(link)`, and in it `serve_sync(link, ...)`. Imports neither trio nor asyncio.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from celluler.errors import LocalError
from celluler_node.processes.exits import file_limit, memory_limit
from celluler_node.processes.frames import Frame, FrameReader, encode, record_of, tag_of
from celluler_node.processes.words import Boot, Failure, Isolation, Kind, Ready, Reply

Handler = Callable[[Any, tuple[bytearray, ...]], Any]
"""`handler(request, blobs) -> record | Reply(record, blobs)`; what it raises becomes the caller's WorkerFailed."""

_MAX_REASON_BYTES = 300


class Link:
    """The inherited end of the channel.

    boot: what the node asked for; `boot.scratch` is the one folder that may be written.
    isolation: which walls could be had. events: the vocabulary of `emit`, set when serving begins.
    """

    def __init__(self, sock: socket.socket, boot: Boot, isolation: Isolation) -> None:
        self.sock, self.boot, self.isolation = sock, boot, isolation
        self.events: tuple[type, ...] = ()
        self._sending = threading.Lock()
        self.transmit: Callable[[list[memoryview]], None] = self._send_blocking

    def emit(self, record: Any) -> None:
        """Tell the node something it did not ask for. In asyncio from the loop's thread only, else from any."""
        self.transmit(encode(Kind.EVENT, record, tag=tag_of(self.events, record)))

    def _send_blocking(self, pieces: list[memoryview]) -> None:
        with self._sending:
            while pieces:
                sent = self.sock.sendmsg(pieces)
                while pieces and sent >= len(pieces[0]):
                    sent -= len(pieces.pop(0))
                if sent:
                    pieces[0] = pieces[0][sent:]


def receive(sock: socket.socket, reader: FrameReader) -> list[Frame] | None:
    """Wait for bytes on a blocking socket; the frames they complete, or None at the end of the channel."""
    try:
        count = sock.recv_into(reader.space())
    except ConnectionError:
        return None
    return reader.filled(count) if count else None


def reply_pieces(link: Link, replies: tuple[type, ...], answer: Any, call: int) -> list[memoryview]:
    """The frame of a handler's answer. Raises LocalError for a record or a size that the channel does not take."""
    reply = answer if isinstance(answer, Reply) else Reply(answer)
    size = sum(memoryview(blob).nbytes for blob in reply.blobs)
    if size > link.boot.max_blob_bytes:
        raise LocalError(f"an answer of {size} bytes, limit {link.boot.max_blob_bytes}")
    return encode(Kind.REPLY, reply.record, reply.blobs, call=call, tag=tag_of(replies, reply.record))


def failure_pieces(link: Link, error: BaseException, call: int) -> list[memoryview]:
    """The frame that tells of an exception, in one line."""
    text, limits = " ".join(str(error).split()), link.boot.limits
    limit = ""
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        limit = "memory"
        text = memory_limit(limits) + (text and f": {text}")
    elif isinstance(error, OSError) and error.errno == errno.EFBIG and limits.file_bytes is not None:
        limit = "file"
        text = file_limit(limits) + (text and f": {text}")
    reason = text.encode("utf-8", "replace")[:_MAX_REASON_BYTES].decode("utf-8", "ignore")
    return encode(Kind.FAILURE, Failure(type(error).__name__[:128], reason, limit), call=call)


def serve_sync(
    link: Link,
    requests: tuple[type, ...],
    replies: tuple[type, ...],
    handlers: Mapping[type, Handler],
    events: tuple[type, ...] = (),
) -> None:
    """Answer requests in the order they came, until the node ends the channel.

    Says it is ready first: whatever must be imported or built before that is, so that the node's deadline covers it.
    An exception in a handler is an answer, not the end. When the node closes the channel during a handler, the
    process ends there and then.
    """
    link.events = events
    link.transmit(encode(Kind.READY, Ready(link.isolation)))
    busy = threading.Event()
    threading.Thread(target=_end_with_node, args=(link.sock, busy), daemon=True).start()
    reader = FrameReader(link.boot.max_blob_bytes)
    while (frames := receive(link.sock, reader)) is not None:
        for frame in frames:
            if frame.kind == Kind.REQUEST:
                busy.set()
                link.transmit(_answer(link, frame, requests, replies, handlers))
                busy.clear()


def _answer(
    link: Link,
    frame: Frame,
    requests: tuple[type, ...],
    replies: tuple[type, ...],
    handlers: Mapping[type, Handler],
) -> list[memoryview]:
    try:
        request = record_of(requests, frame)
        return reply_pieces(link, replies, handlers[type(request)](request, frame.blobs), frame.call)
    except Exception as error:  # the boundary: whatever a model does to us is the caller's answer
        traceback.print_exc(file=sys.stderr)
        return failure_pieces(link, error, frame.call)


def _end_with_node(sock: socket.socket, busy: threading.Event) -> None:
    """Wait, without reading, until the node has closed its end: a handler that runs for minutes must not outlive it."""
    poll = select.poll()
    poll.register(sock, getattr(select, "POLLRDHUP", 0))  # POLLHUP is always reported
    poll.poll()
    busy.wait()  # idle, the main thread reads the end itself and returns
    os._exit(0)
