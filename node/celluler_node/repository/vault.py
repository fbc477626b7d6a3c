"""Plaintext of the encrypted models that this peer may read.

The store keeps ciphertext, like everybody's, and gives only that to others. What we decrypt lies in a folder of its
own, readable by us alone, under the digest of the manifest it belongs to; nothing of it is ever announced or served.
"""

from __future__ import annotations

from pathlib import Path

from celluler.content.digest import Digest
from celluler.identity import Identity
from celluler.models.access import decrypt_file, open_key
from celluler.models.manifest import OpenedManifest


class Vault:
    """Synchronous: callers use a thread. Two that open the same model at once both decrypt, and one wins."""

    def __init__(self, identity: Identity, folder: Path) -> None:
        self._identity, self._folder = identity, folder

    def check_reader(self, opened: OpenedManifest) -> None:
        """Raises Denied when we are no reader."""
        open_key(self._identity, opened.record.sealed)

    def open(self, opened: OpenedManifest, ciphertext: Path) -> Path:
        """The plaintext of a model, decrypted if it was not yet. Valid until `forget`.

        Raises Denied when we are no reader, IntegrityError when the ciphertext or what it decrypts to is not what the
        author signed.
        """
        plain = self._file(opened.digest)
        if plain.exists():
            return plain
        key = open_key(self._identity, opened.record.sealed)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        decrypt_file(ciphertext, plain, key, plain=opened.record.plain)
        return plain

    def forget(self, digest: Digest) -> None:
        self._file(digest).unlink(missing_ok=True)

    def _file(self, digest: Digest) -> Path:
        return self._folder / f"{digest.hex()}.safetensors"
