"""Who may read a model: its key, sealed to each reader.

A version is public, or its weights travel encrypted under a key of their own, and the manifest carries that key once
for each reader, sealed to the reader's identity. Knows nothing of manifests, stores or networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celluler.wire import Bytes32, Length

KEY_BYTES = 32
BOX_BYTES = 80
MAX_READERS = 256


@dataclass(frozen=True, slots=True)
class SealedKey:
    """The content key for one reader. reader: Ed25519 public key. box: the key in a libsodium sealed box."""

    reader: Bytes32
    box: Annotated[bytes, Length(BOX_BYTES, BOX_BYTES)]
