"""The averager: a process that holds one run's averaging sockets and sees nothing but arrays of integers.

Runs no model, knows no key but its own, and imports hivemind, which the node must not. asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from pathlib import Path

import uvloop

from celluler.aggregation.q16 import part_slices
from celluler.errors import LocalError
from celluler_node.processes.averager_words import (
    AVERAGER,
    Admit,
    Admitted,
    Check,
    Checked,
    Close,
    Closed,
    Exchange,
    Exchanged,
    Had,
    Inputs,
    Moved,
    Offer,
    Offered,
    Open,
    Opened,
)
from celluler_node.processes.memory import keep_freed_memory
from celluler_node.processes.serving import Link
from celluler_node.processes.serving_asyncio import AsyncHandler, serve_async
from celluler_node.processes.words import Reply
from celluler_protocols.averaging import Averager, open_averager
from celluler_protocols.averaging_messages import VALUE_BYTES


def main(link: Link) -> None:
    keep_freed_memory()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("hivemind").setLevel(logging.ERROR)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(link))


async def _serve(link: Link) -> None:
    async with _Run(Path(link.boot.scratch)) as run:
        serving = asyncio.create_task(serve_async(link, AVERAGER.requests, AVERAGER.replies, run.handlers()))
        failing = asyncio.create_task(run.broken())
        await asyncio.wait((serving, failing), return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            sys.exit(failing.result())
        failing.cancel()
        await serving


class _Run:
    """The averager of one run, opened by the first request and closed with the process."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._stack = contextlib.AsyncExitStack()
        self._averager: Averager | None = None
        self._opened_once = asyncio.Event()
        self._opening = False

    async def __aenter__(self) -> _Run:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def broken(self) -> str:
        """Wait until the averager cannot work any more; the reason, with which this process had better end."""
        await self._opened_once.wait()
        assert self._averager is not None
        status = await self._averager.ended()
        if self._averager is None:  # it was closed
            await asyncio.Event().wait()
        return f"p2pd ended with status {status}"

    def handlers(self) -> dict[type, AsyncHandler]:
        return {
            Open: self._open,
            Admit: self._admit,
            Exchange: self._exchange,
            Check: self._check,
            Close: self._close,
            Inputs: self._inputs,
            Offer: self._offer,
        }

    async def _open(self, request: Open, _: tuple[bytearray, ...]) -> Opened:
        if self._opening:
            raise LocalError("open already: one averager a run")
        self._opening = True
        opening = open_averager(request.seed, listen=request.listen, scratch=self._scratch)
        self._averager = await self._stack.enter_async_context(opening)
        self._opened_once.set()
        return Opened(self._averager.peer_id, self._averager.addresses)

    async def _admit(self, request: Admit, _: tuple[bytearray, ...]) -> Admitted:
        await self._opened().admit(request.members)
        return Admitted()

    async def _exchange(self, request: Exchange, blobs: tuple[bytearray, ...]) -> Reply:
        own = blobs[0] if blobs else bytearray()
        outcome, aggregate = await self._opened().exchange(request.plan, own)
        return Reply(Exchanged(outcome, self._moved()), (aggregate,))

    async def _check(self, request: Check, _: tuple[bytearray, ...]) -> Checked | Reply:
        found = await self._opened().check(request.plan, request.result)
        if not found.inputs:
            return Checked(found.equal, found.squares, self._moved())
        places = tuple(sorted(found.inputs))
        proof = b"".join(found.inputs[place] for place in places)
        return Reply(Checked(found.equal, found.squares, self._moved(), places), (proof,))

    async def _inputs(self, request: Inputs, _: tuple[bytearray, ...]) -> Reply:
        member, count = request.member, len(request.member.hashes)
        if len(member.exponents) != count or list(request.parts) != sorted(set(request.parts)):
            raise LocalError("a commitment or parts that contradict themselves")
        if request.parts[-1] >= count:
            raise LocalError(f"no part {request.parts[-1]} of {count}")
        pieces = part_slices(request.dimension, count)
        sizes = {part: VALUE_BYTES * (pieces[part].stop - pieces[part].start) for part in request.parts}
        whole = await self._opened().inputs(request.run, request.round, member, sizes)
        return Reply(Had(self._moved()), (whole,))

    async def _offer(self, request: Offer, blobs: tuple[bytearray, ...]) -> Offered:
        if len(blobs) != 1:
            raise LocalError(f"{len(blobs)} blobs, must be one")
        whole = memoryview(blobs[0])
        pieces = part_slices(len(whole) // VALUE_BYTES, request.parts)
        parts = {part: whole[piece.start * VALUE_BYTES : piece.stop * VALUE_BYTES] for part, piece in enumerate(pieces)}
        self._opened().offer(request.run, request.round, parts)
        return Offered()

    async def _close(self, request: Close, _: tuple[bytearray, ...]) -> Closed:
        if self._averager is not None:
            await self._averager.drain(request.drain_s)
        self._averager = None
        await self._stack.aclose()
        return Closed()

    def _moved(self) -> Moved:
        moved = self._opened().moved
        return Moved(moved.sent_bytes, moved.received_bytes)

    def _opened(self) -> Averager:
        if self._averager is None:
            raise LocalError("the averager is not open")
        return self._averager
