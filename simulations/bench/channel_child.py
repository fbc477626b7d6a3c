"""The process at the other end of `simulations.bench.channel`: takes blobs, gives blobs, does nothing with them."""

from __future__ import annotations

from dataclasses import dataclass

from celluler.wire import U64
from celluler_node.processes.serving import Link, serve_sync
from celluler_node.processes.words import Reply


@dataclass(frozen=True, slots=True)
class Hold:
    """Take what comes behind this."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Give as many bytes."""

    size: U64


@dataclass(frozen=True, slots=True)
class Done:
    pass


REQUESTS = (Hold, Fetch)
REPLIES = (Done,)


def main(link: Link) -> None:
    made: dict[int, bytes] = {0: b""}

    def fetch(request: Fetch, _: tuple[bytearray, ...]) -> Done | Reply:
        if request.size not in made:
            made[request.size] = bytes(request.size)
        blob = made[request.size]
        return Reply(Done(), (blob,)) if blob else Done()

    serve_sync(link, REQUESTS, REPLIES, {Hold: lambda _, __: Done(), Fetch: fetch})
