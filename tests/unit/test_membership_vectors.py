"""The words of /celluler/swim/1, byte for byte."""

from __future__ import annotations

from celluler.identity import Identity, seal
from celluler_protocols.membership.messages import (
    PROTOCOL_ID,
    Ack,
    Alive,
    Capabilities,
    Departure,
    Gone,
    Nack,
    Page,
    PeerRecord,
    Ping,
    PingRequest,
    Suspect,
    Sync,
    frames,
    message_bytes,
)
from tests.support.vectors import check_vectors

ALICE, BOB = Identity(bytes(32)), Identity(bytes([1]) * 32)


def record_of(identity: Identity, incarnation: int) -> bytes:
    addresses = (f"/ip4/192.0.2.1/tcp/4001/p2p/{identity.peer_id}",)
    capabilities = Capabilities(8, 16_384, "cuda", ("train", "serve"), "eu-west", "x86_64-avx512-t8", "full")
    return seal(identity, PeerRecord(addresses, incarnation, "alice", capabilities))


def examples() -> list[object]:
    alive, gone = Alive(record_of(ALICE, 1_700_000_000)), Gone(seal(BOB, Departure(1_700_000_001)))
    return [
        Ping(1),
        Ping(2**32 - 1, (alive, Suspect(BOB.peer_id, 1_700_000_001), gone)),
        Ack(1, (alive,)),
        PingRequest(300, BOB.peer_id, (Suspect(ALICE.peer_id, 2**64 - 1),)),
        Nack(70_000),
        Sync(),
        Sync(ALICE.peer_id, 8),
        Page((), False),
        Page((record_of(BOB, 7), alive.envelope), True),
    ]


def test_every_message_has_its_golden_bytes() -> None:
    check_vectors("membership", PROTOCOL_ID, frames(), examples())


def test_the_size_of_a_message_is_known_without_encoding_it() -> None:
    words = frames()
    many = [
        Ping(127, (Suspect(ALICE.peer_id, 1),) * 16),
        Ping(128, (Suspect(ALICE.peer_id, 300),) * 15),
        Page((b"\0" * 255, b"\0" * 256), False),
        Page((b"x",) * 16, True),
        Sync("", 64),
    ]
    for message in [*examples(), *many]:
        assert message_bytes(message) == len(words.encode(message))  # type: ignore[arg-type]
