"""What stands in a folder beside config and weights: a tokenizer, a chat template, and the preprocess that takes texts.

`tokenizer.json` is taken as it is, byte by byte; it is looked into only as far as its numbers go. A chat template is a
program in a language of templates: it is kept as the text that it is, and nothing here renders it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celluler.documents import read_json
from celluler.errors import InvalidSpec
from celluler.formats.gguf_files import Gguf
from celluler.formats.gguf_tokenizers import GgufTokenizer, chat_template_of, read_gguf_tokenizer
from celluler.formats.json_files import read_json_file
from celluler.formats.special_tokens import GENERATION_FILE, Special, generation_config, special_of
from celluler.models.beside import CHAT_TEMPLATE, FILE_NAMES, LIMITS, TOKENIZER
from celluler.models.folder import POSTPROCESS, PREPROCESS
from celluler.models.transforms.base import MAX_TEXT_BYTES
from celluler.models.transforms.document import MAX_TRANSFORM_BYTES, canonical

CONFIG_FILE = "tokenizer_config.json"
MAX_CONFIG_BYTES = 4 << 20
BYTES_A_TOKEN = 16
"""Of the longest text that is taken, for each place of a sample; what does not fit into the places is cut."""


def read_beside(folder: Path, vocabulary: int, places: int) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Of a Hugging Face folder: files for ours, by their names there, and notes. places: of a sample.

    Raises InvalidSpec for files that are not what they should be.
    """
    config = _config(folder)
    path = folder / FILE_NAMES[TOKENIZER]
    raw = _bytes(path, LIMITS[TOKENIZER]) if path.is_file() else None
    special = Special() if raw is None else special_of(folder, config, _numbers(raw))
    return _taken(raw, f"there is no {path.name}", _template(folder, config), vocabulary, places, special)


def gguf_beside(held: Gguf, vocabulary: int, places: int) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The same of a GGUF. A tokenizer in it that contradicts itself is left out: nobody can take it out of the file."""
    template = chat_template_of(held)
    try:
        read = read_gguf_tokenizer(held)
    except InvalidSpec as error:
        read = GgufTokenizer(None, why=f"its tokenizer is left out: {error}"[:512])
    if template is not None and len(template) > LIMITS[CHAT_TEMPLATE]:
        at = "metadata.tokenizer.chat_template"
        raise InvalidSpec(at, f"has {len(template)} bytes, limit {LIMITS[CHAT_TEMPLATE]}")
    if read.document is not None and len(read.document) > LIMITS[TOKENIZER]:
        raise InvalidSpec("metadata.tokenizer", f"makes {len(read.document)} bytes, limit {LIMITS[TOKENIZER]}")
    return _taken(read.document, read.why, template, vocabulary, places, Special(read.pad, read.begin, read.ends))


def _taken(
    raw: bytes | None, why: str, template: bytes | None, vocabulary: int, places: int, special: Special
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """raw: a tokenizer.json; without one why says why."""
    found: dict[str, bytes] = {}
    notes: list[str] = []
    name = FILE_NAMES[TOKENIZER]
    if template is not None:
        found[FILE_NAMES[CHAT_TEMPLATE]] = template
    if raw is None:
        return found, (*notes, f"{why}: the model is asked with tokens")
    numbers = _numbers(raw)
    if max(numbers.values(), default=0) >= vocabulary:
        told = f"{name} is left out: it gives {max(numbers.values())}, the model knows numbers below {vocabulary}"
        return found, (*notes, told)
    found[name] = raw
    found[PREPROCESS] = canonical(_preprocess(places, special))
    if not special.ends:
        notes.append("no token is named that ends a text: an answer goes on until it is as long as asked for")
    return found, tuple(notes)


def read_own_beside(folder: Path) -> dict[str, bytes]:
    """Of a folder of ours. Raises InvalidSpec for a file that is larger than it may be."""
    limits = {FILE_NAMES[name]: limit for name, limit in LIMITS.items()}
    limits |= dict.fromkeys((PREPROCESS, POSTPROCESS), MAX_TRANSFORM_BYTES)
    return {name: _bytes(folder / name, limit) for name, limit in limits.items() if (folder / name).is_file()}


def write_beside(beside: Mapping[str, bytes], folder: Path) -> tuple[str, ...]:
    """Into a Hugging Face folder; the names of the files written."""
    written = [name for name in FILE_NAMES.values() if name in beside]
    for name in written:
        (folder / name).write_bytes(beside[name])
    if FILE_NAMES[TOKENIZER] in beside:
        (folder / CONFIG_FILE).write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n', encoding="ascii")
        written.append(CONFIG_FILE)
        if (special := generation_config(_tokenizer_step(beside.get(PREPROCESS, b"")))) is not None:
            (folder / GENERATION_FILE).write_bytes(special)
            written.append(GENERATION_FILE)
    return tuple(written)


def _preprocess(places: int, special: Special) -> dict[str, Any]:
    longest = min(MAX_TEXT_BYTES, BYTES_A_TOKEN * places)
    step: dict[str, Any] = {"kind": "tokenizer", "length": places, "pad": special.pad}
    if special.begin is not None:
        step["begin"] = special.begin
    if special.ends:
        step["ends"] = list(special.ends)
    return {
        "transforms": 1,
        "input": {"name": "text", "dtype": "text", "shape": [longest]},
        "steps": [step],
    }


def _numbers(raw: bytes) -> dict[str, int]:
    """Of every token. Raises InvalidSpec."""
    name = FILE_NAMES[TOKENIZER]
    document = read_json(raw, limit=LIMITS[TOKENIZER])
    model = document.get("model") if isinstance(document, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = document.get("added_tokens", []) if isinstance(document, dict) else None
    if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
        vocabulary = {str(one[0]): place for place, one in enumerate(vocabulary) if isinstance(one, list) and one}
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        raise InvalidSpec(name, "holds no vocabulary")
    numbers = dict(vocabulary)
    for place, one in enumerate(added):
        if not isinstance(one, dict) or not isinstance(one.get("content"), str):
            raise InvalidSpec(f"{name}.added_tokens[{place}]", "is no token")
        numbers[one["content"]] = one.get("id")
    for token, number in numbers.items():
        if type(number) is not int or not 0 <= number < 1 << 24:
            raise InvalidSpec(name, f"gives {str(token)[:32]!r} the number {str(number)[:32]!r}")
    return numbers


def _tokenizer_step(raw: bytes) -> Mapping[str, Any]:
    """Of a preprocess of ours, which was checked; empty where it has none."""
    document = read_json(raw, limit=MAX_TRANSFORM_BYTES) if raw else {}
    steps = document.get("steps", []) if isinstance(document, dict) else []
    return next((step for step in steps if isinstance(step, dict) and step.get("kind") == "tokenizer"), {})


def _template(folder: Path, config: Mapping[str, Any]) -> bytes | None:
    path = folder / FILE_NAMES[CHAT_TEMPLATE]
    if path.is_file():
        return _bytes(path, LIMITS[CHAT_TEMPLATE])
    told = config.get("chat_template")
    if isinstance(told, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in told if isinstance(one, dict)}
        told = named.get("default")
    if not isinstance(told, str) or not told:
        return None
    try:
        raw = told.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidSpec(f"{CONFIG_FILE}.chat_template", "is not Unicode") from None
    if len(raw) > LIMITS[CHAT_TEMPLATE]:
        raise InvalidSpec(f"{CONFIG_FILE}.chat_template", f"has {len(raw)} bytes, limit {LIMITS[CHAT_TEMPLATE]}")
    return raw


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    return read_json_file(path, CONFIG_FILE, MAX_CONFIG_BYTES) if path.is_file() else {}


def _bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise InvalidSpec(f"folder.{path.name}", f"cannot be read: {error.strerror}") from error
    if len(raw) > limit:
        raise InvalidSpec(f"folder.{path.name}", f"has more than {limit} bytes")
    return raw
