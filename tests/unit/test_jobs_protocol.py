"""/celluler/jobs/1 between a submitter and a desk, in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from celluler.content.digest import Digest, digest_of
from celluler.errors import (
    BadSignature,
    Busy,
    CellulerError,
    Denied,
    InvalidSpec,
    NotFound,
    PeerViolation,
    ProtocolViolation,
    QuotaExceeded,
    Unavailable,
)
from celluler.identity import PeerId, Signed, seal
from celluler.jobs.states import JobEvent, JobLife, JobState
from celluler_protocols import jobs
from celluler_protocols.jobs_messages import (
    MAX_EVENTS_AN_ANSWER,
    Accepted,
    AskChain,
    ChainTold,
    Checkpointed,
    Event,
    Events,
    Facts,
    Listed,
    Outcome,
    Refused,
    StateTold,
    Watch,
    frames,
    to_listed,
)
from celluler_protocols.jobs_orders import (
    CLOCK_SKEW_S,
    MAX_LIFE_S,
    ChangeOrder,
    JobOrder,
    OpenedOrder,
    check_order,
    open_order,
    seal_cancel,
    seal_checkpoint,
)
from tests.support.jobs import ALICE, BOB, NOW_S, sealed_order


class Desk:
    """A coordinator's desk that keeps everything in memory."""

    def __init__(self, *, refuse: CellulerError | None = None) -> None:
        self.orders: dict[bytes, OpenedOrder] = {}
        self.lives: dict[bytes, JobLife] = {}
        self.offers: list[tuple[PeerId, bytes, bytes]] = []
        self.rosters: list[bytes] = []
        self.changes: list[ChangeOrder] = []
        self.refuse = refuse

    async def submit(self, peer: PeerId, order: OpenedOrder) -> Digest:
        if self.refuse:
            raise self.refuse
        check_order(order, coordinator=BOB.peer_id, now=NOW_S + 1)
        for job, known in self.orders.items():
            if known.submitter == order.submitter and known.signed.record.client_id == order.signed.record.client_id:
                return Digest(job)
        self.orders[order.job], self.lives[order.job] = order, JobLife(NOW_S)
        return order.job

    async def offer(self, peer: PeerId, job: Digest, entry: bytes) -> None:
        self.offers.append((peer, job, entry))

    async def roster(self, peer: PeerId, job: Digest, roster: bytes) -> None:
        self.rosters.append(roster)

    async def watch(self, peer: PeerId, job: Digest, cursor: int, wait_s: float) -> tuple[tuple[JobEvent, ...], Facts]:
        if job not in self.lives:
            raise NotFound("job")
        return self.lives[job].since(cursor), Facts((ALICE.peer_id,))

    async def cancel(self, peer: PeerId, job: Digest, signer: PeerId) -> JobState:
        if signer != self.orders[job].submitter:
            raise Denied("only the submitter cancels a job")
        self.lives[job].move(JobState.CANCELLED, NOW_S + 2)
        return self.lives[job].state

    async def listing(self, peer: PeerId, before_ms: int) -> tuple[Listed, ...]:
        lives = self.lives
        return tuple(to_listed(order, lives[job].events[-1], lives[job].reason) for job, order in self.orders.items())

    async def chain(self, peer: PeerId, job: Digest, start: int) -> ChainTold:
        return ChainTold(b"roster", 3, (b"0", b"1", b"2")[start:])

    async def vouch(self, peer: PeerId, job: Digest, entry: bytes) -> bytes:
        return b"vouch for " + entry

    async def apply(self, peer: PeerId, job: Digest, admission: bytes) -> None:
        self.offers.append((peer, job, admission))

    async def state(self, peer: PeerId, job: Digest) -> StateTold:
        raise Denied("members only")

    async def checkpoint(self, peer: PeerId, job: Digest, signer: PeerId) -> Checkpointed:
        if signer != self.orders[job].submitter:
            raise Denied("only the submitter asks for a checkpoint")
        return Checkpointed(4, Outcome("bob/digits:1.0.0", bytes(32), bytes(32), ()))

    async def change(self, peer: PeerId, order: Signed[ChangeOrder]) -> None:
        if order.signer != self.orders[order.record.job].submitter:
            raise Denied("only the submitter changes a job")
        self.changes.append(order.record)


async def meet(desk: Desk, ask: Callable[[trio.abc.Stream], Awaitable[Any]]) -> Any:
    """Run one exchange against a desk; the asker's own error comes out bare."""
    ours, theirs = trio.testing.memory_stream_pair()
    refused: CellulerError | None = None
    answer: Any = None
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(jobs.serve_jobs, theirs, ALICE.peer_id, desk)
            try:
                answer = await ask(ours)
            except CellulerError as error:
                refused = error
    if refused:
        raise refused
    return answer


async def test_a_job_is_submitted_watched_and_cancelled() -> None:
    desk = Desk()
    job = await meet(desk, lambda s: jobs.submit(s, sealed_order()))
    assert job == digest_of(sealed_order())
    desk.lives[job].move(JobState.QUEUED, NOW_S + 1, "waiting for 3 peers")
    events, facts = await meet(desk, lambda s: jobs.watch(s, job, 1))
    assert events == desk.lives[job].since(1)
    assert facts.members == (ALICE.peer_id,)
    (listed,) = await meet(desk, jobs.list_jobs)
    assert (listed.job, listed.name, listed.reason) == (job, "digits", "waiting for 3 peers")
    order = seal_cancel(ALICE, job, issued_s=NOW_S)
    assert await meet(desk, lambda s: jobs.cancel(s, order)) is JobState.CANCELLED


async def test_the_same_client_id_is_the_same_job() -> None:
    desk = Desk()
    first = await meet(desk, lambda s: jobs.submit(s, sealed_order()))
    later = sealed_order(created_s=NOW_S - 5)
    assert await meet(desk, lambda s: jobs.submit(s, later)) == first
    assert len(desk.orders) == 1


async def test_offers_and_rosters_reach_the_desk_untouched() -> None:
    desk = Desk()
    await meet(desk, lambda s: jobs.offer(s, bytes(32), b"entry"))
    await meet(desk, lambda s: jobs.send_roster(s, bytes(32), b"roster"))
    assert desk.offers == [(ALICE.peer_id, bytes(32), b"entry")]
    assert desk.rosters == [b"roster"]


async def test_only_the_submitter_cancels() -> None:
    desk = Desk()
    job = await meet(desk, lambda s: jobs.submit(s, sealed_order()))
    order = seal_cancel(BOB, job, issued_s=NOW_S)
    with pytest.raises(Denied, match="only the submitter"):
        await meet(desk, lambda s: jobs.cancel(s, order))


@pytest.mark.parametrize(
    "error",
    [InvalidSpec("model", "gone"), Busy("two jobs run"), QuotaExceeded("full"), Denied("no"), NotFound("alice/digits")],
)
async def test_a_refusal_arrives_as_the_error_it_was(error: CellulerError) -> None:
    with pytest.raises(type(error)) as raised:
        await meet(Desk(refuse=error), lambda s: jobs.submit(s, sealed_order()))
    assert str(raised.value) == str(error)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"coordinator": ALICE.peer_id}, "the order is for"),
        ({"created_s": NOW_S + CLOCK_SKEW_S + 10}, "ahead"),
        ({"created_s": NOW_S - 10_000}, "expired"),
        ({"life_s": MAX_LIFE_S + 1}, "expired, or lives longer"),
    ],
)
async def test_an_order_for_another_node_or_another_time_is_denied(order: dict[str, Any], words: str) -> None:
    desk = Desk()
    with pytest.raises(Denied, match=words):
        await meet(desk, lambda s: jobs.submit(s, sealed_order(**order)))
    assert not desk.orders


def test_a_forged_order_is_a_violation() -> None:
    raw = bytearray(sealed_order())
    raw[-1] ^= 1
    with pytest.raises(BadSignature):
        open_order(bytes(raw))


def test_a_signed_order_with_a_spec_that_is_not_one_is_a_violation() -> None:
    record = JobOrder("c", BOB.peer_id, b"{}", bytes(32), NOW_S, NOW_S + 60)
    with pytest.raises(ProtocolViolation, match="job spec"):
        open_order(seal(ALICE, record))


ONE_WATCH = frames().encode(Watch(bytes(32), 0, 0))


@pytest.mark.parametrize(
    "sent", [b"\0\0\0\x01\xc1", b"\xff\xff\xff\xff", frames().encode(Accepted(bytes(32))), ONE_WATCH * 2]
)
async def test_what_is_no_request_is_a_violation(sent: bytes) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(sent)
    with pytest.raises(PeerViolation):
        await jobs.serve_jobs(theirs, ALICE.peer_id, Desk())


async def test_a_silent_asker_is_dropped_in_time(autojump_clock: trio.testing.MockClock) -> None:
    _ours, theirs = trio.testing.memory_stream_pair()
    with trio.fail_after(jobs.REQUEST_S + 1):
        await jobs.serve_jobs(theirs, ALICE.peer_id, Desk())


async def test_a_desk_that_hangs_is_answered_for(autojump_clock: trio.testing.MockClock) -> None:
    class Stuck(Desk):
        async def listing(self, peer: PeerId, before_ms: int) -> tuple[Listed, ...]:
            await trio.sleep_forever()
            raise AssertionError

    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.serve_jobs, theirs, ALICE.peer_id, Stuck())
        with pytest.raises(Unavailable, match="within"):
            await jobs.list_jobs(ours)


@pytest.mark.parametrize(
    "answer",
    [
        Accepted(bytes(32)),
        Events((Event(5, 0.0, 0, "", ()),), Facts()),
        Events((Event(7, 0.0, 0, "", ()), Event(7, 0.0, 0, "", ())), Facts()),
    ],
)
def test_an_answer_that_does_not_fit_the_request_is_a_violation(answer: Any) -> None:
    with pytest.raises(ProtocolViolation):
        jobs.Ask(Watch(bytes(32), 5, 0)).receive(frames().encode(answer))


def test_a_refusal_of_a_later_version_reads_as_unavailable() -> None:
    with pytest.raises(Unavailable, match="moon"):
        jobs.Ask(Watch(bytes(32), 0, 0)).receive(frames().encode(Refused(200, "the moon is wrong")))


async def test_a_long_history_comes_in_pages() -> None:
    desk = Desk()
    job = await meet(desk, lambda s: jobs.submit(s, sealed_order()))
    desk.lives[job].move(JobState.FETCHING, NOW_S)
    desk.lives[job].move(JobState.RUNNING, NOW_S)
    for step in range(MAX_EVENTS_AN_ANSWER):
        desk.lives[job].measure(NOW_S + step, {"round": step})
    first, _ = await meet(desk, lambda s: jobs.watch(s, job, 0))
    rest, _ = await meet(desk, lambda s: jobs.watch(s, job, first[-1].cursor))
    assert first + rest == desk.lives[job].events


async def test_who_comes_late_is_told_the_chain_vouched_for_and_handed_in() -> None:
    desk, job = Desk(), digest_of(sealed_order())
    told = await meet(desk, lambda stream: jobs.ask_chain(stream, job, 1))
    assert (told.roster, told.length, told.links) == (b"roster", 3, (b"1", b"2"))
    assert await meet(desk, lambda stream: jobs.ask_vouch(stream, job, b"me")) == b"vouch for me"
    await meet(desk, lambda stream: jobs.apply(stream, job, b"admission"))
    assert desk.offers == [(ALICE.peer_id, job, b"admission")]
    with pytest.raises(Denied):
        await meet(desk, lambda stream: jobs.ask_state(stream, job))


async def test_only_the_submitter_has_a_checkpoint_published() -> None:
    desk, order = Desk(), sealed_order()
    job = await meet(desk, lambda stream: jobs.submit(stream, order))
    wanted = await meet(desk, lambda s: jobs.checkpoint(s, seal_checkpoint(ALICE, job, issued_s=NOW_S)))
    assert (wanted.rounds, wanted.outcome.model) == (4, "bob/digits:1.0.0")
    with pytest.raises(Denied):
        await meet(desk, lambda s: jobs.checkpoint(s, seal_checkpoint(BOB, job, issued_s=NOW_S)))


def test_more_of_a_chain_than_there_is_is_no_answer() -> None:
    exchange = jobs.Ask(AskChain(bytes(32), 2))
    with pytest.raises(ProtocolViolation):
        exchange.receive(frames().encode(ChainTold(b"roster", 3, (b"2", b"3"))))


async def test_only_the_submitter_changes_a_job() -> None:
    desk, order = Desk(), sealed_order()
    job = await meet(desk, lambda stream: jobs.submit(stream, order))
    wanted = ChangeOrder(job, NOW_S, NOW_S + 60, None, 3)
    await meet(desk, lambda stream: jobs.change(stream, seal(ALICE, wanted)))
    assert desk.changes == [wanted]
    with pytest.raises(Denied):
        await meet(desk, lambda stream: jobs.change(stream, seal(BOB, wanted)))
