"""A spec whose weights are stored in less than float32, as a module that answers and does not learn.

Linear layers and embeddings compute on the weights as they are stored; of int8 and int4 with activations in bfloat16,
for which alone torch has fast kernels. The rest (convolutions, recurrent layers, positions) and float16 are widened to
float32 once, exactly, when the model is built. Sums and what leaves a layer are float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from celluler.engines.build import skeleton
from celluler.errors import InvalidSpec, LocalError
from celluler.models.layers import TensorSpec
from celluler.models.narrow import GROUP, Bytes, form_of
from celluler.models.narrow_weights import bytes_of, wide_tensor
from celluler.models.spec import Architecture
from celluler.models.weights import Still

FEW_ROWS = 12
"""Rows of activations up to which the int8 kernel, which reads the weights once a row, is faster than widening them."""
_INT8_LENGTH = 32
"""The int8 kernel reads a row in whole vectors and looks at no length: past the end of one that is no multiple."""
_INT4_ROWS = 16
"""The int4 kernel takes matrices whose rows are a multiple of these."""


def build_narrow(architecture: Architecture, vector: Tensor, still: Still) -> nn.Module:
    """(batch, *input.shape) → (batch, *output). vector: (dimension,) float32; still: the rest of the weights file.

    Raises InvalidSpec for scales or weights that are not finite.
    """
    if vector.shape != (architecture.dimension,) or vector.dtype != torch.float32:
        raise LocalError(f"{vector.dtype} of shape {tuple(vector.shape)} is no vector of {architecture.dimension}")
    module = skeleton(architecture)
    start = 0
    for tensor in architecture.tensors:
        put(module, tensor, vector[start : start + tensor.elements].view(tensor.shape))
        start += tensor.elements
    for tensor in architecture.narrow:
        put_narrow(module, tensor, architecture, still)
    return module


def put(module: nn.Module, tensor: TensorSpec, values: Tensor) -> None:
    """Let a module of the architecture's names have these values, which are not to be trained."""
    place, _, name = tensor.name.rpartition(".")
    held = nn.Parameter(values, requires_grad=False) if tensor.trained else values
    setattr(module.get_submodule(place), name, held)


def put_narrow(module: nn.Module, tensor: TensorSpec, architecture: Architecture, still: Still) -> None:
    """In place of a layer that can compute on it one that does; elsewhere what it stands for."""
    place = tensor.name.rpartition(".")[0]
    owner = module.get_submodule(place)
    stored = bytes_of(architecture, tensor.name, tensor.shape, still)
    made: nn.Module | None = None
    form = form_of(architecture.dtype, tensor.shape)
    if type(owner) is nn.Linear and form in _LINEARS:
        made = _LINEARS[form](tensor, stored, owner.bias)
    elif type(owner) is nn.Embedding and form in ("int8", "bfloat16"):
        made = _Embedding(tensor, form, stored)
    if made is None:
        values = wide_tensor(architecture, tensor.name, tensor.shape, still)
        put(module, tensor, torch.from_numpy(values))
        return
    parent, _, last = place.rpartition(".")
    setattr(module.get_submodule(parent), last, made)


# --- layers that compute on narrow weights ---------------------------------------------------------------------------


class _BFloat16(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return _with(self.bias, functional.linear(x.bfloat16(), self.weight).float())


class _Int8(nn.Module):
    """weight: (outputs, inputs) int8; scale: (outputs) bfloat16 of the kernel, float32 of the whole."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.scale, self.bias = weight, scale, bias
        self.ones = torch.ones(len(scale), dtype=torch.bfloat16)
        self.few = FEW_ROWS if weight.shape[1] % _INT8_LENGTH == 0 else 0

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        if len(rows) <= self.few:
            out = torch._weight_int8pack_mm(rows, self.weight, self.ones)
        else:
            out = functional.linear(rows, self.weight.bfloat16())  # the codes are exact in bfloat16
        return _with(self.bias, (out.float() * self.scale).view(*x.shape[:-1], -1))


class _Int4(nn.Module):
    """packed: as the kernel wants it; scales: (inputs / 32, outputs, 2) bfloat16, each with an offset of zero."""

    def __init__(self, packed: Tensor, scales: Tensor, outputs: int, bias: Tensor | None) -> None:
        super().__init__()
        self.packed, self.scales, self.outputs, self.bias = packed, scales, outputs, bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales)
        return _with(self.bias, out.float().view(*x.shape[:-1], self.outputs))


class _Embedding(nn.Module):
    def __init__(self, tensor: TensorSpec, form: str, stored: tuple[Bytes, ...]) -> None:
        super().__init__()
        self.weight = _codes(stored[0], tensor.shape) if form == "int8" else _halves(stored[0], tensor.shape)
        self.scale = _scales(tensor, stored[1])[:, None] if form == "int8" else None

    def forward(self, x: Tensor) -> Tensor:
        found = functional.embedding(x, self.weight).float()
        return found if self.scale is None else found * functional.embedding(x, self.scale)


def _with(bias: Tensor | None, out: Tensor) -> Tensor:
    return out if bias is None else out + bias


# --- from stored bytes -----------------------------------------------------------------------------------------------


def _bfloat16_linear(tensor: TensorSpec, stored: tuple[Bytes, ...], bias: Tensor | None) -> nn.Module:
    return _BFloat16(_finite(tensor, _halves(stored[0], tensor.shape)), bias)


def _int8_linear(tensor: TensorSpec, stored: tuple[Bytes, ...], bias: Tensor | None) -> nn.Module:
    return _Int8(_codes(stored[0], tensor.shape), _scales(tensor, stored[1]), bias)


def _int4_linear(tensor: TensorSpec, stored: tuple[Bytes, ...], bias: Tensor | None) -> nn.Module | None:
    """None for a matrix that the kernel does not take."""
    outputs, inputs = tensor.shape
    if outputs % _INT4_ROWS:
        return None
    nibbles = torch.from_numpy(stored[0]).view(outputs, inputs // 2)
    codes = torch.stack((nibbles & 15, nibbles >> 4), dim=-1).view(outputs, inputs).int()
    scales = torch.from_numpy(stored[1].view("<f2").astype(np.float32)).view(outputs, inputs // GROUP)
    kernel = torch.zeros(inputs // GROUP, outputs, 2, dtype=torch.bfloat16)
    kernel[..., 0] = _finite(tensor, scales).T
    return _Int4(torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), kernel, outputs, bias)


_LINEARS: dict[str, Callable[[TensorSpec, tuple[Bytes, ...], Tensor | None], nn.Module | None]] = {
    "bfloat16": _bfloat16_linear,
    "int8": _int8_linear,
    "int4": _int4_linear,
}


def _halves(stored: Bytes, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).view(shape)


def _codes(stored: Bytes, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(stored.view(np.int8)).view(shape)


def _scales(tensor: TensorSpec, stored: Bytes) -> Tensor:
    return _finite(tensor, torch.from_numpy(stored.view("<f4")))


def _finite(tensor: TensorSpec, values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise InvalidSpec(f"weights.{tensor.name}", "holds values that are not finite")
    return values
