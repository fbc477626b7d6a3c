"""Language models of one stack of blocks, as configs of Hugging Face and metadata of GGUF tell of them, as a spec.

Two families. `llama`: RMS norms, rotary positions, gated feed-forward, fewer heads of keys and values; Llama 1 and 2,
Mistral, Qwen2, SmolLM2. `gpt2`: layer norms, trained positions, biases. What a spec cannot say is refused, never
approximated. Sources: Touvron et al. 2023; Radford et al. 2019.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec
from celluler.models.layers import (
    Attention,
    Dense,
    Embedding,
    FeedForward,
    LayerNorm,
    Positions,
    Repeat,
    Residual,
    RmsNorm,
    SwiGLU,
)
from celluler.models.layers.rotary import Scaling
from celluler.models.objectives import NextToken
from celluler.models.spec import Architecture, parse_spec, plain

LLAMA, GPT2 = "llama", "gpt2"
LONGEST_CONTEXT = 2048
"""Unless more is asked for: what a sample of a spec costs grows with it, and the budget is one sample's."""
_SHORTEST_CONTEXT = 16
LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Decoder:
    """tied: the last layer has the embedding's weights. biases: of queries, keys and values. output_bias: behind the
    attention. hidden_bias: in the feed-forward. function: between its layers (gpt2)."""

    family: str
    vocabulary: int
    width: int
    blocks: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    epsilon: float
    tied: bool
    rope_base: float | None = None
    rope_scaling: Scaling | None = None
    biases: bool = False
    output_bias: bool = False
    hidden_bias: bool = False
    function: str = "silu"

    @property
    def kv_width(self) -> int:
        return self.width // self.heads * self.kv_heads


def document_of(decoder: Decoder, context: int | None = None) -> bytes:
    """The spec. context: places that a sample has; None for as many as model and budget allow, 2048 at most.

    Raises InvalidSpec.
    """
    if context is not None:
        if not 2 <= context <= decoder.context:
            raise InvalidSpec("context", f"is {context}, the model was made for 2…{decoder.context}")
        return _checked(decoder, context)
    high = min(decoder.context, LONGEST_CONTEXT)
    try:
        return _checked(decoder, high)
    except InvalidSpec:
        low = min(high, _SHORTEST_CONTEXT)
        found = _checked(decoder, low)
    while high - low > _SHORTEST_CONTEXT:
        middle = (low + high) // 2
        try:
            low, found = middle, _checked(decoder, middle)
        except InvalidSpec:
            high = middle
    return found


def _checked(decoder: Decoder, context: int) -> bytes:
    document = json.dumps(_document(decoder, context), sort_keys=True, separators=(",", ":")).encode("ascii")
    parse_spec(document)
    return document


def _document(decoder: Decoder, context: int) -> dict[str, Any]:
    attention: dict[str, Any] = {"kind": "attention", "heads": decoder.heads, "causal": True}
    attention["bias"] = decoder.biases or decoder.output_bias
    if decoder.kv_heads != decoder.heads:
        attention["kv_heads"] = decoder.kv_heads
    norm: dict[str, Any] = {"kind": "layer_norm"}
    places: list[dict[str, Any]] = [{"kind": "positions"}]
    mixer = {"kind": "feed_forward", "hidden": decoder.hidden, "function": decoder.function}
    if decoder.family == LLAMA:
        attention["rope_base"] = decoder.rope_base
        if decoder.rope_scaling is not None:
            attention["rope_scaling"] = plain(decoder.rope_scaling)
        norm, places = {"kind": "rms_norm", "epsilon": decoder.epsilon}, []
        mixer = {"kind": "swiglu", "hidden": decoder.hidden, "bias": decoder.hidden_bias}
    branches = [{"kind": "residual", "layers": [norm, one]} for one in (attention, mixer)]
    return {
        "spec": 1,
        "input": {"dtype": "int64", "shape": [context]},
        "layers": [
            {"kind": "embedding", "vocabulary": decoder.vocabulary, "width": decoder.width},
            *places,
            {"kind": "repeat", "times": decoder.blocks, "layers": branches},
            norm,
            {"kind": "dense", "width": decoder.vocabulary, "bias": False},
        ],
        "objective": {"kind": "next_token", "vocabulary": decoder.vocabulary},
    }


def decoder_of_spec(architecture: Architecture) -> Decoder:
    """The same, told from a spec. tied is left to the weights: False. Raises InvalidSpec for a spec of another form."""
    match architecture.layers:
        case (
            Embedding() as embedding,
            Repeat(
                layers=(
                    Residual(join="add", layers=(RmsNorm() as norm, Attention(causal=True) as attention)),
                    Residual(join="add", layers=(RmsNorm() as second, SwiGLU() as mixer)),
                )
            ) as blocks,
            RmsNorm() as last,
            Dense(bias=False) as head,
        ) if (
            attention.rope_base is not None
            and norm.epsilon == second.epsilon == last.epsilon
            and isinstance(architecture.objective, NextToken)
            and embedding.vocabulary == head.width
        ):
            biases = attention.bias
            return Decoder(
                LLAMA,
                embedding.vocabulary,
                embedding.width,
                blocks.times,
                attention.heads,
                attention.groups,
                mixer.hidden,
                architecture.input.shape[0],
                norm.epsilon,
                False,
                attention.rope_base,
                attention.rope_scaling,
                biases,
                biases,
                mixer.bias,
            )
        case (
            Embedding() as embedding,
            Positions(),
            Repeat(
                layers=(
                    Residual(
                        join="add", layers=(LayerNorm(), Attention(causal=True, bias=True, rope_base=None) as seer)
                    ),
                    Residual(join="add", layers=(LayerNorm(), FeedForward(bias=True) as forward)),
                )
            ) as blocks,
            LayerNorm(),
            Dense(bias=False) as head,
        ) if (
            seer.groups == seer.heads
            and isinstance(architecture.objective, NextToken)
            and embedding.vocabulary == head.width
            and forward.function in ("gelu", "gelu_tanh", "relu", "silu")
        ):
            return Decoder(
                GPT2,
                embedding.vocabulary,
                embedding.width,
                blocks.times,
                seer.heads,
                seer.heads,
                forward.hidden,
                architecture.input.shape[0],
                LAYER_NORM_EPSILON,
                False,
                None,
                None,
                True,
                True,
                True,
                forward.function,
            )
    raise InvalidSpec(
        "layers",
        "are neither Llama-shaped (embedding, blocks of RMS norm, rotary attention and SwiGLU, RMS norm, dense) nor "
        "GPT-2-shaped: a Hugging Face folder cannot say them",
        hint="convert to onnx or safetensors",
    )
