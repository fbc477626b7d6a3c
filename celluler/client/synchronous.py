"""The synchronous client. `AsyncClient` has the same shape; a test holds the two alike."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from celluler import views
from celluler.client import calls
from celluler.client.calls import Call
from celluler.client.transport import UPLOAD_CHUNK_BYTES, failures, settings, timeouts
from celluler.errors import TimedOut

T = TypeVar("T")


class Client:
    """A node's API. Use as a context manager, or call `close`.

    Without arguments the local node; else its `url` and `token`, or the `home` it runs in. transport: an httpx
    transport to use instead of the network, with any url.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        home: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Raises NodeNotRunning when there is no local node."""
        self._target = calls.find_target(url, token, home)
        self._http = httpx.Client(transport=transport, **settings(self._target))
        self.peers = Peers(self)
        self.blobs = Blobs(self)
        self.models = Models(self)
        self.jobs = Jobs(self)

    def status(self) -> views.Status:
        return self._send(calls.status())

    def doctor(self) -> tuple[views.Check, ...]:
        return self._send(calls.doctor())

    def violations(self) -> tuple[views.ViolationReport, ...]:
        """Peers that broke a protocol."""
        return self._send(calls.violations())

    def predict(self, model: str, inputs: Any, *, dtype: str | None = None) -> views.Prediction:
        """Run a model on a batch, first axis samples. inputs: nested lists or an array (see `tensors.tensor_of`).

        The answer's `outputs` give `.lists()` and `.numpy()`.
        """
        return self._send(calls.predict(model, inputs, dtype))

    def shutdown(self) -> None:
        """The node begins to end."""
        self._send(calls.shutdown())

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, call: Call[T]) -> T:
        body = None if call.upload is None else _chunks(call.upload)
        with failures(self._target, call):
            answer = self._http.request(
                call.method,
                call.path,
                params=dict(call.params),
                json=call.json,
                content=body,
                timeout=timeouts(call.timeout_s),
            )
        return calls.read_answer(call, answer.status_code, answer.content)

    def _download(self, path: str, target: Path) -> int:
        call: Call[None] = Call("GET", path, lambda _document: None)
        stream = self._http.stream("GET", path, timeout=timeouts(calls.LONG_S))
        with failures(self._target, call), stream as answer:
            if answer.status_code != 200:
                calls.read_answer(call, answer.status_code, answer.read())
            with target.open("wb") as file:
                for chunk in answer.iter_bytes(UPLOAD_CHUNK_BYTES):
                    file.write(chunk)
                return file.tell()


class Peers:
    """Members of the swarm, named by peer id, by its last eight characters, or by an unambiguous nickname."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def ls(self) -> tuple[views.Peer, ...]:
        return self._client._send(calls.list_peers())

    def show(self, peer: str) -> views.Peer:
        return self._client._send(calls.show_peer(peer))

    def ping(self, peer: str) -> views.Ping:
        return self._client._send(calls.ping_peer(peer))


class Blobs:
    """Contents by CID."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def add(self, path: str | os.PathLike[str], *, kind: str = "blob") -> views.Blob:
        """kind: `blob`, `dataset` or `model`."""
        return self._client._send(calls.add_blob(path, kind))

    def get(self, cid: str, path: str | os.PathLike[str]) -> int:
        """Write a content to a file, fetched from peers when need be; returns its bytes."""
        return self._client._download(calls.blob_path(cid), Path(path))

    def stat(self, cid: str) -> views.Blob:
        return self._client._send(calls.blob_stat(cid))


class Models:
    """Models by `author/name:version`, `author/name` or CID."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def add(
        self,
        name: str,
        spec: Mapping[str, Any] | str | os.PathLike[str],
        *,
        weights: str | os.PathLike[str] | None = None,
        seed: int = 0,
        labels: Sequence[str] = (),
        metrics: Mapping[str, float] | None = None,
        parents: Sequence[str] = (),
        dataset: str | None = None,
    ) -> views.Model:
        """Publish. spec: a mapping, JSON text or its file. weights: a CID, a Path of a safetensors file, or None for
        the initial ones of `seed`."""
        if isinstance(weights, os.PathLike):
            weights = self._client.blobs.add(weights, kind="model").cid
        return self._client._send(
            calls.add_model(
                name,
                spec,
                weights,
                seed=seed,
                labels=labels,
                metrics=metrics or {},
                parents=parents,
                dataset=dataset,
            )
        )

    def ls(self) -> tuple[views.Model, ...]:
        return self._client._send(calls.list_models())

    def show(self, ref: str) -> views.Model:
        return self._client._send(calls.show_model(ref))

    def pull(self, ref: str) -> views.Model:
        return self._client._send(calls.pull_model(ref))


class Jobs:
    """Jobs by id, or by the last six characters of it or more."""

    def __init__(self, client: Client) -> None:
        self._client = client

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
        return Job(self._client, self._client._send(calls.submit_job(spec, client_id, attachments)))

    def get(self, job: str) -> Job:
        return Job(self._client, self._client._send(calls.show_job(job)))

    def ls(self) -> tuple[views.Job, ...]:
        return self._client._send(calls.list_jobs())


class Job:
    """A submitted job. `info`: what was last heard of it."""

    def __init__(self, client: Client, info: views.Job) -> None:
        self._client = client
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    def refresh(self) -> views.Job:
        self.info = self._client._send(calls.show_job(self.id))
        return self.info

    def logs(self, *, follow: bool = False, since: int = 0) -> Iterator[views.JobLine]:
        """Events after the cursor `since`; with `follow`, also those to come, until the job ends."""
        while True:
            report = self._client._send(calls.watch_job(self.id, since, calls.POLL_S if follow else 0.0))
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
            report = self._client._send(calls.watch_job(self.id, since, left_s))
            self.info, since = report.job, max(since, report.cursor)
        return self.info

    def results(self) -> views.JobResult:
        """What it left. Raises WorkerFailed when it failed, LocalError when there is nothing (yet)."""
        return calls.result_of(self.refresh())

    def cancel(self) -> views.Job:
        self.info = self._client._send(calls.cancel_job(self.id))
        return self.info


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(UPLOAD_CHUNK_BYTES):
            yield chunk
