"""Files that belong to a model beside its weights: what they are called, and how large they may be.

Each is content of its own, named by its root digest in the manifest: it is fetched, kept, checked and let go of with
the weights. Nothing of them is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from blake3 import blake3

from celluler.errors import InvalidSpec
from celluler.wire import Bytes32, Length

TOKENIZER, CHAT_TEMPLATE = "tokenizer", "chat-template"
LIMITS = {CHAT_TEMPLATE: 64 << 10, TOKENIZER: 32 << 20}
"""The files there are, and the bytes that each may have. tokenizer: as the `tokenizers` package writes it, read by a
confined worker alone. chat-template: of conversations, in the language of Jinja as `transformers` renders it; a
program, run by a confined worker alone."""
FILE_NAMES = {CHAT_TEMPLATE: "chat_template.jinja", TOKENIZER: "tokenizer.json"}
"""As they lie in a folder."""


@dataclass(frozen=True, slots=True)
class FileBeside:
    """name: one of `LIMITS`. root: of the content. plain: BLAKE3 of the file before it was encrypted, where it is."""

    name: Annotated[str, Length(1, 32)]
    root: Bytes32
    plain: Bytes32 | None


def check_files(files: tuple[FileBeside, ...], *, encrypted: bool) -> None:
    """Raises InvalidSpec."""
    names = [one.name for one in files]
    for place, one in enumerate(files):
        if one.name not in LIMITS:
            raise InvalidSpec(f"files[{place}].name", f"is {one.name[:32]!r}, must be one of {', '.join(LIMITS)}")
        if (one.plain is None) is encrypted:
            raise InvalidSpec(f"files[{place}].plain", "must be given exactly when the model is encrypted")
    if names != sorted(set(names)):
        raise InvalidSpec("files", "must ascend by name, each once")


def check_size(name: str, byte_count: int) -> None:
    """Raises InvalidSpec."""
    if byte_count > LIMITS[name]:
        raise InvalidSpec(f"files.{name}", f"has {byte_count} bytes, the limit is {LIMITS[name]}")


def key_of(key: bytes, name: str) -> bytes:
    """From the key of the weights that of one file: a key encrypts one file and no other."""
    return blake3(f"celluler file beside a model: {name}".encode(), key=key).digest()
