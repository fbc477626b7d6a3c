"""Tokens back to text: whole characters alone, and the same text however it is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.engines.predict import Predictor
from celluler.engines.transforms.decoding import TokenizerCodec, codec_of
from celluler.engines.transforms.served import Served
from celluler.models.interface import read_interface
from celluler.models.spec import Architecture, parse_spec
from celluler.models.transforms.decoding import TextCodec, decoded

tokenizers = pytest.importorskip("tokenizers")


def body(vocabulary: int, places: int = 16) -> Architecture:
    layers = [
        {"kind": "embedding", "vocabulary": vocabulary, "width": 4},
        {"kind": "positions"},
        {"kind": "dense", "width": vocabulary},
    ]
    return parse_spec(
        {
            "spec": 1,
            "input": {"dtype": "int64", "shape": [places]},
            "layers": layers,
            "objective": {"kind": "next_token", "vocabulary": vocabulary},
        }
    )


def codec(step: dict[str, Any], *, vocabulary: int = 300, file: Path | None = None) -> TextCodec:
    document = {
        "transforms": 1,
        "input": {"name": "text", "dtype": "text", "shape": [64]},
        "steps": [step | {"length": 16}],
    }
    found = codec_of(read_interface(body(vocabulary), document), file)
    assert found is not None
    return found


BYTES = {"kind": "byte_tokens", "offset": 3, "begin": 1, "end": 2}
WORDS = {"kind": "tokenise", "entries": ["a", "bé", "é", " ", "x"], "begin": 7, "end": 8, "unknown": 9, "pad": 10}


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
@settings(max_examples=40, deadline=None)
def test_a_text_of_bytes_comes_back_in_whole_characters(text: str) -> None:
    made = codec(BYTES)
    stream = made.stream()
    parts = []
    for token in [*made.encode(text), 2]:
        peeked = [stream.peek(other) for other in (token, 170, token)]
        parts.append(stream.feed(token))
        assert peeked[0] == peeked[2] == parts[-1]
    assert "".join(parts) == text
    assert all("\ufffd" not in part or "\ufffd" in text for part in parts)
    assert not stream.end()


def test_what_is_no_character_is_told_as_such_at_the_end() -> None:
    stream = codec(BYTES).stream()
    assert [stream.feed(token) for token in (3 + 0xE2, 3 + 0x82)] == ["", ""]
    assert stream.end() == "\ufffd"
    assert decoded(codec(BYTES), [-5, 0, 1, 2, 299, 1 << 60]) == ""


def test_entries_come_back_and_numbers_around_them_do_not() -> None:
    made = codec(WORDS)
    assert made.encode("abé x?") == [7, 0, 1, 3, 4, 9]
    assert decoded(made, [7, 0, 1, 3, 4, 9, 10, 8, 1 << 40]) == "abé x"


def byte_level() -> Any:
    """As GPT-2's, of bytes alone: every character that is no ASCII takes several tokens."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({one: n for n, one in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    return made


def metaspace() -> Any:
    """As Llama's: a space is part of the word behind it, and the first of a text is none."""
    words = {one: n for n, one in enumerate(("<unk>", "▁hello", "▁world", "▁", "h", "é"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    return made


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12))
@settings(max_examples=30, deadline=None)
def test_a_tokenizer_of_bytes_streams_whole_characters(text: str) -> None:
    made = TokenizerCodec(byte_level())
    stream = made.stream()
    parts = []
    for token in [*made.encode(text), 256, 1 << 40, -1]:
        peeked = [stream.peek(other) for other in (token, 7, token)]
        parts.append(stream.feed(token))
        assert peeked[0] == peeked[2] == parts[-1]
    assert "".join([*parts, stream.end()]) == text
    assert all("\ufffd" not in part or "\ufffd" in text for part in parts)


def test_spaces_between_words_are_told_and_none_before_the_first() -> None:
    made = TokenizerCodec(metaspace())
    stream = made.stream()
    tokens = made.encode("hello world hello")
    assert [stream.feed(token) for token in tokens] == ["hello", " world", " hello"]
    assert not stream.end()


def test_what_never_becomes_a_character_is_not_waited_for_without_end() -> None:
    made = TokenizerCodec(byte_level())
    half = made.encode("€")[0]
    stream = made.stream()
    told = "".join(stream.feed(half) for _ in range(100))
    assert 80 <= len(told) <= 100
    assert set(told) == {"\ufffd"}


def test_the_codec_is_of_the_models_own_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level().to_str(), encoding="utf-8")
    made = codec({"kind": "tokenizer"}, file=tmp_path / "tokenizer.json")
    assert decoded(made, made.encode("né €")) == "né €"
    inline = codec({"kind": "tokenizer", "tokenizer": json.loads(byte_level().to_str())})
    assert inline.encode("né €") == made.encode("né €")


def test_a_tokenizers_marks_are_told_as_texts_and_left_out_of_a_text_that_holds_them(tmp_path: Path) -> None:
    made = byte_level()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 256)])
    (tmp_path / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    read = codec({"kind": "tokenizer", "begin": 70, "ends": [256, 3]}, file=tmp_path / "tokenizer.json")
    assert read.marks == {"bos_token": byte_level().id_to_token(70), "eos_token": "<end>"}
    assert read.encode("ab")[0] == read.encode("ab<end>", marked=True)[-1] == 256
    assert len(read.encode("ab")) == len(read.encode("ab<end>", marked=True)) == 3
    assert decoded(read, read.encode("ab<end>")) == "ab"
    assert codec({"kind": "tokenizer", "begin": 1 << 19}, file=tmp_path / "tokenizer.json").marks == {}
    assert codec(BYTES).marks == codec(WORDS).marks == {}


def test_tokens_behind_which_a_text_is_over_are_told_by_its_step() -> None:
    steps = [
        (BYTES, {2}),
        (WORDS, {8}),
        ({"kind": "byte_tokens"}, set()),
        ({"kind": "tokenizer", "ends": [4, 2]}, {2, 4}),
    ]
    for step, ends in steps:
        text = {"name": "text", "dtype": "text", "shape": [16]}
        document = {"transforms": 1, "input": text, "steps": [step | {"length": 16}]}
        assert read_interface(body(300), document).ends == ends
    assert read_interface(body(300)).ends == set()


def test_what_follows_a_text_is_told_where_its_last_token_is_also_what_fills_up() -> None:
    words = {"kind": "tokenise", "entries": ["a", "b"], "length": 6}  # fills up with 0, which is `a`
    document = {"transforms": 1, "input": {"name": "text", "dtype": "text", "shape": [8]}, "steps": [words]}
    net = body(2, 6)
    model = Served(Predictor(net, torch.randn(net.dimension)), read_interface(net, document))
    texts = np.frombuffer(b"baa\0b\0\0\0bbbbbbbb".ljust(16, b"\0"), np.uint8).reshape(4, 4)
    followed, raw = model.predict(texts, "next_token"), model.predict(texts, "raw")
    assert np.allclose(followed, raw[[0, 1, 2, 3], [2, 0, 3, 3]], atol=1e-5)
