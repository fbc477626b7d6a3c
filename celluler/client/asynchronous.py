"""The asynchronous client, on trio and on asyncio. `Client` has the same shape; a test holds the two alike."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import anyio
import httpx

from celluler import views
from celluler.client import calls
from celluler.client.calls import Call
from celluler.client.transport import UPLOAD_CHUNK_BYTES, failures, settings, timeouts
from celluler.errors import TimedOut

T = TypeVar("T")


class AsyncClient:
    """A node's API. Use as an async context manager, or call `aclose`.

    Without arguments the local node; else its `url` and `token`, or the `home` it runs in. transport: an httpx
    transport to use instead of the network, with any url.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        home: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Raises NodeNotRunning when there is no local node."""
        self._target = calls.find_target(url, token, home)
        self._http = httpx.AsyncClient(transport=transport, **settings(self._target))
        self.peers = AsyncPeers(self)
        self.blobs = AsyncBlobs(self)
        self.models = AsyncModels(self)
        self.jobs = AsyncJobs(self)

    async def status(self) -> views.Status:
        return await self._send(calls.status())

    async def doctor(self) -> tuple[views.Check, ...]:
        return await self._send(calls.doctor())

    async def violations(self) -> tuple[views.ViolationReport, ...]:
        """Peers that broke a protocol."""
        return await self._send(calls.violations())

    async def predict(self, model: str, inputs: Any, *, dtype: str | None = None) -> views.Prediction:
        """Run a model on a batch, first axis samples. inputs: nested lists or an array (see `tensors.tensor_of`).

        The answer's `outputs` give `.lists()` and `.numpy()`.
        """
        return await self._send(calls.predict(model, inputs, dtype))

    async def shutdown(self) -> None:
        """The node begins to end."""
        await self._send(calls.shutdown())

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send(self, call: Call[T]) -> T:
        body = None if call.upload is None else _chunks(call.upload)
        with failures(self._target, call):
            answer = await self._http.request(
                call.method,
                call.path,
                params=dict(call.params),
                json=call.json,
                content=body,
                timeout=timeouts(call.timeout_s),
            )
        return calls.read_answer(call, answer.status_code, answer.content)

    async def _download(self, path: str, target: Path) -> int:
        call: Call[None] = Call("GET", path, lambda _document: None)
        with failures(self._target, call):
            async with self._http.stream("GET", path, timeout=timeouts(calls.LONG_S)) as answer:
                if answer.status_code != 200:
                    calls.read_answer(call, answer.status_code, await answer.aread())
                async with await anyio.open_file(target, "wb") as file:
                    async for chunk in answer.aiter_bytes(UPLOAD_CHUNK_BYTES):
                        await file.write(chunk)
                    return await file.tell()


class AsyncPeers:
    """Members of the swarm, named by peer id, by its last eight characters, or by an unambiguous nickname."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def ls(self) -> tuple[views.Peer, ...]:
        return await self._client._send(calls.list_peers())

    async def show(self, peer: str) -> views.Peer:
        return await self._client._send(calls.show_peer(peer))

    async def ping(self, peer: str) -> views.Ping:
        return await self._client._send(calls.ping_peer(peer))


class AsyncBlobs:
    """Contents by CID."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def add(self, path: str | os.PathLike[str], *, kind: str = "blob") -> views.Blob:
        """kind: `blob`, `dataset` or `model`."""
        return await self._client._send(calls.add_blob(path, kind))

    async def get(self, cid: str, path: str | os.PathLike[str]) -> int:
        """Write a content to a file, fetched from peers when need be; returns its bytes."""
        return await self._client._download(calls.blob_path(cid), Path(path))

    async def stat(self, cid: str) -> views.Blob:
        return await self._client._send(calls.blob_stat(cid))


class AsyncModels:
    """Models by `author/name:version`, `author/name` or CID."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def add(
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
            weights = (await self._client.blobs.add(weights, kind="model")).cid
        return await self._client._send(
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

    async def ls(self) -> tuple[views.Model, ...]:
        return await self._client._send(calls.list_models())

    async def show(self, ref: str) -> views.Model:
        return await self._client._send(calls.show_model(ref))

    async def pull(self, ref: str) -> views.Model:
        return await self._client._send(calls.pull_model(ref))


class AsyncJobs:
    """Jobs by id, or by the last six characters of it or more."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

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
        return AsyncJob(self._client, await self._client._send(calls.submit_job(spec, client_id, attachments)))

    async def get(self, job: str) -> AsyncJob:
        return AsyncJob(self._client, await self._client._send(calls.show_job(job)))

    async def ls(self) -> tuple[views.Job, ...]:
        return await self._client._send(calls.list_jobs())


class AsyncJob:
    """A submitted job. `info`: what was last heard of it."""

    def __init__(self, client: AsyncClient, info: views.Job) -> None:
        self._client = client
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    async def refresh(self) -> views.Job:
        self.info = await self._client._send(calls.show_job(self.id))
        return self.info

    async def logs(self, *, follow: bool = False, since: int = 0) -> AsyncIterator[views.JobLine]:
        """Events after the cursor `since`; with `follow`, also those to come, until the job ends."""
        while True:
            report = await self._client._send(calls.watch_job(self.id, since, calls.POLL_S if follow else 0.0))
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
            report = await self._client._send(calls.watch_job(self.id, since, left_s))
            self.info, since = report.job, max(since, report.cursor)
        return self.info

    async def results(self) -> views.JobResult:
        """What it left. Raises WorkerFailed when it failed, LocalError when there is nothing (yet)."""
        return calls.result_of(await self.refresh())

    async def cancel(self) -> views.Job:
        self.info = await self._client._send(calls.cancel_job(self.id))
        return self.info


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(UPLOAD_CHUNK_BYTES):
            yield chunk
