"""What differs between two documents, and between two sets of tensors. Knows no manifests and no versions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.content.manifest import Layout
from celluler.models.body import Body
from celluler.models.graph_ops import DTYPES
from celluler.models.stored import Stored
from celluler.models.weights import check_weights

_BLOCK_ELEMENTS = 1 << 18  # compared at once: 2 MiB a side in double precision
_ABSENT = object()
_NUMPY = {"bool": "uint8"}


@dataclass(frozen=True, slots=True)
class FieldChange:
    """path: `layers[2].width`; of a layer that was removed its old place. old, new: JSON, empty where there is none."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that is not the same in both. old, new: shapes; None when it was added or removed.

    norm: L2 norm of the difference; relative: over the norm of the old one, None when that is zero. Both are None
    unless both files were here and the shapes are equal.
    """

    name: str
    old: tuple[int, ...] | None
    new: tuple[int, ...] | None
    norm: float | None = None
    relative: float | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """What is known of a model's tensors. layout: of the unencrypted content. file: of unencrypted weights."""

    architecture: Body
    layout: Layout | None = None
    file: Path | None = None


# --- documents -------------------------------------------------------------------------------------------------------


def field_changes(old: Any, new: Any, path: str = "") -> Iterator[FieldChange]:
    """Between two JSON values, in the order of the new one's fields. Lists of objects are aligned before."""
    if old is not _ABSENT and new is not _ABSENT and old == new:
        return
    if _same_kind(old, new):
        for key in sorted({*old, *new}):
            yield from field_changes(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{path}.{key}" if path else key)
    elif _holds_objects(old) and _holds_objects(new):
        yield from _list_changes(old, new, path)
    else:
        yield FieldChange(path, _text(old), _text(new))


def _same_kind(old: Any, new: Any) -> bool:
    """Two objects that may be compared field by field: two layers of different kinds share no field in meaning."""
    return isinstance(old, dict) and isinstance(new, dict) and old.get("kind") == new.get("kind")


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _list_changes(old: list[Any], new: list[Any], path: str) -> Iterator[FieldChange]:
    """A layer put in between is one change, not one of every layer behind it."""
    matcher = SequenceMatcher(None, [_text(item) for item in old], [_text(item) for item in new], autojunk=False)
    for word, start, end, new_start, new_end in matcher.get_opcodes():
        if word == "equal":
            continue
        pairs = min(end - start, new_end - new_start)
        for place in range(pairs):
            yield from field_changes(old[start + place], new[new_start + place], f"{path}[{new_start + place}]")
        for place in range(start + pairs, end):
            yield FieldChange(f"{path}[{place}]", _text(old[place]), "")
        for place in range(new_start + pairs, new_end):
            yield FieldChange(f"{path}[{place}]", "", _text(new[place]))


def _text(value: Any) -> str:
    return "" if value is _ABSENT else json.dumps(value, sort_keys=True, ensure_ascii=False)


# --- tensors ---------------------------------------------------------------------------------------------------------


def tensor_changes(old: Weights, new: Weights) -> tuple[tuple[TensorChange, ...], int, int]:
    """(what changed, how many are equal, of how many it cannot be told). Removed ones come last.

    Chunks tell whether a tensor changed, files by how much; without either only names and shapes are compared.
    Raises InvalidSpec for a file that does not hold the tensors of its architecture.
    """
    before = {tensor.name: tensor for tensor in old.architecture.stored}
    after = {tensor.name: tensor for tensor in new.architecture.stored}
    compare = _Comparison(old, new)
    changes, equal, unknown = [], 0, 0
    for name, tensor in after.items():
        if before.get(name) != tensor:  # not there, or of another shape or dtype
            changes.append(TensorChange(name, before[name].shape if name in before else None, tensor.shape))
        elif (change := compare.values(tensor)) is not None:
            changes.append(change)
        elif compare.is_known(name):
            equal += 1
        else:
            unknown += 1
    gone = (TensorChange(name, tensor.shape, None) for name, tensor in before.items() if name not in after)
    return (*changes, *gone), equal, unknown


class _Comparison:
    """Of tensors that both have, in equal shapes."""

    def __init__(self, old: Weights, new: Weights) -> None:
        self._digests = _digests_of(old.layout), _digests_of(new.layout)
        if old.layout is None or new.layout is None or _chunk_size(old.layout) != _chunk_size(new.layout):
            self._digests = {}, {}
        self._files: tuple[tuple[Path, Mapping[str, Any]], ...] = ()
        if old.file is not None and new.file is not None:
            pair = ((old.architecture, old.file), (new.architecture, new.file))
            self._files = tuple((file, check_weights(architecture, file)) for architecture, file in pair)

    def is_known(self, name: str) -> bool:
        return bool(self._files) or all(name in digests for digests in self._digests)

    def values(self, tensor: Stored) -> TensorChange | None:
        """None when they are equal, as far as can be told."""
        old, new = (digests.get(tensor.name) for digests in self._digests)
        if old is not None and old == new:
            return None
        if self._files:
            places = [(path, views[tensor.name].start) for path, views in self._files]
            return _measured(tensor, places[0], places[1])
        return None if old is None or new is None else TensorChange(tensor.name, tensor.shape, tensor.shape)


def _measured(tensor: Stored, old: tuple[Path, int], new: tuple[Path, int]) -> TensorChange | None:
    """None when the bytes are equal."""
    equal, difference, size = True, 0.0, 0.0
    elements, (_, item_bytes) = math.prod(tensor.shape), DTYPES[tensor.dtype]
    for first in range(0, elements, _BLOCK_ELEMENTS):
        count = min(_BLOCK_ELEMENTS, elements - first)
        pair = [
            np.memmap(path, dtype=np.uint8, mode="r", offset=start + item_bytes * first, shape=(item_bytes * count,))
            for path, start in (old, new)
        ]
        equal = equal and bool(np.array_equal(pair[0], pair[1]))
        a, b = (_numbers(one, tensor.dtype) for one in pair)
        difference += float(np.square(b - a).sum())
        size += float(np.square(a).sum())
    if equal:
        return None
    norm = math.sqrt(difference)
    relative = norm / math.sqrt(size) if size else None
    return TensorChange(tensor.name, tensor.shape, tensor.shape, _finite(norm), _finite(relative))


def _numbers(data: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float64]:
    if dtype == "bfloat16":  # the upper half of a float32
        return (data.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return data.view(_NUMPY.get(dtype, dtype)).astype(np.float64)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _digests_of(layout: Layout | None) -> dict[str, tuple[bytes, ...]]:
    """Of the chunks of each tensor that the publisher's table names."""
    if layout is None:
        return {}
    return {
        tensor.name: tuple(layout[1 + tensor.first_chunk + chunk].digest for chunk in range(tensor.n_chunks))
        for tensor in layout.manifest.tensors
    }


def _chunk_size(layout: Layout) -> int:
    return layout.manifest.chunk_size
