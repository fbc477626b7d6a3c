"""Seeds changed a little: bytes, or the values in them. A hypothesis strategy, so that what fails is made small."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.targets import Target, plain, written

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 255, 256, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)),
    *(0.0, -0.0, 1e308, float("inf"), float("nan"), "", "x", "@w", "..", "../../etc/passwd", "a" * 600, "\0", "\u202e"),
    *("__class__", "nan", "inf", "float32", "é", [], {}, [[]], [None] * 70, {"": 0}, {"kind": "dense"}, [0] * 9),
)
_EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Bytes for a target: a seed with some changes to its values, then to its bytes; now and then noise alone."""
    seeds = target.seeds()
    whole = st.sampled_from(seeds)
    if target.form:
        whole = st.one_of(
            whole, st.tuples(whole, _edits(values=True)).map(lambda drawn: _revalued(target.form, *drawn))
        )
    changed = st.tuples(whole, _edits(values=False)).map(lambda drawn: _rewritten(*drawn))
    return st.one_of(whole, changed, st.binary(max_size=200))


def _edits(*, values: bool) -> st.SearchStrategy[list[tuple[str, int, Any]]]:
    kinds = ("put", "delete", "double", "move") if values else ("set", "insert", "cut", "repeat", "number", "end")
    what = st.sampled_from(range(len(HOSTILE))) if values else st.binary(min_size=1, max_size=8)
    return st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 1 << 16), what), min_size=1, max_size=6)


def _rewritten(seed: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    data = bytearray(seed)
    for kind, number, new in edits:
        at = number % (len(data) + 1)
        match kind:
            case "set":
                data[at : at + len(new)] = new
            case "insert":
                data[at:at] = new
            case "cut":
                del data[at : at + 1 + new[0]]
            case "repeat":
                data[at:at] = data[at : at + 1 + new[0]]
            case "number":
                width = (1, 2, 4, 8)[len(new) % 4]
                data[at : at + width] = bytes([_EDGES[new[0] % len(_EDGES)]]) * width
            case "end":
                del data[at:]
    return bytes(data)


def _revalued(form: str, seed: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    """The seed itself where it holds no values, or where the new ones cannot be written."""
    try:
        root = [plain(form, seed)]
        for kind, number, hostile in edits:
            _edit(root, kind, number, HOSTILE[hostile])
        return written(form, root[0])
    except (ValueError, TypeError, OverflowError, IndexError, RecursionError):
        return seed


def _edit(root: list[Any], kind: str, number: int, new: Any) -> None:
    places = list(_places(root))
    holder, key = places[number % len(places)]
    match kind:
        case "put":
            holder[key] = copy.deepcopy(new)
        case "delete" if holder is not root:
            del holder[key]
        case "double" if isinstance(holder, list) and holder is not root:
            holder.insert(key, copy.deepcopy(holder[key]))
        case "double" if isinstance(holder, dict):
            holder[f"{key}_"] = copy.deepcopy(holder[key])
        case "move":
            other, where = places[(number * 31 + 7) % len(places)]
            holder[key] = copy.deepcopy(other[where])


def _places(root: list[Any]) -> Iterator[tuple[Any, Any]]:
    pending: list[Any] = [root]
    while pending:
        holder = pending.pop()
        for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
            yield holder, key
            if isinstance(value, (dict, list)):
                pending.append(value)
