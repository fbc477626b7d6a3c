"""Digests and their text."""

from __future__ import annotations

import base64

import pytest

from celluler.content.digest import Codec, Digest, cid_of, digest_of, parse_cid
from celluler.errors import InvalidSpec, LocalError


def test_a_digest_is_blake3() -> None:
    assert (
        digest_of(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    )  # published vector
    assert digest_of(memoryview(b"abc")) == digest_of(bytearray(b"abc")) == digest_of(b"abc")


def test_a_cid_is_version_1_in_base32_and_names_its_codec() -> None:
    assert cid_of(digest_of(b"")) == "bafkr4ifpcne3t5pzugtkaqcn5i3nzskjtpfslsnnyejlpte2spfoihzsmi"
    raw = base64.b32decode(cid_of(digest_of(b""), Codec.MANIFEST)[1:].upper() + "=" * 4)
    assert raw == bytes.fromhex("01 8104 1e 20") + digest_of(b"")  # version, messagepack, blake3, 32 bytes


@pytest.mark.parametrize("codec", list(Codec))
def test_a_cid_reads_back_as_its_digest(codec: Codec) -> None:
    digest = digest_of(b"anything")
    assert parse_cid(cid_of(digest, codec)) == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKU1fj",  # CIDv0, SHA-256
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",  # CIDv1, SHA-256
        cid_of(digest_of(b"")).upper(),
        cid_of(digest_of(b"")) + "a",
        cid_of(digest_of(b""))[:-1],
        cid_of(digest_of(b"")) + "====",
        "z" + cid_of(digest_of(b""))[1:],
        "b\u00e9" + "a" * 57,
    ],
)
def test_other_text_is_not_a_cid(text: str) -> None:
    with pytest.raises(InvalidSpec):
        parse_cid(text)


def test_only_32_bytes_are_a_digest() -> None:
    with pytest.raises(LocalError):
        cid_of(Digest(bytes(31)))
