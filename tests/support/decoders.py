"""A Llama and a GPT-2 as Hugging Face computes them, in plain torch, with the names and layouts of its checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000.0,
    "hidden_act": "silu",
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 40,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 24,
    "activation_function": "gelu_new",
}


def a_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def llama_state(config: dict[str, Any], *, biases: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """biases: of `q_proj` and so on."""
    n, hidden, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    few = n // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, n)}
    for block in range(config["num_hidden_layers"]):
        at = f"model.layers.{block}."
        rows = {"q_proj": n, "k_proj": few, "v_proj": few, "o_proj": n}
        shapes |= {f"{at}{norm}_layernorm.weight": (n,) for norm in ("input", "post_attention")}
        shapes |= {f"{at}self_attn.{name}.weight": (size, n) for name, size in rows.items()}
        shapes |= {f"{at}self_attn.{name}.bias": (size,) for name, size in rows.items() if name in biases}
        shapes |= {f"{at}mlp.{name}_proj.weight": (hidden, n) for name in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (n, hidden)
    shapes["model.norm.weight"] = (n,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocabulary, n)
    return a_state(shapes)


def rotary(config: dict[str, Any], width: int) -> tuple[Tensor, float]:
    """How far each pair of a head turns a place, and by what turned heads are stretched."""
    base, told = config["rope_theta"], config.get("rope_scaling") or {"rope_type": "default"}
    speeds = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    match told["rope_type"]:
        case "linear":
            return speeds / told["factor"], 1.0
        case "llama3":
            wavelengths, original = 2 * torch.pi / speeds, told["original_max_position_embeddings"]
            longest, shortest = (original / told[f"{one}_freq_factor"] for one in ("low", "high"))
            smooth = (original / wavelengths - told["low_freq_factor"]) / (
                told["high_freq_factor"] - told["low_freq_factor"]
            )
            between = (1 - smooth) * speeds / told["factor"] + smooth * speeds
            slow = torch.where(wavelengths > longest, speeds / told["factor"], between)
            return torch.where(wavelengths < shortest, speeds, slow), 1.0
        case "yarn":
            factor, original = told["factor"], told["original_max_position_embeddings"]
            first, last = (
                width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))
                for turns in (told.get("beta_fast", 32), told.get("beta_slow", 1))
            )
            if told.get("truncate", True):
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, width - 1)
            ramp = ((torch.arange(width // 2) - first) / (last - first)).clamp(0, 1)
            amplitude = told.get("attention_factor") or 0.1 * math.log(factor) + 1
            return speeds / factor * ramp + speeds * (1 - ramp), amplitude
    return speeds, 1.0


def llama(config: dict[str, Any], state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits. tokens: (batch, time)."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    time = tokens.shape[1]
    speeds, amplitude = rotary(config, width)
    angles = torch.arange(time)[:, None] * speeds
    turns = torch.cat((angles, angles), dim=-1)

    def norm(x: Tensor, name: str) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"])
        return state[name] * (x * scale)

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def split(x: Tensor, count: int) -> Tensor:
        return x.view(*x.shape[:2], count, width).transpose(1, 2)

    def rotate(x: Tensor) -> Tensor:
        half = torch.cat((-x[..., width // 2 :], x[..., : width // 2]), dim=-1)
        return (x * turns.cos() + half * turns.sin()).float() * amplitude

    x = state["model.embed_tokens.weight"][tokens]
    mask = torch.full((time, time), float("-inf")).triu(1)
    for block in range(config["num_hidden_layers"]):
        at = f"model.layers.{block}."
        h = norm(x, f"{at}input_layernorm.weight")
        query = rotate(split(linear(h, f"{at}self_attn.q_proj"), heads))
        key = rotate(split(linear(h, f"{at}self_attn.k_proj"), groups)).repeat_interleave(heads // groups, dim=1)
        value = split(linear(h, f"{at}self_attn.v_proj"), groups).repeat_interleave(heads // groups, dim=1)
        seen = torch.softmax(query @ key.transpose(2, 3) / width**0.5 + mask, dim=-1) @ value
        x = x + linear(seen.transpose(1, 2).flatten(2), f"{at}self_attn.o_proj")
        h = norm(x, f"{at}post_attention_layernorm.weight")
        gated = functional.silu(linear(h, f"{at}mlp.gate_proj")) * linear(h, f"{at}mlp.up_proj")
        x = x + linear(gated, f"{at}mlp.down_proj")
    head = state.get("lm_head.weight", state["model.embed_tokens.weight"])
    return norm(x, "model.norm.weight") @ head.T


def gpt2_state(config: dict[str, Any]) -> dict[str, Tensor]:
    n = config["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config["vocab_size"], n),
        "transformer.wpe.weight": (config["n_positions"], n),
    }
    for block in range(config["n_layer"]):
        at = f"transformer.h.{block}."
        for name, rows, columns in (
            *(("attn.c_attn", n, 3 * n), ("attn.c_proj", n, n)),
            *(("mlp.c_fc", n, 4 * n), ("mlp.c_proj", 4 * n, n)),
        ):
            shapes |= {f"{at}{name}.weight": (rows, columns), f"{at}{name}.bias": (columns,)}
        shapes |= {f"{at}{norm}.{kind}": (n,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    shapes |= {f"transformer.ln_f.{kind}": (n,) for kind in ("weight", "bias")}
    return a_state(shapes)


def gpt2(config: dict[str, Any], state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits. tokens: (batch, time)."""
    heads, n, time = config["n_head"], config["n_embd"], tokens.shape[1]

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (n,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def conv1d(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    x = state["transformer.wte.weight"][tokens] + state["transformer.wpe.weight"][:time]
    mask = torch.full((time, time), float("-inf")).triu(1)
    for block in range(config["n_layer"]):
        at = f"transformer.h.{block}."
        parts = conv1d(norm(x, f"{at}ln_1"), f"{at}attn.c_attn").split(n, dim=2)
        query, key, value = (part.view(*part.shape[:2], heads, n // heads).transpose(1, 2) for part in parts)
        seen = torch.softmax(query @ key.transpose(2, 3) / (n // heads) ** 0.5 + mask, dim=-1) @ value
        x = x + conv1d(seen.transpose(1, 2).flatten(2), f"{at}attn.c_proj")
        h = conv1d(norm(x, f"{at}ln_2"), f"{at}mlp.c_fc")
        gelu = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
        x = x + conv1d(gelu, f"{at}mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["transformer.wte.weight"].T


def hf_folder(folder: Path, config: dict[str, Any], state: dict[str, Tensor], *, shards: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return folder
    names = sorted(state)
    places = {name: f"model-{place % shards}.safetensors" for place, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def tokens(config: dict[str, Any], time: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, config["vocab_size"], (batch, time), generator=generator)
