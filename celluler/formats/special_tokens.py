"""Which tokens begin a text, end one and fill one up, as files of a Hugging Face folder say it, and back.

`tokenizer_config.json` names tokens by their texts, `generation_config.json` and `config.json` by their numbers. What
ends an answer may be named differently in each, as of models that were taught turns after they had learned to end
texts: all of them end one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celluler.formats.json_files import read_json_file
from celluler.models.transforms.programs import MAX_ENDS

GENERATION_FILE, MODEL_FILE = "generation_config.json", "config.json"
MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Special:
    """Numbers of tokens. pad: fills up. begin: begins a text. ends: behind each a text is over, the first is what a
    chat template calls its end."""

    pad: int = 0
    begin: int | None = None
    ends: tuple[int, ...] = ()


def special_of(folder: Path, config: Mapping[str, Any], numbers: Mapping[str, int]) -> Special:
    """config: of the tokenizer. numbers: of all its tokens; what is none of them is passed over.

    Raises InvalidSpec for a file that is no JSON object.
    """
    known = frozenset(numbers.values())
    others = [_read(folder / name) for name in (GENERATION_FILE, MODEL_FILE)]
    begins = [*_named(config, "bos_token", numbers), *_numbered(others, "bos_token_id", known)]
    ends = [*_named(config, "eos_token", numbers), *_numbered(others, "eos_token_id", known)]
    pads = [*_named(config, "pad_token", numbers), *ends]
    return Special(next(iter(pads), 0), next(iter(begins), None), tuple(dict.fromkeys(ends))[:MAX_ENDS])


def generation_config(step: Mapping[str, Any]) -> bytes | None:
    """The file for those that a step `tokenizer` names; None where it names none."""
    told = {"bos_token_id": step.get("begin"), "eos_token_id": step.get("ends") or None}
    named = {key: value for key, value in told.items() if value is not None}
    return json.dumps(named, sort_keys=True).encode("ascii") + b"\n" if named else None


def _read(path: Path) -> Mapping[str, Any]:
    return read_json_file(path, path.name, MAX_BYTES) if path.is_file() else {}


def _named(config: Mapping[str, Any], key: str, numbers: Mapping[str, int]) -> list[int]:
    token = config.get(key)
    token = token.get("content") if isinstance(token, dict) else token
    return [numbers[token]] if isinstance(token, str) and token in numbers else []


def _numbered(configs: list[Mapping[str, Any]], key: str, known: frozenset[int]) -> list[int]:
    told = [config.get(key) for config in configs]
    flat = [one for item in told for one in (item if isinstance(item, list) else [item])]
    return [one for one in flat if type(one) is int and one in known]
