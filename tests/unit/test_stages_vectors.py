from __future__ import annotations

from celluler_protocols.generation.messages import Drawing, Likely, OfText, OfTurns, Token, Turn
from celluler_protocols.inference import Refusal, refuse
from celluler_protocols.stages_messages import (
    DRAW,
    HIDDEN,
    KEEP,
    PROTOCOL_ID,
    Begin,
    Drawn,
    End,
    Failed,
    Forward,
    Held,
    Hidden,
    OpenStage,
    Read,
    StageReady,
    Tokens,
    Unread,
    frames,
)
from tests.support.vectors import check_vectors

THREE_TOKENS = bytes([1, 0, 0, 0, 255, 255, 0, 0, 7, 0, 0, 0])
SAMPLED = Drawing(0.5, 0.25, 40, 1 << 63, 1, 2)


def test_the_golden_bytes_of_the_stage_protocol() -> None:
    check_vectors(
        "stages",
        PROTOCOL_ID,
        frames(),
        [
            OpenStage(bytes(range(32)), 0, 12, 4, 2048, "bfloat16"),
            StageReady(4, 1 << 28, 1 << 24, True),
            refuse(Refusal.BUSY, "there is not the memory for this stage here"),
            Read(OfText("What is the capital of France?")),
            Read(OfTurns((Turn("system", "Be brief."), Turn("user", "The capital of France?")))),
            Tokens(THREE_TOKENS),
            Unread(Refusal.BAD_REQUEST.value, "prompt: holds a text, and this model makes no tokens of texts"),
            Begin(0, None, b""),
            Begin(3, SAMPLED, THREE_TOKENS),
            Forward(0, 0, 3, KEEP, 0, THREE_TOKENS),
            Forward(1, 3, 1, HIDDEN, 0, bytes(16)),
            Forward(3, 70, 1, DRAW, 5, bytes(16)),
            Held(0, 3),
            Hidden(1, 4, bytes(16)),
            Drawn(3, 71, Token(7, " Paris", -0.25, (Likely(7, -0.25), Likely(8, -2.5)))),
            Drawn(3, 71, None),
            Failed(1, Refusal.FAILED.value, "the worker of a stage ended"),
            End(1),
        ],
    )
