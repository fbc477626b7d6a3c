"""The block types of GGUF, as float32. Source: ggml/src/ggml-common.h and ggml-quants.c, the reference dequantisers.

A quantised tensor is rows of blocks; a block is a few scales and the small integers that they scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from celluler.formats.stored import Floats, widen_bfloat16

Blocks = npt.NDArray[np.uint8]
"""(blocks, bytes of one)"""


@dataclass(frozen=True, slots=True)
class BlockType:
    """elements, block_bytes: of one block. floats: (n, block_bytes) uint8 → (n, elements) float32."""

    name: str
    elements: int
    block_bytes: int
    floats: Callable[[Blocks], Floats]


def _f32(blocks: Blocks) -> Floats:
    return blocks.view("<f4").astype(np.float32, copy=False)


def _f16(blocks: Blocks) -> Floats:
    return blocks.view("<f2").astype(np.float32)


def _bf16(blocks: Blocks) -> Floats:
    return widen_bfloat16(blocks.view("<u2"))


def _half(blocks: Blocks, place: int) -> Floats:
    """The float16 at byte `place` of each block: (n, 1)."""
    return _f16(np.ascontiguousarray(blocks[:, place : place + 2]))


def _nibbles(packed: Blocks) -> Blocks:
    """All low halves, then all high ones: (n, m) → (n, 2·m)."""
    return np.concatenate((packed & 15, packed >> 4), axis=1)


def _q8_0(blocks: Blocks) -> Floats:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def _q4_0(blocks: Blocks) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - np.float32(8))


def _q4_1(blocks: Blocks) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _fifth_bits(blocks: Blocks, place: int) -> Blocks:
    """32 bits from byte `place` on, as the 16s of 32 numbers."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, place : place + 4]), axis=1, bitorder="little")
    return bits << np.uint8(4)


def _q5_0(blocks: Blocks) -> Floats:
    numbers = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (numbers.astype(np.float32) - np.float32(16))


def _q5_1(blocks: Blocks) -> Floats:
    numbers = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * numbers.astype(np.float32) + _half(blocks, 2)


def _k_scales(packed: Blocks) -> tuple[Floats, Floats]:
    """Eight scales and eight minima of six bits each, from twelve bytes: (n, 8) both."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (high & 15) | ((low >> 6) << 4)), axis=1)
    minima = np.concatenate((middle & 63, (high >> 4) | ((middle >> 6) << 4)), axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(blocks: Blocks) -> Floats:
    n = blocks.shape[0]
    packed = blocks[:, 16:].reshape(n, 4, 1, 32)
    numbers = np.concatenate((packed & 15, packed >> 4), axis=2).reshape(n, 8, 32)
    return _scaled_k(blocks, numbers)


def _q5_k(blocks: Blocks) -> Floats:
    n = blocks.shape[0]
    packed = blocks[:, 48:].reshape(n, 4, 1, 32)
    numbers = np.concatenate((packed & 15, packed >> 4), axis=2).reshape(n, 8, 32)
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    high = (blocks[:, 16:48].reshape(n, 1, 32) >> shifts) & 1
    return _scaled_k(blocks, numbers | (high << 4))


def _scaled_k(blocks: Blocks, numbers: Blocks) -> Floats:
    scales, minima = _k_scales(blocks[:, 4:16])
    scaled = (_half(blocks, 0) * scales)[:, :, None] * numbers.astype(np.float32)
    floats: Floats = (scaled - (_half(blocks, 2) * minima)[:, :, None]).reshape(blocks.shape[0], 256)
    return floats


def _q6_k(blocks: Blocks) -> Floats:
    n = blocks.shape[0]
    low = blocks[:, :128].reshape(n, 2, 1, 64) >> np.array([0, 4], dtype=np.uint8).reshape(1, 1, 2, 1)
    high = blocks[:, 128:192].reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    numbers = (low & 15).reshape(n, 8, 32) | ((high & 3) << 4).reshape(n, 8, 32)
    centred = numbers.astype(np.float32).reshape(n, 16, 16) - np.float32(32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    floats: Floats = ((_half(blocks, 208) * scales)[:, :, None] * centred).reshape(n, 256)
    return floats


BLOCK_TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4, _f32),
    1: BlockType("F16", 1, 2, _f16),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    30: BlockType("BF16", 1, 2, _bf16),
}
"""Number of a type in a file → how to read it."""
