"""The asynchronous client, on trio and on asyncio. `Client` has the same shape; a test holds the two alike."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Unpack, overload

import httpx

from celluler import views
from celluler.client import calls, calls_models, calls_serving, calls_text
from celluler.client.asynchronous_deployments import AsyncDeployments
from celluler.client.asynchronous_models import AsyncDatasets, AsyncModels
from celluler.client.asynchronous_text import AsyncPieces
from celluler.client.calls_text import Prompt, Reading, SamplingFields
from celluler.client.transport import AsyncLink
from celluler.errors import TimedOut


class AsyncClient:
    """A node's API. Use as an async context manager, or call `aclose`.

    Without arguments the local node; else its `url` and `token`, or the `home` it runs in. transport: an httpx
    transport to use instead of the network, with any url. session: whoever asks; a deployment answers the same one by
    the same version.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        home: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        session: str = "",
    ) -> None:
        """Raises NodeNotRunning when there is no local node."""
        self._link = AsyncLink(calls.find_target(url, token, home, session), transport)
        self.peers = AsyncPeers(self._link)
        self.blobs = AsyncBlobs(self._link)
        self.models = AsyncModels(self._link)
        self.datasets = AsyncDatasets(self._link)
        self.jobs = AsyncJobs(self._link)
        self.deployments = AsyncDeployments(self._link)

    async def status(self) -> views.Status:
        return await self._link.send(calls.status())

    async def serving(self) -> views.Serving:
        """Models at work in the node."""
        return await self._link.send(calls_serving.serving())

    async def doctor(self) -> tuple[views.Check, ...]:
        return await self._link.send(calls.doctor())

    async def violations(self) -> tuple[views.ViolationReport, ...]:
        """Peers that broke a protocol."""
        return await self._link.send(calls.violations())

    async def predict(
        self,
        model: str,
        inputs: Any,
        *,
        dtype: str | None = None,
        output: str = "",
        ensemble: int | Sequence[str] = 1,
        aggregate: str = "",
        peer: str = "",
    ) -> views.Prediction:
        """Run a model on a batch, first axis samples. inputs: nested lists, an array or texts (`tensors.tensor_of`).

        output: what of it, such as `labels` or `embedding`, by default what its author made the usual one; for `sample`
        the inputs are seeds, one a sample. The answer gives `.lists()`, its `outputs` `.numpy()`.

        ensemble: of how many peers, or other models beside this one, answers are put together; aggregate: by `vote`,
        `median` or `mean`. The answer's `ensemble` says who disagreed, and how far. peer: who alone is to answer, by id
        or nickname; empty for whoever does it best.
        """
        call = calls_models.predict(model, inputs, dtype, output, ensemble=ensemble, aggregate=aggregate, peer=peer)
        return await self._link.send(call)

    async def embed(self, model: str, inputs: Any, *, dtype: str | None = None) -> views.Prediction:
        """The vector that a model makes of each input: texts, tokens or an array, as `predict` takes them. The model
        must give an `embedding`. The answer gives `.lists()`, its `outputs` `.numpy()`."""
        return await self._link.send(calls_models.predict(model, inputs, dtype, "embedding"))

    @overload
    async def generate(
        self, model: str, prompt: Prompt, *, stream: Literal[False] = False, **said: Unpack[SamplingFields]
    ) -> views.Generation: ...

    @overload
    async def generate(
        self, model: str, prompt: Prompt, *, stream: Literal[True], **said: Unpack[SamplingFields]
    ) -> AsyncPieces: ...

    async def generate(
        self, model: str, prompt: Prompt, *, stream: bool = False, **said: Unpack[SamplingFields]
    ) -> views.Generation | AsyncPieces:
        """Let a model write. prompt: a text or tokens to go on from, or messages, as `[{"role": "user", "content":
        "Hello"}]`. said: `temperature=0`, `max_tokens=100` and so on, see `SamplingFields`.

        stream: the answer as it comes, to iterate over; else all of it. Both give `.text` in the end, the pieces by
        their `generation`.
        """
        reading = Reading(time.monotonic())
        call = calls_text.generate(model, prompt, said, stream=stream)
        if stream:
            return AsyncPieces(await self._link.open(call, calls_text.read_error), reading)
        reading.read_document(await self._link.ask(call, calls_text.read_error))
        return reading.generation(time.monotonic())

    async def transfers(self) -> tuple[views.Transfer, ...]:
        """Contents on their way to the node."""
        return await self._link.send(calls.transfers())

    async def pin(self, ref: str) -> views.Blob:
        """Never evict this content. ref: a CID, or the name of a model or dataset."""
        return await self._link.send(calls.pin(ref))

    async def unpin(self, ref: str) -> views.Blob:
        return await self._link.send(calls.unpin(ref))

    async def check_store(self, *, repair: bool = False) -> views.StoreCheck:
        """Hash again all that the store claims to hold. repair: forget what is damaged, and fetch it anew."""
        return await self._link.send(calls.check_store(repair))

    async def shutdown(self) -> None:
        """The node begins to end."""
        await self._link.send(calls.shutdown())

    async def aclose(self) -> None:
        await self._link.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncPeers:
    """Members of the swarm, named by peer id, by its last eight characters, or by an unambiguous nickname."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def ls(self) -> tuple[views.Peer, ...]:
        return await self._link.send(calls.list_peers())

    async def show(self, peer: str) -> views.Peer:
        return await self._link.send(calls.show_peer(peer))

    async def ping(self, peer: str) -> views.Ping:
        return await self._link.send(calls.ping_peer(peer))


class AsyncBlobs:
    """Contents by CID."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def add(self, path: str | os.PathLike[str], *, kind: str = "blob") -> views.Blob:
        """kind: `blob`, `dataset` or `model`."""
        return await self._link.send(calls.add_blob(path, kind))

    async def get(self, cid: str, path: str | os.PathLike[str], *, at_most: int | None = None) -> int:
        """Write a content to a file, fetched from peers when need be; returns its bytes.

        at_most: a content of more bytes is not fetched, and QuotaExceeded raised.
        """
        return await self._link.download(calls.blob_path(cid, at_most), Path(path))

    async def stat(self, cid: str) -> views.Blob:
        return await self._link.send(calls.blob_stat(cid))

    async def gc(self, *, target_bytes: int | None = None, dry_run: bool = False) -> views.Collected:
        """Evict what was used least recently, until at most `target_bytes` are kept; None for all that may go."""
        return await self._link.send(calls.collect(target_bytes, dry_run))


class AsyncJobs:
    """Jobs by id, or by the last six characters of it or more."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def submit(
        self,
        spec: Mapping[str, Any] | str | os.PathLike[str],
        *,
        client_id: str | None = None,
        attachments: Sequence[str] = (),
    ) -> AsyncJob:
        """spec: a mapping, YAML or JSON text, or its file. Submitting a `client_id` again gives the same job.

        attachments: CIDs only this node may hold, to be handed over with the job.
        """
        return AsyncJob(self._link, await self._link.send(calls.submit_job(spec, client_id, attachments)))

    async def get(self, job: str) -> AsyncJob:
        return AsyncJob(self._link, await self._link.send(calls.show_job(job)))

    async def ls(self) -> tuple[views.Job, ...]:
        return await self._link.send(calls.list_jobs())

    async def join(self, invite: str) -> AsyncJob:
        """Have this node come late into the training to which somebody invites it."""
        return AsyncJob(self._link, await self._link.send(calls.join_job(invite)))

    async def transcripts(self, job: str, peers: Sequence[str]) -> tuple[views.TranscriptNote, ...]:
        """What these peers signed to be their transcript of a job's run. job: its whole id. peers: ids, 64 at most."""
        return await self._link.send(calls.transcripts(job, peers))


class AsyncJob:
    """A submitted job. `info`: what was last heard of it."""

    def __init__(self, link: AsyncLink, info: views.Job) -> None:
        self._link = link
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    async def refresh(self) -> views.Job:
        self.info = await self._link.send(calls.show_job(self.id))
        return self.info

    async def logs(self, *, follow: bool = False, since: int = 0) -> AsyncIterator[views.JobLine]:
        """Events after the cursor `since`; with `follow`, also those to come, until the job ends."""
        while True:
            report = await self._link.send(calls.watch_job(self.id, since, calls.POLL_S if follow else 0.0))
            self.info = report.job
            for event in report.events:
                yield event
            ended = report.job.state in calls.ENDED or not follow
            if ended and report.cursor <= since:
                return
            since = max(since, report.cursor)

    async def wait(self, timeout: float | None = None) -> views.Job:
        """Until the job has ended, however it ended. Raises TimedOut after so many seconds."""
        deadline, since = None if timeout is None else time.monotonic() + timeout, 0
        while self.info.state not in calls.ENDED:
            left_s = calls.POLL_S if deadline is None else min(calls.POLL_S, deadline - time.monotonic())
            if left_s <= 0:
                raise TimedOut(f"job {self.info.name} is still {self.info.state}: {self.info.reason}")
            report = await self._link.send(calls.watch_job(self.id, since, left_s))
            self.info, since = report.job, max(since, report.cursor)
        return self.info

    async def results(self) -> views.JobResult:
        """What it left. Raises WorkerFailed when it failed, LocalError when there is nothing (yet)."""
        return calls.result_of(await self.refresh())

    async def rounds(self) -> tuple[views.TrainingRound, ...]:
        """Of a training, every round that was told of so far."""
        report = await self._link.send(calls.watch_job(self.id, 0, 0.0))
        self.info = report.job
        return views.rounds_of(report.events)

    async def spec(self) -> Mapping[str, Any]:
        """What was asked for, with every default filled in."""
        return (await self._link.send(calls.job_spec(self.id))).spec

    async def cancel(self) -> views.Job:
        self.info = await self._link.send(calls.cancel_job(self.id))
        return self.info

    async def checkpoint(self) -> views.JobCheckpoint:
        """Have the members of a training publish what they have come to so far; it goes on. Submitter only."""
        return await self._link.send(calls.checkpoint_job(self.id))

    async def stop(self) -> views.JobCheckpoint:
        """As `checkpoint`, then `cancel`: another job can go on from there."""
        stopped = await self._link.send(calls.stop_job(self.id))
        self.info = stopped.job
        return stopped.checkpoint

    async def invite(self, peer: str, *, for_s: int = 3600) -> views.JobInvite:
        """Sign that a peer, by its id, may come late for so many seconds. Submitter and coordinator only."""
        return await self._link.send(calls.invite_to_job(self.id, peer, for_s))

    async def update(
        self, *, deadline_s: int | None = None, priority: int | None = None, max_peers: int | None = None
    ) -> views.Job:
        """Change what its submitter may still change. deadline_s: from submission, as in the spec."""
        change = views.JobChange(deadline_s, priority, max_peers)
        self.info = await self._link.send(calls.update_job(self.id, change))
        return self.info
