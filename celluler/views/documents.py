"""Records as JSON and back.

A reader ignores keys it does not know (a newer node may say more) and refuses a document that lacks one it needs.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from celluler.errors import ProtocolViolation
from celluler.tensors import Tensor, tensor_from_json, tensor_to_json

SCHEMA = "celluler/v1"
"""Every JSON document a node or the command line writes carries `"schema": SCHEMA`."""

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """The JSON form of a record: an object by field names; bytes are not JSON and raise TypeError."""
    if isinstance(value, Tensor):
        return tensor_to_json(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_json(cls: type[T], document: Any) -> T:
    """The record a JSON object tells. Raises ProtocolViolation when a field is missing or of another type."""
    return typing.cast(T, _read(cls, document, cls.__name__))


def _read(hint: Any, value: Any, path: str) -> Any:
    if hint is Tensor:
        return tensor_from_json(value)
    if is_dataclass(hint):
        return _read_record(typing.cast(type, hint), value, path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _read(args[0], value, path)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(args[0], item, f"{path}[{place}]") for place, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {str(key): _read(args[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint in (str, int, bool) and type(value) is hint:
        return value
    raise ProtocolViolation(f"{path}: not {getattr(hint, '__name__', hint)}")


def _read_record(cls: type, document: Any, path: str) -> Any:
    if not isinstance(document, dict):
        raise ProtocolViolation(f"{path}: not an object")
    hints = typing.get_type_hints(cls)
    values = {}
    for item in fields(cls):
        if item.name in document:
            values[item.name] = _read(hints[item.name], document[item.name], f"{path}.{item.name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ProtocolViolation(f"{path}.{item.name}: missing")
    return cls(**values)
