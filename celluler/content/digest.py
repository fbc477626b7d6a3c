"""Digests, and how a person writes one.

A digest is 32 bytes of BLAKE3; its text is a CIDv1 in base32, so that any IPFS tool can read it.
"""

from __future__ import annotations

import base64
import binascii
from enum import Enum
from typing import NewType

from blake3 import blake3

from celluler.errors import InvalidSpec, LocalError

Digest = NewType("Digest", bytes)
"""32 bytes of BLAKE3."""

DIGEST_BYTES = 32


class Codec(Enum):
    """What the bytes behind a CID are. The value is the multicodec code as a varint."""

    RAW = b"\x55"  # 0x55 raw binary
    MANIFEST = b"\x81\x04"  # 0x0201 messagepack: the root of a content


_VERSION = b"\x01"
_BLAKE3_32 = b"\x1e\x20"  # multihash: BLAKE3, 32 bytes


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """The digest of these bytes. Releases the GIL for more than a few KiB."""
    return Digest(blake3(data).digest())


def cid_of(digest: bytes, codec: Codec = Codec.RAW) -> str:
    """`b…`: CIDv1, base32 lower-case without padding."""
    if len(digest) != DIGEST_BYTES:
        raise LocalError(f"a digest has {DIGEST_BYTES} bytes, not {len(digest)}")
    return "b" + _base32(_VERSION + codec.value + _BLAKE3_32 + digest)


def parse_cid(text: str) -> Digest:
    """The digest inside a CID of either codec. Raises InvalidSpec for any text that `cid_of` does not write."""
    padded = text[1:].upper() + "=" * (-(len(text) - 1) % 8)
    try:
        raw = base64.b32decode(padded) if text.startswith("b") else b""
    except (binascii.Error, ValueError):
        raw = b""
    digest = Digest(raw[-DIGEST_BYTES:])
    if len(digest) == DIGEST_BYTES and any(cid_of(digest, codec) == text for codec in Codec):
        return digest
    raise InvalidSpec("", f"{text[:80]!r} is not a CID of ours (base32 CIDv1 over BLAKE3)")


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode("ascii").rstrip("=").lower()
