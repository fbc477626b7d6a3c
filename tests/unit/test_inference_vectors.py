from __future__ import annotations

from celluler_protocols.inference import PROTOCOL_ID, Predict, Predicted, Refusal, frames, refuse
from tests.support.vectors import check_vectors

SIX_FLOATS = bytes(range(24))


def test_the_golden_bytes_of_the_inference_protocol() -> None:
    check_vectors(
        "inference",
        PROTOCOL_ID,
        frames(),
        [
            Predict("alice/digits:1.0.0", "raw", "float32", (2, 3), SIX_FLOATS),
            Predict("alice/words@stable", "labels", "int64", (1, 3), SIX_FLOATS),
            Predicted("float32", (2, 3), SIX_FLOATS, bytes(range(32)), 7),
            Predicted("float32", (2, 3), SIX_FLOATS, bytes(range(32)), 7, b"an envelope"),
            refuse(Refusal.NOT_FOUND, "not found: alice/digits:1.0.0"),
            refuse(Refusal.FAILED, ""),
        ],
    )
