"""/celluler/catalogue/1: ask a peer for the announcements one missed. Spec: docs/reference/protocols/catalogue.md

A session is one stream. The asker sends its fingerprint first: a peer that holds the same answers with an empty last
page. Otherwise the pages of one snapshot follow, each asked for. Announcements are signed by their authors, so the
answering peer can withhold but not forge.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import trio

from celluler.errors import ProtocolViolation, Unavailable
from celluler.wire import Bytes32, Frames, Length
from celluler_protocols.bulletin import MAX_ENVELOPE_BYTES

PROTOCOL_ID = "/celluler/catalogue/1"
PAGE_ENTRIES = 32
MAX_PAGES = 160
SESSION_S = 20.0

Entry = Annotated[bytes, Length(1, MAX_ENVELOPE_BYTES)]


@dataclass(frozen=True, slots=True)
class Ask:
    """Opens the session."""

    fingerprint: Bytes32


@dataclass(frozen=True, slots=True)
class Next:
    """The next page, please."""


@dataclass(frozen=True, slots=True)
class Page:
    """Signed announcements. last: nothing follows; the asker closes."""

    entries: Annotated[tuple[Entry, ...], Length(0, PAGE_ENTRIES)]
    last: bool


def frames() -> Frames:
    return Frames((Ask, Next, Page), limit=PAGE_ENTRIES * (MAX_ENVELOPE_BYTES + 8) + 64)


class Answerer:
    """The answering half, sans-IO: bytes in, bytes out, from one snapshot."""

    def __init__(self, snapshot: Sequence[bytes], fingerprint: bytes) -> None:
        self._frames, self._fingerprint = frames(), fingerprint
        self._snapshot = tuple(snapshot[: PAGE_ENTRIES * MAX_PAGES])
        self._pages: Iterator[Page] | None = None
        self.done = False

    def receive(self, chunk: bytes) -> bytes:
        """Raises ProtocolViolation for anything out of order."""
        return b"".join(self._frames.encode(self._answer(message)) for message in self._frames.feed(chunk))

    def end(self) -> None:
        """The asker has nothing more to say. Raises ProtocolViolation when it stopped inside a message."""
        if not self._frames.idle:
            raise ProtocolViolation("stream ended inside a message")

    def _answer(self, message: object) -> Page:
        match message:
            case Ask(fingerprint) if self._pages is None:
                same = fingerprint == self._fingerprint
                self._pages = _paged(() if same else self._snapshot)
            case Next() if self._pages is not None and not self.done:
                pass
            case _:
                raise ProtocolViolation(f"{type(message).__name__} out of order")
        page = next(self._pages)
        self.done = page.last
        return page


def _paged(entries: Sequence[bytes]) -> Iterator[Page]:
    for start in range(0, max(len(entries), 1), PAGE_ENTRIES):
        yield Page(tuple(entries[start : start + PAGE_ENTRIES]), last=start + PAGE_ENTRIES >= len(entries))


async def answer_catalogue(stream: trio.abc.Stream, snapshot: Sequence[bytes], fingerprint: bytes) -> None:
    """Answer one session. Raises ProtocolViolation; TooSlowError when the asker dawdles."""
    answerer = Answerer(snapshot, fingerprint)
    with trio.fail_after(SESSION_S):
        while not answerer.done:
            if not (chunk := await stream.receive_some()):
                answerer.end()
                return
            if answer := answerer.receive(chunk):
                await stream.send_all(answer)


async def ask_catalogue(stream: trio.abc.Stream, fingerprint: bytes) -> AsyncGenerator[bytes, None]:
    """The envelopes that a peer holds, none if it holds what `fingerprint` says. Closes the stream.

    The deadline is the caller's. Raises ProtocolViolation, Unavailable.
    """
    wire = frames()
    async with stream:
        await stream.send_all(wire.encode(Ask(fingerprint)))
        for _ in range(MAX_PAGES):
            page = await _read_page(stream, wire)
            for entry in page.entries:
                yield entry
            if page.last:
                return
            if len(page.entries) != PAGE_ENTRIES:
                raise ProtocolViolation("a page that is neither full nor the last")
            await stream.send_all(wire.encode(Next()))
    raise ProtocolViolation(f"more than {MAX_PAGES} pages")


async def _read_page(stream: trio.abc.Stream, wire: Frames) -> Page:
    while chunk := await stream.receive_some():
        match wire.feed(chunk):
            case []:
                continue
            case [Page() as page] if wire.idle:
                return page
            case _:
                raise ProtocolViolation("not one page")
    raise Unavailable("the peer closed before its last page")
