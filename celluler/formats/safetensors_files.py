"""safetensors in and out: a header of JSON, then the tensors, one behind another. https://github.com/huggingface/safetensors"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from celluler.errors import InvalidSpec
from celluler.formats.stored import MAX_NAME, MAX_TENSORS, NUMPY_DTYPES, Stored, map_array
from celluler.models.weights import TensorView, read_header


def open_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file. Reads the header alone; raises InvalidSpec for a file whose parts do not fit together."""
    views = read_header(path, "file")
    if len(views) > MAX_TENSORS:
        raise InvalidSpec("file", f"holds {len(views)} tensors, the limit is {MAX_TENSORS}")
    return {name: _stored(path, name, view) for name, view in views.items()}


def _stored(path: Path, name: str, view: TensorView) -> Stored:
    if not 1 <= len(name) <= MAX_NAME:
        raise InvalidSpec("file", f"a tensor's name has {len(name)} characters, the limit is {MAX_NAME}")
    dtype = NUMPY_DTYPES[view.dtype]
    return Stored(name, view.dtype, view.shape, lambda: map_array(path, dtype, view.start, view.shape))


def write_safetensors(path: Path, tensors: Iterable[Stored], metadata: Mapping[str, str] | None = None) -> None:
    """One tensor after another, in the order given; `path` appears whole or not at all.

    Values are asked for one tensor at a time. Raises InvalidSpec for values that are not what the tensor says.
    """
    tensors = tuple(tensors)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for one in tensors:
        if one.name in header or one.name[:2] == "__":
            raise InvalidSpec(f"tensors.{one.name[:64]}", "is a name of the format itself, or is there twice")
        end = start + one.elements * NUMPY_DTYPES[one.dtype].itemsize
        header[one.name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for one in tensors:
                values = one.load()
                if values.shape != one.shape:
                    raise InvalidSpec(f"tensors.{one.name[:64]}", f"has shape {values.shape}, not {one.shape}")
                values.astype(NUMPY_DTYPES[one.dtype], copy=False).tofile(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
