"""What a person may ask of a node. The node implements it, the gateway offers it over HTTP, a light peer runs it
in its own process; the command line and the clients need nothing else.

Every method raises the typed errors of `celluler.errors` and nothing else; waiting is bounded by the caller. The
records it speaks in are `celluler.views`, where each field is explained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from celluler.tensors import Tensor
from celluler.views import (
    Blob,
    Check,
    Exclusion,
    Hardware,
    Job,
    JobLine,
    JobReport,
    JobResult,
    Model,
    NewJob,
    NewModel,
    Peer,
    PeerTraffic,
    Ping,
    Prediction,
    Readiness,
    Status,
    StoreUsage,
    ViolationReport,
)

__all__ = [
    "Blob",
    "Check",
    "Exclusion",
    "Hardware",
    "Job",
    "JobLine",
    "JobReport",
    "JobResult",
    "Model",
    "NewJob",
    "NewModel",
    "Operations",
    "Peer",
    "PeerTraffic",
    "Ping",
    "Prediction",
    "Readiness",
    "Status",
    "StoreUsage",
    "Tensor",
    "ViolationReport",
]


class Operations(Protocol):
    """A node, or a light peer, seen by its own user."""

    async def status(self) -> Status: ...

    async def readiness(self) -> Readiness:
        """Cheap: asked every second by whoever watches the node."""
        ...

    async def doctor(self) -> tuple[Check, ...]:
        """Look for what is wrong; finding something wrong is an answer, not an error."""
        ...

    async def shutdown(self) -> None:
        """Ask the node to end in order. Returns when it has begun to, not when it has ended."""
        ...

    # peers

    async def peers(self) -> tuple[Peer, ...]:
        """Every member, this node first."""
        ...

    async def peer(self, peer: str) -> Peer:
        """By peer id, its last 8 characters, or a nickname only one member bears. Raises NotFound."""
        ...

    async def ping(self, peer: str) -> Ping:
        """One round trip, named as in `peer`. Raises NotFound, Unavailable."""
        ...

    async def violations(self) -> tuple[ViolationReport, ...]: ...

    # content

    async def add_blob(self, path: Path, kind: str) -> Blob:
        """Copy a file into the store and announce it. kind: `blob`, `dataset`, `model`. Raises QuotaExceeded."""
        ...

    async def read_blob(self, cid: str) -> Path:
        """The complete file, fetched from peers when it is not here. Read only; valid until it is evicted.

        Raises InvalidSpec for text that is no CID, NotFound, QuotaExceeded.
        """
        ...

    async def blob_stat(self, cid: str) -> Blob:
        """What is here of it; fetches nothing. Raises InvalidSpec, NotFound."""
        ...

    # models

    async def add_model(self, model: NewModel) -> Model:
        """Sign and publish a model. Raises InvalidSpec, NotFound for its weights, LocalError for a taken version."""
        ...

    async def list_models(self) -> tuple[Model, ...]:
        """Models this node knows of, here or announced by others, without their specs."""
        ...

    async def show_model(self, ref: str) -> Model:
        """ref: `author/name`, `author/name:version` or a CID. Raises InvalidSpec, NotFound."""
        ...

    async def pull_model(self, ref: str) -> Model:
        """Resolve, fetch and verify; `local` is true in the answer. Raises InvalidSpec, NotFound, QuotaExceeded."""
        ...

    async def predict(self, ref: str, inputs: Tensor) -> Prediction:
        """Run a model on a batch, here or at the peer that serves it best. Raises NotFound, Unavailable, LocalError."""
        ...

    # jobs

    async def submit_job(self, job: NewJob) -> Job:
        """Submit, once for each `client_id`. Raises InvalidSpec, NoPeers, Unavailable, Denied."""
        ...

    async def jobs(self) -> tuple[Job, ...]:
        """Newest first."""
        ...

    async def job(self, job: str, *, since: int = 0, wait_s: float = 0.0) -> JobReport:
        """A job and its events after cursor `since`; with `wait_s`, waits that long for one to come.

        job: an id, or an ending of one that names no other. Raises NotFound.
        """
        ...

    async def cancel_job(self, job: str) -> Job:
        """Cancel; a job that has ended stays as it is. Raises NotFound, Denied when it is somebody else's."""
        ...
