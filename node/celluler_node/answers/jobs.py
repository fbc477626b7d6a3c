"""Answers about jobs, ours and those followed at other peers."""

from __future__ import annotations

import time
from contextlib import suppress

from celluler.content.digest import Codec, Digest, cid_of
from celluler.errors import CellulerError, Denied, InvalidSpec, LocalError, NoPeers, NotFound
from celluler.identity import PeerId
from celluler.jobs.spec import TrainJob, parse_job, with_data
from celluler.jobs.states import JobState
from celluler.learning.invites import invite_text, open_invite, seal_invite
from celluler.models.memory import check_training
from celluler.views import Job, JobChange, JobCheckpoint, JobInvite, JobReport, JobSpec, NewJob, StoppedJob
from celluler_node.answers.services import Answers
from celluler_node.job_views import checkpoint_view, job_report, job_spec, job_view
from celluler_node.training.desk import check_takes_late
from celluler_node.training.record import JobRecord
from celluler_protocols.jobs_orders import MAX_LIFE_S, ChangeOrder, OpenedOrder, open_order


class JobAnswers(Answers):
    """The part of `Operations` about jobs."""

    async def submit_job(self, job: NewJob) -> Job:
        spec = await self._with_data(parse_job(job.spec))
        model = await self._core.repository.resolve(spec.model, hints=self._hints())
        check_training(model.architecture, spec.train.batch)
        if self._of.desk is None or "train" not in self._core.config.roles:
            digest = await self._of.jobs.submit(self._coordinator(), spec, client_id=job.client_id, model=model.digest)
            followed = await self._of.jobs.follow(cid_of(digest), since=0, wait_s=0.0)
            return job_view(followed.order, followed.events, followed.facts)
        raw = self._of.jobs.order(self._core.identity.peer_id, spec, client_id=job.client_id, model=model.digest)
        record = self._of.desk.records[await self._of.desk.submit(self._core.identity.peer_id, open_order(raw))]
        return job_view(record.order, record.life.events, record.facts())

    async def jobs(self) -> tuple[Job, ...]:
        if self._of.desk is not None:
            records = sorted(self._of.desk.records.values(), key=lambda one: one.life.created_s, reverse=True)
            return tuple(job_view(one.order, one.life.events, one.facts()) for one in records)
        listed = await self._of.jobs.listing()
        return tuple([(await self.job(cid_of(Digest(one.job)))).job for _, one in listed])

    async def job(self, job: str, *, since: int = 0, wait_s: float = 0.0) -> JobReport:
        record = self._record(job)
        if record is not None:
            await record.watch(since, wait_s)
            return job_report(record.order, record.life.events, record.facts(), since)
        followed = await self._of.jobs.follow(job, since=since, wait_s=wait_s)
        return job_report(followed.order, followed.events, followed.facts, since)

    async def cancel_job(self, job: str) -> Job:
        record = self._record(job)
        if record is None:
            await self._of.jobs.cancel(job)
            return (await self.job(job)).job
        own = self._core.identity.peer_id
        assert self._of.desk is not None
        await self._of.desk.cancel(own, record.job, own)
        with suppress(CellulerError):  # nobody else may have heard of it yet; here it has ended whatever they say
            await self._of.jobs.cancel(record.order.id)
        return job_view(record.order, record.life.events, record.facts())

    async def job_spec(self, job: str) -> JobSpec:
        return job_spec(await self._order(job))

    async def checkpoint_job(self, job: str) -> JobCheckpoint:
        record, own = self._record(job), self._core.identity.peer_id
        if record is not None and record.live is not None:
            assert self._of.desk is not None
            return checkpoint_view(await self._of.desk.checkpoint(own, record.job, own))
        return checkpoint_view(await self._of.jobs.checkpoint(job))

    async def stop_job(self, job: str) -> StoppedJob:
        checkpoint = await self.checkpoint_job(job)
        return StoppedJob(await self.cancel_job(job), checkpoint)

    async def update_job(self, job: str, change: JobChange) -> Job:
        record = self._record(job)
        order = await self._order(job)
        created_s = order.signed.record.created_s
        expires_s = None if change.deadline_s is None else created_s + change.deadline_s
        wanted = {"expires_s": expires_s, "max_peers": change.max_peers, "priority": change.priority}
        if record is not None:
            if order.submitter != self._core.identity.peer_id:
                raise Denied("only the submitter may change a job")
            record.change(ChangeOrder(record.job, int(time.time()), **wanted), time.time())
            with suppress(CellulerError):
                await self._of.jobs.change(order.id, **wanted)
        else:
            await self._of.jobs.change(job, **wanted)
        return (await self.job(job)).job

    async def invite_to_job(self, job: str, peer: str, for_s: int) -> JobInvite:
        order, identity = await self._order(job), self._core.identity
        if identity.peer_id not in (order.submitter, order.signed.record.coordinator):
            raise Denied("only the submitter and the coordinator of a job may invite to it")
        if not 1 <= for_s <= MAX_LIFE_S:
            raise InvalidSpec("for_s", f"an invite is good for 1 to {MAX_LIFE_S} s")
        check_takes_late(order)
        told = (await self.job(order.id)).job
        if JobState(told.state).ended:
            raise LocalError(f"the job has ended as {told.state}")
        expires_s = int(time.time()) + for_s
        raw = seal_invite(identity, bytes(order.job), peer, expires_s)
        return JobInvite(invite_text(raw), order.id, peer, float(expires_s))

    async def join_job(self, invite: str) -> Job:
        opened = open_invite(invite)
        if self._of.desk is None:
            raise Denied("a light peer trains nothing", hint="celluler up")
        record = await self._of.desk.join(opened)
        return job_view(record.order, record.life.events, record.facts())

    async def _order(self, job: str) -> OpenedOrder:
        """Raises NotFound."""
        record = self._record(job)
        return (await self._of.jobs.follow(job, since=0, wait_s=0.0)).order if record is None else record.order

    async def _with_data(self, spec: TrainJob) -> TrainJob:
        """The job with its dataset looked up, when it names one. Raises as a look-up does."""
        if spec.data.dataset is None or spec.data.cid is not None:
            return spec
        opened = await self._core.repository.resolver.dataset(spec.data.dataset, hints=self._hints())
        record = opened.record
        return with_data(
            spec, Digest(record.content), dataset=cid_of(opened.digest, Codec.MANIFEST), label=record.label
        )

    def _record(self, job: str) -> JobRecord | None:
        """What this node itself has to do with a job; None when nothing."""
        if self._of.desk is None:
            return None
        try:
            return self._of.desk.find(job)
        except NotFound:
            return None

    def _coordinator(self) -> PeerId:
        """A member that trains, the nearest."""
        training = [member.peer for member in self._of.members() if "train" in member.capabilities.roles]
        if not training:
            raise NoPeers("no member of the swarm takes training jobs", hint="celluler peer ls")
        return min(training, key=self._distance)
