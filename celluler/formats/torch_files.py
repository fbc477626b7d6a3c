"""PyTorch checkpoints as `torch.save` writes them since 1.6: a zip of one pickle and one entry a storage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from celluler.errors import InvalidSpec
from celluler.formats.stored import MAX_NAME, MAX_TENSORS, NUMPY_DTYPES, Array, Stored, map_array
from celluler.formats.torch_pickles import MAX_PICKLE_BYTES, TensorRecord, follow_pickle
from celluler.formats.zips import Entry, open_zip

_WHERE = ("state_dict", "model_state_dict", "model", "module", "weights")
"""Under which keys training scripts put the weights, beside their optimizer and counters."""


def open_torch(path: Path) -> dict[str, Stored]:
    """The tensors of a state dict, in its order. Raises InvalidSpec, CodeInPickle for a pickle that is more."""
    entries = open_zip(path)
    root = next((name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl") or name == "data.pkl"), "")
    entry = entries.get(f"{root}data.pkl")
    if entry is None or entry.start is None or entry.size > MAX_PICKLE_BYTES:
        raise InvalidSpec("file", f"is no checkpoint: no data.pkl of at most {MAX_PICKLE_BYTES} bytes, uncompressed")
    order = entries.get(f"{root}byteorder")
    if order is not None and _bytes(path, order, 16) != b"little":
        raise InvalidSpec("file", "holds numbers whose bytes run the other way", hint="save it on a common machine")
    records = _find(follow_pickle(_bytes(path, entry, MAX_PICKLE_BYTES)))
    return {name: _stored(path, root, entries, name, record) for name, record in records.items()}


def _bytes(path: Path, entry: Entry, limit: int) -> bytes:
    if entry.start is None or entry.size > limit:
        raise InvalidSpec("file", f"has an entry of {entry.size} bytes, the limit is {limit}")
    with path.open("rb") as file:
        file.seek(entry.start)
        return file.read(entry.size)


def _find(root: Any) -> dict[str, TensorRecord]:
    """The state dict: what was saved, or what lies in it under one of the usual keys."""
    candidates = [root, *(root.get(key) for key in _WHERE)] if isinstance(root, dict) else []
    for one in candidates:
        if isinstance(one, dict) and any(isinstance(value, TensorRecord) for value in one.values()):
            found = {name: value for name, value in one.items() if isinstance(value, TensorRecord)}
            if len(found) > MAX_TENSORS or not all(isinstance(name, str) and len(name) <= MAX_NAME for name in found):
                raise InvalidSpec("file", f"holds more than {MAX_TENSORS} tensors, or tensors without a name")
            return found
    raise InvalidSpec(
        "file",
        "holds no state dict: no dictionary of named tensors, nor one under " + ", ".join(_WHERE),
        hint="torch.save(model.state_dict(), path)",
    )


def _stored(path: Path, root: str, entries: Mapping[str, Entry], name: str, record: TensorRecord) -> Stored:
    dtype = NUMPY_DTYPES[record.dtype]
    entry = entries.get(f"{root}data/{record.key}")
    if entry is None or entry.start is None or entry.size != record.size * dtype.itemsize:
        raise InvalidSpec(f"tensors.{name[:64]}", f"its storage {record.key!r} is not in the file, or of another size")
    start = entry.start

    def load() -> Array:
        storage = map_array(path, dtype, start, (record.size,))
        strides = tuple(step * dtype.itemsize for step in record.stride)
        # Within the storage: `follow_pickle` has seen to that.
        return np.lib.stride_tricks.as_strided(storage[record.offset :], record.shape, strides, writeable=False)

    return Stored(name, record.dtype, record.shape, load)
