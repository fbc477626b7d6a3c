"""The synchronous client. `AsyncClient` has the same shape; a test holds the two alike."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Unpack, overload

import httpx

from celluler import views
from celluler.client import calls, calls_models, calls_serving, calls_text
from celluler.client.calls_text import Prompt, Reading, SamplingFields
from celluler.client.synchronous_deployments import Deployments
from celluler.client.synchronous_models import Datasets, Models
from celluler.client.synchronous_text import Pieces
from celluler.client.transport import Link
from celluler.errors import TimedOut


class Client:
    """A node's API. Use as a context manager, or call `close`.

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
        transport: httpx.BaseTransport | None = None,
        session: str = "",
    ) -> None:
        """Raises NodeNotRunning when there is no local node."""
        self._link = Link(calls.find_target(url, token, home, session), transport)
        self.peers = Peers(self._link)
        self.blobs = Blobs(self._link)
        self.models = Models(self._link)
        self.datasets = Datasets(self._link)
        self.jobs = Jobs(self._link)
        self.deployments = Deployments(self._link)

    def status(self) -> views.Status:
        return self._link.send(calls.status())

    def serving(self) -> views.Serving:
        """Models at work in the node."""
        return self._link.send(calls_serving.serving())

    def doctor(self) -> tuple[views.Check, ...]:
        return self._link.send(calls.doctor())

    def violations(self) -> tuple[views.ViolationReport, ...]:
        """Peers that broke a protocol."""
        return self._link.send(calls.violations())

    def predict(
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
        return self._link.send(call)

    def embed(self, model: str, inputs: Any, *, dtype: str | None = None) -> views.Prediction:
        """The vector that a model makes of each input: texts, tokens or an array, as `predict` takes them. The model
        must give an `embedding`. The answer gives `.lists()`, its `outputs` `.numpy()`."""
        return self._link.send(calls_models.predict(model, inputs, dtype, "embedding"))

    @overload
    def generate(
        self, model: str, prompt: Prompt, *, stream: Literal[False] = False, **said: Unpack[SamplingFields]
    ) -> views.Generation: ...

    @overload
    def generate(
        self, model: str, prompt: Prompt, *, stream: Literal[True], **said: Unpack[SamplingFields]
    ) -> Pieces: ...

    def generate(
        self, model: str, prompt: Prompt, *, stream: bool = False, **said: Unpack[SamplingFields]
    ) -> views.Generation | Pieces:
        """Let a model write. prompt: a text or tokens to go on from, or messages, as `[{"role": "user", "content":
        "Hello"}]`. said: `temperature=0`, `max_tokens=100` and so on, see `SamplingFields`.

        stream: the answer as it comes, to iterate over; else all of it. Both give `.text` in the end, the pieces by
        their `generation`.
        """
        reading = Reading(time.monotonic())
        call = calls_text.generate(model, prompt, said, stream=stream)
        if stream:
            return Pieces(self._link.open(call, calls_text.read_error), reading)
        reading.read_document(self._link.ask(call, calls_text.read_error))
        return reading.generation(time.monotonic())

    def transfers(self) -> tuple[views.Transfer, ...]:
        """Contents on their way to the node."""
        return self._link.send(calls.transfers())

    def pin(self, ref: str) -> views.Blob:
        """Never evict this content. ref: a CID, or the name of a model or dataset."""
        return self._link.send(calls.pin(ref))

    def unpin(self, ref: str) -> views.Blob:
        return self._link.send(calls.unpin(ref))

    def check_store(self, *, repair: bool = False) -> views.StoreCheck:
        """Hash again all that the store claims to hold. repair: forget what is damaged, and fetch it anew."""
        return self._link.send(calls.check_store(repair))

    def shutdown(self) -> None:
        """The node begins to end."""
        self._link.send(calls.shutdown())

    def close(self) -> None:
        self._link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Peers:
    """Members of the swarm, named by peer id, by its last eight characters, or by an unambiguous nickname."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def ls(self) -> tuple[views.Peer, ...]:
        return self._link.send(calls.list_peers())

    def show(self, peer: str) -> views.Peer:
        return self._link.send(calls.show_peer(peer))

    def ping(self, peer: str) -> views.Ping:
        return self._link.send(calls.ping_peer(peer))


class Blobs:
    """Contents by CID."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def add(self, path: str | os.PathLike[str], *, kind: str = "blob") -> views.Blob:
        """kind: `blob`, `dataset` or `model`."""
        return self._link.send(calls.add_blob(path, kind))

    def get(self, cid: str, path: str | os.PathLike[str], *, at_most: int | None = None) -> int:
        """Write a content to a file, fetched from peers when need be; returns its bytes.

        at_most: a content of more bytes is not fetched, and QuotaExceeded raised.
        """
        return self._link.download(calls.blob_path(cid, at_most), Path(path))

    def stat(self, cid: str) -> views.Blob:
        return self._link.send(calls.blob_stat(cid))

    def gc(self, *, target_bytes: int | None = None, dry_run: bool = False) -> views.Collected:
        """Evict what was used least recently, until at most `target_bytes` are kept; None for all that may go."""
        return self._link.send(calls.collect(target_bytes, dry_run))


class Jobs:
    """Jobs by id, or by the last six characters of it or more."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def submit(
        self,
        spec: Mapping[str, Any] | str | os.PathLike[str],
        *,
        client_id: str | None = None,
        attachments: Sequence[str] = (),
    ) -> Job:
        """spec: a mapping, YAML or JSON text, or its file. Submitting a `client_id` again gives the same job.

        attachments: CIDs only this node may hold, to be handed over with the job.
        """
        return Job(self._link, self._link.send(calls.submit_job(spec, client_id, attachments)))

    def get(self, job: str) -> Job:
        return Job(self._link, self._link.send(calls.show_job(job)))

    def ls(self) -> tuple[views.Job, ...]:
        return self._link.send(calls.list_jobs())

    def join(self, invite: str) -> Job:
        """Have this node come late into the training to which somebody invites it."""
        return Job(self._link, self._link.send(calls.join_job(invite)))

    def transcripts(self, job: str, peers: Sequence[str]) -> tuple[views.TranscriptNote, ...]:
        """What these peers signed to be their transcript of a job's run. job: its whole id. peers: ids, 64 at most."""
        return self._link.send(calls.transcripts(job, peers))


class Job:
    """A submitted job. `info`: what was last heard of it."""

    def __init__(self, link: Link, info: views.Job) -> None:
        self._link = link
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    def refresh(self) -> views.Job:
        self.info = self._link.send(calls.show_job(self.id))
        return self.info

    def logs(self, *, follow: bool = False, since: int = 0) -> Iterator[views.JobLine]:
        """Events after the cursor `since`; with `follow`, also those to come, until the job ends."""
        while True:
            report = self._link.send(calls.watch_job(self.id, since, calls.POLL_S if follow else 0.0))
            self.info = report.job
            yield from report.events
            ended = report.job.state in calls.ENDED or not follow
            if ended and report.cursor <= since:
                return
            since = max(since, report.cursor)

    def wait(self, timeout: float | None = None) -> views.Job:
        """Until the job has ended, however it ended. Raises TimedOut after so many seconds."""
        deadline, since = None if timeout is None else time.monotonic() + timeout, 0
        while self.info.state not in calls.ENDED:
            left_s = calls.POLL_S if deadline is None else min(calls.POLL_S, deadline - time.monotonic())
            if left_s <= 0:
                raise TimedOut(f"job {self.info.name} is still {self.info.state}: {self.info.reason}")
            report = self._link.send(calls.watch_job(self.id, since, left_s))
            self.info, since = report.job, max(since, report.cursor)
        return self.info

    def results(self) -> views.JobResult:
        """What it left. Raises WorkerFailed when it failed, LocalError when there is nothing (yet)."""
        return calls.result_of(self.refresh())

    def rounds(self) -> tuple[views.TrainingRound, ...]:
        """Of a training, every round that was told of so far."""
        report = self._link.send(calls.watch_job(self.id, 0, 0.0))
        self.info = report.job
        return views.rounds_of(report.events)

    def spec(self) -> Mapping[str, Any]:
        """What was asked for, with every default filled in."""
        return (self._link.send(calls.job_spec(self.id))).spec

    def cancel(self) -> views.Job:
        self.info = self._link.send(calls.cancel_job(self.id))
        return self.info

    def checkpoint(self) -> views.JobCheckpoint:
        """Have the members of a training publish what they have come to so far; it goes on. Submitter only."""
        return self._link.send(calls.checkpoint_job(self.id))

    def stop(self) -> views.JobCheckpoint:
        """As `checkpoint`, then `cancel`: another job can go on from there."""
        stopped = self._link.send(calls.stop_job(self.id))
        self.info = stopped.job
        return stopped.checkpoint

    def invite(self, peer: str, *, for_s: int = 3600) -> views.JobInvite:
        """Sign that a peer, by its id, may come late for so many seconds. Submitter and coordinator only."""
        return self._link.send(calls.invite_to_job(self.id, peer, for_s))

    def update(
        self, *, deadline_s: int | None = None, priority: int | None = None, max_peers: int | None = None
    ) -> views.Job:
        """Change what its submitter may still change. deadline_s: from submission, as in the spec."""
        change = views.JobChange(deadline_s, priority, max_peers)
        self.info = self._link.send(calls.update_job(self.id, change))
        return self.info
