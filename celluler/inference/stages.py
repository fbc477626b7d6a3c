"""A body cut into stages: contiguous blocks of its layers, each run by another peer.

A block is what stays together: one of the outermost layers, or one time of a repeat with all that stands in it. A
stage is blocks `first` to `until - 1`. What goes in is token ids (at the first) or hidden states, `(time, width)`;
what comes out is hidden states, or (at the last) logits. Each stage needs the tensors of its own blocks alone, and
keeps keys and values of its own attentions alone.

Knows no torch and no peer; `stages_planning` says who gets which blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

from celluler.errors import InvalidSpec
from celluler.inference.caching import Cached, Heads, Recomputed, caching_of
from celluler.models.body import Body
from celluler.models.layers import (
    Attention,
    Budget,
    Layer,
    Ledger,
    Place,
    Repeat,
    Residual,
    Signal,
    TensorSpec,
    plan_layers,
)
from celluler.models.narrow import is_narrow, stored_as
from celluler.models.spec import Architecture
from celluler.models.stored import Stored

MAX_BLOCKS = 1024
_UNBOUNDED = Budget(*(1 << 62 for _ in fields(Budget)))


@dataclass(frozen=True, slots=True)
class Block:
    """path: where its layers stand among the modules of the whole body: `1.3` of the fourth time of layer 1, `2` of
    layer 2 itself. layers: of a repeat, what is repeated; else the one layer. given, out: of a sample.
    multiply_adds: of a sample."""

    path: str
    layers: tuple[Layer, ...]
    given: Signal
    out: Signal
    tensors: tuple[TensorSpec, ...]
    heads: tuple[Heads, ...]
    multiply_adds: int

    @property
    def repeated(self) -> bool:
        """It is one time of a repeat, so that its layers stand inside `path`."""
        return "." in self.path


@dataclass(frozen=True)
class Stage:
    """Blocks `first` to `until - 1` of `count`."""

    body: Architecture
    first: int
    until: int
    count: int
    blocks: tuple[Block, ...]

    @property
    def is_first(self) -> bool:
        """It takes token ids."""
        return self.first == 0

    @property
    def is_last(self) -> bool:
        """It gives logits."""
        return self.until == self.count

    @property
    def given(self) -> int:
        """Width of the hidden states that come in, 0 for token ids."""
        return 0 if self.is_first else self.blocks[0].given.shape[-1]

    @property
    def gives(self) -> int:
        """Width of what comes out: of hidden states, or the logits of one place."""
        return self.blocks[-1].out.shape[-1]

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """As the body names them."""
        return tuple(tensor for block in self.blocks for tensor in block.tensors)

    @cached_property
    def stored(self) -> tuple[Stored, ...]:
        """What of the weights file it needs."""
        return stored_of(self.body, self.tensors)

    @property
    def names(self) -> frozenset[str]:
        """Of `stored`."""
        return frozenset(one.name for one in self.stored)

    @property
    def cached(self) -> Cached:
        """Its own attentions."""
        return Cached(tuple(heads for block in self.blocks for heads in block.heads))

    @property
    def weight_bytes(self) -> int:
        """As they are stored."""
        return sum(one.byte_count for one in self.stored)

    @property
    def multiply_adds(self) -> int:
        """Of a sample."""
        return sum(block.multiply_adds for block in self.blocks)


def stored_of(body: Architecture, tensors: tuple[TensorSpec, ...]) -> tuple[Stored, ...]:
    """Those tensors as the weights file holds them."""
    stored: list[Stored] = []
    for tensor in tensors:
        if body.dtype == "float32" or not is_narrow(tensor.shape):
            stored.append(Stored(tensor.name, "float32", tensor.shape))
        else:
            stored += stored_as(body.dtype, tensor.name, tensor.shape)
    return tuple(stored)


def blocks_of(body: Body) -> tuple[Block, ...]:
    """All of them in order. Raises InvalidSpec (`stages`) for a body that cannot be split, with the reason."""
    caching = caching_of(body)
    if isinstance(caching, Recomputed) or not isinstance(body, Architecture):
        why = caching.why if isinstance(caching, Recomputed) else f"its body is a {body.kind}"
        raise InvalidSpec("stages", f"this model cannot be split: {why}")
    (net,) = body.nets
    ledger = Ledger(_UNBOUNDED)
    heads = iter(caching.attentions)
    blocks: list[Block] = []
    given = net.given

    def add(path: str, layers: tuple[Layer, ...], place: int, copy: int | None) -> None:
        nonlocal given
        tensors, adds = len(ledger.tensors), ledger.multiply_adds
        if copy is None:
            out = layers[0].plan(given, Place().child(place), ledger)
        else:
            out = plan_layers(layers, given, Place().child(place), ledger, copy=copy)
        its = tuple(next(heads) for _ in range(_attentions(layers)))
        made = tuple(ledger.tensors[tensors:])
        blocks.append(Block(path, layers, given, out, made, its, ledger.multiply_adds - adds))
        given = out

    try:
        for place, layer in enumerate(net.layers):
            if isinstance(layer, Repeat):
                for copy in range(layer.times):
                    add(f"{place}.{copy}", layer.layers, place, copy)
            else:
                add(f"{place}", (layer,), place, None)
    except StopIteration:
        raise InvalidSpec("stages", "this model cannot be split: its attentions are not where they are told") from None
    _check(body, tuple(blocks), left=len(tuple(heads)))
    return tuple(blocks)


def stage_of(body: Body, first: int, until: int) -> Stage:
    """Blocks `first` to `until - 1`. Raises InvalidSpec as `blocks_of`, and for blocks that there are not."""
    blocks = blocks_of(body)
    assert isinstance(body, Architecture)
    if not 0 <= first < until <= len(blocks):
        raise InvalidSpec("stages", f"{first}:{until} are no blocks of this model, which has 0 to {len(blocks) - 1}")
    return Stage(body, first, until, len(blocks), blocks[first:until])


def _attentions(layers: tuple[Layer, ...]) -> int:
    """That are passed, repeats unrolled."""
    count = 0
    for layer in layers:
        match layer:
            case Attention():
                count += 1
            case Residual():
                count += _attentions(layer.layers)
            case Repeat():
                count += layer.times * _attentions(layer.layers)
    return count


def _check(body: Architecture, blocks: tuple[Block, ...], *, left: int) -> None:
    """What the rest relies on."""
    if len(blocks) > MAX_BLOCKS:
        raise InvalidSpec("stages", f"this model cannot be split: it has {len(blocks)} blocks, at most {MAX_BLOCKS}")
    if left or tuple(tensor for block in blocks for tensor in block.tensors) != body.planned:
        raise InvalidSpec("stages", "this model cannot be split: not all of it is in one row of blocks")
    time = body.input.shape[0]
    for block in blocks:
        if len(block.out.shape) != 2 or block.out.shape[0] != time:
            raise InvalidSpec("stages", f"this model cannot be split: layer {block.path} gives {block.out.shape}")
