"""/celluler/swim/1: who is in the swarm. Spec: docs/reference/protocols/membership.md

The words of the protocol, the records that peers sign about themselves, and their limits. Knows nothing of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

from celluler.errors import ProtocolViolation
from celluler.identity import PeerId, Signed, open_envelope
from celluler.wire import LENGTH_PREFIX_BYTES, U16, U32, U64, Frames, Length, Range

PROTOCOL_ID = "/celluler/swim/1"

MAX_RECORD_BYTES = 1280
"""Body of a signed record: eight addresses of ordinary length fit."""
MAX_ENVELOPE_BYTES = MAX_RECORD_BYTES + 320
MAX_RUMOURS = 16
MAX_RUMOUR_BYTES = 3072
"""All rumours of one message together, so that a message stays small however much happens in the swarm."""
MAX_PAGE_RECORDS = 64
MAX_PAGE_BYTES = 60 << 10
MAX_FRAME_BYTES = 64 << 10

RawEnvelope = Annotated[bytes, Length(1, MAX_ENVELOPE_BYTES)]
Address = Annotated[str, Length(1, 256)]
Label = Annotated[str, Length(1, 32)]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a node says it can do: unchecked, its own word only.

    device: cpu, cuda, mps, xpu or a name not known yet. roles: such as `train`, `serve`, `store`, `relay`.
    region: where it stands (`eu-west`), empty when it does not say; replicas are spread by it. audit_class: how its
    workers compute, as far as it has measured that; who names the same one can repeat its training to the bit.
    isolation: of the models that it runs: `full`, `reduced` or `off`; empty when it does not say.
    """

    cores: U16
    memory_mb: U32
    device: Label
    roles: Annotated[tuple[Label, ...], Length(0, 8)] = ()
    region: Annotated[str, Length(0, 32)] = ""
    audit_class: Annotated[str, Length(0, 64)] = ""
    isolation: Annotated[str, Length(0, 16)] = ""


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A peer about itself. The higher incarnation wins; only the peer can sign a higher one.

    addresses: full, each ends with `/p2p/<the signer>`.
    """

    KIND: ClassVar[str] = "swim-peer"

    addresses: Annotated[tuple[Address, ...], Length(1, 8)]
    incarnation: U64
    nickname: Annotated[str, Length(0, 64)]
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class Departure:
    """A peer says that it leaves: no incarnation up to this one is a member any more."""

    KIND: ClassVar[str] = "swim-departure"

    incarnation: U64


# --- rumours, which ride on messages ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Alive:
    """A signed PeerRecord."""

    envelope: RawEnvelope


@dataclass(frozen=True, slots=True)
class Suspect:
    """Somebody does not answer. Hearsay: whoever passes it on vouches for nothing, and no accuser is named,
    since nobody could check the name."""

    peer: Annotated[str, Length(1, 64)]
    incarnation: U64


@dataclass(frozen=True, slots=True)
class Gone:
    """A signed Departure."""

    envelope: RawEnvelope


Rumour: TypeAlias = Alive | Suspect | Gone
Rumours = Annotated[tuple[Alive | Suspect | Gone, ...], Length(0, MAX_RUMOURS)]


# --- messages --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Answered with Ack of the same sequence."""

    sequence: U32
    rumours: Rumours = ()


@dataclass(frozen=True, slots=True)
class Ack:
    sequence: U32
    rumours: Rumours = ()


@dataclass(frozen=True, slots=True)
class PingRequest:
    """Ping `target` for me: answered with Ack when it answers you, else with Nack."""

    sequence: U32
    target: Annotated[str, Length(1, 64)]
    rumours: Rumours = ()


@dataclass(frozen=True, slots=True)
class Nack:
    """I am here, your target did not answer me."""

    sequence: U32


@dataclass(frozen=True, slots=True)
class Sync:
    """Which peers do you know whose id sorts after this one? Anybody may ask, also without being a member.

    limit: of records in the answer.
    """

    after: Annotated[str, Length(0, 64)] = ""
    limit: Annotated[int, Range(1, MAX_PAGE_RECORDS)] = MAX_PAGE_RECORDS


@dataclass(frozen=True, slots=True)
class Page:
    """Signed PeerRecords in ascending order of peer id, without those suspected: a suspect that lives will be heard
    of by its refutation. more: there are others behind the last."""

    records: Annotated[tuple[RawEnvelope, ...], Length(0, MAX_PAGE_RECORDS)]
    more: bool


Message: TypeAlias = Ping | Ack | PingRequest | Nack | Sync | Page


def frames() -> Frames:
    return Frames((Ping, Ack, PingRequest, Nack, Sync, Page), limit=MAX_FRAME_BYTES)  # wire tag = position


def open_peer_record(raw: bytes) -> Signed[PeerRecord]:
    """Verify a PeerRecord: signature, text fit for a terminal, addresses that lead to the signer and nobody else."""
    signed = open_envelope(PeerRecord, raw, limit=MAX_RECORD_BYTES)
    own = f"/p2p/{signed.signer}"
    record = signed.record
    for address in record.addresses:
        if not (address.startswith("/") and address.endswith(own) and address.isascii() and address.isprintable()):
            raise ProtocolViolation(f"address of {signed.signer[-8:]} does not lead to it", peer=signed.signer)
    told = record.capabilities
    if not all(
        text.isprintable()
        for text in (record.nickname, told.device, told.region, told.audit_class, told.isolation, *told.roles)
    ):
        raise ProtocolViolation(f"record of {signed.signer[-8:]} holds unprintable text", peer=signed.signer)
    return signed


def open_departure(raw: bytes) -> tuple[PeerId, int]:
    """Verify a Departure: who left, and up to which incarnation."""
    signed = open_envelope(Departure, raw, limit=64)
    return signed.signer, signed.record.incarnation


def read_page(
    page: Page, after: str, peer: PeerId, open_record: Callable[[bytes], Signed[PeerRecord]] = open_peer_record
) -> list[Signed[PeerRecord]]:
    """The verified records of a page that `peer` sent in answer to Sync(after).

    Raises ProtocolViolation for records out of order and for a page that promises more without getting any further.
    """
    records = [open_record(raw) for raw in page.records]
    for signed in records:
        if signed.signer <= after:
            raise ProtocolViolation("a page out of order", peer=peer)
        after = signed.signer
    if page.more and not records:
        raise ProtocolViolation("an empty page that is not the last", peer=peer)
    return records


# --- sizes, known without encoding -----------------------------------------------------------------------------


def rumour_bytes(rumour: Rumour) -> int:
    """Bytes of a rumour inside a message."""
    if isinstance(rumour, Suspect):
        return 3 + _text_bytes(rumour.peer) + _int_bytes(rumour.incarnation)
    return 3 + _binary_bytes(rumour.envelope)


def message_bytes(message: Message) -> int:
    """Length of the whole frame, equal to what encoding gives."""
    frame = LENGTH_PREFIX_BYTES + 3  # [tag, [fields…]]
    match message:
        case Ping(sequence, rumours) | Ack(sequence, rumours):
            return frame + _int_bytes(sequence) + _rumours_bytes(rumours)
        case PingRequest(sequence, target, rumours):
            return frame + _int_bytes(sequence) + _text_bytes(target) + _rumours_bytes(rumours)
        case Nack(sequence):
            return frame + _int_bytes(sequence)
        case Sync(after, limit):
            return frame + _text_bytes(after) + _int_bytes(limit)
        case Page(records, _):
            return frame + _items_bytes(len(records)) + sum(map(_binary_bytes, records)) + 1


def _rumours_bytes(rumours: tuple[Rumour, ...]) -> int:
    return _items_bytes(len(rumours)) + sum(map(rumour_bytes, rumours))


def _items_bytes(count: int) -> int:
    return 1 if count <= 15 else 3


def _int_bytes(value: int) -> int:
    return 1 if value < 128 else 2 if value < 1 << 8 else 3 if value < 1 << 16 else 5 if value < 1 << 32 else 9


def _text_bytes(text: str) -> int:
    size = len(text.encode("utf-8"))
    return size + (1 if size <= 31 else 2)


def _binary_bytes(data: bytes) -> int:
    return len(data) + (2 if len(data) < 1 << 8 else 3)
