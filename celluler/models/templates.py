"""Small architectures to start from: each trains as it is on a few thousand samples, and any figure may be changed.

A template is a document like any other; `fill` puts values into it, and nobody has checked what comes out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec

Document = dict[str, Any]
_WAY = re.compile(r"\.?([a-z_][a-z0-9_]*)|\[(\d{1,4})\]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Template:
    """about: what it is for, in a line. document: as `parse_spec` reads it; not to be changed."""

    about: str
    document: Document


def fill(name: str, settings: Iterable[str] = ()) -> Document:
    """A template's document with values put in: `layers[0].width=64`, in the paths that errors name.

    A value is JSON, or else text as it stands. Raises InvalidSpec for a template or a place that is not there. An
    object takes any field; whether the layer knows it is seen when the document is parsed.
    """
    if name not in TEMPLATES:
        raise InvalidSpec("template", f"is {name[:64]!r}, must be one of {', '.join(TEMPLATES)}")
    document: Document = json.loads(json.dumps(TEMPLATES[name].document))  # no two places share an object then
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise InvalidSpec("set", f"{setting[:64]!r} is not path=value")
        _put(document, path.strip(), _value(text.strip()))
    return document


def _put(document: Document, path: str, value: Any) -> None:
    *way, last = _steps(path)
    inside: Any = document
    for step in way:
        inside = inside[step] if _holds(inside, step) else None
    if not (_holds(inside, last) or (isinstance(inside, dict) and isinstance(last, str))):
        raise InvalidSpec(path[:64], "is no place in this template")
    inside[last] = value


def _steps(path: str) -> list[str | int]:
    steps: list[str | int] = []
    place = 0
    while match := _WAY.match(path, place):
        steps.append(match[1] if match[1] else int(match[2]))
        place = match.end()
    if place < len(path) or not steps:
        raise InvalidSpec(path[:64], "is no path such as layers[0].width")
    return steps


def _holds(inside: Any, step: str | int) -> bool:
    if isinstance(step, int):
        return isinstance(inside, list) and step < len(inside)
    return isinstance(inside, dict) and step in inside


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# --- what there is ---------------------------------------------------------------------------------------------------

_RELU: Document = {"kind": "activation", "function": "relu"}
_LEAKY: Document = {"kind": "activation", "function": "leaky_relu"}
_IMAGE: Document = {"kind": "reshape", "shape": [1, 8, 8]}
_STEP: tuple[Document, ...] = (
    {"kind": "timestep", "width": 16},
    {"kind": "group_norm", "groups": 4},
    {"kind": "activation", "function": "silu"},
)
_Nets = dict[str, list[Document]]


def _template(about: str, shape: list[int], body: list[Document] | _Nets, objective: str, **fields: float) -> Template:
    """body: layers, or named nets."""
    first = body if isinstance(body, list) else next(iter(body.values()))
    dtype = "int64" if first[0]["kind"] == "embedding" else "float32"
    head = {"spec": 1, "input": {"dtype": dtype, "shape": shape}}
    where = "layers" if isinstance(body, list) else "nets"
    return Template(about, {**head, where: body, "objective": {"kind": objective, **fields}})


def _dense(width: int) -> Document:
    return {"kind": "dense", "width": width}


def _conv(channels: int, **fields: int) -> Document:
    return {"kind": "conv2d", "channels": channels, "kernel": 3, **({"padding": 1} | fields)}


def _add(*layers: Document) -> Document:
    return {"kind": "residual", "layers": list(layers)}


TEMPLATES: dict[str, Template] = {
    "mlp": _template(
        "classifies rows of figures; as it is, scikit-learn's digits",
        [64],
        [_dense(128), _RELU, _dense(64), _RELU, _dense(10)],
        "classification",
        classes=10,
    ),
    "cnn": _template(
        "classifies small images by residual convolutions",
        [64],
        [
            _IMAGE,
            *(_conv(16), {"kind": "batch_norm"}, _RELU),
            {"kind": "repeat", "times": 2, "layers": [_add(_conv(16), {"kind": "batch_norm"}, _RELU)]},
            *({"kind": "global_avg_pool"}, _dense(10)),
        ],
        "classification",
        classes=10,
    ),
    "lstm-forecast": _template(
        "tells the next row of a series from those before it",
        [7, 8],
        [{"kind": "lstm", "hidden": 32, "output": "last"}, _dense(8)],
        "regression",
    ),
    "lstm-lm": _template(
        "writes ASCII text, a character after the other, by an LSTM",
        [32],
        [{"kind": "embedding", "vocabulary": 128, "width": 32}, {"kind": "lstm", "hidden": 64}, _dense(128)],
        "next_token",
        vocabulary=128,
    ),
    "transformer-lm": _template(
        "writes ASCII text by causal attention with rotary positions: the shape of a Llama, small",
        [64],
        [
            {"kind": "embedding", "vocabulary": 128, "width": 64},
            {
                "kind": "repeat",
                "times": 2,
                "layers": [
                    _add(
                        {"kind": "rms_norm"},
                        {"kind": "attention", "heads": 4, "kv_heads": 2, "causal": True, "rope_base": 10000},
                    ),
                    _add({"kind": "rms_norm"}, {"kind": "swiglu", "hidden": 128}),
                ],
            },
            *({"kind": "rms_norm"}, _dense(128) | {"bias": False}),
        ],
        "next_token",
        vocabulary=128,
    ),
    "text-encoder": _template(
        "classifies ASCII text by the mean of what attention makes of its characters, which is the text's embedding",
        [64],
        {
            "encoder": [
                *({"kind": "embedding", "vocabulary": 128, "width": 32}, {"kind": "positions"}),
                {
                    "kind": "repeat",
                    "times": 2,
                    "layers": [
                        _add({"kind": "layer_norm"}, {"kind": "attention", "heads": 4, "bias": True}),
                        _add({"kind": "layer_norm"}, {"kind": "feed_forward", "hidden": 64}),
                    ],
                },
                *({"kind": "layer_norm"}, {"kind": "mean_pool"}),
            ],
            "head": [_dense(2)],
        },
        "classification",
        classes=2,
    ),
    "autoencoder": _template(
        "gives back rows of figures through eight of its own",
        [64],
        [_dense(32), _RELU, _dense(8), _RELU, _dense(32), _RELU, _dense(64)],
        "reconstruction",
    ),
    "conv-autoencoder": _template(
        "gives back small images through a smaller one",
        [1, 8, 8],
        [
            *(_conv(16, stride=2), _RELU, _conv(4), _RELU),
            {"kind": "conv_transpose2d", "channels": 8, "kernel": 2, "stride": 2},
            *(_RELU, _conv(1)),
        ],
        "reconstruction",
    ),
    "unet": _template(
        "makes an image of another of the same size, such as a clean one from a noisy one, with skips past its middle",
        [1, 8, 8],
        [
            *(_conv(8), {"kind": "group_norm", "groups": 4}, _RELU),
            {
                "kind": "residual",
                "join": "concat",
                "layers": [
                    *({"kind": "max_pool2d", "size": 2}, _conv(16), {"kind": "group_norm", "groups": 4}, _RELU),
                    {
                        "kind": "residual",
                        "join": "concat",
                        "layers": [{"kind": "max_pool2d", "size": 2}, _conv(16), _RELU, {"kind": "upsample2d"}],
                    },
                    *(_conv(16), _RELU, {"kind": "upsample2d"}),
                ],
            },
            *(_conv(8), _RELU, _conv(1)),
        ],
        "regression",
    ),
    "contrastive": _template(
        "gives small images embeddings, near for those that are alike, without labels",
        [1, 8, 8],
        {
            "encoder": [
                *(_conv(16), _RELU, {"kind": "max_pool2d", "size": 2}),
                *(_conv(32), _RELU, {"kind": "flatten"}, _dense(32)),
            ],
            "projection": [_RELU, _dense(32)],
        },
        "contrastive",
    ),
    "vae": _template(
        "makes rows of figures like those it has seen out of eight normal numbers, and finds eight for a given row",
        [64],
        {"encoder": [_dense(128), _RELU, _dense(16)], "decoder": [_dense(128), _RELU, _dense(64)]},
        "vae",
        latent=8,
        deviation=0.5,
    ),
    "gan": _template(
        "makes rows of figures between 0 and 1 like those it has seen, by two nets against each other; learns best by "
        "plain SGD, at a rate of 0.2 or 0.3",
        [64],
        {
            "generator": [_dense(128), _RELU, _dense(64), {"kind": "activation", "function": "sigmoid"}],
            "discriminator": [_dense(128), _LEAKY, _dense(64), _LEAKY, _dense(1)],
        },
        "adversarial",
        latent=16,
    ),
    "diffusion": _template(
        "makes small images out of noise, in sixteen steps",
        [1, 8, 8],
        [
            *(_conv(8), *_STEP),
            {
                "kind": "residual",
                "join": "concat",
                "layers": [
                    *({"kind": "max_pool2d", "size": 2}, _conv(16), *_STEP),
                    *(_add(_conv(16), *_STEP), {"kind": "upsample2d"}),
                ],
            },
            *(_conv(8), *_STEP, _conv(1)),
        ],
        "denoising",
        steps=16,
    ),
}
"""By name; `celluler model new --template NAME` writes one down."""
