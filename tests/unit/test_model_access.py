from __future__ import annotations

import os
from pathlib import Path

import pytest

from celluler.content.digest import digest_of
from celluler.content.manifest import describe
from celluler.errors import Denied, IntegrityError, InvalidSpec, LocalError, ProtocolViolation
from celluler.identity import Identity, peer_id_of
from celluler.models.access import (
    FRAME_BYTES,
    MAX_READERS,
    PLAIN_FRAME_BYTES,
    SealedKey,
    decrypt_file,
    encrypt_file,
    new_key,
    open_key,
    plain_bytes,
    seal_key,
)

ALICE, BOB, MALLORY = Identity(b"a" * 32), Identity(b"b" * 32), Identity(b"m" * 32)
KEY = bytes(range(32))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain"
    path.write_bytes(os.urandom(2 * PLAIN_FRAME_BYTES + 5))
    return path


@pytest.fixture
def sealed(plain: Path, tmp_path: Path) -> Path:
    path = tmp_path / "sealed"
    encrypt_file(plain, path, KEY)
    return path


# --- keys ------------------------------------------------------------------------------------------------------


def test_a_key_is_opened_by_its_readers_and_by_nobody_else() -> None:
    key = new_key()
    sealed = seal_key(key, [BOB.peer_id, ALICE.peer_id, BOB.peer_id])
    assert len(sealed) == 2
    assert [one.reader for one in sealed] == sorted(one.reader for one in sealed)
    assert open_key(ALICE, sealed) == open_key(BOB, sealed) == key
    with pytest.raises(Denied):
        open_key(MALLORY, sealed)


def test_a_key_that_was_sealed_to_another_under_our_name_is_the_authors_fault() -> None:
    (for_alice,) = seal_key(KEY, [ALICE.peer_id])
    with pytest.raises(ProtocolViolation):
        open_key(BOB, [SealedKey(BOB.public_key, for_alice.box)])


def test_readers_are_peer_ids_that_a_key_can_be_sealed_to() -> None:
    for nobody in ("alice", peer_id_of(b"\x01" + bytes(31)), peer_id_of(b"\xff" * 32)):
        with pytest.raises(InvalidSpec):
            seal_key(KEY, [nobody])


def test_readers_are_some_but_not_too_many() -> None:
    with pytest.raises(InvalidSpec):
        seal_key(KEY, [])
    with pytest.raises(InvalidSpec):
        seal_key(KEY, (peer_id_of(number.to_bytes(32)) for number in range(MAX_READERS + 1)))


# --- files -----------------------------------------------------------------------------------------------------


def test_a_frame_is_exactly_a_chunk_of_the_encrypted_content(plain: Path, sealed: Path) -> None:
    layout = describe(sealed, "model").layout()
    assert [piece.length for piece in layout] == [FRAME_BYTES, FRAME_BYTES, 5 + 16]
    assert layout.manifest.header is None


def test_a_file_comes_back_as_it_was(plain: Path, sealed: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    decrypt_file(sealed, back, KEY, plain=digest_of(plain.read_bytes()))
    assert back.read_bytes() == plain.read_bytes()
    assert back.stat().st_mode & 0o777 == 0o600


def cut(data: bytes) -> list[bytes]:
    return [data[at : at + FRAME_BYTES] for at in range(0, len(data), FRAME_BYTES)]


@pytest.mark.parametrize(
    "change",
    [
        lambda frames: frames[:-1],
        lambda frames: frames[1:],
        lambda frames: [frames[1], frames[0], frames[2]],
        lambda frames: [frames[0], frames[0], frames[2]],
        lambda frames: [*frames, frames[2]],
        lambda frames: [*frames[:2], frames[2][:-1]],
        lambda frames: [*frames[:2], frames[2] + b"\0"],
        lambda frames: [frames[0][:-1] + bytes([frames[0][-1] ^ 1]), *frames[1:]],
        lambda frames: [],
        lambda frames: [b"short"],
    ],
    ids=["cut", "beheaded", "exchanged", "repeated", "grown", "shorter", "longer", "bit", "empty", "short"],
)
def test_a_file_with_frames_changed_is_refused_and_leaves_nothing(change: object, sealed: Path, tmp_path: Path) -> None:
    sealed.write_bytes(b"".join(change(cut(sealed.read_bytes()))))  # type: ignore[operator]
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(IntegrityError):
        decrypt_file(sealed, folder / "back", KEY)
    assert list(folder.iterdir()) == []


def test_another_key_or_another_promise_is_refused(sealed: Path, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        decrypt_file(sealed, tmp_path / "back", new_key())
    with pytest.raises(IntegrityError, match="another file"):
        decrypt_file(sealed, tmp_path / "back", KEY, plain=digest_of(b"something else"))
    assert not (tmp_path / "back").exists()


def test_what_cannot_be_read_or_written_is_the_callers_to_mend(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(LocalError):
        encrypt_file(tmp_path / "absent", tmp_path / "out", KEY)
    with pytest.raises(LocalError):
        encrypt_file(plain, tmp_path / "no folder" / "out", KEY)


@pytest.mark.parametrize("size", [0, 1, PLAIN_FRAME_BYTES - 1, PLAIN_FRAME_BYTES, PLAIN_FRAME_BYTES + 1])
def test_how_long_the_plain_file_is_an_encrypted_one_tells(size: int, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(bytes(size))
    encrypt_file(tmp_path / "plain", tmp_path / "sealed", b"k" * 32)
    assert plain_bytes((tmp_path / "sealed").stat().st_size) == size
