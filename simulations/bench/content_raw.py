"""The limit: a TLS 1.3 socket that carries the file and nothing else, BLAKE3 of each MiB, pwrite, one fdatasync.

Blocking sockets, one process at each end. What any verified and encrypted transfer by one Python thread could reach.
"""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from simulations.bench.content_ways import MIB, Child, Content, Way, orders, say

_MODULE = "simulations.bench.content_raw"


@contextmanager
def open_ways(content: Content) -> Iterator[Mapping[str, Way]]:
    with Child(_MODULE, "provide", str(content.path)) as provider, Child(_MODULE, "fetch") as client:

        def bring(folder: Path) -> float:
            return client.seconds(port=provider.about["port"], size=content.size, into=str(folder / "data"))

        yield {"raw": bring}


def make_certificate(folder: Path) -> Path:
    """Key and certificate for 127.0.0.1 in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def _provide(path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    with tempfile.TemporaryDirectory(prefix="celluler-bench-") as folder:
        context.load_cert_chain(make_certificate(Path(folder)))
    with socket.create_server(("127.0.0.1", 0)) as listener, path.open("rb", buffering=0) as file:
        say(port=listener.getsockname()[1])
        buffer = memoryview(bytearray(MIB))
        while True:
            connection, _ = listener.accept()
            with suppress(OSError), context.wrap_socket(connection, server_side=True) as wrapped:
                file.seek(0)
                while count := file.readinto(buffer):
                    wrapped.sendall(buffer[:count])
                wrapped.recv(1)  # until the other end has it all


def _fetch(port: int, size: int, into: Path) -> float:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    buffer = memoryview(bytearray(MIB))
    began = time.perf_counter()
    descriptor = os.open(into, os.O_WRONLY | os.O_CREAT)
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as connection:
        at = 0
        while at < size:
            filled = 0
            while filled < min(MIB, size - at):
                count = connection.recv_into(buffer[filled:])
                if not count:
                    raise EOFError(f"{at + filled} of {size} bytes")
                filled += count
            blake3(buffer[:filled]).digest()
            os.pwrite(descriptor, buffer[:filled], at)
            at += filled
        os.fdatasync(descriptor)
        took = time.perf_counter() - began
    os.close(descriptor)
    return took


def main() -> None:
    if sys.argv[1] == "provide":
        import threading  # noqa: PLC0415

        threading.Thread(target=_provide, args=(Path(sys.argv[2]),), daemon=True).start()
        sys.stdin.read()
        return
    say()
    for order in orders():
        say(seconds=_fetch(order["port"], order["size"], Path(order["into"])))


if __name__ == "__main__":
    main()
