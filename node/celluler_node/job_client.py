"""Jobs at other nodes: hand in an order, follow it, cancel it. What a submitter does that is not its coordinator.

A coordinator that has gone is no end: every member of the run knows the job and is asked in its place.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import trio

from celluler.content.digest import Digest, parse_cid
from celluler.errors import CellulerError, Denied, InvalidSpec, NoPeers, NotFound, Unavailable
from celluler.identity import Identity, PeerId, seal
from celluler.jobs.spec import TrainJob
from celluler.jobs.states import JobEvent, JobState, match_job
from celluler.learning.roster import MAX_MEMBERS
from celluler_node.bounded import bounded
from celluler_node.fetching import Fetcher
from celluler_protocols import jobs
from celluler_protocols.host import Host
from celluler_protocols.jobs_messages import MAX_EVENTS_AN_ANSWER, MAX_WAIT_MS, Checkpointed, Facts, Listed
from celluler_protocols.jobs_orders import (
    ChangeOrder,
    OpenedOrder,
    open_order,
    seal_cancel,
    seal_checkpoint,
    seal_order,
)

ASK_S = 10.0
SUBMIT_S = 600.0
CHECKPOINT_S = 300.0
MAX_ASKED = 16

T = TypeVar("T")


@dataclass(slots=True)
class Followed:
    """A job elsewhere, as far as it was told.

    events: numbered by us, since each node numbers its own and we may have to turn to another. source: who tells;
    asked: the last of its numbers that we have.
    """

    order: OpenedOrder
    events: list[JobEvent] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)
    source: PeerId | None = None
    asked: int = 0

    @property
    def cursor(self) -> int:
        return self.events[-1].cursor if self.events else 0

    def hear(self, source: PeerId, events: tuple[JobEvent, ...], facts: Facts) -> None:
        """Take what a node tells after its number `asked`; of another node than before, only what is newer."""
        for event in events:
            if not self.events or event.at_s > self.events[-1].at_s or source == self.source:
                self.events.append(replace(event, cursor=self.cursor + 1))
        self.source, self.asked = source, events[-1].cursor if events else self.asked
        self.facts = facts


class JobClient:
    """members: peers that may know of a job, the likeliest first."""

    def __init__(
        self, identity: Identity, host: Host, fetcher: Fetcher, members: Callable[[], Iterable[PeerId]]
    ) -> None:
        self._identity, self._host, self._fetcher, self._members = identity, host, fetcher, members
        self._followed: dict[Digest, Followed] = {}

    async def submit(self, coordinator: PeerId, spec: TrainJob, *, client_id: str, model: Digest) -> Digest:
        """Hand in an order; the coordinator fetches what it needs from us before it accepts."""
        raw = self.order(coordinator, spec, client_id=client_id, model=model)
        with bounded(SUBMIT_S, "submitting a job", peer=coordinator):
            job = await jobs.submit(await self._host.open_stream(coordinator, jobs.PROTOCOL_ID), raw)
        self._followed[job] = Followed(open_order(raw))
        return job

    def order(self, coordinator: PeerId, spec: TrainJob, *, client_id: str, model: Digest) -> bytes:
        """Our signed order for a coordinator, good until the job's deadline."""
        now = int(time.time())
        return seal_order(
            self._identity,
            spec,
            client_id=client_id,
            coordinator=coordinator,
            model=model,
            created_s=now,
            expires_s=now + spec.policy.deadline,
        )

    async def follow(self, text: str, *, since: int, wait_s: float) -> Followed:
        """A job with everything told of it so far; waits for news after `since`. Raises NotFound."""
        job = await self._find(text)
        followed = self._followed.get(job) or await self._meet(job)
        wait_s = 0.0 if followed.cursor > since else wait_s
        await self._ask_each(self._holders(followed), lambda peer: self._catch_up(peer, followed, wait_s))
        return followed

    async def cancel(self, text: str) -> JobState:
        """Raises NotFound, Denied when it is somebody else's job."""
        followed = self._followed.get(job := await self._find(text)) or await self._meet(job)
        order = seal_cancel(self._identity, job, issued_s=int(time.time()))

        async def ask(peer: PeerId) -> JobState:
            return await jobs.cancel(await self._host.open_stream(peer, jobs.PROTOCOL_ID), order)

        answers = await self._ask_all(self._holders(followed), ask)
        return answers[0]

    async def checkpoint(self, text: str) -> Checkpointed:
        """What a job of ours has come to so far, published by the first member that can.

        Raises NotFound, Denied when it is somebody else's job, Unavailable before its first round is over.
        """
        followed = self._followed.get(job := await self._find(text)) or await self._meet(job)
        order = seal_checkpoint(self._identity, job, issued_s=int(time.time()))
        failure: CellulerError = NoPeers("nobody to ask for a checkpoint")
        for peer in self._holders(followed):
            try:
                with bounded(CHECKPOINT_S, "publishing a checkpoint", peer=peer):
                    return await jobs.checkpoint(await self._host.open_stream(peer, jobs.PROTOCOL_ID), order)
            except Denied:
                raise
            except (Unavailable, NotFound) as error:
                failure = error
        raise failure

    async def change(self, text: str, *, expires_s: int | None, max_peers: int | None, priority: int | None) -> None:
        """Change a job of ours at everybody who has to do with it. Raises NotFound, Denied, LocalError."""
        followed = self._followed.get(job := await self._find(text)) or await self._meet(job)
        order = seal(self._identity, ChangeOrder(job, int(time.time()), expires_s, max_peers, priority))

        async def ask(peer: PeerId) -> None:
            await jobs.change(await self._host.open_stream(peer, jobs.PROTOCOL_ID), order)

        await self._ask_all(self._holders(followed), ask)

    async def listing(self) -> tuple[tuple[PeerId, Listed], ...]:
        """Jobs that the members know of, each once, newest first."""

        async def ask(peer: PeerId) -> tuple[PeerId, tuple[Listed, ...]]:
            return peer, await jobs.list_jobs(await self._host.open_stream(peer, jobs.PROTOCOL_ID))

        found: dict[bytes, tuple[PeerId, Listed]] = {}
        for peer, listed in await self._ask_all(list(self._members())[:MAX_ASKED], ask):
            for one in listed:
                found.setdefault(one.job, (peer, one))
        return tuple(sorted(found.values(), key=lambda pair: pair[1].created_s, reverse=True))

    # --- inside --------------------------------------------------------------------------------------------------

    async def _find(self, text: str) -> Digest:
        try:
            return parse_cid(text)
        except InvalidSpec:
            ids = {followed.order.id: job for job, followed in self._followed.items()}
            ids |= {
                (await self._order(Digest(one.job), (peer,))).id: Digest(one.job) for peer, one in await self.listing()
            }
        found = match_job(ids, text)
        if found is None:
            raise NotFound(f"job {text}", hint="celluler job ls")
        return ids[found]

    async def _meet(self, job: Digest) -> Followed:
        self._followed[job] = Followed(await self._order(job, tuple(self._members())))
        return self._followed[job]

    async def _order(self, job: Digest, hints: tuple[PeerId, ...]) -> OpenedOrder:
        return open_order(await self._fetcher.block(job, hints=hints[:MAX_ASKED]))

    def _holders(self, followed: Followed) -> list[PeerId]:
        """The coordinator, then the members of its run, then anybody; never ourselves, whom no stream reaches."""
        told = (PeerId(followed.order.signed.record.coordinator), *map(PeerId, followed.facts.members))
        others = dict.fromkeys(peer for peer in (*told, *self._members()) if peer != self._identity.peer_id)
        return list(others)[:MAX_MEMBERS]

    async def _catch_up(self, peer: PeerId, followed: Followed, wait_s: float) -> None:
        while True:
            asked = followed.asked if peer == followed.source else 0
            stream = await self._host.open_stream(peer, jobs.PROTOCOL_ID)
            with bounded(ASK_S + wait_s, "watching a job", peer=peer):
                events, facts = await jobs.watch(
                    stream, followed.order.job, asked, wait_ms=min(MAX_WAIT_MS, int(1000 * wait_s))
                )
            followed.hear(peer, events, facts)
            wait_s = 0.0
            if len(events) < MAX_EVENTS_AN_ANSWER:
                return

    async def _ask_each(self, peers: Iterable[PeerId], ask: Callable[[PeerId], Awaitable[T]]) -> T:
        """The first that answers. Raises what the last one raised."""
        failure: CellulerError = NoPeers("nobody to ask about a job")
        for peer in peers:
            try:
                with bounded(ASK_S + MAX_WAIT_MS / 1000, "asking about a job", peer=peer):
                    return await ask(peer)
            except Unavailable as error:
                failure = error
        raise failure

    async def _ask_all(self, peers: Iterable[PeerId], ask: Callable[[PeerId], Awaitable[T]]) -> list[T]:
        """Every answer there is, the earlier peers' first. Raises what the last one raised when there is none."""
        answers: dict[PeerId, T] = {}
        failures: list[CellulerError] = []

        async def one(peer: PeerId) -> None:
            try:
                with bounded(ASK_S, "asking about jobs", peer=peer):
                    answers[peer] = await ask(peer)
            except CellulerError as error:
                failures.append(error)

        chosen = list(peers)
        async with trio.open_nursery() as nursery:
            for peer in chosen:
                nursery.start_soon(one, peer)
        if not answers:
            raise failures[0] if failures else NoPeers("nobody to ask about a job")
        return [answers[peer] for peer in chosen if peer in answers]
