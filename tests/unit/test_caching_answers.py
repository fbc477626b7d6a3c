"""The cache of answers against a plain account of what it may hold; keys that hold all that matters."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.content.digest import digest_of
from celluler.inference.caching_answers import ENTRY_BYTES, LARGEST_SHARE, AnswerCache, prediction_key, question_key
from celluler.inference.questions import Message, Question
from celluler.inference.sampling import GREEDY, Sampling
from celluler.tensors import tensor_of

MODEL, OTHER = digest_of(b"one"), digest_of(b"another")
ROOM = 10 * LARGEST_SHARE * ENTRY_BYTES


def test_what_was_asked_is_answered_again_until_it_is_too_old() -> None:
    cache = AnswerCache[str](ROOM, ttl_s=10.0)
    assert cache.get(b"a", 0.0) is None
    cache.put(b"a", "answer", 10, 0.0)
    assert cache.get(b"a", 9.9) == "answer"
    assert cache.get(b"a", 10.0) is None
    assert (cache.hits, cache.misses, cache.used_bytes) == (1, 2, 0)


def test_what_is_used_least_recently_goes_first() -> None:
    cache = AnswerCache[int](16 * ENTRY_BYTES)
    for place in range(8):
        cache.put(bytes([place]), place, ENTRY_BYTES, 0.0)
    assert cache.get(b"\0", 1.0) == 0
    cache.put(b"new", 9, ENTRY_BYTES, 1.0)
    assert cache.get(b"\1", 2.0) is None
    assert cache.get(b"\0", 2.0) == 0
    assert cache.evicted == 1


def test_what_is_too_large_is_not_kept_and_pushes_nothing_out() -> None:
    cache = AnswerCache[int](ROOM)
    cache.put(b"small", 1, 1, 0.0)
    cache.put(b"large", 2, ROOM // LARGEST_SHARE, 0.0)
    assert (cache.get(b"large", 0.0), cache.get(b"small", 0.0)) == (None, 1)


steps = st.lists(
    st.tuples(st.sampled_from(["put", "get"]), st.integers(0, 12), st.integers(0, 12_000), st.floats(0, 8)), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_it_never_holds_more_than_it_may_nor_gives_what_was_not_put(steps: list[tuple[str, int, int, float]]) -> None:
    cache, truth, now = AnswerCache[int](ROOM, ttl_s=20.0), dict[bytes, tuple[int, float]](), 0.0
    for place, (kind, which, size, pause_s) in enumerate(steps):
        now += pause_s
        key = bytes([which])
        if kind == "put":
            cache.put(key, place, size, now)
            truth[key] = place, now
        else:
            found = cache.get(key, now)
            assert found is None or (found == truth[key][0] and now < truth[key][1] + 20.0)
        assert 0 <= cache.used_bytes <= ROOM
        assert len(cache) * ENTRY_BYTES <= cache.used_bytes


def test_a_prediction_of_anything_else_has_another_key() -> None:
    inputs = tensor_of([[1.0, 2.0]])
    keys = [
        prediction_key("", MODEL, inputs, "raw"),
        prediction_key("key:abc", MODEL, inputs, "raw"),
        prediction_key("", OTHER, inputs, "raw"),
        prediction_key("", MODEL, inputs, "labels"),
        prediction_key("", MODEL, tensor_of([[1.0, 3.0]]), "raw"),
        prediction_key("", MODEL, replace(inputs, shape=(2, 1)), "raw"),
        prediction_key("", MODEL, replace(inputs, dtype="int32"), "raw"),
    ]
    assert len(set(keys)) == len(keys)
    assert prediction_key("", MODEL, tensor_of([[1.0, 2.0]]), "raw") == keys[0]


OTHERWISE: dict[str, Any] = {
    "prompt": (Message("user", "hello"),),
    "max_tokens": 7,
    "sampling": Sampling(temperature=0.0, logprobs=2),
    "n": 2,
    "stop": ("end",),
    "given": (1, 2),
    "schema": b"{}",
    "stages": 3,
}
ASKED = Question("hello", max_tokens=9, sampling=GREEDY)


@pytest.mark.parametrize("name", [item.name for item in fields(Question) if item.name != "timeout_s"])
def test_another_question_has_another_key(name: str) -> None:
    other = replace(ASKED, **{name: OTHERWISE[name]})
    assert question_key("", MODEL, other, seeded=False) != question_key("", MODEL, ASKED, seeded=False)


def test_only_what_would_be_said_again_has_a_key() -> None:
    drawn = Question("hello", sampling=Sampling(seed=7))
    assert question_key("", MODEL, drawn, seeded=False) is None
    seeded = question_key("", MODEL, drawn, seeded=True)
    assert seeded is not None
    assert seeded != question_key("", MODEL, replace(drawn, sampling=Sampling(seed=8)), seeded=True)
    greedy = question_key("", MODEL, ASKED, seeded=False)
    assert greedy == question_key("", MODEL, replace(ASKED, timeout_s=3.0), seeded=True)
    assert greedy == question_key("", MODEL, replace(ASKED, sampling=replace(GREEDY, seed=5)), seeded=False)
    assert greedy != question_key("key:abc", MODEL, ASKED, seeded=False)
