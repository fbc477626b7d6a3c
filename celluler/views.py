"""What a node shows to the person who asks: one frozen record for each answer, and its JSON form.

The node fills these, the HTTP gateway writes them, the clients read them back, so that a field exists in one place.
All of it is for people and their programs: nothing here travels between peers. Peers, jobs and contents are named by
text (peer id, job id, CID); sizes are bytes, times are Unix seconds, durations seconds.

A reader ignores keys it does not know (a newer node may say more) and refuses a document that lacks one it needs.
Imports nothing heavy: the command line loads it first.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from celluler.errors import ProtocolViolation
from celluler.tensors import Tensor as Tensor  # noqa: PLC0414  # a view like the others
from celluler.tensors import tensor_from_json, tensor_to_json

SCHEMA = "celluler/v1"
"""Every JSON document a node or the command line writes carries `"schema": SCHEMA`."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a peer can compute with. device: `cpu`, `cuda`, `rocm`, `mps`."""

    device: str
    cores: int
    memory_mb: int


@dataclass(frozen=True, slots=True)
class StoreUsage:
    used_bytes: int
    quota_bytes: int


@dataclass(frozen=True, slots=True)
class PeerTraffic:
    """Bytes of our streams with one peer since the node started."""

    peer: str
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class Status:
    """The node in one page.

    members: live members of the swarm as this node sees it, itself included. isolation: `full`, or what is missing
    (`reduced: no Landlock`). models: manifests known here. jobs: how many in each state. violations: peers that
    broke a protocol.
    """

    peer_id: str
    nickname: str
    version: str
    addresses: tuple[str, ...]
    started_s: float
    uptime_s: float
    members: int
    hardware: Hardware
    isolation: str
    models: int
    jobs: Mapping[str, int]
    store: StoreUsage
    violations: int
    traffic: tuple[PeerTraffic, ...] = ()


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the node has joined and serves; `reason` says what it waits for."""

    ready: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """A member of the swarm. status: `alive`, `suspect` or `self`. round_trip_s: None before the first probe."""

    peer_id: str
    nickname: str
    addresses: tuple[str, ...]
    status: str
    incarnation: int
    connected: bool
    hardware: Hardware | None = None
    roles: tuple[str, ...] = ()
    round_trip_s: float | None = None
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ping:
    peer_id: str
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class ViolationReport:
    """What a peer did that no honest peer does. at_s: the last time. count: how often."""

    peer: str
    reason: str
    at_s: float
    count: int
    banned: bool = False


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model to publish under this node's name.

    name: `author/name:version`; the author is the node's own nickname or peer id. spec: the architecture, as parsed
    JSON. weights: CID of a safetensors content this node holds or can fetch; None for the initial weights that
    `seed` gives, the same everywhere.
    """

    name: str
    spec: Mapping[str, Any]
    weights: str | None = None
    seed: int = 0
    labels: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    dataset: str | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A published model: version `version` of `name` by `author`, a peer id.

    cid: of its signed manifest. weights: CID of the content. local: weights complete here. spec: the architecture;
    left out of lists.
    """

    name: str
    version: str
    cid: str
    author: str
    nickname: str
    task: str
    parameters: int
    weights: str
    weights_bytes: int
    local: bool
    created_s: float
    labels: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    dataset: str | None = None
    job: str | None = None
    providers: tuple[str, ...] = ()
    spec: Mapping[str, Any] | None = None

    @property
    def reference(self) -> str:
        """`author/name:version`, by nickname when the author has one."""
        return f"{self.nickname or self.author}/{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class Blob:
    """One content. kind: `blob`, `dataset` or `model`."""

    cid: str
    kind: str
    total_bytes: int
    have_bytes: int
    complete: bool


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to submit.

    client_id: chosen by the client; the same submitter sending the same one again gets the job it already has.
    spec: the document, JSON or YAML text. attachments: CIDs the job needs that may be nowhere but here; they are handed
    over before submission is answered.
    """

    client_id: str
    spec: str
    attachments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A peer whose contribution was not used, and why."""

    peer: str
    reason: str
    round: int | None = None


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a finished job left: the published model, its manifest's and its weights' CIDs, final metrics."""

    model: str
    manifest: str
    weights: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its coordinator last told it. metrics: the newest of each name."""

    id: str
    client_id: str
    name: str
    kind: str
    state: str
    reason: str
    submitter: str
    coordinator: str
    created_s: float
    updated_s: float
    members: tuple[str, ...] = ()
    excluded: tuple[Exclusion, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    traffic: tuple[PeerTraffic, ...] = ()
    result: JobResult | None = None


@dataclass(frozen=True, slots=True)
class JobLine:
    """One event of a job. cursor: its place; ask for events since it. metrics: what was measured then, if anything."""

    cursor: int
    at_s: float
    state: str
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobReport:
    """A job and its events after the cursor asked for. cursor: what to ask with next."""

    job: Job
    events: tuple[JobLine, ...]
    cursor: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """peer: who computed it. model: what was asked for. cid: the exact version. elapsed_s: as the node waited."""

    outputs: Tensor
    model: str
    cid: str
    peer: str
    elapsed_s: float
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """One finding of `doctor`. hint: what to do when not ok."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


# --- JSON ------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """The JSON form of a record: an object by field names; bytes are not JSON and raise TypeError."""
    if isinstance(value, Tensor):
        return tensor_to_json(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_json(cls: type[T], document: Any) -> T:
    """The record a JSON object tells. Raises ProtocolViolation when a field is missing or of another type."""
    return typing.cast(T, _read(cls, document, cls.__name__))


def _read(hint: Any, value: Any, path: str) -> Any:
    if hint is Tensor:
        return tensor_from_json(value)
    if is_dataclass(hint):
        return _read_record(typing.cast(type, hint), value, path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _read(args[0], value, path)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(args[0], item, f"{path}[{place}]") for place, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {str(key): _read(args[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint in (str, int, bool) and type(value) is hint:
        return value
    raise ProtocolViolation(f"{path}: not {getattr(hint, '__name__', hint)}")


def _read_record(cls: type, document: Any, path: str) -> Any:
    if not isinstance(document, dict):
        raise ProtocolViolation(f"{path}: not an object")
    hints = typing.get_type_hints(cls)
    values = {}
    for item in fields(cls):
        if item.name in document:
            values[item.name] = _read(hints[item.name], document[item.name], f"{path}.{item.name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ProtocolViolation(f"{path}.{item.name}: missing")
    return cls(**values)
