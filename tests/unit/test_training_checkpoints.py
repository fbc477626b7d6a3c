"""Checkpoints of a run that goes on: whose turn it is, what is published, and what it leaves behind."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from celluler.content.digest import Digest
from celluler.content.disk import DiskStore
from celluler.content.manifest import describe
from celluler.errors import Unavailable
from celluler.identity import Identity
from celluler.jobs.checkpoints import publisher
from celluler.jobs.spec import parse_job
from celluler.jobs.states import JobLife
from celluler.learning.report import RoundReport, RunReport
from celluler.learning.transcript import Opening, Transcript
from celluler.models.manifest import ModelManifest, describe_model, open_manifest, seal_manifest
from celluler.models.spec import parse_spec
from celluler.models.weights import initial_weights
from celluler_node.repository import Held
from celluler_node.training.checkpoints import Checkpoints, turn
from celluler_node.training.chronicle import Chronicle
from celluler_node.training.exports import Exports
from celluler_node.training.record import JobRecord
from celluler_protocols.jobs_orders import open_order, seal_order
from simulations.rounds import roster_of
from tests.support.chains import Chain
from tests.support.jobs import ALICE, BOB, JOB_YAML, NOW_S
from tests.support.specs import as_bytes, dense

SPEC = {
    "spec": 1,
    "input": {"dtype": "float32", "shape": [4]},
    "layers": [dense(3)],
    "objective": {"kind": "classification", "classes": 3},
}
CHAIN = Chain(roster_of(4, 9, 1))
CHAIN.until(8)
PEERS = tuple(Identity(bytes([number]) * 32).peer_id for number in range(5))


# --- turns -------------------------------------------------------------------------------------------------------


@given(every=st.integers(1, 9), total=st.integers(1, 60), members=st.integers(1, 8))
def test_every_so_many_rounds_one_publishes_and_all_have_their_turn(every: int, total: int, members: int) -> None:
    told = [publisher(done, every=every, total=total, there=range(members)) for done in range(total + 1)]
    due = [done for done in range(1, total) if done % every == 0]
    assert [done for done, whose in enumerate(told) if whose is not None] == due
    whose = [one for one in told if one is not None]
    assert whose == [number % members for number in range(len(due))]


def test_a_job_that_asks_for_none_gets_none() -> None:
    assert publisher(4, every=0, total=9, there=(1, 2)) is None
    assert publisher(4, every=2, total=9, there=()) is None


def test_who_is_expelled_or_was_not_there_has_no_turn_and_all_read_the_same_from_the_certified_rounds() -> None:
    report = RunReport("nk")
    report.rounds.append(RoundReport(0, 1, PEERS, (), ()))
    report.rounds.append(RoundReport(1, 1, (PEERS[0], PEERS[2], PEERS[4]), (), (), expelled=(PEERS[2],)))
    assert turn(report, 1, every=1, total=9) == PEERS[0]
    assert turn(report, 2, every=1, total=9) == PEERS[4]
    assert turn(report, 0, every=1, total=9) is turn(report, 3, every=1, total=9) is None


# --- files -------------------------------------------------------------------------------------------------------


@dataclass
class Writes:
    """A trainer that exports what it has come to: a file that every export overwrites."""

    path: Path
    rounds: int = 0
    exports: int = 0

    async def export(self) -> tuple[int, Path]:
        await trio.lowlevel.checkpoint()
        initial_weights(parse_spec(as_bytes(SPEC)), bytes([self.rounds]) * 32, self.path)
        self.exports += 1
        return self.rounds, self.path


async def test_what_one_reads_the_next_export_does_not_overwrite_and_nothing_is_left(tmp_path: Path) -> None:
    trainer = Writes(tmp_path / "weights")
    exports = Exports(cast(Any, trainer), tmp_path)
    async with exports.weights() as (_, first):
        before = first.read_bytes()
        trainer.rounds = 1
        async with exports.weights() as (rounds, second):
            assert rounds == 1
            assert second.read_bytes() != before == first.read_bytes()
    assert not os.listdir(tmp_path)


async def test_a_copy_of_what_is_written_down_holds_whole_heights_and_the_file_goes_on(tmp_path: Path) -> None:
    path, roster = tmp_path / "transcript", CHAIN.standing.roster
    with path.open("wb") as file:
        chronicle = Chronicle(file, path, Opening(b"order", b"base", roster.raw, 8), roster.rules.parts)
        await chronicle.missed(CHAIN.certificates[:4])
        with trio.fail_after(1):
            await chronicle.reached(3)
        file.write(b"half of a height")
        file.flush()
        chronicle.copy(tmp_path / "copy")
    transcript = Transcript(io.BytesIO((tmp_path / "copy").read_bytes()))
    transcript.scan(roster.rules.parts)
    assert (len(transcript), transcript.whole) == (3, True)


# --- publishing --------------------------------------------------------------------------------------------------


@dataclass
class Member:
    """One member's node as far as it publishes: a real store, and a list in place of the swarm."""

    folder: Path
    every: int = 1
    published: list[ModelManifest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = DiskStore(self.folder / "store", 1 << 24)
        self.trainer = Writes(self.folder / "weights")
        self.report = RunReport("nk")
        roster = SimpleNamespace(rules=SimpleNamespace(rounds=20))
        self.run: Any = SimpleNamespace(round=0, report=self.report, roster=roster)
        self.told = trio.Event()
        initial_weights(parse_spec(as_bytes(SPEC)), bytes(32), self.folder / "base")
        root = describe(self.folder / "base", "model").root
        base = open_manifest(seal_manifest(ALICE, describe_model("base", "1.0.0", as_bytes(SPEC), root, created_s=1)))
        spec = open_order(self._order()).spec
        assert spec.train.checkpoint_every == self.every
        site = SimpleNamespace(
            peer_id=PEERS[0], store=self.store, clock=lambda: float(NOW_S), nickname="alice",
            repository=SimpleNamespace(publish=self._publish), fetcher=SimpleNamespace(announce=lambda root: None),
            host=SimpleNamespace(dht=SimpleNamespace(providers=self._providers)),
        )  # fmt: skip
        record = JobRecord(open_order(self._order()), JobLife(NOW_S))
        exports, self.chronicle = Exports(cast(Any, self.trainer), self.folder), self._chronicle()
        self.checkpoints = Checkpoints(cast(Any, site), record, base, exports, self.chronicle, self.folder)

    def close(self) -> None:
        self.file.close()
        self.store.close()

    def finish_round(self) -> None:
        """A round is certified and applied, and the update of the next one handed over."""
        number = self.run.round
        self.report.rounds.append(RoundReport(number, 1, PEERS[:2], (), ()))
        self.run.round = self.trainer.rounds = number + 1
        self.checkpoints.handed_over(number + 1)

    async def turns(self, rounds: int) -> None:
        for _ in range(rounds):
            self.finish_round()
            await self.checkpoints.take_turn(self.run, self.run.round)

    def _order(self) -> bytes:
        spec = parse_job(JOB_YAML.replace("rounds: 20", f"rounds: 20, checkpoint_every: {self.every}"))
        return seal_order(
            ALICE, spec, client_id="c", coordinator=BOB.peer_id, model=bytes(32), created_s=NOW_S, expires_s=NOW_S + 60
        )

    def _chronicle(self) -> Chronicle:
        path, roster = self.folder / "transcript", CHAIN.standing.roster
        self.file = path.open("wb")
        return Chronicle(self.file, path, Opening(b"order", b"base", roster.raw, 8), roster.rules.parts)

    async def _publish(self, manifest: ModelManifest) -> Held:
        self.published.append(manifest)
        self.told.set()
        return Held(open_manifest(seal_manifest(ALICE, manifest)), None)

    async def _providers(self, root: Digest) -> tuple[str, ...]:
        return ("one", "another")


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[Member]:
    made = Member(tmp_path)
    await made.chronicle.missed(CHAIN.certificates)
    yield made
    made.close()


async def test_our_turns_are_published_as_versions_with_their_transcript_and_the_others_left(member: Member) -> None:
    await member.turns(6)
    assert [one.version for one in member.published] == ["2.0.0-round.1", "2.0.0-round.3", "2.0.0-round.5"]
    assert {one.name for one in member.published} == {"digits-checkpoint"}
    assert member.trainer.exports == 3
    for one in member.published:
        (transcript,) = one.transcripts
        assert member.store.has(transcript)
    pinned = {root for root in member.store.roots() if member.store.stat(root).pinned}
    assert pinned == {Digest(member.published[-1].weights)}


async def test_a_turn_is_taken_in_the_background_once_the_update_is_handed_over(member: Member) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.checkpoints.take_turns, member.run)
        await trio.testing.wait_all_tasks_blocked()
        assert not member.published
        member.finish_round()
        with trio.fail_after(10):
            await member.told.wait()
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_published_ends_nothing(member: Member) -> None:
    async def refuse() -> tuple[int, Path]:
        raise Unavailable("no")

    export, member.trainer.export = member.trainer.export, refuse  # type: ignore[method-assign]
    await member.turns(2)
    assert not member.published
    member.trainer.export = export  # type: ignore[method-assign]
    await member.turns(2)
    assert [one.version for one in member.published] == ["2.0.0-round.3"]


async def test_whoever_asks_for_a_checkpoint_gets_the_newest_and_each_is_published_once(member: Member) -> None:
    with pytest.raises(Unavailable, match="no round"):
        await member.checkpoints.publish(member.run)
    await member.turns(2)
    reached = [await member.checkpoints.publish(member.run) for _ in range(2)]
    assert [one.rounds for one in reached] == [2, 2]
    assert [one.version for one in member.published] == ["2.0.0-round.1", "2.0.0-round.2"]
