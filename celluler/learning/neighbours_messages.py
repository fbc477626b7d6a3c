"""What neighbours say to each other in a run without certificates. Spec: docs/explanation/consensus.md

Two words, each signed and said by its author alone: nothing is passed on, so nobody can repeat another's old words.
They travel in the `Say` frames of /celluler/rounds/1 and cannot be taken for a word of a certified run, nor the other
way round: the kinds differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

from celluler.errors import ProtocolViolation
from celluler.identity import Envelope, Signed, open_envelope
from celluler.learning.roster import MAX_PARTS, MAX_ROUNDS
from celluler.wire import I16, Bytes32, Length, Range, unpack

MAX_SETTLING = 64
MAX_MESSAGE_BYTES = 4096
_ENVELOPE_BYTES = 320
_CACHED_WORDS = 512

Number = Annotated[int, Range(0, MAX_ROUNDS + MAX_SETTLING)]
"""A round, from 0; one past the last for a member that has finished."""


@dataclass(frozen=True, slots=True)
class Here:
    """I am alive, and in this round."""

    KIND: ClassVar[str] = "celluler/neighbours/here/1"
    run: Bytes32
    round: Number


@dataclass(frozen=True, slots=True)
class Model:
    """My model after this round's local steps, less the one all began with: the hash and the exponent of each part."""

    KIND: ClassVar[str] = "celluler/neighbours/model/1"
    run: Bytes32
    round: Number
    hashes: Annotated[tuple[Bytes32, ...], Length(1, MAX_PARTS)]
    exponents: Annotated[tuple[I16, ...], Length(1, MAX_PARTS)]


_BY_KIND: dict[str, Any] = {cls.KIND: cls for cls in (Here, Model)}


@lru_cache(maxsize=_CACHED_WORDS)
def open_word(raw: bytes) -> Signed[Here] | Signed[Model]:
    """Verify and parse. Raises PeerViolation. Remembers the last ones: what may be lost is said again and again."""
    kind = unpack(Envelope, raw, limit=MAX_MESSAGE_BYTES + _ENVELOPE_BYTES).kind
    cls = _BY_KIND.get(kind)
    if cls is None:
        raise ProtocolViolation(f"envelope of kind {kind!r} is no word between neighbours")
    signed: Signed[Here] | Signed[Model] = open_envelope(cls, raw, limit=MAX_MESSAGE_BYTES)
    return signed
