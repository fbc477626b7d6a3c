from __future__ import annotations

from celluler_protocols.averaging_messages import (
    PROTOCOL_ID,
    Have,
    Part,
    Ready,
    Reduced,
    Refused,
    Taken,
    Update,
    Want,
    frames,
)
from tests.support.vectors import check_vectors

RUN = bytes(range(32))


def test_messages_are_these_bytes() -> None:
    check_vectors(
        "averaging",
        PROTOCOL_ID,
        frames(),
        [
            Part(RUN, 7, 0, 3, 4_000_000),
            Reduced(RUN, 7, 1, b"s" * 32, 3, -19, 0b10111, (4, 3, 2, 0, 0), b"d" * 32, 4_000_000),
            Want(RUN, 7, 3, 4),
            Have(4_000_000),
            Ready(),
            Taken(),
            Refused("bytes other than those committed to", True),
            Update(RUN, 7, 0, 20_000_000),
        ],
    )
