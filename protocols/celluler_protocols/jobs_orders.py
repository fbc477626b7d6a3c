"""Signed records of /celluler/jobs/1: what a submitter signs, and how whoever is asked opens it.

Knows who signed what, not how it travels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from celluler.content.digest import Digest, cid_of, digest_of
from celluler.errors import Denied
from celluler.identity import Identity, PeerId, Signed, open_envelope, public_key_of, seal, short
from celluler.jobs.spec import MAX_SPEC_BYTES, TrainJob, canonical_job, parse_canonical_job
from celluler.learning.roster import MAX_MEMBERS
from celluler.wire import U64, Bytes32, Length, Name, PeerName, Range

MAX_ORDER_BYTES = MAX_SPEC_BYTES + 1024
MAX_CANCEL_BYTES = 1024
"""Of every order but the first."""
MAX_LIFE_S = 31 * 86400
CLOCK_SKEW_S = 300


@dataclass(frozen=True, slots=True)
class JobOrder:
    """What a submitter signs. The digest of its envelope is the job's identity.

    client_id: the submitter's own name for the job; a second order with the same one is the same job. coordinator: the
    only node it is meant for, so that nobody runs it again elsewhere. spec: canonical form. model: digest of the
    signed manifest that the spec's `model` meant to the submitter. Times: Unix seconds.
    """

    KIND: ClassVar[str] = "celluler/jobs/order/1"
    client_id: Name
    coordinator: PeerName
    spec: Annotated[bytes, Length(2, MAX_SPEC_BYTES)]
    model: Bytes32
    created_s: U64
    expires_s: U64


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """Signed by the job's submitter."""

    KIND: ClassVar[str] = "celluler/jobs/cancel/1"
    job: Bytes32
    issued_s: U64


@dataclass(frozen=True, slots=True)
class CheckpointOrder:
    """Signed by the job's submitter: publish what the rounds certified so far have come to."""

    KIND: ClassVar[str] = "celluler/jobs/checkpoint/1"
    job: Bytes32
    issued_s: U64


@dataclass(frozen=True, slots=True)
class ChangeOrder:
    """Signed by the job's submitter; of several the latest counts. None leaves a thing as it is.

    expires_s: Unix seconds, no later than an order may be good for. max_peers: how many may take part. priority: 0…9.
    """

    KIND: ClassVar[str] = "celluler/jobs/change/1"
    job: Bytes32
    issued_s: U64
    expires_s: U64 | None
    max_peers: Annotated[int, Range(1, MAX_MEMBERS)] | None
    priority: Annotated[int, Range(0, 9)] | None


@dataclass(frozen=True, slots=True)
class OpenedOrder:
    """An order whose signature and spec were checked. job: digest of `signed.raw`, the job's identity."""

    signed: Signed[JobOrder]
    spec: TrainJob
    job: Digest

    @property
    def submitter(self) -> PeerId:
        return self.signed.signer

    @property
    def id(self) -> str:
        """The job's identity as people see it."""
        return cid_of(self.job)


def seal_order(
    identity: Identity,
    spec: TrainJob,
    *,
    client_id: str,
    coordinator: str,
    model: bytes,
    created_s: int,
    expires_s: int,
) -> bytes:
    """A signed order, which is also the block under which the job is found."""
    return seal(identity, JobOrder(client_id, coordinator, canonical_job(spec), model, created_s, expires_s))


def open_order(raw: bytes) -> OpenedOrder:
    """Verify and parse. Raises BadSignature, ProtocolViolation."""
    signed = open_envelope(JobOrder, raw, limit=MAX_ORDER_BYTES)
    public_key_of(signed.record.coordinator)
    return OpenedOrder(signed, parse_canonical_job(signed.record.spec), digest_of(raw))


def check_order(order: OpenedOrder, *, coordinator: str, now: float) -> None:
    """Refuse an order meant for another node, outlived, or dated ahead. Raises Denied."""
    record = order.signed.record
    if record.coordinator != coordinator:
        raise Denied(f"the order is for {short(record.coordinator)}, not for {short(coordinator)}")
    if record.created_s > now + CLOCK_SKEW_S:
        raise Denied(f"the order is dated {record.created_s - now:.0f} s ahead of this node's clock")
    if not now < record.expires_s <= record.created_s + MAX_LIFE_S:
        raise Denied(f"the order has expired, or lives longer than {MAX_LIFE_S} s")


def seal_cancel(identity: Identity, job: bytes, *, issued_s: int) -> bytes:
    return seal(identity, CancelOrder(job, issued_s))


def seal_checkpoint(identity: Identity, job: bytes, *, issued_s: int) -> bytes:
    return seal(identity, CheckpointOrder(job, issued_s))


def open_change(raw: bytes) -> Signed[ChangeOrder]:
    """Raises BadSignature, ProtocolViolation."""
    return open_envelope(ChangeOrder, raw, limit=MAX_CANCEL_BYTES)
