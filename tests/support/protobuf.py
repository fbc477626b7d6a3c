"""As much protobuf as the peers of the interoperation tests speak: numbers, bytes and lists of them, length first.

Knows no schema: a message is its fields by number, each the list of what was sent under it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import trio

MAX_MESSAGE_BYTES = 1 << 20
Fields = Mapping[int, Sequence[int | bytes]]
_VARINT, _BYTES = 0, 2


def encode_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def encode(fields: Fields) -> bytes:
    out = bytearray()
    for number, values in fields.items():
        for value in values:
            if isinstance(value, int):
                out += encode_varint(number << 3 | _VARINT) + encode_varint(value)
            else:
                out += encode_varint(number << 3 | _BYTES) + encode_varint(len(value)) + value
    return bytes(out)


def decode(data: bytes) -> dict[int, list[int | bytes]]:
    fields: dict[int, list[int | bytes]] = defaultdict(list)
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value, at = _varint(data, at)
        match key & 7:
            case 0:
                fields[key >> 3].append(value)
            case 2:
                fields[key >> 3].append(data[at : at + value])
                at += value
            case kind:
                raise ValueError(f"wire type {kind}")
    return dict(fields)


def texts(values: Sequence[int | bytes]) -> list[str]:
    return [value.decode() for value in values if isinstance(value, bytes)]


async def send(stream: trio.abc.SendStream, fields: Fields) -> None:
    data = encode(fields)
    await stream.send_all(encode_varint(len(data)) + data)


async def receive(stream: trio.abc.ReceiveStream) -> dict[int, list[int | bytes]]:
    """One message and not a byte more of what follows it."""
    prefix = bytearray()
    while not prefix or prefix[-1] & 0x80:
        prefix += await exactly(stream, 1)
    length, _ = _varint(bytes(prefix), 0)
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes")
    return decode(await exactly(stream, length))


async def exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise EOFError(f"{len(data)} of {count} bytes")
        data += more
    return bytes(data)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
