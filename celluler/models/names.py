"""How a person names a model: `author/name`, `author/name:1.2.3`, `author/name@alias`, or a CID.

An author is a nickname or a peer id. A name says what is wanted; only a digest says what is meant: resolving the one
to the other is not done here.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from celluler.content.digest import Digest, parse_cid
from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.identity import public_key_of
from celluler.models.version import Version, parse_version

MAX_REFERENCE_BYTES = 256

_LICENCE = re.compile(r"[A-Za-z0-9.+() -]*", re.ASCII)
_WORD = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?", re.ASCII)
PEER_ID_START = "12D3KooW"
"""Of every peer id with an Ed25519 key, and of no nickname."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """`author/name`, with a version, an alias or neither: then the newest version is wanted."""

    author: str
    name: str
    version: Version | None = None
    alias: str | None = None

    def __post_init__(self) -> None:
        check_author(self.author)
        check_word(self.name, "name")
        if self.alias is not None:
            check_word(self.alias, "alias")
            if self.version is not None:
                raise InvalidSpec("model", "has a version and an alias; only one of the two can be meant")

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Raises InvalidSpec for a CID too; `parse_reference` takes both."""
        author, slash, rest = text.partition("/")
        if not slash or len(text) > MAX_REFERENCE_BYTES:
            raise InvalidSpec("model", f"{text[:80]!r} is not author/name, author/name:1.2.3 or author/name@alias")
        if ":" in rest:
            name, _, version = rest.partition(":")
            return cls(author, name, version=parse_version(version))
        name, at, alias = rest.partition("@")
        return cls(author, name, alias=alias if at else None)

    @property
    def author_is_peer(self) -> bool:
        """True when the author is given by peer id, which cannot be mistaken for another's."""
        return self.author.startswith(PEER_ID_START)

    def __str__(self) -> str:
        base = f"{self.author}/{self.name}"
        if self.version is not None:
            return f"{base}:{self.version}"
        return f"{base}@{self.alias}" if self.alias is not None else base


def parse_reference(text: str) -> ModelName | Digest:
    """What the user typed: a name, or the digest inside a CID. Raises InvalidSpec."""
    return ModelName.parse(text) if "/" in text else parse_cid(text)


def check_word(text: str, path: str) -> None:
    """A name, nickname or alias: lower-case letters, digits and `._-` between. Raises InvalidSpec with `path`."""
    if not _WORD.fullmatch(text):
        raise InvalidSpec(path, f"{text[:80]!r} must be 1…64 of a-z, 0-9 and, inside, . _ -")


def check_words(words: tuple[str, ...], path: str) -> None:
    """Names in ascending order, each once: so that equal sets are equal records. Raises InvalidSpec."""
    for place, word in enumerate(words):
        check_word(word, f"{path}[{place}]")
    if any(later <= earlier for earlier, later in itertools.pairwise(words)):
        raise InvalidSpec(path, "must be sorted, each once")


def check_printable(text: str, path: str) -> None:
    """One line that shows as what it is: nothing that moves a cursor or turns the direction of writing."""
    if not text.isprintable():
        raise InvalidSpec(path, "must be one line of printable text")


def check_licence(text: str) -> None:
    """What may be an SPDX expression, or empty. Raises InvalidSpec."""
    if not _LICENCE.fullmatch(text):
        raise InvalidSpec("licence", "must be an SPDX expression such as Apache-2.0 or CC-BY-4.0")


def check_author(text: str) -> None:
    """A nickname or a peer id."""
    if not text.startswith(PEER_ID_START):
        return check_word(text, "author")
    try:
        public_key_of(text)
    except ProtocolViolation as error:
        raise InvalidSpec("author", str(error)) from error
    return None
