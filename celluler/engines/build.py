"""From an architecture to a torch module; the modules of single layers stand in `build_layers`.

Parameters of the module bear the names of `Architecture.tensors` and alias one flat vector, in its order: a round
copies, subtracts and steps on that vector alone. Nothing is allocated but the vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import torch
from torch import Tensor, nn

from celluler.engines.build_layers import TimestepModule, leaf
from celluler.errors import LocalError
from celluler.models.layers import (
    Attention,
    BatchNorm,
    Budget,
    Conv2d,
    ConvTranspose2d,
    Dense,
    GroupNorm,
    Layer,
    Ledger,
    Place,
    Repeat,
    Residual,
    Signal,
    Timestep,
)
from celluler.models.spec import Architecture

_UNBOUNDED = Budget(*(1 << 62 for _ in fields(Budget)))


def build(architecture: Architecture, vector: Tensor) -> nn.Module:
    """A module whose parameters and running statistics are views of `vector`: (dimension,) float32.

    (batch, *input.shape) → (batch, *output); of a model for denoising, with (batch,) float32 besides, the shares of its
    steps. Of named nets, one through the other; see `net_of` for each.
    """
    module = skeleton(architecture)
    attach(module, architecture, vector)
    return module


def skeleton(architecture: Architecture) -> nn.Module:
    """The same on the meta device: nothing of it is allocated."""
    with torch.device("meta"):
        nets = {net.name: _sequence(net.layers, net.given)[0] for net in architecture.nets}
        return nets[""] if "" in nets else _Nets(nets)


def row_of(layers: tuple[Layer, ...], given: Signal) -> nn.Sequential:
    """Some layers of an architecture that was planned already, on the meta device. given: what the first one takes."""
    with torch.device("meta"):
        return _sequence(layers, given)[0]


def net_of(module: nn.Module, name: str) -> nn.Module:
    """The net of that name in a module that `build` made; the empty name is the module itself."""
    if not name:
        return module
    assert isinstance(module, _Nets)
    return module[name]


def attach(module: nn.Module, architecture: Architecture, vector: Tensor) -> None:
    """Let the module's tensors be views of `vector`."""
    if vector.shape != (architecture.dimension,) or vector.dtype != torch.float32:
        raise LocalError(f"{vector.dtype} of shape {tuple(vector.shape)} is no vector of {architecture.dimension}")
    views = views_of(architecture, vector)
    assert set(module.state_dict()) == {tensor.name for tensor in architecture.planned}
    for tensor in architecture.tensors:
        place, _, name = tensor.name.rpartition(".")
        view = views[tensor.name]
        setattr(module.get_submodule(place), name, nn.Parameter(view) if tensor.trained else view)


def views_of(architecture: Architecture, vector: Tensor) -> dict[str, Tensor]:
    """Each tensor of the architecture as a view of the flat vector."""
    views = {}
    start = 0
    for tensor in architecture.tensors:
        views[tensor.name] = vector[start : start + tensor.elements].view(tensor.shape)
        start += tensor.elements
    return views


def idle_biases(architecture: Architecture) -> frozenset[str]:
    """Names of the biases that are taken out again: by a norm right behind them that works channel by channel, or,
    of the keys of attention, by its softmax, which sees differences between keys alone (unless they are turned).

    Training leaves them where they are but for rounding. An optimizer that divides by the size of its gradients makes
    whole steps of that, other ones on every machine: measured, it was all that kept replays of a CNN apart.
    """
    return frozenset(
        name for net in architecture.nets for name in _idle(net.layers, net.given, f"{net.name}." if net.name else "")
    )


def _idle(layers: tuple[Layer, ...], given: Signal, at: str) -> Iterator[str]:
    for place, layer in enumerate(layers):
        here = f"{at}{place}."
        # What a timestep adds to a channel changes nothing of what a norm by channel takes out.
        after = next((one for one in layers[place + 1 :] if not isinstance(one, Timestep)), None)
        out = _planned(layer, given)
        match layer:
            case Conv2d(bias=True) | ConvTranspose2d(bias=True) if _by_channel(after, out):
                yield f"{here}bias"
            case Attention(bias=True, rope_base=None):
                yield f"{here}key.bias"
            case Timestep() if _by_channel(after, out) and len(out.shape) != 2:
                yield f"{here}down.bias"
            case Dense(bias=True) if isinstance(after, BatchNorm) and len(out.shape) == 1:
                yield f"{here}bias"
            case Residual():
                yield from _idle(layer.layers, given, here)
            case Repeat():
                inside = given
                for copy in range(layer.times):
                    yield from _idle(layer.layers, inside, f"{here}{copy}.")
                    for one in layer.layers:
                        inside = _planned(one, inside)
        given = out


def _by_channel(norm: Layer | None, given: Signal) -> bool:
    return isinstance(norm, BatchNorm) or (isinstance(norm, GroupNorm) and norm.groups == given.shape[0])


# --- layers made of layers -------------------------------------------------------------------------------------------


class _Nets(nn.ModuleDict):
    def forward(self, x: Tensor) -> Tensor:
        for net in self.values():
            x = net(x)
        return x


class _Sequence(nn.Sequential):
    """Layers in a row; those that ask for the step are given it."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        for module in self:
            x = module(x, time) if isinstance(module, _Sequence | TimestepModule) else module(x)
        return x


class _Residual(_Sequence):
    def __init__(self, *layers: nn.Module, concat: bool) -> None:
        super().__init__(*layers)
        self.concat = concat

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        branch = super().forward(x, time)
        return torch.cat((x, branch), dim=1) if self.concat else x + branch


def _planned(layer: Layer, given: Signal) -> Signal:
    """What comes out of a layer of an architecture that was planned already: it cannot fail here."""
    return layer.plan(given, Place(), Ledger(_UNBOUNDED, timed=True))


def _sequence(layers: tuple[Layer, ...], given: Signal) -> tuple[_Sequence, Signal]:
    modules = []
    for layer in layers:
        module, given = _module(layer, given)
        modules.append(module)
    return _Sequence(*modules), given


def _module(layer: Layer, given: Signal) -> tuple[nn.Module, Signal]:
    """The module of one layer, and what comes out of it."""
    match layer:
        case Repeat():
            copies = []
            for _ in range(layer.times):
                body, given = _sequence(layer.layers, given)
                copies.append(body)
            return _Sequence(*copies), given
        case Residual():
            body, _ = _sequence(layer.layers, given)
            module: nn.Module = _Residual(*body, concat=layer.join == "concat")
        case _:
            module = leaf(layer, given.shape)
    return module, _planned(layer, given)
