"""Part of a model: which tensors some of its layers hold, and which pieces of the content those are.

Layers are counted as they stand in the spec, from 0, in each net on its own; a repeat or a residual is one of them
with everything inside.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from celluler.content.manifest import Manifest
from celluler.errors import InvalidSpec
from celluler.models.body import Body
from celluler.models.spec import Architecture

_RANGE = re.compile(r"(\d{0,4}):(\d{0,4})|(\d{1,4})", re.ASCII)


def tensors_of_layers(architecture: Body, layers: str) -> frozenset[str]:
    """Names of all tensors of these layers: `3`, `0:6` (0 to 5), `2:`, `:2`, or several with commas between; of named
    nets `encoder.0:6`, or `encoder` for all of it.

    Layers without parameters add nothing. Raises InvalidSpec for text of another form or a layer that is not there.
    """
    if not isinstance(architecture, Architecture):
        raise InvalidSpec("layers", f"are of a spec; this model is a {architecture.kind}")
    chosen: set[str] = set()
    for part in layers.split(",", 64):
        chosen.update(_places(part.strip(), architecture))
    return frozenset(
        tensor.name for tensor in architecture.stored if any(tensor.name.startswith(place) for place in chosen)
    )


def pieces_of(manifest: Manifest, names: Collection[str]) -> tuple[int, ...]:
    """Indices of the pieces that hold these tensors and no others, ascending; the header first, which a loader needs.

    Raises InvalidSpec for a name that is not in the content, or a content that is not cut at its tensors.
    """
    if manifest.header is None:
        raise InvalidSpec("layers", "cannot be fetched apart: the content is encrypted, or is no safetensors file")
    wanted = set(names)
    missing = wanted - {tensor.name for tensor in manifest.tensors}
    if missing:
        raise InvalidSpec("layers", f"need the tensor {min(missing)}, which is not in the content")
    chunks = (
        range(tensor.first_chunk, tensor.first_chunk + tensor.n_chunks)
        for tensor in manifest.tensors
        if tensor.name in wanted
    )
    return (0, *(1 + chunk for run in chunks for chunk in run))


def _places(text: str, architecture: Architecture) -> list[str]:
    """What the names of these layers' tensors begin with."""
    if net := architecture.net(""):
        return [f"{place}." for place in _range(text, len(net.layers))]
    name, dot, which = text.partition(".")
    net = architecture.net(name)
    if net is None:
        names = ", ".join(one.name for one in architecture.nets)
        raise InvalidSpec("layers", f"{text[:32]!r} begins with none of the nets {names}")
    return [f"{name}.{place}." for place in _range(which if dot else ":", len(net.layers))]


def _range(text: str, count: int) -> range:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InvalidSpec("layers", f"{text[:32]!r} is not a layer or a range such as 0:6")
    start, end, single = match.groups()
    if single is not None:
        start, end = single, str(int(single) + 1)
    chosen = range(int(start or 0), int(end or count))
    if not chosen or chosen.stop > count:
        raise InvalidSpec("layers", f"{text} holds no layers of this model, which has 0 to {count - 1}")
    return chosen
