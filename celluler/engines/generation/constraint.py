"""Answers bound to a JSON Schema: at each place the tokens that it allows, by the package llguidance.

Schemas come from whoever asks. They are read by that package's own parser, within its limits of grammar and work, in a
confined worker alone; nothing is fetched that a schema refers to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from celluler.engines.transforms.decoding import TokenizerCodec
from celluler.errors import InvalidSpec, LocalError
from celluler.models.transforms.decoding import ByteCodec, TextCodec, VocabularyCodec

PACKAGE = "llguidance"
_KEPT = 8
"""Schemas that are not read again."""
_OPTIONS: Any = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,16}"}
"""A model that may go on with spaces for ever does."""

Allowed = npt.NDArray[np.bool_]


def available() -> bool:
    """The package is installed."""
    return find_spec(PACKAGE) is not None


class Constraint(Protocol):
    """What one answer may go on with."""

    def allowed(self) -> Allowed:
        """(vocabulary) bool: what may come next, tokens that end the answer among them where it may be over."""

    def take(self, token: int) -> None:
        """That token has come. Behind one that was not allowed nothing is."""

    @property
    def over(self) -> bool:
        """Nothing can come any more."""


class Schemas:
    """Of one model. Made when an answer is first to be bound: the vocabulary is gone through once."""

    def __init__(self, codec: TextCodec, vocabulary: int, ends: Sequence[int]) -> None:
        """ends: tokens that end an answer. Raises LocalError without the package, InvalidSpec for a codec that the
        package does not read."""
        try:
            import llguidance  # noqa: PLC0415  an extra
        except ImportError as error:
            raise LocalError("an answer bound to a schema needs the package llguidance") from error
        self._package, self._vocabulary = llguidance, vocabulary
        try:
            self._tokens = _tokenizer(llguidance, codec, vocabulary, list(ends))
        except Exception as error:  # whatever the package raises of a tokenizer
            raise InvalidSpec("schema", f"cannot bind this model's tokenizer: {_short(error)}") from error
        self._read: OrderedDict[bytes, Any] = OrderedDict()

    def bind(self, schema: bytes) -> Constraint:
        """For one answer, from its beginning. Raises InvalidSpec for what is no schema, or one that is not followed."""
        if schema not in self._read:
            self._read[schema] = self._matcher(schema)
            if len(self._read) > _KEPT:
                self._read.popitem(last=False)
        self._read.move_to_end(schema)
        return _Bound(self._read[schema].deep_copy(), self._vocabulary)

    def _matcher(self, schema: bytes) -> Any:
        try:
            text = schema.decode("utf-8")
            grammar = self._package.LLMatcher.grammar_from_json_schema(text, defaults=_OPTIONS)
        except ValueError as error:  # no Unicode, no JSON
            raise InvalidSpec("schema", f"is no JSON: {_short(error)}") from error
        limits = self._package.LLParserLimits(verbose_errors=False)
        matcher = self._package.LLMatcher(self._tokens, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise InvalidSpec("schema", _short(matcher.get_error()))
        return matcher


class _Bound:
    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def allowed(self) -> Allowed:
        if self._matcher.is_error():
            return np.zeros(self._vocabulary, dtype=np.bool_)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        told = np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(np.bool_)
        return told if not self._matcher.is_error() else np.zeros(self._vocabulary, dtype=np.bool_)

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)

    @property
    def over(self) -> bool:
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()


class _Texts:
    """What the package asks of a tokenizer that is none of its own."""

    def __init__(self, tokens: list[bytes], special: list[int], eos: int, codec: ByteCodec | VocabularyCodec) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id, self.bos_token_id = tokens, special, eos, None
        self._codec = codec

    def __call__(self, text: bytes) -> list[int]:
        """Without what stands before a text: these go on with one."""
        tokens = self._codec.encode(text.decode("utf-8", "replace"))
        return [token for token in tokens if self._codec.piece(token)]


def _tokenizer(package: Any, codec: TextCodec, vocabulary: int, ends: list[int]) -> Any:
    if isinstance(codec, TokenizerCodec):
        return package.LLTokenizer(codec.tokenizer.to_str(), n_vocab=vocabulary, eos_token=ends or None)
    if not isinstance(codec, ByteCodec | VocabularyCodec):
        raise InvalidSpec("", f"is of the kind {type(codec).__name__}")
    pieces = [codec.piece(token) for token in range(vocabulary)]
    special = [token for token, piece in enumerate(pieces) if not piece]
    # A model without an end is given one that it does not know: the package will not do without.
    tokens = [piece or b"<%d>" % token for token, piece in enumerate(pieces)] + ([] if ends else [b"<end>"])
    special += [] if ends else [vocabulary]
    return package.LLTokenizer(
        package.TokenizerWrapper(_Texts(tokens, special, ends[0] if ends else vocabulary, codec)),
        eos_token=ends or [vocabulary],
    )


def _short(error: object) -> str:
    return " ".join(str(error).split())[:200]
