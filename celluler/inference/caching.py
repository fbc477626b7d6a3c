"""Whether a body can keep keys and values of the places it has seen, and how much room they take.

A place's keys and values may be kept when nothing in the body but causal attention looks at another place.
"""

from __future__ import annotations

from dataclasses import dataclass

from celluler.errors import InvalidSpec
from celluler.models.body import Body
from celluler.models.layers import (
    Activation,
    Attention,
    Dense,
    Dropout,
    Embedding,
    FeedForward,
    Layer,
    LayerNorm,
    Lstm,
    Positions,
    Repeat,
    Residual,
    RmsNorm,
    SwiGLU,
    walk,
)
from celluler.models.objectives import NextToken
from celluler.models.spec import Architecture

FLOAT_BYTES = 4
MAX_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Heads:
    """Of keys and values of one attention. width: of a head."""

    groups: int
    width: int


@dataclass(frozen=True, slots=True)
class Cached:
    """attentions: in the order in which they are passed, repeats unrolled."""

    attentions: tuple[Heads, ...]

    def byte_count(self, slots: int, length: int) -> int:
        """Of keys and values, float32."""
        return 2 * FLOAT_BYTES * slots * length * sum(one.groups * one.width for one in self.attentions)


@dataclass(frozen=True, slots=True)
class Recomputed:
    """Every token costs a pass over all that stands before it. why: in words."""

    why: str


def longest_of(body: Body) -> int:
    """Tokens that the model looks at, at most. Raises InvalidSpec for a model that does not tell the next token."""
    if not isinstance(body.objective, NextToken):
        raise InvalidSpec("objective.kind", f"is {body.objective.KIND}, only a model for next_token generates")
    return body.input.shape[0]


def caching_of(body: Body) -> Cached | Recomputed:
    """How this body generates. Raises InvalidSpec for a model that does not tell the next token."""
    longest_of(body)
    if not isinstance(body, Architecture):
        return Recomputed(f"the body is a {body.kind}, which does not say what of it is attention")
    attentions: list[Heads] = []
    first, *rest = body.layers
    if not isinstance(first, Embedding):
        return Recomputed(f"its first layer is {first.KIND}, not an embedding")
    told = _follow(tuple(rest), first.width, attentions)
    if isinstance(told, Recomputed):
        return told
    return Cached(tuple(attentions)) if attentions else Recomputed("it has no attention, of which to keep anything")


def _follow(layers: tuple[Layer, ...], width: int, attentions: list[Heads]) -> int | Recomputed:
    """The width behind those layers."""
    for layer in layers:
        match layer:
            case Attention(causal=True):
                attentions.append(Heads(layer.groups, width // layer.heads))
            case Dense():
                width = layer.width
            case Residual(join="add"):
                told = _follow(layer.layers, width, attentions)
                if isinstance(told, Recomputed):
                    return told
            case Repeat():
                for _ in range(layer.times):
                    told = _follow(layer.layers, width, attentions)
                    if isinstance(told, Recomputed):
                        return told
                    width = told
            case Positions() | LayerNorm() | RmsNorm() | FeedForward() | SwiGLU() | Activation() | Dropout():
                pass
            case _:
                return Recomputed(f"its layer {layer.KIND} may look at other places than its own, and is no attention")
    return width


def any_length(body: Architecture) -> bool:
    """Its layers compute the same of a sequence that is cut off behind, as far as it goes."""
    return all(_any_length(layer) for layer in walk(body.layers))


def _any_length(layer: Layer) -> bool:
    match layer:
        case Attention(causal=True) | Lstm(output="sequence") | Residual(join="add"):
            return True
        case Embedding() | Positions() | LayerNorm() | RmsNorm() | Dense() | FeedForward() | SwiGLU():
            return True
        case Activation() | Dropout() | Repeat():
            return True
    return False
