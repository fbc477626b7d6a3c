from __future__ import annotations

from celluler.inference.questions import Message, Question
from celluler.inference.sampling import Sampling
from celluler_protocols.generation import PROTOCOL_ID, Load, LoadOf, Loads, frames
from celluler_protocols.generation.messages import (
    Alive,
    Begun,
    Finished,
    Likely,
    Over,
    Poll,
    Said,
    Stop,
    Token,
    generate_of,
    pack_tokens,
)
from celluler_protocols.inference import Refusal, refuse
from tests.support.vectors import check_vectors

DRAWN = Sampling(temperature=0.5, top_p=0.9, top_k=40, seed=2**64 - 1, choice=1, logprobs=2)
LOAD = Load(3, 1, 16)


def test_the_golden_bytes_of_the_generation_protocol() -> None:
    turns = (Message("system", "Be brief."), Message("user", "Où?"))
    check_vectors(
        "generation",
        PROTOCOL_ID,
        frames(),
        [
            generate_of("alice/writer:1.0.0", Question("Once upon", max_tokens=8, sampling=DRAWN, n=2)),
            generate_of("alice/writer@stable", Question((1, 2, 70000), max_tokens=9, given=(4, 5), timeout_s=1.5)),
            generate_of("alice/writer", Question(turns, schema=b'{"type":"object"}')),
            Stop(1),
            Poll(),
            Begun(bytes(range(32)), pack_tokens("prompt", (1, 2, 70000)), LOAD),
            Said(1, (Token(7, "né", -0.25, (Likely(7, -0.25, "né"), Likely(9, -1.5))), Token(8, "", None, ()))),
            Over(1, 0, 3),
            Finished(3, 6, 2, b"signed", LOAD),
            Alive(LOAD),
            Loads((LoadOf(bytes(range(32)), LOAD),)),
            refuse(Refusal.BUSY, "too many questions at once"),
        ],
    )
