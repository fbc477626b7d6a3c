"""Answers bound to a schema follow it, whatever the model would rather say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from celluler.content.digest import Digest
from celluler.engines.generation import constraint
from celluler.engines.generation.constraint import Schemas
from celluler.engines.transforms.decoding import TokenizerCodec
from celluler.errors import InvalidSpec, Unavailable
from celluler.inference.questions import Over, Question, Said
from celluler.inference.sampling import GREEDY, Sampling, UndefinedLogits, choose
from celluler.models.body import parse_body
from celluler.models.interface import read_interface
from celluler.models.transforms.decoding import ByteCodec, TextCodec, VocabularyCodec, decoded
from celluler.models.transforms.texts import ByteTokens, Tokenise
from celluler_node.serving.generating import open_generating
from celluler_node.serving.writing import open_writing
from tests.support.generating import Worked, reciting

pytest.importorskip("llguidance")
tokenizers = pytest.importorskip("tokenizers")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bé"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
RAW = json.dumps(SCHEMA).encode()


def byte_level() -> Any:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({one: n for n, one in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    return made


ENTRIES = tuple(sorted({*'{}[]",: 0123456789ab', "é", "name", "age", "tags", '":', "ev", "il"}))
CODECS: dict[str, tuple[TextCodec, int, tuple[int, ...]]] = {
    "bytes": (ByteCodec(ByteTokens(64, offset=3, begin=1, end=2)), 259, (2,)),
    "bytes without an end": (ByteCodec(ByteTokens(64)), 256, ()),
    "entries": (VocabularyCodec(Tokenise(entries=ENTRIES, length=64, end=90)), 91, (90,)),
    "tokenizer": (TokenizerCodec(byte_level(), ends=(256,)), 300, (256,)),
    "tokenizer without an end": (TokenizerCodec(byte_level()), 300, ()),
}


def drawn(
    schemas: Schemas, vocabulary: int, ends: tuple[int, ...], seed: int, given: tuple[int, ...] = ()
) -> list[int]:
    """What a model of which nobody knows anything says, bound to the schema."""
    bound, tokens = schemas.bind(RAW), list(given)
    for token in given:
        bound.take(token)
    while not bound.over:
        random = np.random.default_rng(len(tokens)).normal(size=vocabulary)
        token = choose(random, Sampling(seed=seed), len(tokens), bound.allowed()).token
        if token in ends:
            break
        bound.take(token)
        tokens.append(token)
        assert len(tokens) < 400
    return tokens


@pytest.mark.parametrize("name", CODECS)
def test_whatever_is_drawn_follows_the_schema(name: str) -> None:
    codec, vocabulary, ends = CODECS[name]
    schemas = Schemas(codec, vocabulary, ends)
    for seed in range(4):
        tokens = drawn(schemas, vocabulary, ends, seed)
        told = json.loads(decoded(codec, tokens))
        assert told.keys() == {"name", "age", "tags"}
        assert isinstance(told["name"], str)
        assert len(told["name"]) <= 6
        assert 0 <= told["age"] <= 150
        assert set(told["tags"]) <= {"a", "bé"}
        assert 1 <= len(told["tags"]) <= 3
        half = tuple(tokens[: len(tokens) // 2])
        assert drawn(schemas, vocabulary, ends, seed, half) == tokens


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[]", "schema"),
        (b'{"type": "wrong"}', "wrong"),
        (b'{"type": "object", "$ref": "https://example.org/x.json"}', "schema"),
        (b'{"type": "string", "pattern": "(a"}', "schema"),
    ],
)
def test_what_is_no_schema_or_cannot_be_followed_is_refused(schema: bytes, problem: str) -> None:
    codec, vocabulary, ends = CODECS["bytes"]
    with pytest.raises(InvalidSpec, match=problem) as caught:
        Schemas(codec, vocabulary, ends).bind(schema)
    assert caught.value.path == "schema"


def test_behind_a_token_that_was_not_allowed_nothing_is() -> None:
    codec, vocabulary, ends = CODECS["bytes"]
    bound = Schemas(codec, vocabulary, ends).bind(RAW)
    bound.take(codec.encode("x")[1])
    assert not bound.allowed().any()
    assert not bound.over
    with pytest.raises(UndefinedLogits):
        choose(np.zeros(vocabulary), GREEDY, 0, bound.allowed())


def test_what_is_not_allowed_is_not_drawn_and_probabilities_are_the_models() -> None:
    logits, allowed = np.log([0.5, 0.25, 0.125, 0.125]), np.array([False, True, True, False])
    chosen = choose(logits, Sampling(temperature=0.0, logprobs=2), 0, allowed)
    assert (chosen.token, [token for token, _ in chosen.top]) == (1, [0, 1])
    assert chosen.logprob == pytest.approx(np.log(0.25))
    tokens = {choose(logits, Sampling(seed=seed), 0, allowed).token for seed in range(40)}
    assert tokens == {1, 2}


async def test_an_answer_is_bound_and_over_when_nothing_more_is_allowed(tmp_path: Path, autojump_clock: Any) -> None:
    model = reciting(b'abc{"ok":tru}', tmp_path)
    interface = read_interface(parse_body(model.body, model.spec), model.preprocess)
    worked = Worked(tmp_path, model)
    schema = (
        b'{"type": "object", "properties": {"ok": {"const": true}}, "required": ["ok"], "additionalProperties": false}'
    )
    async with open_writing(worked.call, interface, Digest(b"m" * 32), None, on_failure=lambda: None) as writing:
        assert writing is not None
        for question in (Question("ab", 40, GREEDY, schema=schema), Question("ab", 40, GREEDY, n=2, schema=schema)):
            async with writing.ask(question, "alice", 1000.0) as answering:
                events = [event async for event in answering]
            for choice in range(question.n):
                told = "".join(event.text for event in events if isinstance(event, Said) and event.choice == choice)
                assert json.loads(told) == {"ok": True}
            assert {event.reason for event in events if isinstance(event, Over)} == {"stop"}
        given = tuple(b'{"ok"')
        async with writing.ask(Question("ab", 40, GREEDY, given=given, schema=schema), "alice", 1000.0) as answering:
            rest = "".join([event.text async for event in answering if isinstance(event, Said)])
        assert json.loads(bytes(given).decode() + rest) == {"ok": True}
        with pytest.raises(InvalidSpec, match="schema"):
            async with writing.ask(Question("ab", 40, GREEDY, schema=b"{"), "alice", 1000.0):
                pass
        assert writing.running == 0


async def test_whoever_has_not_got_what_it_needs_says_that_others_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraint, "PACKAGE", "no_such_package")
    worked = Worked(tmp_path, reciting(b"ab", tmp_path))
    async with open_generating(worked.call, slots=1) as generating:
        with pytest.raises(Unavailable, match="llguidance is not installed"):
            await generating.bind(RAW)
