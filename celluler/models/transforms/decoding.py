"""From tokens back to text: what the steps that make tokens of texts (`byte_tokens`, `tokenise`) did, the other way.

A stream gives whole characters alone: bytes of one that is not complete yet are held until the tokens that end it come.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from celluler.models.transforms.texts import ByteTokens, Tokenise


class TextStream(Protocol):
    """The text of one answer, token by token. What no character can be made of is U+FFFD."""

    def feed(self, token: int) -> str:
        """What can be told now; empty while a character is not complete. A token that there is not tells nothing."""

    def peek(self, token: int) -> str:
        """What `feed` would tell; nothing changes."""

    def end(self) -> str:
        """What was held, when nothing more comes."""


class TextCodec(Protocol):
    """Texts as a model's tokens, and back."""

    @property
    def marks(self) -> Mapping[str, str]:
        """Texts of the tokens that begin and end a text, `bos_token` and `eos_token`, for those who write them
        themselves; none where a text cannot hold them."""

    def encode(self, text: str, *, marked: bool = False) -> list[int]:
        """As before the model, neither cut nor filled up, with what stands before a text. What ends one is left out,
        where a step and not a tokenizer of its own puts it there. marked: it holds its marks already, and a tokenizer
        puts none around it."""

    def stream(self) -> TextStream: ...


def decoded(codec: TextCodec, tokens: Iterable[int]) -> str:
    """All of it at once."""
    stream = codec.stream()
    return "".join([*map(stream.feed, tokens), stream.end()])


@dataclass(frozen=True, slots=True)
class ByteCodec:
    step: ByteTokens

    @property
    def marks(self) -> Mapping[str, str]:
        return {}

    def encode(self, text: str, *, marked: bool = False) -> list[int]:
        begin = [] if self.step.begin is None else [self.step.begin]
        return begin + [one + self.step.offset for one in text.encode("utf-8")]

    def stream(self) -> TextStream:
        return _Utf8(self)

    def piece(self, token: int) -> bytes:
        """Of the numbers around a text, and of what fills it up, nothing."""
        silent = token in (self.step.begin, self.step.end, self.step.pad)
        return b"" if silent or not 0 <= token - self.step.offset < 256 else bytes([token - self.step.offset])


@dataclass(frozen=True, slots=True)
class VocabularyCodec:
    step: Tokenise

    @property
    def marks(self) -> Mapping[str, str]:
        return {}

    def encode(self, text: str, *, marked: bool = False) -> list[int]:
        begin = [] if self.step.begin is None else [self.step.begin]
        return begin + self.step.numbers((raw := text.encode("utf-8")), len(raw))

    def stream(self) -> TextStream:
        return _Utf8(self)

    def piece(self, token: int) -> bytes:
        """The entry; of the numbers around a text nothing."""
        entries = self.step.entries
        silent = token in (self.step.begin, self.step.end) or not 0 <= token < len(entries)
        return b"" if silent else entries[token].encode("utf-8")


@dataclass(slots=True)
class _Utf8:
    codec: ByteCodec | VocabularyCodec
    _decoder: codecs.IncrementalDecoder = field(
        init=False, default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def feed(self, token: int) -> str:
        return self._decoder.decode(self.codec.piece(token))

    def peek(self, token: int) -> str:
        state = self._decoder.getstate()
        told = self.feed(token)
        self._decoder.setstate(state)
        return told

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)
