"""A run's averagers as real processes on loopback, and the plans of its rounds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import trio
from numpy.typing import NDArray

from celluler.aggregation.digests import part_hash
from celluler.aggregation.q16 import encode_parts, part_slices
from celluler.identity import Identity
from celluler_node.processes.averager_words import AVERAGER, AVERAGER_LIMITS, Admit, Exchange, Exchanged, Open, Opened
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Program
from celluler_protocols.averaging_messages import Assignment, Member, Outcome, Plan

RUN = bytes(range(32))
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


@dataclass
class Peer:
    """One member: its node's key, its averager's process."""

    child: Child
    opened: Opened
    author: Identity = field(default_factory=Identity.generate)

    def member(self, hashes: tuple[bytes, ...] = (), exponents: tuple[int, ...] = ()) -> Member:
        return Member(self.opened.peer, self.author.public_key, self.opened.addresses, hashes, exponents)

    async def exchange(self, plan: Plan, own: bytes) -> tuple[Outcome, bytes]:
        reply = await self.child.call(Exchange(plan), own)
        assert isinstance(reply.record, Exchanged)
        return reply.record.outcome, bytes(reply.blobs[0])


@asynccontextmanager
async def open_peers(count: int, folder: Path, last: Program = AVERAGER) -> AsyncIterator[list[Peer]]:
    """That many averagers, listening and admitted to each other. last: the program of the last one."""
    peers: list[Peer] = []
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            async with trio.open_nursery() as starting:
                for place in range(count - 1):
                    starting.start_soon(nursery.start, _keep, peers, AVERAGER, folder / f"averager-{place}")
            await nursery.start(_keep, peers, last, folder / f"averager-{count - 1}")
        roster = tuple(peer.member() for peer in peers)
        for peer in peers:
            await peer.child.call(Admit(roster))
        yield peers
        nursery.cancel_scope.cancel()


async def _keep(peers: list[Peer], program: Program, scratch: Path, *, task_status: trio.TaskStatus[None]) -> None:
    scratch.mkdir(parents=True)  # noqa: ASYNC240  a folder in a test
    async with open_process(program, limits=AVERAGER_LIMITS, scratch=scratch) as child:
        reply = await child.call(Open(Identity.generate().seed, LOOPBACK))
        peers.append(Peer(child, reply.record))
        task_status.started()
        await trio.sleep_forever()


@dataclass
class Round:
    """What everybody in a round has and was told. updates: (members, dimension) float32; None: committed to nothing."""

    plan: Plan
    blobs: list[bytes]

    def plan_of(self, place: int) -> Plan:
        return replace(self.plan, me=place)


def plan_round(
    peers: Sequence[Peer],
    updates: Sequence[NDArray[np.float32] | None],
    *,
    number: int = 1,
    view: int = 0,
    rule: str = "nk",
    gather_s: float = 15.0,
    deadline_s: float = 30.0,
) -> Round:
    count = len(peers)
    dimension = next(len(update) for update in updates if update is not None)
    members, blobs = [], []
    for peer, update in zip(peers, updates, strict=True):
        hashes: tuple[bytes, ...] = ()
        exponents: tuple[int, ...] = ()
        blob = b""
        if update is not None:
            exponents, mantissas = encode_parts(update, count)
            blob = mantissas.astype("<i2").tobytes()
            hashes = tuple(
                part_hash(RUN, number, peer.author.public_key, part=part, exponent=exponent, mantissas=mantissas[piece])
                for part, (exponent, piece) in enumerate(zip(exponents, part_slices(dimension, count), strict=True))
            )
        members.append(peer.member(hashes, exponents))
        blobs.append(blob)
    byzantine = (count - 1) // 3
    plan = Plan(
        run=RUN,
        round=number,
        view=view,
        set_hash=bytes([number]) * 32,
        me=0,
        members=tuple(members),
        dimension=dimension,
        parts=count,
        assignments=tuple(Assignment(part, (part + number + view) % count) for part in range(count)),
        rule=rule,
        f=(count - 1) // 2,
        quorum=sum(1 for update in updates if update is not None) - byzantine,
        gather_s=gather_s,
        deadline_s=deadline_s,
    )
    return Round(plan, blobs)


async def exchange_all(peers: Sequence[Peer], told: Round, places: Sequence[int]) -> dict[int, tuple[Outcome, bytes]]:
    """The exchange at these members, all at once."""
    results: dict[int, tuple[Outcome, bytes]] = {}

    async def at(place: int) -> None:
        results[place] = await peers[place].exchange(told.plan_of(place), told.blobs[place])

    async with trio.open_nursery() as nursery:
        for place in places:
            nursery.start_soon(at, place)
    return results
