"""From names of operations to what runs them: a frozen table, written out; nothing is looked up by name."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from celluler.errors import LocalError

MAX_PIECES = 4096
"""That a tensor may be taken apart into at once."""
MAX_INTEGER = 1 << 40

_aten = torch.ops.aten


def _piece(pieces: Any, index: int) -> Tensor:
    one: Tensor = pieces[index]
    return one


def _size(x: Tensor, dim: int) -> int:
    return x.shape[dim]


def _bounded(value: int) -> int:
    if abs(value) > MAX_INTEGER:
        raise LocalError(f"a whole number beyond {MAX_INTEGER}")
    return value


def _unbind(x: Tensor, dim: int = 0) -> Any:
    _few(x.shape[dim])
    return _aten.unbind.int(x, dim)


def _chunk(x: Tensor, chunks: int, dim: int = 0) -> Any:
    _few(chunks)
    return _aten.chunk.default(x, chunks, dim)


def _split(x: Tensor, split_size: int, dim: int = 0) -> Any:
    _few(x.shape[dim] // max(1, split_size))
    return _aten.split.Tensor(x, split_size, dim)


def _lstm(input: Tensor, hx: Any, params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
          bidirectional: bool, batch_first: bool) -> Any:  # fmt: skip
    if len(hx) != 2:
        raise LocalError(f"an lstm begins with 2 states, not {len(hx)}")
    projected = hx[0].shape[-1:] != hx[1].shape[-1:]
    _fits(hx, params, (4 if has_biases else 2) + projected, num_layers, bidirectional)
    return _aten.lstm.input(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


def _recurrent(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(input: Tensor, hx: Tensor, params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
            bidirectional: bool, batch_first: bool) -> Any:  # fmt: skip
        _fits([hx], params, 4 if has_biases else 2, num_layers, bidirectional)
        return function(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)

    return run


def _fits(states: Any, params: Any, each: int, num_layers: int, bidirectional: bool) -> None:
    """The operations themselves count neither states nor weights, and read beyond their ends."""
    cells = num_layers * (2 if bidirectional else 1)
    if cells < 1 or len(params) != cells * each:
        raise LocalError(f"{len(params)} weights for {cells} cells, {each} each")
    if any(state.dim() != 3 or state.shape[0] != cells for state in states):
        raise LocalError(f"states of {[tuple(state.shape) for state in states]} for {cells} cells")


def _few(pieces: int) -> None:
    if pieces > MAX_PIECES:
        raise LocalError(f"a tensor is taken apart into {pieces} pieces; at most {MAX_PIECES}")


FUNCTIONS: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
    {
        "linear.default": _aten.linear.default,
        "conv1d.default": _aten.conv1d.default,
        "conv2d.default": _aten.conv2d.default,
        "conv3d.default": _aten.conv3d.default,
        "conv2d.padding": _aten.conv2d.padding,
        "conv1d.padding": _aten.conv1d.padding,
        "conv_transpose1d.default": _aten.conv_transpose1d.default,
        "conv_transpose2d.input": _aten.conv_transpose2d.input,
        "conv_transpose3d.input": _aten.conv_transpose3d.input,
        "embedding.default": _aten.embedding.default,
        "batch_norm.default": _aten.batch_norm.default,
        "instance_norm.default": _aten.instance_norm.default,
        "layer_norm.default": _aten.layer_norm.default,
        "group_norm.default": _aten.group_norm.default,
        "rms_norm.default": _aten.rms_norm.default,
        "lstm.input": _lstm,
        "gru.input": _recurrent(_aten.gru.input),
        "rnn_tanh.input": _recurrent(_aten.rnn_tanh.input),
        "rnn_relu.input": _recurrent(_aten.rnn_relu.input),
        "scaled_dot_product_attention.default": _aten.scaled_dot_product_attention.default,
        "dropout.default": _aten.dropout.default,
        "feature_dropout.default": _aten.feature_dropout.default,
        "alpha_dropout.default": _aten.alpha_dropout.default,
        "relu.default": _aten.relu.default,
        "relu6.default": _aten.relu6.default,
        "leaky_relu.default": _aten.leaky_relu.default,
        "elu.default": _aten.elu.default,
        "celu.default": _aten.celu.default,
        "selu.default": _aten.selu.default,
        "gelu.default": _aten.gelu.default,
        "silu.default": _aten.silu.default,
        "mish.default": _aten.mish.default,
        "softplus.default": _aten.softplus.default,
        "sigmoid.default": _aten.sigmoid.default,
        "log_sigmoid.default": _aten.log_sigmoid.default,
        "tanh.default": _aten.tanh.default,
        "hardtanh.default": _aten.hardtanh.default,
        "hardswish.default": _aten.hardswish.default,
        "hardsigmoid.default": _aten.hardsigmoid.default,
        "prelu.default": _aten.prelu.default,
        "glu.default": _aten.glu.default,
        "threshold.default": _aten.threshold.default,
        "softmax.int": _aten.softmax.int,
        "log_softmax.int": _aten.log_softmax.int,
        "max_pool1d.default": _aten.max_pool1d.default,
        "max_pool2d.default": _aten.max_pool2d.default,
        "max_pool3d.default": _aten.max_pool3d.default,
        "avg_pool1d.default": _aten.avg_pool1d.default,
        "avg_pool2d.default": _aten.avg_pool2d.default,
        "avg_pool3d.default": _aten.avg_pool3d.default,
        "adaptive_avg_pool1d.default": _aten.adaptive_avg_pool1d.default,
        "adaptive_avg_pool2d.default": _aten.adaptive_avg_pool2d.default,
        "adaptive_max_pool2d.default": _aten.adaptive_max_pool2d.default,
        "upsample_nearest1d.vec": _aten.upsample_nearest1d.vec,
        "upsample_nearest2d.vec": _aten.upsample_nearest2d.vec,
        "upsample_bilinear2d.vec": _aten.upsample_bilinear2d.vec,
        "upsample_bicubic2d.vec": _aten.upsample_bicubic2d.vec,
        "pixel_shuffle.default": _aten.pixel_shuffle.default,
        "pixel_unshuffle.default": _aten.pixel_unshuffle.default,
        "pad.default": _aten.pad.default,
        "add.Tensor": _aten.add.Tensor,
        "add.Scalar": _aten.add.Scalar,
        "sub.Tensor": _aten.sub.Tensor,
        "sub.Scalar": _aten.sub.Scalar,
        "rsub.Scalar": _aten.rsub.Scalar,
        "mul.Tensor": _aten.mul.Tensor,
        "mul.Scalar": _aten.mul.Scalar,
        "div.Tensor": _aten.div.Tensor,
        "div.Scalar": _aten.div.Scalar,
        "div.Tensor_mode": _aten.div.Tensor_mode,
        "pow.Tensor_Scalar": _aten.pow.Tensor_Scalar,
        "pow.Tensor_Tensor": _aten.pow.Tensor_Tensor,
        "pow.Scalar": _aten.pow.Scalar,
        "neg.default": _aten.neg.default,
        "abs.default": _aten.abs.default,
        "sign.default": _aten.sign.default,
        "exp.default": _aten.exp.default,
        "expm1.default": _aten.expm1.default,
        "log.default": _aten.log.default,
        "log1p.default": _aten.log1p.default,
        "sqrt.default": _aten.sqrt.default,
        "rsqrt.default": _aten.rsqrt.default,
        "reciprocal.default": _aten.reciprocal.default,
        "square.default": _aten.square.default,
        "sin.default": _aten.sin.default,
        "cos.default": _aten.cos.default,
        "erf.default": _aten.erf.default,
        "floor.default": _aten.floor.default,
        "ceil.default": _aten.ceil.default,
        "round.default": _aten.round.default,
        "clamp.default": _aten.clamp.default,
        "clamp_min.default": _aten.clamp_min.default,
        "clamp_max.default": _aten.clamp_max.default,
        "minimum.default": _aten.minimum.default,
        "maximum.default": _aten.maximum.default,
        "matmul.default": _aten.matmul.default,
        "mm.default": _aten.mm.default,
        "bmm.default": _aten.bmm.default,
        "addmm.default": _aten.addmm.default,
        "baddbmm.default": _aten.baddbmm.default,
        "outer.default": _aten.outer.default,
        "einsum.default": _aten.einsum.default,
        "mean.default": _aten.mean.default,
        "mean.dim": _aten.mean.dim,
        "sum.default": _aten.sum.default,
        "sum.dim_IntList": _aten.sum.dim_IntList,
        "var.correction": _aten.var.correction,
        "std.correction": _aten.std.correction,
        "amax.default": _aten.amax.default,
        "amin.default": _aten.amin.default,
        "max.dim": _aten.max.dim,
        "min.dim": _aten.min.dim,
        "argmax.default": _aten.argmax.default,
        "logsumexp.default": _aten.logsumexp.default,
        "cumsum.default": _aten.cumsum.default,
        "diff.default": _aten.diff.default,
        "linalg_vector_norm.default": _aten.linalg_vector_norm.default,
        "topk.default": _aten.topk.default,
        "eq.Tensor": _aten.eq.Tensor,
        "eq.Scalar": _aten.eq.Scalar,
        "ne.Tensor": _aten.ne.Tensor,
        "ne.Scalar": _aten.ne.Scalar,
        "lt.Tensor": _aten.lt.Tensor,
        "lt.Scalar": _aten.lt.Scalar,
        "le.Tensor": _aten.le.Tensor,
        "le.Scalar": _aten.le.Scalar,
        "gt.Tensor": _aten.gt.Tensor,
        "gt.Scalar": _aten.gt.Scalar,
        "ge.Tensor": _aten.ge.Tensor,
        "ge.Scalar": _aten.ge.Scalar,
        "logical_not.default": _aten.logical_not.default,
        "logical_and.default": _aten.logical_and.default,
        "logical_or.default": _aten.logical_or.default,
        "bitwise_not.default": _aten.bitwise_not.default,
        "bitwise_and.Tensor": _aten.bitwise_and.Tensor,
        "bitwise_or.Tensor": _aten.bitwise_or.Tensor,
        "view.default": _aten.view.default,
        "reshape.default": _aten.reshape.default,
        "flatten.using_ints": _aten.flatten.using_ints,
        "unflatten.int": _aten.unflatten.int,
        "permute.default": _aten.permute.default,
        "transpose.int": _aten.transpose.int,
        "t.default": _aten.t.default,
        "numpy_T.default": _aten.numpy_T.default,
        "movedim.intlist": _aten.movedim.intlist,
        "squeeze.default": _aten.squeeze.default,
        "squeeze.dim": _aten.squeeze.dim,
        "squeeze.dims": _aten.squeeze.dims,
        "unsqueeze.default": _aten.unsqueeze.default,
        "expand.default": _aten.expand.default,
        "expand_as.default": _aten.expand_as.default,
        "repeat.default": _aten.repeat.default,
        "repeat_interleave.self_int": _aten.repeat_interleave.self_int,
        "slice.Tensor": _aten.slice.Tensor,
        "select.int": _aten.select.int,
        "narrow.default": _aten.narrow.default,
        "chunk.default": _chunk,
        "split.Tensor": _split,
        "split_with_sizes.default": _aten.split_with_sizes.default,
        "unbind.int": _unbind,
        "cat.default": _aten.cat.default,
        "stack.default": _aten.stack.default,
        "roll.default": _aten.roll.default,
        "flip.default": _aten.flip.default,
        "tril.default": _aten.tril.default,
        "triu.default": _aten.triu.default,
        "contiguous.default": _aten.contiguous.default,
        "clone.default": _aten.clone.default,
        "detach.default": _aten.detach.default,
        "alias.default": _aten.alias.default,
        "to.dtype": _aten.to.dtype,
        "type_as.default": _aten.type_as.default,
        "gather.default": _aten.gather.default,
        "index_select.default": _aten.index_select.default,
        "index.Tensor": _aten.index.Tensor,
        "masked_fill.Scalar": _aten.masked_fill.Scalar,
        "where.self": _aten.where.self,
        "where.ScalarOther": _aten.where.ScalarOther,
        "where.ScalarSelf": _aten.where.ScalarSelf,
        "where.Scalar": _aten.where.Scalar,
        "zeros.default": _aten.zeros.default,
        "ones.default": _aten.ones.default,
        "full.default": _aten.full.default,
        "arange.default": _aten.arange.default,
        "arange.start": _aten.arange.start,
        "arange.start_step": _aten.arange.start_step,
        "rand.default": _aten.rand.default,
        "randn.default": _aten.randn.default,
        "zeros_like.default": _aten.zeros_like.default,
        "ones_like.default": _aten.ones_like.default,
        "full_like.default": _aten.full_like.default,
        "rand_like.default": _aten.rand_like.default,
        "randn_like.default": _aten.randn_like.default,
        "new_zeros.default": _aten.new_zeros.default,
        "new_ones.default": _aten.new_ones.default,
        "new_full.default": _aten.new_full.default,
        "scalar_tensor.default": _aten.scalar_tensor.default,
        "mse_loss.default": _aten.mse_loss.default,
        "cross_entropy_loss.default": _aten.cross_entropy_loss.default,
        "add_.Tensor": _aten.add_.Tensor,
        "mul_.Tensor": _aten.mul_.Tensor,
        "copy_.default": _aten.copy_.default,
        "sym_size.int": _size,
        "int.add": lambda a, b: _bounded(a + b),
        "int.sub": lambda a, b: _bounded(a - b),
        "int.mul": lambda a, b: _bounded(a * b),
        "int.floordiv": lambda a, b: a // b,
        "int.mod": lambda a, b: a % b,
        "getitem.default": _piece,
    }
)

TORCH_DTYPES: MappingProxyType[str, torch.dtype] = MappingProxyType(
    {
        "float32": torch.float32,
        "float64": torch.float64,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "int64": torch.int64,
        "int32": torch.int32,
        "int16": torch.int16,
        "int8": torch.int8,
        "uint8": torch.uint8,
        "bool": torch.bool,
    }
)
