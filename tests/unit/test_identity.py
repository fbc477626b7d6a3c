"""Keys, peer ids, the key file and signed envelopes."""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import BadSignature, IntegrityError, LocalError, PeerViolation, ProtocolViolation
from celluler.identity import (
    Envelope,
    Identity,
    format_identity,
    load_identity,
    load_or_create_identity,
    open_envelope,
    parse_identity,
    peer_id_of,
    public_key_of,
    seal,
    short,
)
from celluler.wire import U32, Text, pack, unpack

ALICE, BOB = Identity(bytes(32)), Identity(bytes([1]) * 32)


@dataclass(frozen=True, slots=True)
class Promise:
    KIND: ClassVar[str] = "test/promise"
    amount: U32
    note: Text


@dataclass(frozen=True, slots=True)
class Threat:
    KIND: ClassVar[str] = "test/threat"
    amount: U32
    note: Text


def test_a_peer_id_is_libp2ps() -> None:
    assert ALICE.public_key.hex() == "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
    assert ALICE.peer_id == "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
    assert public_key_of(ALICE.peer_id) == ALICE.public_key
    assert short(ALICE.peer_id) == "4kx6nXTN"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12D3KooW",
        "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXT",
        "112D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
        "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN ",
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKU1fj",
        "0OIl",
        "\u00e9" * 52,
    ],
)
def test_other_text_is_no_peer_id(text: str) -> None:
    with pytest.raises(ProtocolViolation):
        public_key_of(text)


def test_the_secret_does_not_show() -> None:
    secret = Identity(b"a very secret seed of 32 bytes !")
    assert "secret" not in repr(secret)
    assert secret.peer_id in repr(secret)
    assert secret.seed == b"a very secret seed of 32 bytes !"
    assert Identity.generate().peer_id != Identity.generate().peer_id


def test_a_key_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    made = load_or_create_identity(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_identity(path).seed == load_identity(path).seed == made.seed
    assert os.listdir(path.parent) == ["key"]


def test_a_key_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_or_create_identity(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o601])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    load_or_create_identity(path)
    path.chmod(mode)
    with pytest.raises(LocalError, match="open to other users") as caught:
        load_identity(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_a_key_file_that_cannot_be_written_is_a_local_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LocalError):
        load_or_create_identity(tmp_path / "file" / "key")


def test_an_absent_key_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        load_identity(tmp_path / "key")
    assert caught.value.hint == "celluler init"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"celluler-ed25519-1 ",
        b"celluler-ed25519-1 AAAA\n",
        b"celluler-ed25519-2 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        b"celluler-ed25519-1 !!!!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        b"\xff\xfe",
    ],
)
def test_a_torn_key_file_is_never_replaced(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(IntegrityError):
        load_or_create_identity(path)
    assert path.read_bytes() == text


def test_several_creators_agree_on_one_key(tmp_path: Path) -> None:
    seeds: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: seeds.append(load_or_create_identity(tmp_path / "key").seed)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(seeds) == 8
    assert len(set(seeds)) == 1


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_an_identity_comes_back_from_its_text(seed: bytes) -> None:
    identity = Identity(seed)
    assert parse_identity(format_identity(identity)).seed == seed
    assert public_key_of(peer_id_of(identity.public_key)) == identity.public_key


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.text(max_size=100))
def test_what_was_sealed_opens_with_its_signer(amount: int, note: str) -> None:
    record = Promise(amount, note)
    raw = seal(ALICE, record)
    opened = open_envelope(Promise, raw, signer=ALICE.peer_id)
    assert (opened.signer, opened.record, opened.raw) == (ALICE.peer_id, record, raw)
    assert seal(ALICE, record) == raw


RAW = seal(ALICE, Promise(5, "to the bearer"))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
def test_a_tampered_envelope_never_opens(place: int, change: int) -> None:
    tampered = bytearray(RAW)
    tampered[place] ^= change
    with pytest.raises(PeerViolation):
        open_envelope(Promise, bytes(tampered))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_no_envelope(garbage: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        open_envelope(Promise, garbage)
    with pytest.raises(ProtocolViolation):
        open_envelope(Promise, RAW + garbage[:1] + b"\0")


def test_a_signature_for_one_purpose_serves_no_other() -> None:
    with pytest.raises(ProtocolViolation, match="kind"):
        open_envelope(Threat, RAW)
    envelope = unpack(Envelope, RAW, limit=1 << 16)
    with pytest.raises(BadSignature):
        open_envelope(Threat, pack(replace(envelope, kind=Threat.KIND)))
    bare = ALICE.sign(envelope.body)
    with pytest.raises(BadSignature):
        open_envelope(Promise, pack(replace(envelope, signature=bare)))


def test_a_kind_and_a_body_cannot_be_cut_elsewhere() -> None:
    @dataclass(frozen=True, slots=True)
    class Longer:
        KIND: ClassVar[str] = "test/promise\0\x92\x05"
        note: Text

    envelope = unpack(Envelope, RAW, limit=1 << 16)
    moved = replace(envelope, kind=Longer.KIND, body=envelope.body[2:])
    with pytest.raises(PeerViolation):
        open_envelope(Longer, pack(moved))


def test_another_signer_than_expected_is_refused() -> None:
    with pytest.raises(BadSignature) as caught:
        open_envelope(Promise, RAW, signer=BOB.peer_id)
    assert caught.value.peer == ALICE.peer_id
    envelope = unpack(Envelope, RAW, limit=1 << 16)
    with pytest.raises(BadSignature):
        open_envelope(Promise, pack(replace(envelope, signer=BOB.public_key)), signer=BOB.peer_id)


@pytest.mark.parametrize("key", [bytes(32), b"\xff" * 32, b"\x01" + bytes(31)])
def test_a_degenerate_key_signs_nothing(key: bytes) -> None:
    envelope = unpack(Envelope, RAW, limit=1 << 16)
    for signature in (bytes(64), key + bytes(32)):
        with pytest.raises(BadSignature):
            open_envelope(Promise, pack(replace(envelope, signer=key, signature=signature)))


def test_a_body_over_the_callers_limit_is_refused() -> None:
    raw = seal(ALICE, Promise(1, "x" * 1000))
    with pytest.raises(ProtocolViolation):
        open_envelope(Promise, raw, limit=100)
    assert open_envelope(Promise, raw, limit=1100).record.amount == 1


def test_a_body_that_is_signed_but_malformed_is_refused() -> None:
    body: Any = pack(Promise(1, "x"))[:-1]
    message = b"celluler-envelope-1\0test/promise\0" + body
    raw = pack(Envelope(Promise.KIND, ALICE.public_key, body, ALICE.sign(message)))
    with pytest.raises(ProtocolViolation):
        open_envelope(Promise, raw)
