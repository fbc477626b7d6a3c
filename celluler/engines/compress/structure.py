"""Structured pruning: whole units of dense layers, channels of convolutions and hidden units of feed-forwards are taken
out, and with them what the next layer reads of them. What remains is a smaller spec.

A unit is taken out only where nothing but the next dense layer or convolution of the same list sees it: behind
functions, dropout, batch norms, pooling and flattening. Other norms compute over all units, and joins, attention and
recurrent layers fix their width: there nothing is taken. How much a unit matters: its own weights (or, behind a batch
norm, the norm's scale) times those with which it is read, as L2 norms. Li et al. 2017, section 3, take the first alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.engines.compress.prune import check_share
from celluler.engines.compress.tensors import Tensors, put_together, taken_apart
from celluler.errors import InvalidSpec
from celluler.models.layers import (
    Activation,
    AvgPool2d,
    BatchNorm,
    Budget,
    Conv2d,
    ConvTranspose2d,
    Dense,
    Dropout,
    FeedForward,
    Flatten,
    GlobalAvgPool,
    Layer,
    Ledger,
    MaxPool2d,
    Place,
    Repeat,
    Residual,
    Signal,
    SwiGLU,
    Upsample2d,
)
from celluler.models.spec import Architecture, format_spec, parse_spec, plain
from celluler.models.weights import Vector, need_float32

_UNBOUNDED = Budget(*(1 << 62 for _ in fields(Budget)))
Places = npt.NDArray[np.intp]


def prune_units(architecture: Architecture, vector: Vector, share: float) -> tuple[Architecture, Vector]:
    """The smaller architecture and its weights. Raises InvalidSpec where no unit can be taken out."""
    check_share(share)
    need_float32(architecture, "pruned")
    pruner = _Pruner(taken_apart(architecture, vector), share)
    nets = {
        net.name: pruner.through(net.layers, net.given, [f"{net.name}." if net.name else ""])
        for net in architecture.nets
    }
    if not pruner.taken:
        raise InvalidSpec(
            "layers",
            "have no unit that the next layer alone reads, or too few for this share",
            hint="prune single weights, without --structured",
        )
    document = json.loads(format_spec(architecture))
    if "" in nets:
        document["layers"] = plain(nets[""])
    else:
        document["nets"] = {name: plain(layers) for name, layers in nets.items()}
    smaller = parse_spec(document)
    return smaller, put_together(smaller, pruner.tensors)


@dataclass(slots=True)
class _Pruner:
    """tensors: of all layers; those of pruned ones become smaller. taken: units so far."""

    tensors: Tensors
    share: float
    taken: int = 0

    def through(self, layers: Sequence[Layer], given: Signal, at: list[str]) -> tuple[Layer, ...]:
        """at: what the names of the tensors of each copy of this list begin with."""
        done = list(layers)
        for place, layer in enumerate(layers):
            here = [f"{prefix}{place}." for prefix in at]
            out = _planned(layer, given)
            match layer:
                case Residual():
                    done[place] = replace(layer, layers=self.through(layer.layers, given, here))
                case Repeat():
                    copies = [f"{prefix}{copy}." for prefix in here for copy in range(layer.times)]
                    done[place] = replace(layer, layers=self.through(layer.layers, given, copies))
                case FeedForward() | SwiGLU():
                    done[place] = self._hidden(layer, here)
                case Dense() | Conv2d() | ConvTranspose2d():
                    done[place] = self._units(layers, place, out, at) or layer
            given = out
        # A consumer is read as it was given; only its own width changes.
        return tuple(done)

    def _count(self, width: int) -> int:
        return max(1, round(width * (1 - self.share)))

    def _hidden(self, layer: Any, at: list[str]) -> Layer:
        kept = self._count(layer.hidden)
        parts = ("up",) if isinstance(layer, FeedForward) else ("gate", "up")
        for prefix in at:
            score = _norms(self.tensors[f"{prefix}down.weight"], 1)
            for part in parts:
                score = score * _norms(self.tensors[f"{prefix}{part}.weight"], 0)
            keep = _best(score, kept)
            for part in parts:
                self._cut(f"{prefix}{part}.weight", keep, 0)
                self._cut(f"{prefix}{part}.bias", keep, 0)
            self._cut(f"{prefix}down.weight", keep, 1)
        self.taken += layer.hidden - kept
        smaller: Layer = replace(layer, hidden=kept)
        return smaller

    def _units(self, layers: Sequence[Layer], place: int, out: Signal, at: list[str]) -> Layer | None:
        """None where something else than one layer behind sees the units."""
        layer: Any = layers[place]
        if isinstance(layer, Conv2d) and layer.groups != 1:
            return None
        found = _reader(layers, place, out)
        if found is None:
            return None
        width = layer.width if isinstance(layer, Dense) else layer.channels
        kept = self._count(width)
        for prefix in at:
            self._take(prefix, layer, place, found, kept)
        self.taken += width - kept
        smaller: Layer = replace(layer, **{"width" if isinstance(layer, Dense) else "channels": kept})
        return smaller

    def _take(self, prefix: str, layer: Layer, place: int, found: _Reader, kept: int) -> None:
        own, axis = f"{prefix}{place}.", 1 if isinstance(layer, ConvTranspose2d) else 0
        read = f"{prefix}{found.place}.weight"
        by_unit = np.zeros(found.width)
        np.add.at(by_unit, found.reads, _norms(self.tensors[read], found.axis) ** 2)
        score = np.sqrt(by_unit)
        if found.norms:
            norm, features = found.norms[-1]
            scale = np.zeros(found.width)
            np.maximum.at(scale, features, np.abs(self.tensors[f"{prefix}{norm}.weight"]))
            score = score * scale
        else:
            score = score * _norms(self.tensors[f"{own}weight"], axis)
        keep = _best(score, kept)
        self._cut(f"{own}weight", keep, axis)
        self._cut(f"{own}bias", keep, 0)
        for norm, features in found.norms:
            for name in ("weight", "bias", "running_mean", "running_var"):
                self._cut(f"{prefix}{norm}.{name}", np.isin(features, keep), 0)
        self._cut(read, np.isin(found.reads, keep), found.axis)

    def _cut(self, name: str, keep: npt.NDArray[Any], axis: int) -> None:
        if name in self.tensors:
            values = self.tensors[name]
            self.tensors[name] = np.compress(keep, values, axis) if keep.dtype == bool else np.take(values, keep, axis)


# --- who reads a unit ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reader:
    """The layer that alone reads the units of another. place: in the list. axis: of its weight; reads: which unit
    stands at each place along it. norms: batch norms between, and which unit each of their features is."""

    place: int
    axis: int
    reads: Places
    norms: tuple[tuple[int, Places], ...]
    width: int


def _reader(layers: Sequence[Layer], place: int, out: Signal) -> _Reader | None:
    dense = isinstance(layers[place], Dense)
    width = out.shape[-1] if dense else out.shape[0]
    units = _spread(width, out, -1 if dense else 0)
    norms: list[tuple[int, Places]] = []
    given = out
    for behind in range(place + 1, len(layers)):
        layer = layers[behind]
        by_channel = units.ndim == 3 and not dense
        match layer:
            case Activation() | Dropout():
                pass
            case BatchNorm() if units.ndim == 1 or by_channel:
                norms.append((behind, units if units.ndim == 1 else units[:, 0, 0]))
            case MaxPool2d() | AvgPool2d() | GlobalAvgPool() | Upsample2d() if by_channel:
                units = _spread(width, _planned(layer, given), 0)
            case Flatten():
                units = units.reshape(-1)
            case Dense() if units.ndim == 1 or (dense and units.ndim > 1):
                return _Reader(behind, 1, units.reshape(-1, units.shape[-1])[0], tuple(norms), width)
            case Conv2d(groups=1) if by_channel:
                return _Reader(behind, 1, units[:, 0, 0], tuple(norms), width)
            case ConvTranspose2d() if by_channel:
                return _Reader(behind, 0, units[:, 0, 0], tuple(norms), width)
            case _:
                return None
        given = _planned(layer, given)
    return None


def _spread(width: int, signal: Signal, axis: int) -> Places:
    """Which unit each element of a signal is."""
    shape = [1] * len(signal.shape)
    shape[axis] = width
    return np.broadcast_to(np.arange(width).reshape(shape), signal.shape)


def _planned(layer: Layer, given: Signal) -> Signal:
    """What comes out of a layer of an architecture that was planned already: it cannot fail here."""
    return layer.plan(given, Place(), Ledger(_UNBOUNDED, timed=True))


def _norms(values: Vector, axis: int) -> npt.NDArray[np.float64]:
    """L2 norm of what is read at each place along an axis."""
    others = tuple(one for one in range(values.ndim) if one != axis)
    norms: npt.NDArray[np.float64] = np.sqrt(np.square(values.astype(np.float64)).sum(axis=others))
    return norms


def _best(score: npt.NDArray[np.float64], count: int) -> Places:
    """Places of the highest, ascending; of equal ones the first."""
    return np.sort(np.argsort(-score, kind="stable")[:count])
