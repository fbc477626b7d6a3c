"""Closed vocabularies over canonical msgpack: records, and frames of tagged messages.

A record is a frozen dataclass whose annotations say everything that may arrive: every integer has a range,
every string, byte string and sequence a length. msgpack itself checks neither type nor arity nor range, so
each record class is compiled once into a checker and nothing reaches the caller unchecked. A record travels as
the array of its fields in order; a message as `[tag, fields]`, its tag being its place in the vocabulary.

Knows nothing of streams, peers or what a message means.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar

import msgpack

from celluler.errors import LocalError, ProtocolViolation

LENGTH_PREFIX_BYTES = 4
_LONG_BYTES = 1 << 16  # from here on msgpack writes a bin 32


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of an integer, both inclusive."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Length:
    """Bounds of a length, both inclusive: bytes of a byte string or of UTF-8, items of a sequence."""

    low: int
    high: int


U8 = Annotated[int, Range(0, 2**8 - 1)]
U16 = Annotated[int, Range(0, 2**16 - 1)]
U32 = Annotated[int, Range(0, 2**32 - 1)]
U64 = Annotated[int, Range(0, 2**64 - 1)]
I16 = Annotated[int, Range(-(2**15), 2**15 - 1)]
Bytes32 = Annotated[bytes, Length(32, 32)]
Bytes64 = Annotated[bytes, Length(64, 64)]
Name = Annotated[str, Length(1, 128)]
Text = Annotated[str, Length(0, 1024)]
PeerName = Annotated[str, Length(46, 64)]
"""A peer id in text; `identity.public_key_of` checks that it is one."""

R = TypeVar("R")
Reader = Callable[[Any, str], Any]
Writer = Callable[[Any], Any]


def pack(record: Any) -> bytes:
    """The canonical bytes of one record."""
    reader, writer = _codec(type(record))
    plain = writer(record)
    reader(plain, type(record).__name__)  # what we would refuse from a peer we do not send either
    return bytes(msgpack.packb(plain, use_bin_type=True))


def unpack(cls: type[R], data: bytes, *, limit: int) -> R:
    """The record that `data` is the canonical form of.

    Raises ProtocolViolation for anything else: too long, not msgpack, another shape, out of range, or
    a second encoding of the same record (so that a digest names one record and a record one digest).
    """
    record = typing.cast(R, _codec(cls)[0](_parse(data, limit), cls.__name__))
    if pack(record) != data:
        raise ProtocolViolation(f"{cls.__name__}: not in canonical form")
    return record


class Frames:
    """One direction of one stream: messages to bytes, and bytes as they come to messages.

    types: the vocabulary; the wire tag of a message is its class's place in it.
    limit: the largest body in bytes; a longer one is refused when its length is read, not when it has arrived.
    """

    def __init__(self, types: tuple[type, ...], *, limit: int) -> None:
        self._types, self._limit = types, limit
        self._tags = {cls: tag for tag, cls in enumerate(types)}
        self._buffer = bytearray()
        for cls in types:
            _codec(cls)

    def encode(self, message: Any) -> bytes:
        tag = self._tags.get(type(message))
        if tag is None:
            raise LocalError(f"{type(message).__name__} is not a word of this protocol")
        reader, writer = _codec(type(message))
        plain = writer(message)
        reader(plain, type(message).__name__)
        parts = _pack_parts([tag, plain])
        size = sum(map(len, parts))
        if size > self._limit:
            raise LocalError(f"{type(message).__name__} of {size} bytes is over the limit of {self._limit}")
        return b"".join((size.to_bytes(LENGTH_PREFIX_BYTES, "big"), *parts))

    def feed(self, chunk: bytes) -> list[Any]:
        """All messages that `chunk` completes, in order. Raises ProtocolViolation; then the stream is lost."""
        self._buffer += chunk
        messages = []
        while end := self._next_end():
            with memoryview(self._buffer)[LENGTH_PREFIX_BYTES:end] as body:
                messages.append(self._decode(body))
            del self._buffer[:end]
        return messages

    @property
    def idle(self) -> bool:
        """True between messages: the only place where a stream may end."""
        return not self._buffer

    def _next_end(self) -> int:
        """Where the first frame ends in the buffer; 0 while it is incomplete."""
        if len(self._buffer) < LENGTH_PREFIX_BYTES:
            return 0
        size = int.from_bytes(self._buffer[:LENGTH_PREFIX_BYTES], "big")
        if not 0 < size <= self._limit:
            raise ProtocolViolation(f"frame of {size} bytes, limit {self._limit}")
        end = LENGTH_PREFIX_BYTES + size
        return end if len(self._buffer) >= end else 0

    def _decode(self, body: memoryview) -> Any:
        match _parse(body, self._limit):
            case [int(tag), list(plain)] if not isinstance(tag, bool) and 0 <= tag < len(self._types):
                cls = self._types[tag]
                return _codec(cls)[0](plain, cls.__name__)
            case _:
                raise ProtocolViolation("not a message of this protocol")


def _pack_parts(message: list[Any]) -> tuple[bytes, ...]:
    """`[tag, fields]` in msgpack. A long byte string at the end is not copied through msgpack, which costs as much
    as hashing it; the bytes are the same."""
    plain = message[1]
    if not plain or not isinstance(plain[-1], bytes) or len(plain[-1]) < _LONG_BYTES:
        return (msgpack.packb(message, use_bin_type=True),)
    head = msgpack.packb([message[0], [*plain[:-1], b""]], use_bin_type=True)
    return head[:-2], b"\xc6" + len(plain[-1]).to_bytes(4, "big"), plain[-1]  # bin 8 of nothing -> bin 32


def _parse(data: bytes | memoryview, limit: int) -> Any:
    if len(data) > limit:
        raise ProtocolViolation(f"{len(data)} bytes, limit {limit}")
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolViolation(f"not msgpack: {type(error).__name__}") from error


# --- compiling a record class into a reader and a writer -------------------------------------------------------


_codecs: dict[Any, tuple[Reader, Writer]] = {}


def _codec(cls: Any) -> tuple[Reader, Writer]:
    """(reader, writer) of a record class. Raises LocalError for an annotation that leaves something unbounded."""
    if cls not in _codecs:
        _codecs[cls] = _compile(cls)
    return _codecs[cls]


def _compile(cls: Any) -> tuple[Reader, Writer]:
    if not isinstance(cls, type) or not is_dataclass(cls):
        raise LocalError(f"{cls!r} is not a record")
    hints = typing.get_type_hints(cls, include_extras=True)
    names = tuple(field.name for field in fields(cls))
    build: Callable[..., Any] = cls
    codecs = tuple(_field_codec(hints[name], f"{cls.__name__}.{name}") for name in names)

    def read(plain: Any, path: str) -> Any:
        if not isinstance(plain, list) or len(plain) != len(names):
            raise ProtocolViolation(f"{path}: expected {len(names)} fields")
        values = [codec[0](item, f"{path}.{name}") for codec, item, name in zip(codecs, plain, names, strict=True)]
        return build(*values)

    def write(record: Any) -> list[Any]:
        return [codec[1](getattr(record, name)) for codec, name in zip(codecs, names, strict=True)]

    return read, write


def _field_codec(hint: Any, path: str) -> tuple[Reader, Writer]:
    bound: Range | Length | None = None
    if typing.get_origin(hint) is Annotated:
        hint, bound = typing.get_args(hint)[0], typing.get_args(hint)[1]
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _union_codec(typing.get_args(hint), bound, path)
    if origin is tuple:
        return _tuple_codec(typing.get_args(hint), bound, path)
    if is_dataclass(hint):
        return _codec(typing.cast(type, hint))
    match hint, bound:
        case (builtin, Range(low, high)) if builtin is int:
            return _int_reader(low, high), _same
        case (builtin, Length(low, high)) if builtin in (str, bytes):
            return _sized_reader(builtin, low, high), _same
        case (builtin, None) if builtin is bool:
            return _read_bool, _same
        case (builtin, None) if builtin is float:
            return _read_float, float
    raise LocalError(f"{path}: {hint!r} with bound {bound!r} is not a closed type")


def _same(value: Any) -> Any:
    return value


def _read_bool(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise ProtocolViolation(f"{path}: not a bool")
    return value


def _read_float(value: Any, path: str) -> float:
    if not isinstance(value, float) or not math.isfinite(value):
        raise ProtocolViolation(f"{path}: not a finite float")
    return value


def _int_reader(low: int, high: int) -> Reader:
    def read(value: Any, path: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ProtocolViolation(f"{path}: not an integer in {low}..{high}")
        return value

    return read


def _sized_reader(builtin: type[str] | type[bytes], low: int, high: int) -> Reader:
    def read(value: Any, path: str) -> Any:
        if type(value) is not builtin:
            raise ProtocolViolation(f"{path}: not {builtin.__name__}")
        size = len(value.encode("utf-8")) if isinstance(value, str) else len(value)
        if not low <= size <= high:
            raise ProtocolViolation(f"{path}: {size} bytes, allowed {low}..{high}")
        return value

    return read


def _tuple_codec(args: tuple[Any, ...], bound: Range | Length | None, path: str) -> tuple[Reader, Writer]:
    if len(args) == 2 and args[1] is Ellipsis:
        if not isinstance(bound, Length):
            raise LocalError(f"{path}: a sequence needs a Length")
        low, high = bound.low, bound.high
        item_read, item_write = _field_codec(args[0], f"{path}[]")

        def read(value: Any, where: str) -> tuple[Any, ...]:
            if not isinstance(value, list) or not low <= len(value) <= high:
                raise ProtocolViolation(f"{where}: not a sequence of {low}..{high} items")
            return tuple(item_read(item, f"{where}[{place}]") for place, item in enumerate(value))

        return read, lambda value: [item_write(item) for item in value]

    codecs = tuple(_field_codec(arg, f"{path}[{place}]") for place, arg in enumerate(args))

    def read_fixed(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(codecs):
            raise ProtocolViolation(f"{where}: expected {len(codecs)} items")
        pairs = zip(codecs, value, strict=True)
        return tuple(codec[0](item, f"{where}[{place}]") for place, (codec, item) in enumerate(pairs))

    return read_fixed, lambda value: [codec[1](item) for codec, item in zip(codecs, value, strict=True)]


def _union_codec(args: tuple[Any, ...], bound: Range | Length | None, path: str) -> tuple[Reader, Writer]:
    """`T | None` travels as nil or T; a union of records as `[tag, fields]`."""
    members = tuple(arg for arg in args if arg is not types.NoneType)
    if len(members) == 1 and len(args) == 2:
        inner = members[0] if bound is None else Annotated[members[0], bound]
        item_read, item_write = _field_codec(inner, path)
        return (
            lambda value, where: None if value is None else item_read(value, where),
            lambda value: None if value is None else item_write(value),
        )
    if len(members) != len(args) or not all(is_dataclass(member) for member in members):
        raise LocalError(f"{path}: a union must be `T | None` or records only")
    codecs = {member: _codec(member) for member in members}
    read_tag = _int_reader(0, len(members) - 1)

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, list) or len(value) != 2:
            raise ProtocolViolation(f"{where}: expected [tag, fields]")
        member = members[read_tag(value[0], where)]
        return codecs[member][0](value[1], where)

    return read, lambda value: [members.index(type(value)), codecs[type(value)][1](value)]
