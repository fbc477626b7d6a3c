"""What the node and its processes say to each other, whatever the process does.

Knows nothing of sockets, of trio or asyncio, nor of what a particular process is asked to do: each kind brings its
own closed vocabulary of requests, replies and events (`worker_words`, `averager_words`) in a `Program`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Any

from celluler.wire import U8, U16, U32, U64, Length, Name, Text

MIB = 1 << 20

MAX_RECORD_BYTES = 1 * MIB
"""The largest record: whatever is larger travels as a blob."""

MAX_BLOBS = 64
"""Blobs in one frame; a call carries one array, or a few, or one for each part of an update."""

MAX_CALLS_IN_FLIGHT = 64
"""Calls that one process may owe an answer, those given up by their caller included. The next one waits."""

MAX_EVENTS = 256
"""Events that wait for a reader. When they are that many, a new one is dropped and counted."""


LIMITS = ("memory", "processor", "file", "disk", "threads", "time")
"""What `WorkerFailed.limit` may name."""


class Kind(IntEnum):
    """What a frame is for."""

    BOOT = 0
    """Node to process, first: `Boot`."""
    READY = 1
    """Process to node, first: `Ready`."""
    REQUEST = 2
    REPLY = 3
    FAILURE = 4
    """Process to node: the request of this call raised; `Failure`."""
    EVENT = 5
    """Process to node, unasked."""
    CANCEL = 6
    """Node to process: nobody waits for this call any more. It is still answered, so that its place becomes free."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may take. None: no limit of ours.

    memory_bytes: address space, not resident memory: a worker with torch needs 1 GiB before it holds any model.
    file_bytes: the largest file it may write. disk_bytes: all files in its scratch folder together.
    open_files: descriptors. cpu_s: processor time of its whole life. call_s: from a request to its answer, those that
    wait before it included.
    threads: what OpenMP, MKL and OpenBLAS are pinned to; equal at all members of a run, or results differ in bits.
    niceness: 0..19, the higher the later it gets the processor when the node wants it too.
    """

    memory_bytes: U64 | None = None
    file_bytes: U64 | None = None
    open_files: U32 = 256
    cpu_s: U32 | None = None
    threads: U16 = 1
    niceness: U8 = 0
    disk_bytes: U64 | None = None
    call_s: U32 | None = None


PathText = Annotated[str, Length(1, 4096)]


@dataclass(frozen=True, slots=True)
class Boot:
    """How a process is to set itself up before it imports its own module.

    confined: enter the sandbox. readable: files and folders it may read whole. listable: folders whose names it
    may list, as an import needs. scratch: the one folder it may write. denied: see `Isolation`.
    """

    name: Name
    module: Annotated[str, Length(1, 256)]
    limits: Limits
    confined: bool
    readable: Annotated[tuple[PathText, ...], Length(0, 256)]
    listable: Annotated[tuple[PathText, ...], Length(0, 256)]
    scratch: PathText
    max_blob_bytes: U64


@dataclass(frozen=True, slots=True)
class Isolation:
    """Which walls stand around a process, as it found them when it set them up.

    landlock: version of the kernel's interface, 0 where there is none. missing: what this system cannot do, in words.
    """

    dies_with_node: bool
    limited: bool
    no_new_privileges: bool
    landlock: U16
    seccomp: bool
    missing: Annotated[tuple[Text, ...], Length(0, 16)]

    @property
    def full(self) -> bool:
        """Everything a sandbox needs is there; otherwise the node says "reduced isolation"."""
        return self.dies_with_node and self.limited and self.no_new_privileges and self.landlock > 0 and self.seccomp


@dataclass(frozen=True, slots=True)
class Ready:
    """The process has set itself up, has imported its module, and reads requests."""

    isolation: Isolation


@dataclass(frozen=True, slots=True)
class Failure:
    """A request raised. error: the name of the exception's class. reason: its text. limit: as of `WorkerFailed`."""

    error: Name
    reason: Text
    limit: Annotated[str, Length(0, 16)] = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What may answer a request. records: their classes. blobs: how many come behind one, exactly."""

    records: tuple[type, ...]
    blobs: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """A kind of process: what it runs and which words it knows. Not a record: it never travels.

    module: has `main(link: Link) -> None`, which serves until the link ends.
    confined: runs what strangers made, so it enters the sandbox before its module is imported.
    max_blob_bytes: the most that one frame carries behind its header, in either direction.
    ready_s: how long it may take from its start until it reads requests. environment: variables that it sees besides
    those that every process of ours does. answers: what may answer which request; of one that is not named, any reply.
    """

    name: str
    module: str
    requests: tuple[type, ...]
    replies: tuple[type, ...]
    events: tuple[type, ...] = ()
    confined: bool = False
    max_blob_bytes: int = 1 << 30
    ready_s: float = 30.0
    environment: tuple[tuple[str, str], ...] = ()
    answers: Mapping[type, Answer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """A record and the bytes behind it. What a handler may return, and what a call returns."""

    record: Any
    blobs: tuple[bytes | bytearray | memoryview, ...] = ()
