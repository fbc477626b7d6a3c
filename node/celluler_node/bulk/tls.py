"""TLS 1.3 as bulk transfer uses it: a certificate nobody signed, known by its pin, and a connection without a socket.

The key is made when the process starts, never leaves it, and proves nothing but that one speaks with whoever issued the
grant: names, dates and issuers of a certificate are not looked at. There are no session tickets, so no secret
outlives a connection. The machine of a connection (`Tls`) moves bytes between buffers only, so that one thread may
wait for the socket while another encrypts: OpenSSL's own objects stand no two threads at once.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

RECORD_BYTES = 1 << 14


def server_context(scratch: Path) -> tuple[ssl.SSLContext, bytes]:
    """A context with a fresh key and certificate, and the pin. scratch: holds the key for a moment, to be read back."""
    pem, pin = _make_certificate()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    file = scratch / "certificate.pem"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(pem)
        context.load_cert_chain(file)
    finally:
        file.unlink()
    return context, pin


def client_context() -> ssl.SSLContext:
    """One that believes any certificate: check `Tls.pin` before anything is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Tls:
    """One connection, bytes in and bytes out. Not for several threads at once. Raises ssl.SSLError, an OSError."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._machine = context.wrap_bio(self._incoming, self._outgoing, server_side=server)

    def received(self, data: bytes | memoryview) -> None:
        """Bytes from the other end; none mean that it closed."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def to_send(self) -> bytes:
        """Bytes for the other end; none when there is nothing to say."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def handshake(self) -> bool:
        """Go on as far as the bytes here reach. True when it is over."""
        try:
            self._machine.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def pin(self) -> bytes:
        """SHA-256 of the certificate the other end has proven to hold the key of."""
        certificate = self._machine.getpeercert(binary_form=True)
        return hashlib.sha256(certificate or b"").digest()

    def read_into(self, view: memoryview) -> int | None:
        """How many bytes came; None while there are none, 0 when the other end closed."""
        got = 0
        try:
            while got < len(view):
                count = cast(int, self._machine.read(len(view) - got, view[got:]))
                if not count:
                    break
                got += count
        except ssl.SSLWantReadError:
            return got or None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return got
        return got

    def encrypt(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._machine.write(view) :]


def slices(pieces: tuple[bytes | memoryview, ...], size: int) -> Iterator[memoryview]:
    """The pieces cut so that none is longer than `size`."""
    for piece in pieces:
        view = memoryview(piece)
        for at in range(0, len(view), size):
            yield view[at : at + size]


def _make_certificate() -> tuple[bytes, bytes]:
    """(key and certificate in PEM, SHA-256 of the certificate in DER)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "celluler bulk")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    der = certificate.public_bytes(serialization.Encoding.DER)
    return secret + certificate.public_bytes(serialization.Encoding.PEM), hashlib.sha256(der).digest()
