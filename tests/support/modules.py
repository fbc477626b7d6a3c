"""Tiny modules of the kinds that people publish, each with examples of its inputs.

Every one is a few thousand parameters: what is tested is that a graph does what they do, bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 32


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.25), nn.LayerNorm(16), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:  # (batch, 8) → (batch, 4)
        return self.body(x)


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 8, 3, stride=2, bias=False)
        self.drop = nn.Dropout2d(0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:  # (batch, 1, 8, 8) → (batch, 3)
        x = functional.max_pool2d(functional.relu(self.norm(self.first(x))), 2)
        x = self.drop(functional.leaky_relu(self.second(functional.pad(x, (1, 1, 1, 1)))))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:  # (batch, time) int64 → (batch, time, vocabulary)
        out, _ = self.lstm(self.words(tokens))
        return self.head(out)


class Block(nn.Module):
    """A transformer block with a causal mask."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.forward_net = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:  # (batch, time, width) → the same
        batch, time, width = x.shape
        q, k, v = self.mix(self.before(x)).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        rate = 0.1 if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate)
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, time, width)))
        return x + self.forward_net(self.between(x))


class Generator(nn.Module):
    """Of a GAN: noise to pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(6, 8 * 2 * 2)
        self.body = nn.Sequential(
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:  # (batch, 6) → (batch, 1, 8, 8)
        return self.body(self.start(z).view(-1, 8, 2, 2))


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(12, 16), nn.SiLU())
        self.mean, self.spread = nn.Linear(16, 3), nn.Linear(16, 3)
        self.decode = nn.Sequential(nn.Linear(3, 16), nn.ELU(), nn.Linear(16, 12), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (batch, 12) → (batch, 12), 2 × (batch, 3)
        hidden = self.encode(x)
        mean, spread = self.mean(hidden), self.spread(hidden)
        z = mean + torch.exp(0.5 * spread) * torch.randn_like(mean)
        return self.decode(z), mean, spread


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.deep = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.last = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:  # (batch, 1, 8, 8) → the same
        skip = self.down(x)
        deep = self.deep(functional.avg_pool2d(skip, 2))
        wide = functional.interpolate(deep, scale_factor=2, mode="nearest")[:, :4]
        return self.last(torch.cat((skip, self.up(deep), wide), dim=1))


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def _turn(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


class LlamaLayer(nn.Module):
    """Grouped queries, rotary positions, SwiGLU."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.side = heads, groups, width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, groups * self.side, bias=False)
        self.v = nn.Linear(width, groups * self.side, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.before, self.between = RmsNorm(width), RmsNorm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, width = x.shape
        h = self.before(x)
        q = self.q(h).view(batch, time, self.heads, self.side).transpose(1, 2)
        k = self.k(h).view(batch, time, self.groups, self.side).transpose(1, 2)
        v = self.v(h).view(batch, time, self.groups, self.side).transpose(1, 2)
        q, k = q * cos + _turn(q) * sin, k * cos + _turn(k) * sin
        k, v = (one.repeat_interleave(self.heads // self.groups, dim=1) for one in (k, v))
        scores = q @ k.transpose(2, 3) / math.sqrt(self.side)
        mask = torch.full((time, time), float("-inf")).triu(1)
        mixed = torch.softmax((scores + mask).float(), dim=-1) @ v
        x = x + self.o(mixed.transpose(1, 2).contiguous().view(batch, time, width))
        h = self.between(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """Its output layer is its embedding: one tensor by two names."""

    def __init__(self, width: int = 16, heads: int = 4, groups: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(LlamaLayer(width, heads, groups) for _ in range(layers))
        self.norm = RmsNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.words.weight
        side = width // heads
        frequencies = 1.0 / (10000 ** (torch.arange(0, side, 2).float() / side))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:  # (batch, time) int64 → (batch, time, vocabulary)
        time = tokens.shape[1]
        angles = torch.outer(torch.arange(time, dtype=torch.float32), self.frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        x = self.words(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))


class ResNetBlock(nn.Module):
    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or given != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(given, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """As torchvision writes it: in-place activations and sums."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2 = ResNetBlock(4, 4, 1), ResNetBlock(4, 8, 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:  # (batch, 3, 16, 16) → (batch, 5)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


Dynamic = dict[int, tuple[int, int]]

CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], Dynamic]] = {
    "mlp": (Mlp, lambda: torch.randn(4, 8), {0: (2, 64)}),
    "cnn": (Cnn, lambda: torch.randn(4, 1, 8, 8), {0: (2, 64)}),
    "lstm": (Recurrent, lambda: torch.randint(0, VOCABULARY, (4, 6)), {0: (2, 64)}),
    "transformer": (Block, lambda: torch.randn(4, 6, 16), {0: (2, 64), 1: (2, 32)}),
    "generator": (Generator, lambda: torch.randn(4, 6), {0: (2, 64)}),
    "vae": (Vae, lambda: torch.randn(4, 12), {0: (2, 64)}),
    "unet": (UNet, lambda: torch.randn(4, 1, 8, 8), {0: (2, 64)}),
    "llama": (Llama, lambda: torch.randint(0, VOCABULARY, (4, 6)), {0: (2, 64), 1: (2, 32)}),
    "resnet": (ResNet, lambda: torch.randn(4, 3, 16, 16), {0: (2, 64)}),
}
