"""Who may read a model: a key for each version, sealed to each reader, and the file encrypted under it.

    plain file       [1 MiB − 16 B][1 MiB − 16 B]...[rest]
    encrypted file   [   1 MiB    ][   1 MiB    ]...[rest + 16 B]      XChaCha20-Poly1305, a frame each

A frame is a chunk of the encrypted content, so that peers without the key store and serve it like any other, and
nothing has to be decrypted twice because a chunk was fetched again. The nonce is the frame's number and whether it is
the last one: frames cannot be left out, repeated, exchanged or cut off. A key encrypts one file and no other.

The file's length stays visible, and so does who the readers are. Taking a reader away changes nothing about versions
that they could read before. Knows nothing of manifests, stores or networks.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

from blake3 import blake3
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_ABYTES,
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError
from nacl.public import SealedBox
from nacl.signing import SigningKey, VerifyKey

from celluler.content.digest import Digest
from celluler.content.manifest import MAX_BLOCK_BYTES
from celluler.errors import Denied, IntegrityError, InvalidSpec, LocalError, ProtocolViolation
from celluler.identity import Identity, public_key_of
from celluler.wire import Bytes32, Length

KEY_BYTES = 32
BOX_BYTES = 80  # an ephemeral public key, a tag, the key
MAX_READERS = 256
FRAME_BYTES = MAX_BLOCK_BYTES
TAG_BYTES: int = crypto_aead_xchacha20poly1305_ietf_ABYTES
PLAIN_FRAME_BYTES = FRAME_BYTES - TAG_BYTES

_DOMAIN = b"celluler-encrypted-file-1"


@dataclass(frozen=True, slots=True)
class SealedKey:
    """The content key for one reader. reader: Ed25519 public key. box: the key in a libsodium sealed box."""

    reader: Bytes32
    box: Annotated[bytes, Length(BOX_BYTES, BOX_BYTES)]


# --- keys ------------------------------------------------------------------------------------------------------------


def new_key() -> bytes:
    """For one version: nothing of an earlier one can be read with it, nor the other way round."""
    return os.urandom(KEY_BYTES)


def seal_key(key: bytes, readers: Iterable[str]) -> tuple[SealedKey, ...]:
    """The key for each of these peers, ascending by their public keys. The author is one of them only when named.

    Raises InvalidSpec for what is no peer id, none or too many.
    """
    if len(key) != KEY_BYTES:
        raise LocalError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    named = {_public_key(reader, place): reader for place, reader in enumerate(readers)}
    if not 1 <= len(named) <= MAX_READERS:
        raise InvalidSpec("readers", f"are {len(named)}, must be 1…{MAX_READERS}")
    return tuple(SealedKey(public, _seal(key, public, named[public])) for public in sorted(named))


def open_key(identity: Identity, sealed: Iterable[SealedKey]) -> bytes:
    """The key, when we are a reader. Raises Denied; ProtocolViolation when what was sealed to us cannot be opened."""
    box = next((one.box for one in sealed if one.reader == identity.public_key), None)
    if box is None:
        raise Denied("this model is encrypted, and its author has not named this node among its readers")
    try:
        return bytes(SealedBox(SigningKey(identity.seed).to_curve25519_private_key()).decrypt(box))
    except CryptoError as error:
        raise ProtocolViolation("the key that the author sealed to this node cannot be opened") from error


def _public_key(reader: str, place: int) -> bytes:
    try:
        return public_key_of(reader)
    except ProtocolViolation as error:
        raise InvalidSpec(f"readers[{place}]", str(error)) from error


def _seal(key: bytes, public: bytes, reader: str) -> bytes:
    try:
        return bytes(SealedBox(VerifyKey(public).to_curve25519_public_key()).encrypt(key))
    except CryptoError as error:  # 32 bytes that are no point of the curve, or one of low order
        raise InvalidSpec("readers", f"{reader} holds no key that can be sealed to") from error


# --- files -----------------------------------------------------------------------------------------------------------


def encrypt_file(source: Path, target: Path, key: bytes) -> Digest:
    """Write `source` encrypted to `target`, which appears whole or not at all. Returns BLAKE3 of the plain bytes.

    key: used for no other file. Raises LocalError when a file cannot be read or written.
    """
    hasher = blake3()
    with _files(source, target) as (reading, writing):
        for number, plain, last in _frames(reading, PLAIN_FRAME_BYTES):
            hasher.update(plain)
            writing.write(crypto_aead_xchacha20poly1305_ietf_encrypt(plain, _DOMAIN, _nonce(number, last), key))
    return Digest(hasher.digest())


def plain_bytes(sealed_bytes: int) -> int:
    """Length of the plain file of an encrypted one of this length."""
    return max(0, sealed_bytes - TAG_BYTES * -(-sealed_bytes // FRAME_BYTES))


def decrypt_file(source: Path, target: Path, key: bytes, *, plain: bytes | None = None) -> None:
    """The inverse. `target` appears whole and only if every frame is authentic, readable by this user alone.

    plain: BLAKE3 that the result must have. Raises IntegrityError for any other file or key, LocalError as above.
    """
    hasher = blake3()
    with _files(source, target) as (reading, writing):
        for number, frame, last in _frames(reading, FRAME_BYTES):
            opened = _open_frame(frame, number, last, key)
            hasher.update(opened)
            writing.write(opened)
        if plain is not None and hasher.digest() != plain:
            raise IntegrityError(f"{source} decrypts to another file than its author signed")


def _open_frame(frame: bytes, number: int, last: bool, key: bytes) -> bytes:
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(frame, _DOMAIN, _nonce(number, last), key)
    except (CryptoError, ValueError) as error:  # ValueError: shorter than a tag
        raise IntegrityError(f"frame {number} is not what was encrypted under this key") from error


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(8, "big") + bytes([last]) + bytes(15)


def _frames(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes, bool]]:
    """(number, bytes, whether it is the last). An empty file is one empty frame."""
    number, frame = 0, file.read(size)
    while following := file.read(size):
        yield number, frame, False
        number, frame = number + 1, following
    yield number, frame, True


@contextmanager
def _files(source: Path, target: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """`source` to read and a new file (mode 0600) to write, which takes the place of `target` at the end."""
    temporary = None
    try:
        with source.open("rb") as reading:
            descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            with os.fdopen(descriptor, "wb") as writing:
                yield reading, writing
                writing.flush()
                os.fsync(writing.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise LocalError(f"cannot write {target} from {source}: {error.strerror}") from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
