"""Invites: as text, at a node that is invited, and among the members whom it shows one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.content.digest import Digest
from celluler.errors import BlockAbsent, Denied, InvalidSpec, ProtocolViolation, Unavailable
from celluler.identity import Identity, PeerId, seal
from celluler.jobs.spec import parse_job
from celluler.jobs.states import JobLife, JobState
from celluler.learning.admission import make_admission, open_admission
from celluler.learning.invites import OpenedInvite, check_invite, invite_text, open_invite, seal_invite
from celluler.learning.roster import open_roster, rules_for, seal_roster
from celluler.wire import pack
from celluler_node.training import desk as desk_module
from celluler_node.training.archive import JobArchive
from celluler_node.training.desk import TrainingDesk
from celluler_node.training.late import be_admitted
from celluler_node.training.record import JobRecord
from celluler_protocols import jobs
from celluler_protocols.jobs_messages import ChainTold
from celluler_protocols.jobs_orders import OpenedOrder, open_order, seal_order
from simulations.rounds import identity
from simulations.rounds.cast import COORDINATOR, entry_of
from tests.support.chains import Chain
from tests.support.jobs import ALICE, JOB_YAML, NOW_S

SUBMITTER, JOINER, SIZE = ALICE, 50, 4
ME = identity(JOINER)


def order_of(*changes: tuple[str, str]) -> OpenedOrder:
    """changes: of the document, (old, new)."""
    text = JOB_YAML
    for old, new in changes:
        text = text.replace(old, new)
    return open_order(
        seal_order(
            SUBMITTER, parse_job(text), client_id="c", coordinator=identity(COORDINATOR).peer_id, model=bytes(32),
            created_s=NOW_S, expires_s=NOW_S + 60,
        )
    )  # fmt: skip


LISTED = ("policy:", f"admission: {{mode: listed, peers: [{identity(0).peer_id}]}}\npolicy:")


def invited(
    order: OpenedOrder, *, by: Identity = SUBMITTER, peer: str = ME.peer_id, for_s: int = 60, run: bytes | None = None
) -> OpenedInvite:
    raw = seal_invite(by, bytes(order.job) if run is None else run, peer, NOW_S + for_s)
    return open_invite(invite_text(raw))


# --- as text -----------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(run=st.binary(min_size=32, max_size=32), expires_s=st.integers(0, 2**64 - 1))
def test_what_was_written_is_read_again(run: bytes, expires_s: int) -> None:
    raw = seal_invite(SUBMITTER, run, ME.peer_id, expires_s)
    text = invite_text(raw)
    assert text.isascii()
    assert text == text.lower().strip()
    assert open_invite(f" {text}\n") == OpenedInvite(raw, SUBMITTER.peer_id, run, ME.peer_id, expires_s)


@given(st.text(max_size=400) | st.text("abcdefghijklmnopqrstuvwxyz234567", max_size=400).map("invite-".__add__))
def test_what_is_no_invite_is_refused_as_such(text: str) -> None:
    with pytest.raises(InvalidSpec, match=r"^invite: is "):
        open_invite(text)


@settings(max_examples=30)
@given(place=st.integers(7, 300), letter=st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_one_letter_changed_is_an_invite_no_more(place: int, letter: str) -> None:
    text = invite_text(seal_invite(SUBMITTER, bytes(32), ME.peer_id, NOW_S))
    place %= len(text)
    changed = text[:place] + letter + text[place + 1 :]
    if place >= len("invite-") and changed != text:
        try:
            opened = open_invite(changed)
        except InvalidSpec:
            return
        assert opened == open_invite(text)  # the last letter says less than five bits


def test_an_envelope_of_something_else_and_a_peer_that_is_none_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="damaged"):
        open_invite(invite_text(seal(ME, entry_of(bytes(32), JOINER))))
    with pytest.raises(InvalidSpec, match="no peer id"):
        seal_invite(SUBMITTER, bytes(32), "bob", NOW_S)


@pytest.mark.parametrize(("changes", "words"), [
    ({"peer": identity(1).peer_id}, "is for"),
    ({"for_s": -1}, "expired 1 s ago"),
    ({"by": identity(7)}, "may not invite"),
])  # fmt: skip
def test_an_invite_of_no_use_says_why(changes: dict[str, Any], words: str) -> None:
    order = order_of()
    invite = invited(order, **changes)
    with pytest.raises(Denied, match=words):
        check_invite(invite, peer=ME.peer_id, now=NOW_S, inviters=(order.submitter,))
    check_invite(invited(order), peer=ME.peer_id, now=NOW_S, inviters=(order.submitter,))


# --- among the members -------------------------------------------------------------------------------------------


class Town:
    """The members of a run, as one who comes late meets them: what it hands in is certified at once."""

    def __init__(self, order: OpenedOrder) -> None:
        run = bytes(order.job)
        entries = tuple(seal(identity(number), entry_of(run, number)) for number in range(SIZE))
        rules = rules_for(SIZE, rounds=9, parts=1, voters=SIZE, inviter=order.submitter)
        raw = seal_roster(identity(COORDINATOR), run=run, job=run, entries=entries, rules=rules)
        self.chain_of = Chain(open_roster(raw, identity(COORDINATOR).peer_id))
        self.chain_of.until(2)
        self.asked: list[str] = []
        self.clock_s = float(NOW_S)

    async def chain(self, peer: PeerId, job: Digest, start: int) -> ChainTold:
        certificates = self.chain_of.certificates
        links = tuple(map(pack, certificates[start:]))
        return ChainTold(self.chain_of.roster.raw, len(certificates), links)

    async def vouch(self, peer: PeerId, job: Digest, entry: bytes) -> bytes:
        self.asked.append("vouch")
        raise Denied("this peer is not listed")

    async def apply(self, peer: PeerId, job: Digest, admission: bytes) -> None:
        self.asked.append("apply")
        if len(self.chain_of.standing.roster) == SIZE:
            open_admission(self.chain_of.standing, admission, unix_s=self.clock_s)
            self.chain_of.add(admitted=(admission,))


@asynccontextmanager
async def site_in(town: Town) -> AsyncIterator[Any]:
    async with trio.open_nursery() as nursery:

        async def open_stream(peer: str, protocol: str) -> trio.abc.Stream:
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(jobs.serve_jobs, theirs, ME.peer_id, cast(Any, town))
            return ours

        async def providers(digest: Digest) -> Sequence[str]:
            return ()

        yield SimpleNamespace(
            identity=ME, peer_id=ME.peer_id, clock=lambda: town.clock_s,
            host=SimpleNamespace(open_stream=open_stream, penalise=lambda *_: pytest.fail("nobody lied")),
            fetcher=SimpleNamespace(providers=providers),
        )  # fmt: skip
        nursery.cancel_scope.cancel()


def record_of(order: OpenedOrder, invite: OpenedInvite | None) -> JobRecord:
    return JobRecord(order, JobLife(NOW_S), invite=invite)


def entry_for(order: OpenedOrder) -> bytes:
    return seal(ME, entry_of(bytes(order.job), JOINER))


@pytest.mark.parametrize("by", [SUBMITTER, identity(COORDINATOR)])
async def test_who_is_invited_is_admitted_though_the_job_lists_others(
    by: Identity, autojump_clock: trio.abc.Clock
) -> None:
    order = order_of(LISTED)
    assert not order.spec.admission.admits(ME.peer_id)
    town = Town(order)
    async with site_in(town) as site:
        with pytest.raises(Denied, match="not listed"):
            await be_admitted(site, record_of(order, None), entry_for(order))
        town.asked.clear()
        chain = await be_admitted(site, record_of(order, invited(order, by=by)), entry_for(order))
    assert chain.standing.roster.index_of(ME.peer_id) == SIZE
    assert set(town.asked) == {"apply"}


async def test_members_are_not_shown_an_invite_that_has_expired(autojump_clock: trio.abc.Clock) -> None:
    order = order_of(LISTED)
    town = Town(order)
    town.clock_s += 120
    async with site_in(town) as site:
        with pytest.raises(Denied, match="expired 60 s ago"):
            await be_admitted(site, record_of(order, invited(order)), entry_for(order))
    assert not town.asked


def test_members_take_none_of_another_run_or_for_another_peer() -> None:
    order = order_of(LISTED)
    standing = Town(order).chain_of.standing
    for wrong in (invited(order, run=bytes(32)), invited(order, peer=identity(9).peer_id)):
        admission = make_admission(standing.roster, ME, entry_for(order), invite=wrong.raw)
        with pytest.raises(ProtocolViolation, match="another run, or of another peer"):
            open_admission(standing, admission, unix_s=NOW_S)


# --- at the node that is invited ---------------------------------------------------------------------------------


class Home:
    """The desk of a node that is invited, with what it knows of jobs."""

    def __init__(self, folder: Path, nursery: trio.Nursery, *orders: OpenedOrder, trains: bool = True) -> None:
        self.blocks = {bytes(order.job): order.signed.raw for order in orders}
        self.took_part: list[JobRecord] = []
        site = SimpleNamespace(
            peer_id=ME.peer_id, clock=lambda: float(NOW_S), nursery=nursery, device="cpu",
            worker_limits=SimpleNamespace(memory_bytes=None), fetcher=SimpleNamespace(block=self._block),
        )  # fmt: skip
        self.desk = TrainingDesk(cast(Any, site), JobArchive(folder), trains=trains)

    async def _block(self, job: Digest, *, hints: Sequence[PeerId] = ()) -> bytes:
        if bytes(job) not in self.blocks:
            raise BlockAbsent(job)
        return self.blocks[bytes(job)]

    async def take_part(self, site: Any, record: JobRecord, offer: Any) -> None:
        self.took_part.append(record)
        record.move(JobState.QUEUED, NOW_S, "waiting")
        await trio.sleep_forever()


@asynccontextmanager
async def home(folder: Path, *orders: OpenedOrder, trains: bool = True) -> AsyncIterator[Home]:
    async with trio.open_nursery() as nursery:
        found = Home(folder, nursery, *orders, trains=trains)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(desk_module, "take_part", found.take_part)
            yield found
        nursery.cancel_scope.cancel()


async def test_an_invited_node_takes_part_with_its_invite_once(tmp_path: Path) -> None:
    order = order_of(LISTED)
    async with home(tmp_path, order) as found:
        record = await found.desk.join(invited(order))
        await trio.testing.wait_all_tasks_blocked()
        assert await found.desk.join(invited(order, for_s=90)) is record
        await trio.testing.wait_all_tasks_blocked()
    assert found.took_part == [record]
    assert record.invite == invited(order, for_s=90)


async def test_who_was_refused_may_come_again_with_an_invite(tmp_path: Path) -> None:
    order = order_of(LISTED)
    async with home(tmp_path, order) as found:
        refused = JobRecord(order, JobLife(NOW_S))
        refused.move(JobState.FAILED, NOW_S, "this peer is not listed")
        found.desk.records[order.job] = refused
        assert await found.desk.join(invited(order)) is not refused
        await trio.testing.wait_all_tasks_blocked()
        assert len(found.took_part) == 1


@pytest.mark.parametrize(("old", "new", "words"), [
    ("policy:", "admission: {late: false}\npolicy:", "nobody who comes late"),
    ("aggregator: nk", "consensus: gossip", "nobody who comes late"),
    ("accelerator: any", "accelerator: cuda", "needs cuda"),
])  # fmt: skip
async def test_a_job_that_takes_nobody_late_or_does_not_fit_is_not_joined(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    order = order_of((old, new))
    async with home(tmp_path, order) as found:
        with pytest.raises((Denied, Unavailable), match=words):
            await found.desk.join(invited(order))
        assert not found.desk.records


async def test_an_invite_for_another_peer_run_or_time_joins_nothing(tmp_path: Path) -> None:
    order = order_of()
    async with home(tmp_path, order) as found:
        for wrong, error in (
            (invited(order, peer=identity(9).peer_id), Denied),
            (invited(order, for_s=-1), Denied),
            (invited(order, by=identity(9)), Denied),
            (invited(order, run=bytes(32)), BlockAbsent),
        ):
            with pytest.raises(error):
                await found.desk.join(wrong)
    async with home(tmp_path, order, trains=False) as found:
        with pytest.raises(Denied, match="does not train"):
            await found.desk.join(invited(order))
