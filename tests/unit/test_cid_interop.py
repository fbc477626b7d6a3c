"""Our CIDs read by somebody else's library (py-cid, which comes with libp2p), and that library's read by us."""

from __future__ import annotations

import cid
import multihash
import pytest
from multibase import decode as decode_multibase

from celluler.content.digest import Codec, cid_of, digest_of, parse_cid

NAMES = {Codec.RAW: "raw", Codec.MANIFEST: "messagepack"}
PAYLOADS = [b"", b"abc", bytes(range(256)) * 5000]


@pytest.mark.parametrize("payload", PAYLOADS, ids=len)
@pytest.mark.parametrize("codec", list(Codec))
def test_an_independent_library_reads_version_codec_and_hash(codec: Codec, payload: bytes) -> None:
    theirs = cid.make_cid(cid_of(digest_of(payload), codec))
    assert (theirs.version, theirs.codec) == (1, NAMES[codec])
    hashed = multihash.decode(theirs.multihash)
    assert (hashed.name, hashed.length, hashed.digest) == ("blake3", 32, digest_of(payload))


@pytest.mark.parametrize("codec", list(Codec))
def test_an_independent_library_writes_the_same_text_and_the_same_bytes(codec: Codec) -> None:
    ours = cid_of(digest_of(b"anything"), codec)
    theirs = cid.make_cid(ours)
    assert theirs.encode("base32").decode("ascii") == ours
    assert theirs.buffer == decode_multibase(ours)


@pytest.mark.parametrize("codec", list(Codec))
def test_a_cid_made_by_an_independent_library_is_read_by_us(codec: Codec) -> None:
    digest = digest_of(b"made elsewhere")
    theirs = cid.make_cid(1, NAMES[codec], multihash.encode(digest, "blake3"))
    assert parse_cid(theirs.encode("base32").decode("ascii")) == digest
