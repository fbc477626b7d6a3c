"""A node that answers from memory: what the gateway, the clients and the command line are tested against.

A class of its own beside the product, not a switch in it. Predicts by doubling; a job moves when a test moves it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio

from celluler.content.digest import Digest, cid_of, digest_of, parse_cid
from celluler.errors import BlockAbsent, LocalError, NoPeers, NotFound, QuotaExceeded
from celluler.jobs.checkpoints import checkpoint_name, checkpoint_version
from celluler.jobs.spec import TrainJob, parse_job
from celluler.jobs.states import JobEvent, JobLife, JobState, match_job
from celluler.jobs.telemetry import RoundFigures
from celluler.learning.invites import check_invite, invite_text, open_invite, seal_invite
from celluler.views import (
    Blob,
    Check,
    Collected,
    DamagedContent,
    Hardware,
    Job,
    JobChange,
    JobCheckpoint,
    JobInvite,
    JobLine,
    JobReport,
    JobResult,
    JobSpec,
    NewJob,
    Peer,
    PeerTraffic,
    Ping,
    Readiness,
    Status,
    StoppedJob,
    StoreCheck,
    StoreUsage,
    TranscriptNote,
    Transfer,
    ViolationReport,
)
from celluler_node.job_views import round_view
from tests.support.jobs import ALICE, BOB, NOW_S
from tests.support.operations_deployments import MemoryDeployments
from tests.support.operations_models import MemoryModels
from tests.support.operations_serving import MemoryServing

HARDWARE = Hardware("cpu", 2, 4096)


class MemoryNode(MemoryModels, MemoryDeployments, MemoryServing):
    """Implements `Operations`. `moved`: set whenever a job got an event. `spooled`: where the last upload lay.
    `written`: transcripts, by job and peer."""

    def __init__(self) -> None:
        super().__init__()
        MemoryDeployments.__init__(self)
        MemoryServing.__init__(self)
        self.ready = Readiness(False, "joining")
        self.ended = trio.Event()
        self.blobs: dict[str, tuple[str, bytes]] = {}
        self.pinned: set[str] = set()
        self.moving: tuple[Transfer, ...] = ()
        self.damaged: tuple[DamagedContent, ...] = ()
        self.spooled: Path | None = None
        self.written: dict[tuple[str, str], TranscriptNote] = {}
        self.lives: dict[str, JobLife] = {}
        self.told: dict[str, Job] = {}
        self.specs: dict[str, TrainJob] = {}
        self.changes: list[JobChange] = []
        self.attachments: tuple[str, ...] = ()
        self.moved = trio.Event()
        self.polls = 0
        self.polled_twice = trio.Event()
        self._folder = tempfile.TemporaryDirectory()

    def close(self) -> None:
        self._folder.cleanup()

    async def status(self) -> Status:
        return Status(
            peer_id=ALICE.peer_id,
            nickname="alice",
            version="0.1.0",
            addresses=(f"/ip4/127.0.0.1/tcp/4040/p2p/{ALICE.peer_id}",),
            started_s=float(NOW_S),
            uptime_s=75.0,
            members=2,
            hardware=HARDWARE,
            isolation="full",
            models=len(self.known),
            jobs={"Running": 1},
            store=StoreUsage(sum(len(data) for _, data in self.blobs.values()), 1 << 30),
            violations=1,
            traffic=(PeerTraffic(BOB.peer_id, 10, 20),),
        )

    async def readiness(self) -> Readiness:
        return self.ready

    async def doctor(self) -> tuple[Check, ...]:
        return (Check("disk", True, "9 GiB free"), Check("peers", False, "nobody", "celluler up --join ADDR"))

    async def shutdown(self) -> None:
        self.ended.set()

    async def peers(self) -> tuple[Peer, ...]:
        return tuple(
            Peer(identity.peer_id, name, (), status, 1, True, HARDWARE, ("train",), trip)
            for identity, name, status, trip in ((ALICE, "alice", "self", None), (BOB, "bob", "alive", 0.0021))
        )

    async def peer(self, peer: str) -> Peer:
        for one in await self.peers():
            if peer in (one.peer_id, one.nickname, one.peer_id[-8:]):
                return one
        raise NotFound(f"peer {peer}", hint="celluler peer ls")

    async def ping(self, peer: str) -> Ping:
        return Ping((await self.peer(peer)).peer_id, 0.002)

    async def violations(self) -> tuple[ViolationReport, ...]:
        return (ViolationReport(BOB.peer_id, "frame of 9999999 bytes", float(NOW_S), 3, True),)

    async def add_blob(self, path: Path, kind: str, *, move: bool = False, announce: bool = True) -> Blob:
        self.spooled, data = path, await trio.Path(path).read_bytes()
        if move:
            await trio.Path(path).unlink()
        cid = cid_of(digest_of(data))
        self.blobs[cid] = (kind, data)
        self.pinned.add(cid)
        return await self.blob_stat(cid)

    async def read_blob(self, cid: str, *, at_most: int | None = None) -> Path:
        digest = parse_cid(cid)
        if cid not in self.blobs:
            raise BlockAbsent(digest)
        if at_most is not None and len(self.blobs[cid][1]) > at_most:
            raise QuotaExceeded("more than was asked for")
        path = trio.Path(self._folder.name, cid)
        await path.write_bytes(self.blobs[cid][1])
        return Path(path)

    async def blob_stat(self, cid: str) -> Blob:
        digest = parse_cid(cid)
        if cid not in self.blobs:
            raise BlockAbsent(digest)
        kind, data = self.blobs[cid]
        size = len(data)
        moved = (PeerTraffic(BOB.peer_id, 0, size),)
        return Blob(cid, kind, size, size, True, size, cid in self.pinned, received=moved, providers=(BOB.peer_id,))

    async def transfers(self) -> tuple[Transfer, ...]:
        return self.moving

    async def pin(self, ref: str) -> Blob:
        self.pinned.add(ref)
        return await self.blob_stat(ref)

    async def unpin(self, ref: str) -> Blob:
        self.pinned.discard(ref)
        return await self.blob_stat(ref)

    async def collect(self, *, target_bytes: int | None = None, dry_run: bool = False) -> Collected:
        used, gone = sum(len(data) for _, data in self.blobs.values()), []
        for cid, (_, data) in list(self.blobs.items()):
            if cid not in self.pinned and used > (target_bytes or 0):
                gone.append(await self.blob_stat(cid))
                used -= len(data)
                if not dry_run:
                    del self.blobs[cid]
        return Collected(sum(blob.total_bytes for blob in gone), tuple(gone), dry_run)

    async def check_store(self, *, repair: bool = False) -> StoreCheck:
        if repair:
            self.damaged = tuple(replace(one, restored=True) for one in self.damaged)
        return StoreCheck(len(self.blobs), 1234, self.damaged, 0, repair)

    async def transcripts(self, job: str, peers: Sequence[str]) -> tuple[TranscriptNote, ...]:
        return tuple(self.written[job, peer] for peer in peers if (job, peer) in self.written)

    async def submit_job(self, job: NewJob) -> Job:
        spec = parse_job(job.spec)
        for known in self.told.values():
            if known.client_id == job.client_id:
                return known
        if spec.resources.peers.min > 8:
            raise NoPeers("nobody willing", hint="celluler peer ls")
        life = JobLife(float(NOW_S))
        cid = cid_of(digest_of(job.client_id.encode()))
        self.attachments, self.lives[cid], self.specs[cid] = job.attachments, life, spec
        self.told[cid] = Job(cid, job.client_id, spec.name, spec.kind, life.state.value, "", ALICE.peer_id, BOB.peer_id, life.created_s, life.updated_s)  # fmt: skip  # noqa: E501
        return self.told[cid]

    def move(self, job: str, state: JobState, reason: str = "") -> None:
        self._note(job, self.lives[job].move(state, NOW_S + self.lives[job].cursor, reason))

    def measure(self, job: str, told: RoundFigures | None = None, **metrics: float) -> None:
        self._note(job, self.lives[job].measure(NOW_S + self.lives[job].cursor, metrics, told))

    async def jobs(self) -> tuple[Job, ...]:
        return tuple(reversed(self.told.values()))

    async def job(self, job: str, *, since: int = 0, wait_s: float = 0.0) -> JobReport:
        self.polls += 1
        if self.polls == 2:
            self.polled_twice.set()
        found = match_job(self.told, job)
        if found is None:
            raise NotFound(f"job {job}", hint="celluler job ls")
        with trio.move_on_after(wait_s):
            while self.lives[found].cursor <= since and not self.lives[found].ended:
                await self.moved.wait()
        events = self.lives[found].since(since)
        lines = tuple(_line(event, self.told[found].members) for event in events)
        return JobReport(self.told[found], lines, events[-1].cursor if events else since)

    async def cancel_job(self, job: str) -> Job:
        found = (await self.job(job)).job.id
        if not self.lives[found].ended:
            self.move(found, JobState.CANCELLED, "as asked")
        return self.told[found]

    async def job_spec(self, job: str) -> JobSpec:
        found = (await self.job(job)).job.id
        return JobSpec(found, self.specs[found].model_dump(mode="json"))

    async def checkpoint_job(self, job: str) -> JobCheckpoint:
        found = (await self.job(job)).job
        if self.lives[found.id].ended:
            raise LocalError("the job has ended")
        spec, rounds = self.specs[found.id], int(found.metrics["round"])
        name = f"alice/{checkpoint_name(spec.result_name)}:{checkpoint_version(spec.result.version, rounds)}"
        return JobCheckpoint(rounds, name, cid_of(bytes(32)), cid_of(bytes(32)))

    async def stop_job(self, job: str) -> StoppedJob:
        checkpoint = await self.checkpoint_job(job)
        return StoppedJob(await self.cancel_job(job), checkpoint)

    async def update_job(self, job: str, change: JobChange) -> Job:
        self.changes.append(change)
        return (await self.job(job)).job

    async def invite_to_job(self, job: str, peer: str, for_s: int) -> JobInvite:
        found = (await self.job(job)).job.id
        expires_s = NOW_S + for_s
        return JobInvite(
            invite_text(seal_invite(ALICE, parse_cid(found), peer, expires_s)), found, peer, float(expires_s)
        )

    async def join_job(self, invite: str) -> Job:
        opened = open_invite(invite)
        check_invite(opened, peer=BOB.peer_id, now=NOW_S)
        return (await self.job(cid_of(Digest(opened.run)))).job

    def _note(self, job: str, event: JobEvent) -> None:
        life = self.lives[job]
        result = None
        if event.state is JobState.SUCCEEDED:
            result = JobResult("alice/digits:1.0.0", cid_of(bytes(32)), cid_of(bytes(32)), life.metrics)
        self.told[job] = replace(
            self.told[job],
            state=life.state.value,
            reason=life.reason,
            updated_s=life.updated_s,
            metrics=life.metrics,
            result=result,
        )
        moved, self.moved = self.moved, trio.Event()
        moved.set()


def _line(event: JobEvent, members: tuple[str, ...]) -> JobLine:
    told = None if event.round is None else round_view(event.round, members)
    return JobLine(event.cursor, event.at_s, event.state.value, event.reason, dict(event.metrics), told)
