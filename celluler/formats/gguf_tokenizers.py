"""The tokenizer in the metadata of a GGUF, as a `tokenizer.json`, and what stands around a text.

Two kinds. `gpt2`: merges of bytes written as letters, behind a rule for cutting a text into words that the file only
names. `llama`: pieces with scores, of which the best two neighbours are joined again and again (SentencePiece), and
bytes for what no piece is. A rule that is not known here leaves the tokenizer out: to cut by another one would give
other tokens than the model was trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec
from celluler.formats.gguf_files import Gguf

_AT = "metadata.tokenizer.ggml."
MAX_TOKENS = 1 << 20
MAX_MERGES = 2 << 20
MAX_PIECE = 256
_UNKNOWN, _CONTROL, _USER, _BYTE = 2, 3, 4, 6
_SPACE = "▁"

_ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d"
_WORDS = rf"(?i:{_ENDINGS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES = _GPT2 | {"use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a text is cut before merging. whole: a word that is a token is not merged together. begins: a text begins
    with the token for that unless the file says otherwise."""

    steps: tuple[dict[str, Any], ...]
    normalizer: str | None = None
    whole: bool = False
    begins: bool = False


_LLAMA3 = _Rule((_split(_WORDS % r"\p{N}{1,3}"), _BYTES), whole=True, begins=True)
_QWEN2 = _Rule((_split(_WORDS % r"\p{N}"), _BYTES), normalizer="NFC")
_SMOLLM = _Rule(({"type": "Digits", "individual_digits": True}, _GPT2))
RULES: Mapping[str, _Rule] = {
    "gpt-2": _Rule((_GPT2,)),
    "smollm": _SMOLLM,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
"""By the name that `tokenizer.ggml.pre` gives them."""


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """document: of a `tokenizer.json`; None where there is none, and why says why. pad: fills up. ends: numbers behind
    which a text is over, that of the file's end of a text first. begin: what begins one."""

    document: bytes | None
    pad: int = 0
    ends: tuple[int, ...] = ()
    why: str = ""
    begin: int | None = None


def read_gguf_tokenizer(held: Gguf) -> GgufTokenizer:
    """Raises InvalidSpec for one that contradicts itself."""
    told = {key.removeprefix("tokenizer.ggml."): value for key, value in held.metadata.items()}
    kind = held.metadata.get("tokenizer.ggml.model")
    if kind is None:
        return GgufTokenizer(None, why="there is no tokenizer in the file")
    if kind not in ("gpt2", "llama"):
        return GgufTokenizer(None, why=f"its tokenizer is of the kind {str(kind)[:32]!r}; read are gpt2 and llama")
    rule = RULES.get(str(told.get("pre")))
    if kind == "gpt2" and rule is None:
        known = ", ".join(RULES)
        return GgufTokenizer(None, why=f"its tokenizer cuts words by {str(told.get('pre'))[:32]!r}; read are {known}")
    tokens = held.texts("tokenizer.ggml.tokens", MAX_TOKENS)
    _check_tokens(tokens)
    types = held.numbers("tokenizer.ggml.token_type", MAX_TOKENS) or (1,) * len(tokens)
    if len(types) != len(tokens):
        raise InvalidSpec(f"{_AT}token_type", f"are {len(types)}, of {len(tokens)} tokens")
    begins = kind == "llama" or (rule is not None and rule.begins)
    around = {
        "bos": _number(told, "bos_token_id", len(tokens)) if told.get("add_bos_token", begins) is True else None,
        "eos": _number(told, "eos_token_id", len(tokens)) if told.get("add_eos_token", False) is True else None,
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(place, tokens[place], kind) for place, kind in enumerate(types) if kind in _ADDED],
        **(_pieces(held, tokens, types, told) if kind == "llama" else _merges(held, tokens, rule or _LLAMA3)),
        "post_processor": _template(tokens, around["bos"], around["eos"]),
    }
    ends = [_number(told, f"{name}_token_id", len(tokens)) for name in ("eos", "eot", "eom")]
    pads = (_number(told, f"{name}_token_id", len(tokens)) for name in ("padding", "eos"))
    return GgufTokenizer(
        json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8"),
        next((one for one in pads if one is not None), 0),
        tuple(dict.fromkeys(one for one in ends if one is not None)),
        begin=_number(told, "bos_token_id", len(tokens)),
    )


def chat_template_of(held: Gguf) -> bytes | None:
    told = held.metadata.get("tokenizer.chat_template")
    return told.encode("utf-8") if isinstance(told, str) and told else None


def _check_tokens(tokens: Sequence[str]) -> None:
    if not tokens:
        raise InvalidSpec(f"{_AT}tokens", "are none")
    if len(set(tokens)) != len(tokens):
        raise InvalidSpec(f"{_AT}tokens", "hold one of them twice")


def _number(told: Mapping[str, Any], key: str, count: int) -> int | None:
    value = told.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < count:
        raise InvalidSpec(f"{_AT}{key}", f"is {str(value)[:32]!r}, of {count} tokens")
    return value


_ADDED = (_UNKNOWN, _CONTROL, _USER)


def _added(place: int, token: str, kind: float) -> dict[str, Any]:
    return {
        "id": place,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": kind != _USER,
    }


def _template(tokens: Sequence[str], bos: int | None, eos: int | None) -> dict[str, Any] | None:
    if bos is None and eos is None:
        return None
    text = {"Sequence": {"id": "A", "type_id": 0}}
    before, after = ([] if one is None else [{"SpecialToken": {"id": tokens[one], "type_id": 0}}] for one in (bos, eos))
    other = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [*before, text, *after],
        "pair": [*before, text, *after, *before, other, *after],
        "special_tokens": {
            tokens[one]: {"id": tokens[one], "ids": [one], "tokens": [tokens[one]]}
            for one in (bos, eos)
            if one is not None
        },
    }


def _bpe(tokens: Sequence[str], merges: list[list[str]], **more: Any) -> dict[str, Any]:
    fields = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    fields |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False} | more
    return {"type": "BPE", **fields, "vocab": {token: place for place, token in enumerate(tokens)}, "merges": merges}


# --- merges of bytes -------------------------------------------------------------------------------------------------


def _merges(held: Gguf, tokens: Sequence[str], rule: _Rule) -> dict[str, Any]:
    known = set(tokens)
    merges = []
    for place, line in enumerate(held.texts("tokenizer.ggml.merges", MAX_MERGES)):
        left, _, right = line.partition(" ")
        if left not in known or right not in known or left + right not in known:
            raise InvalidSpec(f"{_AT}merges[{place}]", f"is {line[:32]!r}, which makes no token of two")
        merges.append([left, right])
    return {
        "normalizer": None if rule.normalizer is None else {"type": rule.normalizer},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(rule.steps)},
        "decoder": _GPT2,
        "model": _bpe(tokens, merges, ignore_merges=rule.whole),
    }


# --- pieces with scores ----------------------------------------------------------------------------------------------


def _pieces(held: Gguf, tokens: Sequence[str], types: Sequence[float], told: Mapping[str, Any]) -> dict[str, Any]:
    scores = held.numbers("tokenizer.ggml.scores", MAX_TOKENS)
    if len(scores) != len(tokens):
        raise InvalidSpec(f"{_AT}scores", f"are {len(scores)}, of {len(tokens)} tokens")
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    begins = told.get("add_space_prefix", True) is True
    before = [{"type": "Prepend", "prepend": _SPACE}] if begins else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if begins else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *after]},
        "model": _bpe(
            tokens,
            _joined(tokens, types, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=any(kind == _BYTE for kind in types),
        ),
    }


def _joined(tokens: Sequence[str], types: Sequence[float], scores: Sequence[float]) -> list[list[str]]:
    """Of which two each piece is joined, the best score first: so does whoever has scores choose, at every step."""
    ranks = {token: place for place, token in enumerate(tokens)}
    found = []
    for place, token in enumerate(tokens):
        if types[place] in (*_ADDED, _BYTE) or len(token) < 2:
            continue
        if len(token) > MAX_PIECE:
            raise InvalidSpec(f"{_AT}tokens[{place}]", f"has {len(token)} characters, limit {MAX_PIECE}")
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        found += [(-scores[place], place, list(pair)) for pair in known]
    found.sort(key=lambda one: one[:2])
    return [pair for _, _, pair in found]
