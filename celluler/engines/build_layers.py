"""One torch module for each layer that holds no others, over a closed table of kinds.

Every module's tensors bear the names that the layer's plan gives them. Nothing is allocated here: the caller builds on
the meta device and lets the tensors be views of a flat vector.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from celluler.errors import LocalError
from celluler.models.layers import (
    Activation,
    Attention,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    ConvTranspose2d,
    Dense,
    Dropout,
    Embedding,
    FeedForward,
    First,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    Last,
    Layer,
    LayerNorm,
    Lstm,
    MaxPool2d,
    MeanPool,
    Positions,
    Reshape,
    RmsNorm,
    Shape,
    SwiGLU,
    Timestep,
    Upsample2d,
)
from celluler.models.layers.timesteps import channels_of

_FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def leaf(layer: Layer, given: Shape) -> nn.Module:
    """The module of a layer; given: the shape of one sample that comes in, as it was planned."""
    match layer:
        case Dense():
            return nn.Linear(given[-1], layer.width, bias=layer.bias)
        case FeedForward():
            return _FeedForward(given[-1], layer.hidden, layer.function, bias=layer.bias)
        case SwiGLU():
            return _SwiGLU(given[-1], layer.hidden, bias=layer.bias)
        case Activation():
            return _FUNCTIONS[layer.function]()
        case Dropout():
            return nn.Dropout(layer.rate)
        case Flatten():
            return nn.Flatten()
        case Reshape():
            return _Reshape(layer.shape)
        case BatchNorm() | LayerNorm() | RmsNorm() | GroupNorm():
            return _norm(layer, given)
        case Timestep():
            return TimestepModule(layer, given)
        case Embedding() | Positions() | Lstm() | Attention() | MeanPool() | First() | Last():
            return _over_time(layer, given)
    return _over_images(layer, given)


def _norm(layer: BatchNorm | LayerNorm | RmsNorm | GroupNorm, given: Shape) -> nn.Module:
    match layer:
        case BatchNorm():
            norm = nn.BatchNorm2d(given[0]) if len(given) == 3 else nn.BatchNorm1d(given[0])
            norm.num_batches_tracked = None  # only a moving average without momentum reads it; all else is float32
            return norm
        case LayerNorm():
            return nn.LayerNorm(given[-1])
        case RmsNorm():
            return _RmsNorm(given[-1], layer.epsilon)
        case GroupNorm():
            return _GroupNorm(layer.groups, given[0])


def _over_time(layer: Layer, given: Shape) -> nn.Module:
    match layer:
        case Embedding():
            return nn.Embedding(layer.vocabulary, layer.width)
        case Positions():
            return PositionsModule(given)
        case Lstm():
            return _Lstm(given[-1], layer.hidden, layer.layers, last=layer.output == "last")
        case Attention():
            return AttentionModule(layer, given)
        case MeanPool():
            return _MeanPool()
        case First():
            return _Pick(0)
        case Last():
            return _Pick(-1)
    raise LocalError(f"no module for {layer!r}")


def _over_images(layer: Layer, given: Shape) -> nn.Module:
    match layer:
        case Conv2d():
            return nn.Conv2d(
                given[0],
                layer.channels,
                layer.kernel,
                stride=layer.stride,
                padding=layer.padding,
                groups=layer.groups,
                bias=layer.bias,
            )
        case ConvTranspose2d():
            return nn.ConvTranspose2d(
                given[0], layer.channels, layer.kernel, stride=layer.stride, padding=layer.padding, bias=layer.bias
            )
        case Upsample2d():
            return nn.Upsample(scale_factor=layer.factor, mode="nearest")
        case MaxPool2d():
            return nn.MaxPool2d(layer.size, layer.stride)
        case AvgPool2d():
            return nn.AvgPool2d(layer.size, layer.stride)
        case GlobalAvgPool():
            return _GlobalAvgPool()
    raise LocalError(f"no module for {layer!r}")


# --- what torch has not, or computes in a lower precision than it should ---------------------------------------------


class _Reshape(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


class _GlobalAvgPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:  # (batch, c, h, w) → (batch, c)
        return x.mean(dim=(2, 3))


class _MeanPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:  # (batch, time, …) → (batch, …)
        return x.mean(dim=1)


class _Pick(nn.Module):
    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:  # (batch, time, …) → (batch, …)
        return x[:, self.place]


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, function: str, *, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.function = _FUNCTIONS[function]()
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.function(self.up(x)))
        return out


class _SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return out


class TimestepModule(nn.Module):
    """Takes (batch, …) and the shares of the steps, (batch,) float32."""

    def __init__(self, layer: Timestep, given: Shape) -> None:
        super().__init__()
        channels = channels_of(given)
        self.up = nn.Linear(layer.width, layer.width)
        self.function = _FUNCTIONS[layer.function]()
        self.down = nn.Linear(layer.width, channels)
        self.frequencies = 1000.0 * 10000.0 ** (-np.arange(layer.width // 2) / (layer.width // 2))
        self.last = len(given) == 2

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        assert time is not None, "the spec has seen to it that whoever has such a layer gives it a step"
        angles = time.double()[:, None] * torch.from_numpy(self.frequencies).to(time.device)
        added: Tensor = self.down(self.function(self.up(torch.cat((angles.cos(), angles.sin()), dim=1).float())))
        beside = (1,) * (x.dim() - 2)
        return x + (added.reshape(len(x), *beside, -1) if self.last else added.reshape(len(x), -1, *beside))


class _RmsNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()  # squares leave the range of float16
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.epsilon) * self.weight


class _GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class PositionsModule(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:  # (batch, time, n)
        return x + self.weight[: x.shape[1]]


class _Lstm(nn.LSTM):
    def __init__(self, width: int, hidden: int, layers: int, *, last: bool) -> None:
        super().__init__(width, hidden, layers, batch_first=True)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # (batch, time, n) → (batch, time or none, hidden)
        with torch.autocast(x.device.type, enabled=False):
            states: Tensor = super().forward(x.float())[0]
        return states[:, -1] if self.last else states


class AttentionModule(nn.Module):
    def __init__(self, layer: Attention, given: Shape) -> None:
        super().__init__()
        time, width = given
        self.heads, self.groups, self.causal = layer.heads, layer.groups, layer.causal
        self.head_width = width // layer.heads
        few = self.groups * self.head_width
        self.query = nn.Linear(width, width, bias=layer.bias)
        self.key = nn.Linear(width, few, bias=layer.bias)
        self.value = nn.Linear(width, few, bias=layer.bias)
        self.output = nn.Linear(width, width, bias=layer.bias)
        self.turns = _turns(time, self.head_width, layer)

    def forward(self, x: Tensor) -> Tensor:  # (batch, time, n)
        query, key = self._turned(self._split(self.query(x), self.heads), self._split(self.key(x), self.groups))
        value = self._split(self.value(x), self.groups)
        query, key = query.to(value.dtype), key.to(value.dtype)
        if self.groups != self.heads:
            key, value = (one.repeat_interleave(self.heads // self.groups, dim=1) for one in (key, value))
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        out: Tensor = self.output(seen.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """(batch, time, heads · head_width) → (batch, heads, time, head_width)"""
        return x.reshape(x.shape[0], x.shape[1], heads, self.head_width).transpose(1, 2)

    def _turned(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.turns is None:
            return query, key
        cosine, sine = (turn[: query.shape[2]].to(query.device) for turn in self.turns)  # (time, head_width / 2)
        return turn(query, cosine, sine), turn(key, cosine, sine)


def _turns(time: int, head_width: int, layer: Attention) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines of (time, head_width / 2) angles, rounded once from float64; None where nothing turns."""
    if layer.rope_base is None:
        return None
    frequencies = layer.rope_base ** (-np.arange(0, head_width, 2) / head_width)
    amplitude = 1.0
    if (scaling := layer.rope_scaling) is not None:
        frequencies, amplitude = frequencies * scaling.multipliers(layer.rope_base, head_width), scaling.amplitude
    angles = np.arange(time)[:, None] * frequencies[None, :]
    cosine, sine = (torch.from_numpy((amplitude * of(angles)).astype(np.float32)) for of in (np.cos, np.sin))
    return cosine, sine


def turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions: x (…, head_width), angles (…, head_width / 2) that broadcast to its halves."""
    one, other = x.float().chunk(2, dim=-1)
    return torch.cat((one * cosine - other * sine, other * cosine + one * sine), dim=-1)
