"""Every call of the API as data: what to send, and what the answer means. Shared by both clients, does no I/O."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from celluler import views
from celluler.errors import LocalError, ProtocolViolation, WorkerFailed
from celluler.failures import rebuild_error
from celluler.home import places, read_node_file

T = TypeVar("T")

QUICK_S = 30.0
LONG_S = 900.0
"""Calls that run a model."""
MOVE_S = 86_400.0
"""Calls that move or hash content, which take what it takes: a node that ends breaks the connection, which is seen."""
POLL_S = 20.0
CONNECT_S = 5.0
MAX_SPEC_FILE_BYTES = 1 << 20
ENDED = frozenset({"Succeeded", "Failed", "Cancelled"})


@dataclass(frozen=True, slots=True)
class Target:
    """Where a node's API is. token: a secret. session: whoever asks, empty for nobody in particular."""

    url: str
    token: str = field(repr=False)
    session: str = ""


def find_target(url: str | None, token: str | None, home: Path | None, session: str = "") -> Target:
    """The node asked for, or the local one. Raises NodeNotRunning, LocalError for an address without a token."""
    if url is not None:
        if token is None:
            raise LocalError("an address needs a token", hint="it is in the node's node.json")
        return Target(url, token, session)
    node = read_node_file(home or places(os.environ).home)
    return Target(node.api, token or node.token, session)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. parse: makes the result of the answer's JSON. upload: a file to send as the body."""

    method: str
    path: str
    parse: Callable[[Any], T]
    json: Mapping[str, Any] | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = QUICK_S
    upload: Path | None = None


def read_answer(call: Call[T], status: int, body: bytes) -> T:
    """The result. Raises what the node raised, ProtocolViolation for an answer that is none of ours."""
    document = read_json(call, body)
    if isinstance(document, dict) and "error" in document:
        raise rebuild_error(document["error"])
    if status >= 400 or not isinstance(document, dict) or document.get("schema") != views.SCHEMA:
        raise ProtocolViolation(f"{call.path}: HTTP {status}, not a {views.SCHEMA} document")
    return call.parse(document)


def read_json(call: Call[Any], body: bytes) -> Any:
    """Raises ProtocolViolation."""
    try:
        return json.loads(body)
    except ValueError:
        raise ProtocolViolation(f"{call.path}: an answer that is no JSON") from None


def record(cls: type[T]) -> Callable[[Any], T]:
    return lambda document: views.from_json(cls, document)


def records(cls: type[T], name: str) -> Callable[[Any], tuple[T, ...]]:
    def parse(document: Any) -> tuple[T, ...]:
        items = document.get(name)
        if not isinstance(items, list):
            raise ProtocolViolation(f"no list of {name} in the answer")
        return tuple(views.from_json(cls, item) for item in items)

    return parse


# --- the node and its peers --------------------------------------------------------------------------------------


def status() -> Call[views.Status]:
    return Call("GET", "/api/v1/status", record(views.Status))


def doctor() -> Call[tuple[views.Check, ...]]:
    return Call("GET", "/api/v1/doctor", records(views.Check, "checks"), timeout_s=60.0)


def violations() -> Call[tuple[views.ViolationReport, ...]]:
    return Call("GET", "/api/v1/violations", records(views.ViolationReport, "violations"))


def shutdown() -> Call[None]:
    return Call("POST", "/api/v1/shutdown", lambda _document: None)


def list_peers() -> Call[tuple[views.Peer, ...]]:
    return Call("GET", "/api/v1/peers", records(views.Peer, "peers"))


def show_peer(peer: str) -> Call[views.Peer]:
    return Call("GET", f"/api/v1/peers/{step(peer)}", record(views.Peer))


def ping_peer(peer: str) -> Call[views.Ping]:
    return Call("POST", f"/api/v1/peers/{step(peer)}/ping", record(views.Ping))


# --- content -----------------------------------------------------------------------------------------------------


def add_blob(path: str | os.PathLike[str], kind: str, *, announce: bool = True) -> Call[views.Blob]:
    file = Path(path)
    if not file.is_file():
        raise LocalError(f"no file at {file}")
    params = {"kind": kind} if announce else {"kind": kind, "announce": "no"}
    return Call("POST", "/api/v1/blobs", record(views.Blob), params=params, timeout_s=MOVE_S, upload=file)


def blob_path(cid: str, at_most: int | None = None) -> str:
    return f"/api/v1/blobs/{step(cid)}" + ("" if at_most is None else f"?at_most={at_most}")


def blob_stat(cid: str) -> Call[views.Blob]:
    return Call("GET", f"{blob_path(cid)}/stat", record(views.Blob))


def transfers() -> Call[tuple[views.Transfer, ...]]:
    return Call("GET", "/api/v1/transfers", records(views.Transfer, "transfers"))


def pin(ref: str) -> Call[views.Blob]:
    return Call("POST", "/api/v1/pin", record(views.Blob), json={"ref": ref})


def unpin(ref: str) -> Call[views.Blob]:
    return Call("POST", "/api/v1/unpin", record(views.Blob), json={"ref": ref})


def collect(target_bytes: int | None, dry_run: bool) -> Call[views.Collected]:
    body = {"target_bytes": target_bytes, "dry_run": dry_run}
    return Call("POST", "/api/v1/store/gc", record(views.Collected), json=body, timeout_s=LONG_S)


def check_store(repair: bool) -> Call[views.StoreCheck]:
    return Call("POST", "/api/v1/store/check", record(views.StoreCheck), json={"repair": repair}, timeout_s=MOVE_S)


# --- transcripts -------------------------------------------------------------------------------------------------


def transcripts(job: str, peers: Sequence[str]) -> Call[tuple[views.TranscriptNote, ...]]:
    body = {"job": job, "peers": list(peers)}
    return Call("POST", "/api/v1/transcripts", records(views.TranscriptNote, "transcripts"), json=body, timeout_s=60.0)


# --- jobs --------------------------------------------------------------------------------------------------------


def submit_job(
    spec: Mapping[str, Any] | str | os.PathLike[str], client_id: str | None, attachments: Sequence[str]
) -> Call[views.Job]:
    """spec: a mapping, YAML or JSON text, or the path of a file with such text."""
    told: Any = dict(spec) if isinstance(spec, Mapping) else read_spec_text(spec)
    body = {"client_id": client_id or uuid.uuid4().hex, "spec": told, "attachments": list(attachments)}
    return Call("POST", "/api/v1/jobs", record(views.Job), json=body, timeout_s=LONG_S)


def list_jobs() -> Call[tuple[views.Job, ...]]:
    return Call("GET", "/api/v1/jobs", records(views.Job, "jobs"))


def show_job(job: str) -> Call[views.Job]:
    return Call("GET", f"/api/v1/jobs/{step(job)}", record(views.Job))


def watch_job(job: str, since: int, wait_s: float) -> Call[views.JobReport]:
    params = {"since": str(since), "wait_s": f"{wait_s:.3f}"}
    path = f"/api/v1/jobs/{step(job)}/events"
    return Call("GET", path, record(views.JobReport), params=params, timeout_s=QUICK_S + wait_s)


def cancel_job(job: str) -> Call[views.Job]:
    return Call("POST", f"/api/v1/jobs/{step(job)}/cancel", record(views.Job))


def job_spec(job: str) -> Call[views.JobSpec]:
    return Call("GET", f"/api/v1/jobs/{step(job)}/spec", record(views.JobSpec))


def checkpoint_job(job: str) -> Call[views.JobCheckpoint]:
    return Call("POST", f"/api/v1/jobs/{step(job)}/checkpoint", record(views.JobCheckpoint), timeout_s=LONG_S)


def stop_job(job: str) -> Call[views.StoppedJob]:
    return Call("POST", f"/api/v1/jobs/{step(job)}/stop", record(views.StoppedJob), timeout_s=LONG_S)


def update_job(job: str, change: views.JobChange) -> Call[views.Job]:
    told = {name: value for name, value in views.to_json(change).items() if value is not None}
    return Call("PATCH", f"/api/v1/jobs/{step(job)}", record(views.Job), json=told)


def invite_to_job(job: str, peer: str, for_s: int) -> Call[views.JobInvite]:
    body = {"peer": peer, "for_s": for_s}
    return Call("POST", f"/api/v1/jobs/{step(job)}/invites", record(views.JobInvite), json=body)


def join_job(invite: str) -> Call[views.Job]:
    return Call("POST", "/api/v1/jobs/join", record(views.Job), json={"invite": invite}, timeout_s=LONG_S)


def result_of(job: views.Job) -> views.JobResult:
    """What a job left. Raises WorkerFailed when it failed, LocalError when it has not ended or was cancelled."""
    if job.state == "Succeeded" and job.result is not None:
        return job.result
    if job.state == "Failed":
        raise WorkerFailed(f"job {job.name} failed: {job.reason}")
    raise LocalError(f"job {job.name} has no results: it is {job.state}")


def step(text: str) -> str:
    """One step of a path. An empty one, or a dot, would be another path."""
    if not text.strip("."):
        raise LocalError("an empty name")
    return quote(text, safe="")


def read_spec_text(spec: str | os.PathLike[str]) -> str:
    """The text given, or that of the file. Raises LocalError."""
    if isinstance(spec, str) and ("\n" in spec or spec.lstrip().startswith("{")):
        return spec
    return read_text(Path(spec), MAX_SPEC_FILE_BYTES)


def read_text(path: Path, limit: int) -> str:
    """Raises LocalError, also for a file above the limit, which is not read."""
    try:
        if path.stat().st_size > limit:
            raise LocalError(f"{path} is larger than {limit} bytes")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(f"cannot read {path}: {error}") from None
