"""Decoding without a cache, for bodies that say not what of them could be kept: each token costs a whole pass.

A sequence is given as short as the body takes it, with zeros behind it where the body wants more: to a model that does
not look ahead they change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from celluler.errors import InvalidSpec
from celluler.inference.caching import any_length
from celluler.models.body import Body
from celluler.models.spec import Architecture

_MAX_ROWS = 64
_PASS_BYTES = 64 << 20
"""Of the activations of one pass, where more than the least number of rows take it."""


class RecomputedDecoder:
    """See `celluler.engines.generation.decoder.Decoder`."""

    def __init__(self, body: Body, module: nn.Module, slots: int) -> None:
        self._body, self._module = body, module
        self._held: list[list[int]] = [[] for _ in range(slots)]
        self._lengths: dict[int, int] = {}

    def prefill(self, slot: int, tokens: Sequence[int], *, last: bool) -> Tensor | None:
        self._held[slot] += tokens
        return self._told([self._held[slot]])[0] if last else None

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        for slot, token in zip(slots, tokens, strict=True):
            self._held[slot].append(token)
        return self._told([self._held[slot] for slot in slots])

    def score(self, slot: int, tokens: Sequence[int]) -> Tensor:
        self._held[slot] += tokens
        held = self._held[slot]
        least, length = self._body.batch[0], self._length(len(held))
        x = torch.zeros((least, length), dtype=torch.int64)
        x[0, : len(held)] = torch.tensor(held)
        with torch.inference_mode():
            told: Tensor = self._module(x)[0, len(held) - len(tokens) : len(held)].float()
        return told

    def copy(self, source: int, target: int, count: int) -> None:
        self._held[target] = self._held[source][:count]

    def _told(self, sequences: list[list[int]]) -> Tensor:
        """(sequences, vocabulary)"""
        by_length: dict[int, list[int]] = {}
        for row, sequence in enumerate(sequences):
            by_length.setdefault(self._length(len(sequence)), []).append(row)
        least, most = self._body.batch
        fitting = min(_MAX_ROWS, _PASS_BYTES // max(1, self._body.activation_bytes))
        most = max(least, min(most, fitting))
        told: dict[int, Tensor] = {}
        for length, rows in by_length.items():
            for start in range(0, len(rows), most):
                some = rows[start : start + most]
                x = torch.zeros((max(least, len(some)), length), dtype=torch.int64)
                for place, row in enumerate(some):
                    x[place, : len(sequences[row])] = torch.tensor(sequences[row])
                with torch.inference_mode():
                    raw = self._module(x)
                told |= {row: raw[place, len(sequences[row]) - 1].float() for place, row in enumerate(some)}
        return torch.stack([told[row] for row in range(len(sequences))])

    def _length(self, count: int) -> int:
        """The shortest that the body takes of so many tokens and more."""
        if count not in self._lengths:
            self._lengths[count] = self._found(count)
        return self._lengths[count]

    def _found(self, count: int) -> int:
        longest = self._body.input.shape[0]
        if isinstance(self._body, Architecture):
            return count if any_length(self._body) else longest
        for length in range(count, longest):
            try:
                self._body.answer_shape((length,))
            except InvalidSpec:
                continue
            return length
        return longest
