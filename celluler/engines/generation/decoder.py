"""The port of decoders: sequences in slots that grow token by token, each with the logits of what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from celluler.engines.generation.cached import CachedDecoder
from celluler.engines.generation.recomputed import RecomputedDecoder
from celluler.inference.caching import Cached, Recomputed
from celluler.models.body import Body
from celluler.models.spec import Architecture


class Decoder(Protocol):
    """Slots are numbered from 0 and independent of each other: what comes of one does not depend on what stands in
    others, but for the last bits of float32. Whoever calls sees to it that slots and lengths are within bounds."""

    def prefill(self, slot: int, tokens: Sequence[int], *, last: bool) -> Tensor | None:
        """Append tokens to a sequence. The logits behind the last of them, (vocabulary) float32, if `last`."""

    def score(self, slot: int, tokens: Sequence[int]) -> Tensor:
        """Append tokens to a sequence, all at once. The logits behind each, (tokens, vocabulary) float32."""

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Append one token to each of several sequences. slots: ascending. → (slots, vocabulary) float32"""

    def copy(self, source: int, target: int, count: int) -> None:
        """The target holds the first `count` places of the source, and nothing behind them; they may be the same."""


def open_decoder(
    body: Body, module: nn.Module, caching: Cached | Recomputed, slots: int, length: int
) -> CachedDecoder | RecomputedDecoder:
    """caching: what `caching_of` says of the body. length: places of each slot. module: of the whole body, in eval."""
    if isinstance(caching, Cached) and isinstance(body, Architecture):
        return CachedDecoder(body, module, caching, slots, length)
    return RecomputedDecoder(body, module, slots)
