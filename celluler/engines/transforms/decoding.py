"""Texts as the tokens of a model and back, by the step that makes its tokens: for what generates text, in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celluler.engines.transforms.tokens import encoded, read_tokenizer
from celluler.errors import InvalidSpec
from celluler.models.interface import Interface
from celluler.models.transforms.decoding import ByteCodec, TextCodec, TextStream, VocabularyCodec
from celluler.models.transforms.programs import Tokenizer
from celluler.models.transforms.texts import ByteTokens, Tokenise

MAX_HELD = 16
"""Tokens that are waited for until a character is complete; no character of UTF-8 has more than four bytes."""
_INCOMPLETE = "\ufffd"
_MOST = 1 << 24


def codec_of(interface: Interface, tokenizer: Path | None = None) -> TextCodec | None:
    """By the step of the `preprocess` whose tokens reach the model; None where there is none. tokenizer: its own file.

    Raises InvalidSpec (with the step) for a tokenizer that is none or not the model's, LocalError without the package.
    """
    place, before = interface.token_step, interface.preprocess
    if place is None or before is None:
        return None
    match step := before.chain.steps[place]:
        case ByteTokens():
            return ByteCodec(step)
        case Tokenise():
            return VocabularyCodec(step)
        case Tokenizer():
            try:
                read = read_tokenizer(step, tokenizer, interface.body.vocabulary)
                return TokenizerCodec(read, step.special, step.begin, step.ends)
            except InvalidSpec as error:
                raise InvalidSpec(f"{before.chain.path}.steps[{place}].{error.path}", error.problem) from error
    return None


@dataclass(frozen=True, slots=True)
class TokenizerCodec:
    """tokenizer: of the `tokenizers` package, as `read_tokenizer` gives it."""

    tokenizer: Any
    special: bool = True
    begin: int | None = None
    ends: tuple[int, ...] = ()

    @property
    def marks(self) -> Mapping[str, str]:
        named = {"bos_token": self.begin, "eos_token": self.ends[0] if self.ends else None}
        texts = {name: self.tokenizer.id_to_token(number) for name, number in named.items() if number is not None}
        return {name: text for name, text in texts.items() if text is not None}

    def encode(self, text: str, *, marked: bool = False) -> list[int]:
        return encoded(self.tokenizer, text, special=self.special and not marked)

    def stream(self) -> TextStream:
        return _Windowed(self.tokenizer)


@dataclass(slots=True)
class _Windowed:
    """How a token reads depends on those before it (a space, a character in several tokens), so the text of a window is
    read twice: up to what was told already, and to its end. The difference is new."""

    tokenizer: Any
    _tokens: list[int] = field(init=False, default_factory=list)
    _told: int = field(init=False, default=0)

    def feed(self, token: int) -> str:
        if not 0 <= token < _MOST or self.tokenizer.id_to_token(token) is None:
            return ""
        self._tokens.append(token)
        return self._news(len(self._tokens) - self._told < MAX_HELD)

    def peek(self, token: int) -> str:
        tokens, told = list(self._tokens), self._told
        text = self.feed(token)
        self._tokens, self._told = tokens, told
        return text

    def end(self) -> str:
        return self._news(hold=False)

    def _news(self, hold: bool) -> str:
        before, whole = self._text(self._tokens[: self._told]), self._text(self._tokens)
        if hold and (whole.endswith(_INCOMPLETE) or len(whole) <= len(before)):
            return ""
        self._tokens = self._tokens[self._told :]
        self._told = len(self._tokens)
        return whole[len(before) :]

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""
