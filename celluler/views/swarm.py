"""The node itself and its peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a peer can compute with. device: `cpu`, `cuda`, `rocm`, `mps`. audit_class: how it computes in fp32, empty
    unless it has measured that."""

    device: str
    cores: int
    memory_mb: int
    audit_class: str = ""


@dataclass(frozen=True, slots=True)
class StoreUsage:
    used_bytes: int
    quota_bytes: int


@dataclass(frozen=True, slots=True)
class PeerTraffic:
    """Bytes exchanged with one peer since the node started, over libp2p and over bulk transfer; of a content, its bytes
    alone."""

    peer: str
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class Status:
    """The node in one page.

    members: live members of the swarm as this node sees it, itself included. isolation: `full`, what is missing
    (`reduced: no Landlock`), or `off`. models: manifests known here. jobs: how many in each state. violations: peers
    that broke a protocol. region: where the node says it is, or empty. engine: what models are run by, on what and in
    what; empty where none are. loaded: models at work, or on their way; loaded_bytes, loaded_limit_bytes: what they are
    counted as, and what they may take.
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
    region: str = ""
    engine: str = ""
    loaded: int = 0
    loaded_bytes: int = 0
    loaded_limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the node has joined and serves; `reason` says what it waits for."""

    ready: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """A member of the swarm.

    status: `alive`, `suspect` or `self`. round_trip_s: None before the first probe. region: where it says it is.
    isolation: of its workers, by its own word: `full`, `reduced`, `off` or empty.
    doubts: how many distinct peers say that it gave out false content; a hint, never a verdict. wrong_answer: what was
    wrong with an answer of a model, as this node has found; evidence: CID of what proves it to others, empty for none.
    """

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
    region: str = ""
    doubts: int = 0
    isolation: str = ""
    wrong_answer: str = ""
    evidence: str = ""


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
class Check:
    """One finding of `doctor` or `verify`. hint: what to do when not ok. skipped: it could not be looked into."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    skipped: bool = False
