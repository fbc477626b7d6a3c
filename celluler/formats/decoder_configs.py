"""What configs of Hugging Face and metadata of GGUF say of a decoder, and the config that says it again.

What a spec cannot say is refused with the field that says it, never approximated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celluler.errors import InvalidSpec
from celluler.formats.decoder_positions import (
    DEFAULT_BASE,
    config_of_positions,
    positions_of_config,
    positions_of_gguf,
    scaling_of_factors,
)
from celluler.formats.decoders import GPT2, LAYER_NORM_EPSILON, LLAMA, Decoder
from celluler.formats.stored import Floats

_FUNCTIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu"}


def decoder_of_config(config: Mapping[str, Any]) -> Decoder:
    """Raises InvalidSpec with the field that a spec cannot say."""
    kind = config.get("model_type")
    if config.get("quantization_config"):
        raise InvalidSpec(
            "config.json.quantization_config",
            "says that the weights are packed in a way of its own",
            hint="take the model as it was before, or as GGUF",
        )
    if kind in ("llama", "mistral", "qwen2"):
        return _llama_of_config(config, str(kind))
    if kind == "gpt2":
        return _gpt2_of_config(config)
    raise InvalidSpec(
        "config.json.model_type",
        f"is {str(kind)[:64]!r}; read are llama, mistral, qwen2 and gpt2",
        hint="publish the module from Python on your own machine: celluler.publish",
    )


def _llama_of_config(config: Mapping[str, Any], kind: str) -> Decoder:
    heads = _whole(config, "num_attention_heads")
    width = _whole(config, "hidden_size")
    context = _whole(config, "max_position_embeddings", 2048)
    base, scaling = positions_of_config(config, context)
    _need(config, "hidden_act", ("silu", "swish"), "silu")
    _need(config, "head_dim", (width // max(1, heads), None), None)
    _need(config, "partial_rotary_factor", (1.0, 1, None), None)
    _need(config, "pretraining_tp", (1, None), 1)  # sums in another order, for checkpoints of a cluster
    if config.get("use_sliding_window", kind == "mistral") and config.get("sliding_window"):
        context = min(context, _whole(config, "sliding_window"))  # within it, it is no window
    biased = bool(config.get("attention_bias", False))
    return Decoder(
        family=LLAMA,
        vocabulary=_whole(config, "vocab_size"),
        width=width,
        blocks=_whole(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", heads),
        hidden=_whole(config, "intermediate_size"),
        context=context,
        epsilon=_real(config, "rms_norm_eps", 1e-6),
        tied=bool(config.get("tie_word_embeddings", False)),
        rope_base=base,
        rope_scaling=scaling,
        biases=biased or kind == "qwen2",
        output_bias=biased,
        hidden_bias=bool(config.get("mlp_bias", False)),
    )


def _gpt2_of_config(config: Mapping[str, Any]) -> Decoder:
    width, heads = _whole(config, "n_embd"), _whole(config, "n_head")
    _need(config, "scale_attn_weights", (True,), True)
    _need(config, "scale_attn_by_inverse_layer_idx", (False,), False)
    _need(config, "add_cross_attention", (False,), False)
    _need(config, "layer_norm_epsilon", (LAYER_NORM_EPSILON,), LAYER_NORM_EPSILON)
    _need(config, "activation_function", tuple(_FUNCTIONS), "gelu_new")
    inner = config.get("n_inner")
    return Decoder(
        family=GPT2,
        vocabulary=_whole(config, "vocab_size"),
        width=width,
        blocks=_whole(config, "n_layer"),
        heads=heads,
        kv_heads=heads,
        hidden=4 * width if inner is None else _whole(config, "n_inner"),
        context=_whole(config, "n_positions", 1024),
        epsilon=LAYER_NORM_EPSILON,
        tied=bool(config.get("tie_word_embeddings", True)),
        biases=True,
        output_bias=True,
        hidden_bias=True,
        function=_FUNCTIONS[config.get("activation_function", "gelu_new")],
    )


def config_of(decoder: Decoder) -> dict[str, Any]:
    """The config of a Hugging Face folder."""
    common = {"vocab_size": decoder.vocabulary, "tie_word_embeddings": decoder.tied, "torch_dtype": "float32"}
    if decoder.family == GPT2:
        names = {ours: theirs for theirs, ours in reversed(_FUNCTIONS.items())}
        return common | {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_embd": decoder.width,
            "n_layer": decoder.blocks,
            "n_head": decoder.heads,
            "n_inner": decoder.hidden,
            "n_positions": decoder.context,
            "layer_norm_epsilon": decoder.epsilon,
            "activation_function": names[decoder.function],
        }
    return common | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": decoder.width,
        "num_hidden_layers": decoder.blocks,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "intermediate_size": decoder.hidden,
        "max_position_embeddings": decoder.context,
        "rms_norm_eps": decoder.epsilon,
        **config_of_positions(decoder.rope_base or DEFAULT_BASE, decoder.rope_scaling),
        "hidden_act": "silu",
        "attention_bias": decoder.biases,
        "mlp_bias": decoder.hidden_bias,
    }


# --- metadata of GGUF ------------------------------------------------------------------------------------------------


def decoder_of_gguf(
    metadata: Mapping[str, Any], vocabulary: int, *, tied: bool, factors: Floats | None = None
) -> Decoder:
    """factors: by which each pair of a head turns slower. Raises InvalidSpec with the key that a spec cannot say."""
    kind = metadata.get("general.architecture")
    if kind not in ("llama", "qwen2"):
        raise InvalidSpec("metadata.general.architecture", f"is {str(kind)[:64]!r}; read are llama and qwen2")
    own = {key.removeprefix(f"{kind}."): value for key, value in metadata.items() if key.startswith(f"{kind}.")}
    heads, width = _whole(own, "attention.head_count"), _whole(own, "embedding_length")
    head_width = width // max(1, heads)
    _need(own, "expert_count", (0,), 0)
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        _need(own, key, (head_width,), head_width)
    context = _whole(own, "context_length")
    base, scaling = positions_of_gguf(own, context)
    if factors is not None:
        if scaling is not None:
            raise InvalidSpec("tensors.rope_freqs.weight", "stands beside a scaling in the metadata")
        scaling = scaling_of_factors(factors, base, head_width)
    if own.get("attention.sliding_window"):
        context = min(context, _whole(own, "attention.sliding_window"))
    return Decoder(
        family=LLAMA,
        vocabulary=vocabulary,
        width=width,
        blocks=_whole(own, "block_count"),
        heads=heads,
        kv_heads=_whole(own, "attention.head_count_kv", heads),
        hidden=_whole(own, "feed_forward_length"),
        context=context,
        epsilon=_real(own, "attention.layer_norm_rms_epsilon", 1e-5),
        tied=tied,
        rope_base=base,
        rope_scaling=scaling,
        biases=kind == "qwen2",
    )


def _whole(given: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = given.get(key, default)
    if type(value) is not int or not 1 <= value <= 1 << 24:
        raise InvalidSpec(f"config.{key}", f"is {str(value)[:32]!r}, must be a whole number above 0")
    return value


def _real(given: Mapping[str, Any], key: str, default: float) -> float:
    value = given.get(key, default)
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise InvalidSpec(f"config.{key}", f"is {str(value)[:32]!r}, must be a number above 0")
    return float(value)


def _need(given: Mapping[str, Any], key: str, allowed: tuple[Any, ...], default: Any) -> None:
    value = given.get(key, default)
    if value not in allowed:
        raise InvalidSpec(f"config.{key}", f"is {str(value)[:64]!r}, which a spec cannot say; it can {allowed[0]!r}")
