"""What servers sign of their answers, and what becomes evidence of it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.content.digest import digest_of
from celluler.errors import BadSignature, InvalidSpec, PeerViolation, ProtocolViolation
from celluler.identity import Identity
from celluler.inference.questions import Begun, Event, Finished, Over, Question, Said
from celluler.inference.sampling import Chosen, Sampling
from celluler.wire import unpack
from celluler_protocols.answer_evidence import MARK, AnswerEvidence, answer_evidence, open_answer_evidence
from celluler_protocols.inference import Predict, Predicted
from celluler_protocols.receipts import (
    AskedText,
    Heard,
    asked_prediction,
    check_receipt,
    predicted_answer,
    sign_receipt,
)
from tests.support.vectors import FOLDER

SERVER, OTHER = Identity(b"s" * 32), Identity(b"o" * 32)
MODEL = digest_of(b"a manifest")
QUESTION = Question("a text", max_tokens=9, sampling=Sampling(0.7, seed=5, logprobs=1), n=2, given=())
BEGUN = Begun(MODEL, (3, 1, 4))
EVENTS: tuple[Event, ...] = (
    Said(0, "ab", (Chosen(7, -0.5, ((7, -0.5),)), Chosen(8, -1.5, ((2, -0.25),)))),
    Said(1, "c", (Chosen(9, -0.125, ((9, -0.125),)),)),
    Over(1, "stop", 2),
    Over(0, "length", 2),
    Finished(3, 4, 0),
)


def at(_: float = 0.0) -> float:
    return 1_700_000_000.5


def heard(events: tuple[Event, ...] = EVENTS, question: Question = QUESTION, begun: Begun = BEGUN) -> Heard:
    collected = Heard(begun, question)
    for event in events:
        collected.take(event)
    return collected


def test_both_sides_of_an_answer_come_to_the_same_receipt() -> None:
    raw = heard().sign(SERVER, at)
    receipt = heard().check(raw, SERVER.peer_id)
    assert (receipt.model, receipt.ended, receipt.at_s) == (MODEL, 0b10, 1_700_000_000)


def test_how_tokens_came_does_not_matter() -> None:
    said = EVENTS[0]
    assert isinstance(said, Said)
    cut = tuple(Said(0, "", (one,)) for one in said.tokens)
    heard((*cut, *EVENTS[1:])).check(heard().sign(SERVER, at), SERVER.peer_id)


def test_an_answer_that_was_stopped_did_not_end_by_itself_and_a_late_stop_is_no_lie() -> None:
    asker, server = heard(EVENTS[:2]), heard(EVENTS[:2])
    asker.stop(1)
    for event in EVENTS[2:]:
        asker.take(event)
        server.take(event)
    server.stop(1)  # came too late
    assert asker.check(server.sign(SERVER, at), SERVER.peer_id).ended == 0b10
    stopped = heard(EVENTS[:2])
    stopped.stop(1)
    for event in EVENTS[2:]:
        stopped.take(event)
    assert asker.check(stopped.sign(SERVER, at), SERVER.peer_id).ended == 0
    with pytest.raises(ProtocolViolation):
        heard().check(stopped.sign(SERVER, at), SERVER.peer_id)  # nobody asked it to stop


@pytest.mark.parametrize(
    "other",
    [
        heard(begun=replace(BEGUN, prompt=(3, 1, 5))),
        heard(begun=replace(BEGUN, model=digest_of(b"another"))),
        heard(question=replace(QUESTION, sampling=Sampling(0.7, seed=6, logprobs=1))),
        heard(question=replace(QUESTION, max_tokens=8)),
        heard((Said(0, "ab", (Chosen(7, -0.5), Chosen(8))), *EVENTS[1:])),
        heard((*EVENTS[:3], Over(0, "stop", 2))),
    ],
)
def test_a_receipt_of_anything_else_is_none(other: Heard) -> None:
    with pytest.raises(ProtocolViolation):
        other.check(heard().sign(SERVER, at), SERVER.peer_id)


def test_a_receipt_of_somebody_else_is_none() -> None:
    with pytest.raises(BadSignature):
        heard().check(heard().sign(OTHER, at), SERVER.peer_id)


def evidence(choice: int = 1) -> bytes:
    collected = heard()
    return answer_evidence(collected.sign(SERVER, at), collected.asked, collected.answers[choice], choice)


def test_evidence_names_who_answered_what() -> None:
    case = open_answer_evidence(evidence())
    assert (case.peer, case.model, case.choice, case.ended) == (SERVER.peer_id, MODEL, 1, True)
    claim = case.claim(ends=(2, 6))
    assert (claim.prompt, claim.tokens, claim.ends, claim.place) == ((3, 1, 4), (9,), (2, 6), 0)
    assert (claim.sampling.choice, claim.sampling.seed) == (1, 5)
    assert open_answer_evidence(evidence(0)).claim(ends=(2, 6)).ends == ()


def test_what_was_given_stands_in_front_of_the_claim() -> None:
    question = replace(QUESTION, n=1, given=(5, 5))
    collected = heard((EVENTS[0], EVENTS[3], EVENTS[4]), question)
    case = open_answer_evidence(answer_evidence(collected.sign(SERVER, at), collected.asked, collected.answers[0]))
    claim = case.claim()
    assert (claim.prompt, claim.place, claim.tokens) == ((3, 1, 4, 5, 5), 2, (7, 8))


def test_answers_bound_to_a_schema_are_no_claims() -> None:
    collected = heard(question=replace(QUESTION, schema=b"{}"))
    case = open_answer_evidence(answer_evidence(collected.sign(SERVER, at), collected.asked, collected.answers[0]))
    with pytest.raises(InvalidSpec, match="schema"):
        case.claim()


def test_evidence_that_was_put_together_from_others_is_refused() -> None:
    file = unpack(AnswerEvidence, evidence()[len(MARK) :], limit=1 << 20)
    assert isinstance(file.asked, AskedText)
    for wrong in (
        replace(file, choice=0),
        replace(file, choice=5),
        replace(file, asked=replace(file.asked, seed=1)),
        replace(file, answer=heard().answers[0]),
        replace(file, receipt=heard(EVENTS[:1] + EVENTS[2:]).sign(SERVER, at)),
    ):
        with pytest.raises(PeerViolation):
            open_answer_evidence(answer_evidence(wrong.receipt, wrong.asked, wrong.answer, wrong.choice))


def test_predictions_have_receipts_too() -> None:
    request = Predict("alice/digits", "raw", "float32", (2, 3), bytes(24))
    answer = Predicted("float32", (2, 10), bytes(80), MODEL, 3)
    asked, told = asked_prediction(request), predicted_answer(answer)
    raw = sign_receipt(SERVER, MODEL, asked, [told], clock=at)
    check_receipt(raw, SERVER.peer_id, MODEL, asked, [told])
    case = open_answer_evidence(answer_evidence(raw, asked, told))
    assert (case.answer, case.ended) == (told, False)
    with pytest.raises(InvalidSpec):
        case.claim()
    with pytest.raises(ProtocolViolation):
        check_receipt(raw, SERVER.peer_id, MODEL, replace(asked, data=bytes(23) + b"a"), [told])
    with pytest.raises(ProtocolViolation):
        open_answer_evidence(answer_evidence(raw, asked, heard().answers[0]))


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 600), st.integers(0, 255))
def test_garbage_is_a_violation_and_nothing_else(more: bytes, place: int, byte: int) -> None:
    raw = bytearray(evidence())
    raw[place % len(raw)] ^= byte
    for text in (bytes(raw), MARK + more, evidence() + more):
        with suppress(PeerViolation, InvalidSpec):
            open_answer_evidence(text)


def test_the_golden_bytes_of_receipts_and_evidence() -> None:
    path = FOLDER / "receipts.json"
    golden = {
        "seed": SERVER.seed.hex(),
        "signer": SERVER.peer_id,
        "receipt": heard().sign(SERVER, at).hex(),
        "evidence": evidence().hex(),
    }
    if os.environ.get("CELLULER_WRITE_VECTORS"):
        path.write_text(json.dumps(golden, indent=1) + "\n")
    assert json.loads(path.read_text()) == golden
