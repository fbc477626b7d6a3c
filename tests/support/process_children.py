"""Small real programs for the supervisor: one module, `main` of which serves words that do what they say."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass

from celluler.wire import U32, Text
from celluler_node.processes.serving import Link, serve_sync
from celluler_node.processes.words import Program, Reply


@dataclass(frozen=True, slots=True)
class Echo:
    text: Text


@dataclass(frozen=True, slots=True)
class Raise:
    text: Text


@dataclass(frozen=True, slots=True)
class Die:
    signal: U32


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: U32


@dataclass(frozen=True, slots=True)
class Eat:
    mebibytes: U32


@dataclass(frozen=True, slots=True)
class Garble:
    """Write these bytes on the channel, outside any frame."""


@dataclass(frozen=True, slots=True)
class Said:
    text: Text


@dataclass(frozen=True, slots=True)
class Note:
    text: Text


REQUESTS = (Echo, Raise, Die, Sleep, Eat, Garble)
REPLIES = (Said,)
EVENTS = (Note,)

SYNC = Program("sync", __name__, REQUESTS, REPLIES, EVENTS, max_blob_bytes=1 << 28)


def main(link: Link) -> None:
    def echo(request: Echo, blobs: tuple[bytearray, ...]) -> Reply:
        link.emit(Note(request.text))
        return Reply(Said(request.text), blobs)

    def fail(request: Raise, blobs: tuple[bytearray, ...]) -> Said:
        raise ValueError(request.text)

    def die(request: Die, blobs: tuple[bytearray, ...]) -> Said:
        print("last words", file=sys.stderr, flush=True)
        if not request.signal:
            os._exit(7)
        os.kill(os.getpid(), signal.Signals(request.signal))
        return Said("still here")

    def sleep(request: Sleep, blobs: tuple[bytearray, ...]) -> Said:
        time.sleep(request.seconds)
        return Said("awake")

    def eat(request: Eat, blobs: tuple[bytearray, ...]) -> Said:
        return Said(str(len(bytearray(request.mebibytes << 20))))

    def garble(request: Garble, blobs: tuple[bytearray, ...]) -> Said:
        link.sock.sendall(blobs[0])
        return Said("garbled")

    handlers = {Echo: echo, Raise: fail, Die: die, Sleep: sleep, Eat: eat, Garble: garble}
    serve_sync(link, REQUESTS, REPLIES, handlers, EVENTS)
