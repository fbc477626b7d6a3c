"""What an argument of a node may be, kind by kind, and the rules of the JSON values around it. Knows no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec
from celluler.models.graph_ops import DTYPES, WORDS

MAX_NAME = 256
MAX_INT = 1 << 31
INT64_MAX = (1 << 63) - 1
"""Only as the open end of a slice."""
MAX_INTS = 64
MAX_TENSORS = 1024
SIZES = frozenset(("size", "repeats", "shape", "normalized_shape"))
"""Integer lists with these names say how large something becomes."""

_EQUATION = re.compile(r"^[a-zA-Z,.\->]{1,64}$")


@dataclass(frozen=True, slots=True)
class Value:
    """A reference in an argument. tensor: of the weights file, else an input or a node."""

    name: str
    tensor: bool = False


@dataclass(slots=True)
class Known:
    """What stands before a node. values: of inputs and nodes, what each gives. tensors: name → role."""

    values: dict[str, str]
    tensors: dict[str, str]
    byte_limit: int


def read_argument(known: Known, kind: str, name: str, value: Any, path: str) -> Any:
    """The checked value of one argument. Raises InvalidSpec.

    kind: as `graph_ops.Argument` says. name: of the argument.
    """
    if kind.endswith("?"):
        if value is None:
            return None
        kind = kind[:-1]
    match kind:
        case "Tensor" if name == "other" and (type(value) in (int, float) or known.values.get(str(value)) == "int"):
            return _scalar(known, value, path)  # the other side of a sum may be a number
        case "Tensor":
            return _reference(known, value, path, "Tensor")
        case "Tensor[]":
            if isinstance(value, str):  # what another operation gave, whole; or what getitem takes apart
                return _reference(known, value, path, "Tensor[]")
            entries = some(value, path, 1, MAX_TENSORS)
            return tuple(_reference(known, one, f"{path}[{at}]", "Tensor") for at, one in enumerate(entries))
        case "Tensor?[]":
            entries = some(value, path, 1, MAX_INTS)
            places = enumerate(entries)
            return tuple(
                None if one is None else _reference(known, one, f"{path}[{at}]", "Tensor") for at, one in places
            )
        case "int":
            return _int(known, value, path)
        case "int[]":
            return _ints(known, name, value, path)
        case "float":
            return _float(value, path)
        case "float[]":
            entries = some(value, path, 0, MAX_INTS)
            return tuple(_float(one, f"{path}[{at}]") for at, one in enumerate(entries))
        case "bool":
            return flag(value, path)
        case "Scalar":
            return _scalar(known, value, path)
        case "dtype":
            return one_of(value, path, tuple(DTYPES))
        case "str":
            return _word(name, value, path)
    raise AssertionError(kind)


def plain_argument(value: Any) -> Any:
    """An argument as JSON."""
    match value:
        case Value():
            return f"@{value.name}" if value.tensor else value.name
        case tuple():
            return [plain_argument(one) for one in value]
        case float() if math.isinf(value):
            return "+inf" if value > 0 else "-inf"
        case _:
            return value


def _reference(known: Known, value: Any, path: str, gives: str) -> Value:
    name = text(value, path)
    if name.startswith("@"):
        if name[1:] not in known.tensors or gives != "Tensor":
            raise InvalidSpec(
                path, f"{name[1:65]!r} is no tensor of this graph" if gives == "Tensor" else "is one tensor"
            )
        return Value(name[1:], tensor=True)
    if name not in known.values:
        raise InvalidSpec(path, f"{name[:64]!r} is no input and no node before this one")
    if known.values[name] != gives:
        raise InvalidSpec(path, f"{name[:64]!r} gives {known.values[name]}, not {gives}")
    return Value(name)


def _int(known: Known, value: Any, path: str) -> int | Value:
    if isinstance(value, str):
        return _reference(known, value, path, "int")
    if type(value) is int and (value == INT64_MAX or -MAX_INT <= value <= MAX_INT):
        return value
    raise InvalidSpec(path, f"must be an integer in ±{MAX_INT}, or the name of one")


def _ints(known: Known, name: str, value: Any, path: str) -> tuple[int | Value, ...]:
    entries = some(value, path, 0, MAX_INTS)
    read = tuple(_int(known, one, f"{path}[{at}]") for at, one in enumerate(entries))
    if name in SIZES and math.prod(max(1, one) for one in read if isinstance(one, int)) > known.byte_limit:
        raise InvalidSpec(path, "says sizes over the budget")
    return read


def _float(value: Any, path: str) -> float:
    if value in ("+inf", "-inf"):
        return math.inf if value == "+inf" else -math.inf
    if type(value) is int and abs(value) <= MAX_INT:
        return float(value)
    if type(value) is not float or not math.isfinite(value):
        raise InvalidSpec(path, "must be a number, or +inf or -inf as a text")
    return value


def _scalar(known: Known, value: Any, path: str) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value not in ("+inf", "-inf"):
        return _reference(known, value, path, "int")
    return _int(known, value, path) if type(value) is int else _float(value, path)


def _word(name: str, value: Any, path: str) -> str:
    if name == "equation":
        if not isinstance(value, str) or not _EQUATION.match(value):
            raise InvalidSpec(path, "must be an equation of letters, commas, points and an arrow")
        return value
    return one_of(value, path, WORDS.get(name, ()))


# --- rules of JSON values ------------------------------------------------------------------------------------------


def need_keys(value: Any, path: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    if not isinstance(value, dict):
        raise InvalidSpec(path, "must be an object")
    for key in value:
        if key not in required and key not in optional:
            raise InvalidSpec(_join(path, str(key)[:64]), f"unknown field; allowed: {', '.join(required + optional)}")
    for key in required:
        if key not in value:
            raise InvalidSpec(_join(path, key), "is missing")


def some(value: Any, path: str, least: int, most: int) -> list[Any]:
    if not isinstance(value, list | tuple) or not least <= len(value) <= most:
        raise InvalidSpec(path, f"must be a list of {least}…{most}")
    return list(value)


def whole(value: Any, path: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidSpec(path, f"must be an integer in {low}…{high}")
    return value


def one_of(value: Any, path: str, options: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in options:
        raise InvalidSpec(path, f"must be one of {', '.join(options) or 'nothing: no dimension may vary'}")
    return value


def flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidSpec(path, "must be true or false")
    return value


def text(value: Any, path: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME:
        raise InvalidSpec(path, f"must be a text of 1…{MAX_NAME} characters")
    return value


def type_of(default: Any) -> type:
    return tuple if isinstance(default, list) else type(default)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
