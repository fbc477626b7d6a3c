"""Answers about jobs, ours and those followed at other peers."""

from __future__ import annotations

from celluler.content.digest import Codec, Digest, cid_of
from celluler.errors import LocalError, NoPeers, NotFound
from celluler.identity import PeerId
from celluler.jobs.spec import TrainJob, parse_job, with_data
from celluler.views import Job, JobChange, JobCheckpoint, JobReport, JobSpec, NewJob, StoppedJob
from celluler_node.answers.services import Answers
from celluler_node.job_views import job_report, job_spec, job_view
from celluler_protocols.jobs_messages import open_order


class JobAnswers(Answers):
    """The part of `Operations` about jobs."""

    async def submit_job(self, job: NewJob) -> Job:
        spec = await self._with_data(parse_job(job.spec))
        model = await self._core.repository.resolve(spec.model, hints=self._hints())
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
        if self._of.desk is not None:
            try:
                record = self._of.desk.find(job)
            except NotFound:
                pass
            else:
                await record.watch(since, wait_s)
                return job_report(record.order, record.life.events, record.facts(), since)
        followed = await self._of.jobs.follow(job, since=since, wait_s=wait_s)
        return job_report(followed.order, followed.events, followed.facts, since)

    async def cancel_job(self, job: str) -> Job:
        if self._of.desk is not None:
            try:
                record = self._of.desk.find(job)
            except NotFound:
                pass
            else:
                await self._of.desk.cancel(self._core.identity.peer_id, record.job, self._core.identity.peer_id)
                return job_view(record.order, record.life.events, record.facts())
        await self._of.jobs.cancel(job)
        return (await self.job(job)).job

    async def job_spec(self, job: str) -> JobSpec:
        if self._of.desk is not None:
            try:
                return job_spec(self._of.desk.find(job).order)
            except NotFound:
                pass
        return job_spec((await self._of.jobs.follow(job, since=0, wait_s=0.0)).order)

    async def checkpoint_job(self, job: str) -> JobCheckpoint:
        await self.job(job)
        raise LocalError("checkpoints are not supported by this node", hint=f"celluler job cancel {job}")

    async def stop_job(self, job: str) -> StoppedJob:
        checkpoint = await self.checkpoint_job(job)
        return StoppedJob(await self.cancel_job(job), checkpoint)

    async def update_job(self, job: str, change: JobChange) -> Job:
        await self.job(job)
        raise LocalError("changing a job is not supported by this node", hint="celluler job cancel, and submit it anew")

    async def _with_data(self, spec: TrainJob) -> TrainJob:
        """The job with its dataset looked up, when it names one. Raises as a look-up does."""
        if spec.data.dataset is None or spec.data.cid is not None:
            return spec
        opened = await self._core.repository.resolver.dataset(spec.data.dataset, hints=self._hints())
        record = opened.record
        return with_data(
            spec, Digest(record.content), dataset=cid_of(opened.digest, Codec.MANIFEST), label=record.label
        )

    def _coordinator(self) -> PeerId:
        """A member that trains, the nearest."""
        training = [member.peer for member in self._of.members() if "train" in member.capabilities.roles]
        if not training:
            raise NoPeers("no member of the swarm takes training jobs", hint="celluler peer ls")
        return min(training, key=self._distance)
