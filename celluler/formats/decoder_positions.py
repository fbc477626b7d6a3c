"""Rotary positions as configs of Hugging Face and metadata of GGUF say them: the base, and how they are stretched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from celluler.errors import InvalidSpec
from celluler.formats.stored import Floats
from celluler.models.layers.rotary import Linear, Llama3, Scaling, ScalingRule

DEFAULT_BASE = 1e4
_NAMES = {
    "llama3": {
        "factor": "factor",
        "original": "original_max_position_embeddings",
        "low": "low_freq_factor",
        "high": "high_freq_factor",
    },
    "linear": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original": "original_max_position_embeddings",
        "fast": "beta_fast",
        "slow": "beta_slow",
        "attention": "attention_factor",
        "whole": "truncate",
    },
}
"""Of each kind of scaling, what its fields are called in a config."""
_BESIDE = {"rope_theta", "rope_type", "type", "partial_rotary_factor", "finetuned"}
_MSCALES = ("mscale", "mscale_all_dim")


def positions_of_config(config: Mapping[str, Any], context: int) -> tuple[float, Scaling | None]:
    """(base, scaling). context: what the config calls `max_position_embeddings`. Raises InvalidSpec.

    Since transformers 5 all of it stands in `rope_parameters`, before it in `rope_scaling` and `rope_theta`.
    """
    base = _base(config, "config.json", DEFAULT_BASE)
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    told, at = config.get(key), f"config.json.{key}"
    if told is None:
        return base, None
    if not isinstance(told, dict):
        raise InvalidSpec(at, "is no object")
    if told.get("partial_rotary_factor", 1) not in (1, None):
        raise InvalidSpec(f"{at}.partial_rotary_factor", "is not 1; a spec turns whole heads")
    return _base(told, at, base), _scaling_of(told, at, config.get("original_max_position_embeddings"), context)


def _scaling_of(told: Mapping[str, Any], at: str, original: Any, context: int) -> Scaling | None:
    kind = str(told.get("rope_type", told.get("type", "default")))
    if kind in ("default", "dynamic"):  # the second turns otherwise only beyond the context, where no spec goes
        return None
    if kind not in _NAMES:
        raise InvalidSpec(f"{at}.rope_type", f"is {kind[:32]!r}; read are default, dynamic, linear, llama3 and yarn")
    names = _NAMES[kind]
    given = {ours: told[theirs] for ours, theirs in names.items() if told.get(theirs) is not None}
    known = _BESIDE | set(names.values()) | {*_MSCALES, "original_max_position_embeddings"}
    if unknown := sorted(set(told) - known):
        raise InvalidSpec(f"{at}.{unknown[0][:64]}", "is nothing that a spec can say")
    if "original" in names:
        given["original"] = original if original is not None else given.get("original", context)
    if kind == "yarn":
        first = given["original"]
        given.setdefault("factor", context / first if type(first) is int and first > 0 else None)
        if all(told.get(name) for name in _MSCALES) and "attention" not in given:
            up, down = (_mscale(_real(told, name, at), _real(given, "factor", at)) for name in _MSCALES)
            given["attention"] = up / down
    return ScalingRule().read({"kind": kind, **given}, at)


def _mscale(scale: float, factor: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def config_of_positions(base: float, scaling: Scaling | None) -> dict[str, Any]:
    """Fields of a config that every version of transformers reads."""
    if scaling is None:
        return {"rope_theta": base}
    told = {theirs: getattr(scaling, ours) for ours, theirs in _NAMES[scaling.KIND].items()}
    told = {name: value for name, value in told.items() if value is not None}
    return {"rope_theta": base, "rope_scaling": {"rope_type": scaling.KIND} | told}


def positions_of_gguf(own: Mapping[str, Any], context: int) -> tuple[float, Scaling | None]:
    """own: metadata of the architecture, without its name. Raises InvalidSpec."""
    at = "metadata"
    base = _base({"rope_theta": own.get("rope.freq_base", DEFAULT_BASE)}, f"{at}.rope.freq_base", DEFAULT_BASE)
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 1))  # the second is of 2023
    kind = own.get("rope.scaling.type", "none" if factor in (0, 1) else "linear")
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        if factor not in (0, 1):
            raise InvalidSpec(f"{at}.rope.scaling.factor", f"is {str(factor)[:32]}, and its type none")
        return base, None
    for key, plain in (("yarn_attn_factor", 1), ("yarn_ext_factor", 1), ("attn_factor", 1)):
        if own.get(f"rope.scaling.{key}", plain) != plain:
            raise InvalidSpec(f"{at}.rope.scaling.{key}", "is nothing that a spec can say")
    if own.get("rope.scaling.yarn_log_multiplier"):
        raise InvalidSpec(f"{at}.rope.scaling.yarn_log_multiplier", "is nothing that a spec can say")
    match kind:
        case "linear":
            given = {"factor": factor}
        case "yarn":
            given = {
                "factor": factor,
                "original": own.get("rope.scaling.original_context_length", context),
                "fast": own.get("rope.scaling.yarn_beta_fast", 32.0),
                "slow": own.get("rope.scaling.yarn_beta_slow", 1.0),
            }
        case _:
            raise InvalidSpec(f"{at}.rope.scaling.type", f"is {str(kind)[:32]!r}; read are none, linear and yarn")
    return base, ScalingRule().read({"kind": kind, **given}, f"{at}.rope.scaling")


COMMON = tuple(Llama3(factor, original) for original in (8192, 4096, 2048) for factor in (8.0, 32.0, 16.0, 4.0, 2.0))
"""What files that carry only the numbers are compared with: Llama 3.1 is the first of them, Llama 3.2 the second."""


def scaling_of_factors(factors: Floats, base: float, width: int) -> Scaling | None:
    """Of the tensor `rope_freqs` of a GGUF: by what each pair of a head turns slower. None for ones alone.

    Raises InvalidSpec for numbers that no known rule makes.
    """
    told = [float(value) for value in factors]
    if all(abs(value - 1) < 1e-6 for value in told):
        return None
    rules: tuple[Scaling, ...] = (Linear(max(1.0, min(told))), *COMMON)
    for one in rules:
        made = [1 / value for value in one.multipliers(base, width)]
        if len(made) == len(told) and all(math.isclose(x, y, rel_tol=1e-4) for x, y in zip(made, told, strict=True)):
            return one
    raise InvalidSpec("tensors.rope_freqs.weight", "holds factors that no rule of those known makes")


def _base(given: Mapping[str, Any], at: str, default: float) -> float:
    return default if given.get("rope_theta") is None else _real(given, "rope_theta", at)


def _real(given: Mapping[str, Any], key: str, at: str) -> float:
    value: Any = given.get(key)
    if type(value) not in (int, float) or not 0 < value < 1e9:
        raise InvalidSpec(f"{at}.{key}", f"is {str(value)[:32]!r}, must be a number above 0")
    return float(value)
