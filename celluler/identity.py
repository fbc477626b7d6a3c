"""Who a peer is: one Ed25519 key, its libp2p peer id, and what it has signed.

A signed envelope binds signer, kind and body: the signature covers a domain string and the kind, so that a
signature given for one purpose never serves another. Knows nothing of networks, of time or of what a record means.
"""

from __future__ import annotations

import base64
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, NewType, Protocol, TypeVar

import base58
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from celluler.errors import BadSignature, IntegrityError, LocalError, ProtocolViolation
from celluler.wire import Bytes32, Bytes64, Length, Name, pack, unpack

PeerId = NewType("PeerId", str)
"""`12D3KooW…`: base58btc of the identity multihash of the libp2p public key. Source: libp2p peer-ids spec."""

_ID_PREFIX = bytes.fromhex("0024") + bytes.fromhex("08011220")  # identity multihash of 36 bytes; Ed25519, 32 bytes
_DOMAIN = b"celluler-envelope-1\0"
_KEY_FILE_HEADER = "celluler-ed25519-1 "
_ENVELOPE_OVERHEAD_BYTES = 320


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a 32-byte Ed25519 public key."""
    return PeerId(base58.b58encode(_ID_PREFIX + public_key).decode("ascii"))


def public_key_of(peer: str) -> bytes:
    """The 32-byte key inside a peer id. Raises ProtocolViolation for text that is no Ed25519 peer id."""
    try:
        raw = base58.b58decode(peer)
    except ValueError as error:
        raise ProtocolViolation(f"not a peer id: {peer[:64]!r}") from error
    if len(raw) != len(_ID_PREFIX) + 32 or not raw.startswith(_ID_PREFIX) or peer_id_of(raw[-32:]) != peer:
        raise ProtocolViolation(f"not an Ed25519 peer id: {peer[:64]!r}")
    return raw[-32:]


def short(peer: str) -> str:
    """The eight characters by which logs and tables name a peer: the first twelve are alike for all."""
    return peer[-8:]


class Identity:
    """A private key. Holds the only copy of the secret in the process; `repr` never shows it."""

    def __init__(self, seed: bytes) -> None:
        """seed: 32 bytes."""
        self._key = SigningKey(seed)
        self.public_key: bytes = bytes(self._key.verify_key)
        self.peer_id: PeerId = peer_id_of(self.public_key)

    @classmethod
    def generate(cls) -> Identity:
        return cls(os.urandom(32))

    @property
    def seed(self) -> bytes:
        """The secret, 32 bytes: for the host, which must hold it to authenticate connections."""
        return bytes(self._key)

    def sign(self, message: bytes) -> bytes:
        """A 64-byte Ed25519 signature. Callers separate domains; prefer `seal`."""
        return bytes(self._key.sign(message).signature)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"


def load_identity(path: Path) -> Identity:
    """Read a key file. Raises LocalError when it is absent or others may read it, IntegrityError when it is torn."""
    try:
        mode = path.stat().st_mode
        text = path.read_text("ascii")
    except FileNotFoundError:
        raise LocalError(f"no key file at {path}", hint="celluler init") from None
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"cannot read the key file {path}: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise LocalError(f"the key file {path} is open to other users", hint=f"chmod 600 {path}")
    return parse_identity(text)


def load_or_create_identity(path: Path) -> Identity:
    """The identity kept at `path`, made there (mode 0600) if there is none. Safe against a concurrent creator.

    Raises as `load_identity` does, and LocalError where no file can be written.
    """
    if not path.exists():
        try:
            _create_key_file(path)
        except OSError as error:
            raise LocalError(f"cannot make a key file at {path}: {error.strerror}") from error
    return load_identity(path)


def _create_key_file(path: Path) -> None:
    """Written aside and linked, so that it appears whole and never replaces a key that somebody just made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(format_identity(Identity.generate()))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def format_identity(identity: Identity) -> str:
    """The text of a key file: a secret."""
    return _KEY_FILE_HEADER + base64.b64encode(identity.seed).decode("ascii") + "\n"


def parse_identity(text: str) -> Identity:
    """The inverse of `format_identity`. Raises IntegrityError."""
    try:
        if not text.startswith(_KEY_FILE_HEADER):
            raise ValueError("unknown header")
        seed = base64.b64decode(text[len(_KEY_FILE_HEADER) :].strip(), validate=True)
        if len(seed) != 32:
            raise ValueError("wrong length")
    except ValueError as error:
        raise IntegrityError(f"not a celluler key: {error}") from error
    return Identity(seed)


# --- signed envelopes ------------------------------------------------------------------------------------------


class Record(Protocol):
    """A dataclass that may be signed: `KIND` separates its signatures from those of every other kind."""

    KIND: ClassVar[str]


T = TypeVar("T", bound=Record)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What travels: kind, signer's key, canonical body, signature."""

    kind: Name
    signer: Bytes32
    body: Annotated[bytes, Length(0, 1 << 26)]
    signature: Bytes64


@dataclass(frozen=True, slots=True)
class Signed(Generic[T]):
    """A record whose signature was verified. `raw` is the envelope, fit to be forwarded or stored."""

    signer: PeerId
    record: T
    raw: bytes


def seal(identity: Identity, record: Record) -> bytes:
    """The signed envelope of a record, as bytes."""
    body = pack(record)
    signature = identity.sign(_message(record.KIND, body))
    return pack(Envelope(record.KIND, identity.public_key, body, signature))


def open_envelope(cls: type[T], data: bytes, *, limit: int = 1 << 16, signer: str | None = None) -> Signed[T]:
    """Verify and parse an envelope of exactly this kind.

    limit: largest body in bytes. signer: the peer that must have signed, when the caller knows.
    Raises ProtocolViolation for bytes of another shape or kind, BadSignature for a wrong signature or signer.
    """
    envelope = unpack(Envelope, data, limit=limit + _ENVELOPE_OVERHEAD_BYTES)
    if envelope.kind != cls.KIND:
        raise ProtocolViolation(f"envelope of kind {envelope.kind!r}, expected {cls.KIND!r}")
    author = peer_id_of(envelope.signer)
    if signer is not None and author != signer:
        raise BadSignature(f"signed by {short(author)}, expected {short(signer)}", peer=author)
    try:
        VerifyKey(envelope.signer).verify(_message(envelope.kind, envelope.body), envelope.signature)
    except (BadSignatureError, ValueError) as error:
        raise BadSignature(f"signature of {cls.KIND} by {short(author)} does not verify", peer=author) from error
    record: Any = unpack(cls, envelope.body, limit=limit)
    return Signed(author, record, data)


def _message(kind: str, body: bytes) -> bytes:
    return _DOMAIN + kind.encode("utf-8") + b"\0" + body
