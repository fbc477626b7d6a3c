"""A Hugging Face folder: config.json and safetensors, in one file or several, or a checkpoint that is a zip of tensors;
its tokenizer and chat template, see `celluler.formats.tokenizers`. Nothing else of it is opened.

Refused: a config that names code of its own (`auto_map`), Python beside it, weights that are bare pickles.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celluler.errors import InvalidSpec
from celluler.formats.json_files import read_json_file
from celluler.formats.safetensors_files import open_safetensors
from celluler.formats.stored import MAX_TENSORS, Stored
from celluler.formats.torch_files import open_torch

CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
CHECKPOINT_FILE = "pytorch_model.bin"
MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 16 << 20
MAX_SHARDS = 1000
MAX_FILES = 4096


@dataclass(frozen=True, slots=True)
class HfFolder:
    config: dict[str, Any]
    tensors: dict[str, Stored]


def open_hf(folder: Path) -> HfFolder:
    """The config, and where each tensor lies. Raises InvalidSpec."""
    names = _names(folder)
    for name in names:
        if name.endswith(".py"):
            raise InvalidSpec(
                f"folder.{name[:64]}",
                "is code that comes with the model; no code of a model is run",
                hint="delete the .py files if the architecture is a common one and its config names no auto_map",
            )
    config = read_json_file(folder / CONFIG_FILE, CONFIG_FILE, MAX_CONFIG_BYTES)
    _refuse_code(config)
    if INDEX_FILE in names:
        return HfFolder(config, _open_shards(folder, names))
    if WEIGHTS_FILE in names:
        return HfFolder(config, open_safetensors(folder / WEIGHTS_FILE))
    if CHECKPOINT_FILE in names and _is_zip(folder / CHECKPOINT_FILE):
        return HfFolder(config, open_torch(folder / CHECKPOINT_FILE))
    raise _no_weights(names)


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise InvalidSpec(f"folder.{path.name}", f"cannot be read: {error.strerror}") from error


def _no_weights(names: set[str]) -> InvalidSpec:
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    if not pickled:
        return InvalidSpec("folder", f"holds no {WEIGHTS_FILE}")
    return InvalidSpec(
        f"folder.{pickled[0][:64]}",
        "holds the weights as a pickle, which may carry code",
        hint="save them again: model.save_pretrained(folder, safe_serialization=True)",
    )


def _refuse_code(config: dict[str, Any]) -> None:
    for key in ("auto_map", "custom_pipelines"):
        if config.get(key):
            raise InvalidSpec(
                f"{CONFIG_FILE}.{key}",
                "names code that would have to be run (trust_remote_code): no code of a model is run",
                hint="publish the module from Python on your own machine instead: celluler.publish",
            )


def _names(folder: Path) -> set[str]:
    names: set[str] = set()
    try:
        for path in folder.iterdir():
            names.add(path.name)
            if path.is_fifo():  # whoever opens one waits for somebody to write
                raise InvalidSpec(f"folder.{path.name[:64]}", "is a pipe, and no file")
            if len(names) > MAX_FILES:
                raise InvalidSpec("folder", f"holds more than {MAX_FILES} files")
    except OSError as error:
        raise InvalidSpec("folder", f"cannot be read: {error.strerror}") from error
    return names


def _open_shards(folder: Path, names: set[str]) -> dict[str, Stored]:
    """Each tensor from the file that the index says; a file holds nothing that the index does not say."""
    places = read_json_file(folder / INDEX_FILE, INDEX_FILE, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not 1 <= len(places) <= MAX_TENSORS:
        raise InvalidSpec(f"{INDEX_FILE}.weight_map", f"must name 1…{MAX_TENSORS} tensors")
    shards = {shard for shard in places.values() if isinstance(shard, str)}
    if len(shards) > MAX_SHARDS or not shards <= names or not all(isinstance(one, str) for one in places.values()):
        raise InvalidSpec(f"{INDEX_FILE}.weight_map", "names files that are not in the folder")
    found: dict[str, Stored] = {}
    for shard in sorted(shards):
        held = open_safetensors(folder / shard)
        for name in held:
            if places.get(name) != shard:
                raise InvalidSpec(f"{INDEX_FILE}.weight_map", f"does not say that {name[:64]} is in {shard[:64]}")
        found |= held
    if missing := places.keys() - found.keys():
        raise InvalidSpec(f"tensors.{min(missing)[:64]}", "is named by the index and in no file")
    return found
