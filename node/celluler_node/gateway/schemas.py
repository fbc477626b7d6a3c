"""JSON Schema of what goes over HTTP, from the records of `celluler.views`; and short ways to write the rest."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from celluler.tensors import DTYPES, Tensor
from celluler.views import SCHEMA

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SWITCH: Schema = {"type": "boolean"}
ANYTHING: Schema = {}
OBJECT: Schema = {"type": "object"}
BYTES: Schema = {"type": "string", "format": "binary"}
TENSOR: Schema = {
    "type": "object",
    "description": "Row-major little-endian in base64.",
    "properties": {
        "shape": {"type": "array", "items": COUNT},
        "dtype": {"type": "string", "enum": list(DTYPES)},
        "data": {"type": "string", "contentEncoding": "base64"},
    },
    "required": ["shape", "dtype", "data"],
}
_PLAIN: dict[Any, Schema] = {str: TEXT, int: WHOLE, float: NUMBER, bool: SWITCH, Any: ANYTHING, Tensor: TENSOR}


def list_of(item: Schema, *, least: int = 0) -> Schema:
    return {"type": "array", "items": item, **({"minItems": least} if least else {})}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def given(**properties: Schema) -> Schema:
    """What a request bears, and nothing else. A name that ends in `_` may be left out, or be null."""
    told = {name.rstrip("_"): (_or_null(item) if name.endswith("_") else item) for name, item in properties.items()}
    needed = [name for name in properties if not name.endswith("_")]
    return {"type": "object", "properties": told, "required": needed, "additionalProperties": False}


def answered(**properties: Schema) -> Schema:
    """What an answer has at least. A name that ends in `_` may be absent."""
    told = {name.rstrip("_"): item for name, item in properties.items()}
    return {"type": "object", "properties": told, "required": [name for name in properties if not name.endswith("_")]}


def document(**properties: Schema) -> Schema:
    """An answer of our own."""
    return answered(schema={"const": SCHEMA}, **properties)


class Records:
    """Schemas of records by name, as they are asked for: `components` of a document."""

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}

    def answered(self, record: type) -> Schema:
        """A reference. An answer has every field."""
        return self._named(record, record.__name__, asked=False)

    def asked(self, record: type) -> Schema:
        """A reference. A request may leave out, or say null, what has a default; and bears no other field."""
        return self._named(record, f"{record.__name__}Request", asked=True)

    def _named(self, record: type, name: str, *, asked: bool) -> Schema:
        if name not in self.components:
            self.components[name] = {}  # a record may hold itself
            self.components[name] = self._record(record, asked=asked)
        return {"$ref": f"#/components/schemas/{name}"}

    def _record(self, record: type, *, asked: bool) -> Schema:
        hints, properties, needed = typing.get_type_hints(record), {}, []
        for item in fields(record):
            must = item.default is MISSING and item.default_factory is MISSING
            told = self._of(hints[item.name], asked=asked)
            properties[item.name] = told if must or not asked else _or_null(told)
            if must or not asked:
                needed.append(item.name)
        told = {"type": "object", "properties": properties, "required": needed}
        if asked:
            told["additionalProperties"] = False
        return told

    def _of(self, hint: Any, *, asked: bool) -> Schema:
        if hint in _PLAIN:
            return _PLAIN[hint]
        if is_dataclass(hint):
            return self._named(typing.cast(type, hint), typing.cast(type, hint).__name__, asked=asked)
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin is types.UnionType:
            return _or_null(self._of(inner[0], asked=asked))
        if origin is tuple:
            return list_of(self._of(inner[0], asked=asked))
        if origin is Mapping:
            return {"type": "object", "additionalProperties": self._of(inner[1], asked=asked)}
        raise TypeError(f"{hint} has no schema")


def _or_null(schema: Schema) -> Schema:
    return schema if not schema or {"type": "null"} in schema.get("anyOf", ()) else either(schema, {"type": "null"})
