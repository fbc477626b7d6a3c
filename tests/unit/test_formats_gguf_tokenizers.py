"""The tokenizer of a GGUF: it gives the tokens that the one which the file was made of gives."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.formats.gguf_files import open_gguf
from celluler.formats.gguf_tokenizers import RULES, chat_template_of, read_gguf_tokenizer
from celluler.formats.importing import Wishes, import_gguf
from celluler.formats.tokenizers import gguf_beside
from tests.support.decoders import LLAMA, llama_state
from tests.support.model_files import a_gguf
from tests.unit.test_formats_decoders import gguf_of

tokenizers = pytest.importorskip("tokenizers")

PROSE = (
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and "
    "nothing particular to interest me on shore, I thought I'd sail about a little: 12345 leagues, in 1851!\n\n"
    "  Whenever it's a damp, drizzly November in my soul… héé, naïve 漢字 🐋\r\n\tthen I account it high time.   \n"
)
CONTROL = ["<|end|>", "<|user|>"]
TEXTS = ["", " ", "it's IT'S", "a  b\n\n c", "1234567", "x<|user|>y <|end|>", "e\u0301 é", "🐋漢", PROSE]


def words(pre: str) -> dict[str, Any]:
    """Of a tokenizer trained on a text, behind the rule of that name."""
    rule = RULES[pre]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=rule.whole))
    document = json.loads(made.to_str())
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(rule.steps)}
    document["decoder"] = rule.steps[-1]
    document["normalizer"] = None if rule.normalizer is None else {"type": rule.normalizer}
    made = tokenizers.Tokenizer.from_str(json.dumps(document))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=CONTROL, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([PROSE] * 3, trainer)
    read: dict[str, Any] = json.loads(made.to_str())
    return read


def metadata_of(document: dict[str, Any], pre: str, **more: Any) -> dict[str, Any]:
    vocabulary: dict[str, int] = document["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    told = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3 if token in CONTROL else 1 for token in tokens],
        "merges": [one if isinstance(one, str) else " ".join(one) for one in document["model"]["merges"]],
        "eos_token_id": 0,
    } | more
    return {f"tokenizer__ggml__{key}": value for key, value in told.items()}


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_merges_of_bytes_give_the_tokens_of_the_tokenizer_they_were_made_of(pre: str, tmp_path: Path) -> None:
    document = words(pre)
    original = tokenizers.Tokenizer.from_str(json.dumps(document))
    told = metadata_of(document, pre, add_bos_token=False)
    read = read_gguf_tokenizer(open_gguf(a_gguf(tmp_path, **told)))
    assert read.document is not None
    ours = tokenizers.Tokenizer.from_str(read.document.decode())
    for text in TEXTS:
        tokens = ours.encode(text).ids
        assert tokens == original.encode(text).ids
        if RULES[pre].normalizer is None:
            assert ours.decode(tokens, skip_special_tokens=False) == text
    assert (read.pad, read.ends) == (0, (0,))


def test_what_stands_around_a_text_is_put_there_when_the_file_says_so(tmp_path: Path) -> None:
    document = words("gpt-2")
    for number, (pre, more, expected) in enumerate(
        [
            ("gpt-2", {}, []),
            ("gpt-2", {"add_bos_token": True}, [1]),
            ("llama-bpe", {}, [1]),
            ("llama-bpe", {"add_bos_token": False}, []),
        ]
    ):
        (folder := tmp_path / str(number)).mkdir()
        told = metadata_of(document, pre, bos_token_id=1, **more)
        read = read_gguf_tokenizer(open_gguf(a_gguf(folder, **told)))
        assert read.document is not None
        ours = tokenizers.Tokenizer.from_str(read.document.decode())
        assert ours.encode("").ids == expected
    told = metadata_of(document, "gpt-2", eos_token_id=0, eot_token_id=1, add_eos_token=True)
    read = read_gguf_tokenizer(open_gguf(a_gguf(tmp_path, **told)))
    assert read.document is not None
    assert tokenizers.Tokenizer.from_str(read.document.decode()).encode("").ids == [0]
    assert read.ends == (0, 1)


# --- pieces with scores ----------------------------------------------------------------------------------------------

PIECES = ["▁", "a", "b", "c", "ab", "bc", "abc", "▁a", "▁ab", "cc", "ca", "bca", "aa", "▁▁", "é"]
SCORES = [-1.0, -2.0, -3.0, -4.0, -20.0, -21.0, -30.0, -19.0, -29.0, -22.0, -23.0, -31.0, -24.0, -25.0, -5.0]
BYTES = [f"<0x{one:02X}>" for one in range(256)]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, *PIECES]
TYPES = [2, 3, 3, *[6] * 256, *[1] * len(PIECES)]


def pieces(folder: Path, **more: Any) -> Any:
    told = {
        "model": "llama", "tokens": TOKENS, "token_type": TYPES, "scores": [0.0] * 259 + SCORES,
        "bos_token_id": 1, "eos_token_id": 2,
    } | more  # fmt: skip
    read = read_gguf_tokenizer(
        open_gguf(a_gguf(folder, **{f"tokenizer__ggml__{key}": value for key, value in told.items()}))
    )
    assert read.document is not None
    return tokenizers.Tokenizer.from_str(read.document.decode())


def joined(text: str) -> list[int]:
    """The best two neighbours are joined, as long as there are two; the first of equals. What is no piece is bytes."""
    best = dict(zip(PIECES, SCORES, strict=True))
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        found = [
            (-best[left + right], place)
            for place, (left, right) in enumerate(pairwise(symbols))
            if left + right in best
        ]
        if not found:
            break
        place = min(found)[1]
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    numbers: list[int] = []
    for symbol in symbols:
        whole = [TOKENS.index(symbol)] if symbol in TOKENS else [3 + one for one in symbol.encode()]
        numbers += whole
    return numbers


@pytest.fixture(scope="module")
def piecewise(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pieces(tmp_path_factory.mktemp("pieces"), add_bos_token=False)


@given(st.text(alphabet="abc  éß漢", min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_pieces_are_joined_by_their_scores_and_read_back(piecewise: Any, text: str) -> None:
    tokens = piecewise.encode(text).ids
    assert tokens == joined(text)
    assert piecewise.decode(tokens) == text


def test_a_text_of_pieces_begins_with_what_begins_a_text(tmp_path: Path) -> None:
    made = pieces(tmp_path)
    assert made.encode("ab").ids == [1, TOKENS.index("▁ab")]
    bare = pieces(tmp_path, add_space_prefix=False)
    assert bare.encode("ab").ids == [1, TOKENS.index("ab")]
    assert bare.decode([TOKENS.index("ab")]) == "ab"


# --- what is left out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"pre": "of-its-own"}, "cuts words by 'of-its-own'"),
        ({"model": "bert"}, "is of the kind 'bert'"),
        ({"merges": ["no way"]}, r"merges\[0\]: is 'no way'"),
        ({"token_type": [1]}, "token_type: are 1, of "),
        ({"eos_token_id": 4000}, "eos_token_id: is '4000', of "),
        ({"tokens": ["a", "a"]}, "hold one of them twice"),
        ({"tokens": 3}, "is no array"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_rightly_is_left_out(more: dict[str, Any], why: str, tmp_path: Path) -> None:
    told = metadata_of(words("gpt-2"), **({"pre": "gpt-2"} | more))
    found, notes = gguf_beside(open_gguf(a_gguf(tmp_path, **told)), 400, 8)
    assert found == {}
    assert re.search(why, notes[-1])


def test_a_gguf_brings_its_tokenizer_and_its_chat_template(tmp_path: Path) -> None:
    told = metadata_of({"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}, "smollm", eos_token_id=2)
    told |= {"tokenizer__chat_template": "{{ messages }}"}
    path = gguf_of(tmp_path, LLAMA, llama_state(LLAMA), **told)
    assert chat_template_of(open_gguf(path)) == b"{{ messages }}"
    imported = import_gguf(path, Wishes(context=8))
    assert set(imported.beside) == {"tokenizer.json", "preprocess.json", "chat_template.jinja"}
    step = json.loads(imported.beside["preprocess.json"])["steps"][0]
    assert (step["kind"], step["length"], step["pad"]) == ("tokenizer", 8, 2)
    ours = tokenizers.Tokenizer.from_str(imported.beside["tokenizer.json"].decode())
    assert ours.encode("abab").ids == [2, 2]
