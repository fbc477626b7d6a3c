"""Plaintext of the encrypted models that this peer may read.

The store keeps ciphertext, like everybody's, and gives only that to others. What we decrypt lies in a folder of its
own, readable by us alone, under the digest of the manifest it belongs to; nothing of it is ever announced or served.
"""

from __future__ import annotations

from pathlib import Path

from celluler.content.digest import Digest
from celluler.identity import Identity
from celluler.models.access import decrypt_file, open_key
from celluler.models.beside import LIMITS, FileBeside, key_of
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
        key = open_key(self._identity, opened.record.sealed)
        return self._opened(self._file(opened.digest), ciphertext, key, opened.record.plain)

    def open_file(self, opened: OpenedManifest, one: FileBeside, ciphertext: Path) -> Path:
        """The same of a file beside the weights."""
        key = key_of(open_key(self._identity, opened.record.sealed), one.name)
        return self._opened(self._file(opened.digest, one.name), ciphertext, key, one.plain)

    def forget(self, digest: Digest) -> None:
        for name in ("safetensors", *LIMITS):
            self._file(digest, name).unlink(missing_ok=True)

    def _opened(self, target: Path, ciphertext: Path, key: bytes, plain: bytes | None) -> Path:
        if not target.exists():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            decrypt_file(ciphertext, target, key, plain=plain)
        return target

    def _file(self, digest: Digest, suffix: str = "safetensors") -> Path:
        return self._folder / f"{digest.hex()}.{suffix}"
