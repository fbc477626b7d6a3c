from __future__ import annotations

from celluler_protocols.inference import Refusal, refuse
from celluler_protocols.leases import PROTOCOL_ID, Keep, Kept, Release, Released, frames
from tests.support.vectors import check_vectors

MODEL = bytes(range(32))


def test_the_golden_bytes_of_the_lease_protocol() -> None:
    check_vectors(
        "leases",
        PROTOCOL_ID,
        frames(),
        [
            Keep(MODEL, 60, 10_000),
            Release(MODEL),
            Kept(60, ready=True),
            Kept(1, ready=False),
            Released(),
            refuse(Refusal.DENIED, "this node keeps models for members alone"),
        ],
    )
