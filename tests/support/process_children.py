"""Small real programs for the supervisor. `main` serves words that do what they say; the others go wrong earlier."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from celluler.wire import U32, Text
from celluler_node.processes.serving import Link, serve_sync
from celluler_node.processes.serving_asyncio import serve_async
from celluler_node.processes.words import Program, Reply

Blobs = tuple[bytearray, ...]


@dataclass(frozen=True, slots=True)
class Echo:
    text: Text


@dataclass(frozen=True, slots=True)
class Tell:
    """Say it unasked, as an event, and answer then."""

    text: Text


@dataclass(frozen=True, slots=True)
class Raise:
    text: Text


@dataclass(frozen=True, slots=True)
class Die:
    """signal: 0 to exit with status 7 instead."""

    signal: U32


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: U32


@dataclass(frozen=True, slots=True)
class Spin:
    """Compute for ever."""


@dataclass(frozen=True, slots=True)
class Eat:
    mebibytes: U32


@dataclass(frozen=True, slots=True)
class Garble:
    """Write the blob on the channel as it is, outside any frame."""


@dataclass(frozen=True, slots=True)
class Shut:
    """Close the channel and stay."""


@dataclass(frozen=True, slots=True)
class Breed:
    """Start a process that outlives its parent. detached: in a process group of its own."""

    detached: bool


@dataclass(frozen=True, slots=True)
class Look:
    """The environment, the arguments, the folder, the limits, the open descriptors."""


@dataclass(frozen=True, slots=True)
class Said:
    text: Text


@dataclass(frozen=True, slots=True)
class Seen:
    environment: Text
    folder: Text
    descriptors: Text


@dataclass(frozen=True, slots=True)
class Note:
    text: Text


REQUESTS = (Echo, Raise, Die, Sleep, Eat, Garble, Shut, Breed, Look, Tell, Spin)
REPLIES = (Said, Seen)
EVENTS = (Note,)

SYNC = Program("sync", __name__, REQUESTS, REPLIES, EVENTS, max_blob_bytes=1 << 28, ready_s=20)
ASYNC = replace(SYNC, name="async", module=f"{__name__}_async")
BROKEN = replace(SYNC, name="broken", module=f"{__name__}_that_is_not_there")
MUTE = replace(SYNC, name="mute", module=f"{__name__}_mute", ready_s=0.5)
STUBBORN = replace(SYNC, name="stubborn", module=f"{__name__}_stubborn")


def main(link: Link) -> None:
    serve_sync(link, REQUESTS, REPLIES, handlers(link), EVENTS)


def handlers(link: Link) -> dict[type, Callable[[Any, Blobs], Any]]:
    def tell(request: Tell, _: Blobs) -> Said:
        link.emit(Note(request.text))
        return Said("told")

    def garble(_: Garble, blobs: Blobs) -> Said:
        link.sock.sendall(blobs[0])
        return Said("garbled")

    def shut(_: Shut, __: Blobs) -> Said:
        link.sock.shutdown(1)
        time.sleep(60)
        return Said("stayed")

    return {
        Echo: lambda request, blobs: Reply(Said(request.text), blobs),
        Tell: tell,
        Raise: fail,
        Die: die,
        Sleep: lambda request, _: time.sleep(request.seconds) or Said("awake"),
        Eat: lambda request, _: Said(str(len(bytearray(request.mebibytes << 20)))),
        Garble: garble,
        Shut: shut,
        Breed: breed,
        Look: look,
        Spin: spin,
    }


def fail(request: Raise, _: Blobs) -> Said:
    raise ValueError(request.text)


def die(request: Die, _: Blobs) -> Said:
    print("last words", file=sys.stderr, flush=True)
    if not request.signal:
        os._exit(7)
    os.kill(os.getpid(), signal.Signals(request.signal))
    return Said("still here")


def spin(_: Spin, __: Blobs) -> Said:
    while True:
        pass


def breed(request: Breed, _: Blobs) -> Said:
    group = 0 if request.detached else None
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=group)
    return Said(str(child.pid))


def look(_: Look, __: Blobs) -> Seen:
    descriptors = [number for number in range(256) if _is_open(number)]
    return Seen(" ".join(sorted(os.environ)), os.getcwd(), " ".join(map(str, descriptors)))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


async def serve_in_asyncio(link: Link) -> None:
    plain = handlers(link)

    async def sleep(request: Sleep, _: Blobs) -> Said:
        await asyncio.sleep(request.seconds)
        return Said("awake")

    def waiting(handler: Callable[[Any, Blobs], Any]) -> Callable[[Any, Blobs], Any]:
        async def run(request: Any, blobs: Blobs) -> Any:
            return handler(request, blobs)

        return run

    await serve_async(
        link, REQUESTS, REPLIES, {word: waiting(handler) for word, handler in plain.items()} | {Sleep: sleep}, EVENTS
    )
