"""What comes of a file of another format: a body of ours, and the tensors of its weights file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from celluler.errors import InvalidSpec
from celluler.formats.safetensors_files import write_safetensors
from celluler.formats.stored import Floats, Stored
from celluler.models.body import SPEC, Body
from celluler.models.folder import DOCUMENT, WEIGHTS
from celluler.models.graph_ops import DTYPES
from celluler.models.spec import parse_spec

Turn = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Imported:
    """kind, document: see `celluler.models.body`. tensors: all of the weights file, in its order. notes: what whoever
    imports it should know, a sentence each. beside: other files of the folder, by their names there."""

    kind: str
    document: bytes
    tensors: tuple[Stored, ...]
    notes: tuple[str, ...] = ()
    beside: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """The body's document and the weights file, in a folder that is there."""
        body, weights = folder / DOCUMENT, folder / WEIGHTS
        write_safetensors(weights, self.tensors)
        body.write_bytes(self.document)
        for name, content in self.beside.items():
            (folder / name).write_bytes(content)
        return body, weights


def turned(source: Stored, name: str, shape: tuple[int, ...], turn: Turn = lambda values: values) -> Stored:
    """A tensor under another name, as float32, after a change of layout. Nothing is read before it is asked for."""
    if math.prod(source.shape) < math.prod(shape):
        raise InvalidSpec(f"tensors.{source.name[:64]}", f"has shape {source.shape}, must make {shape}")
    return Stored(name, "F32", shape, lambda: turn(source.floats()))


def expect(source: Stored, shape: tuple[int, ...]) -> Stored:
    """The tensor, which must have this shape. Raises InvalidSpec."""
    if source.shape != shape:
        raise InvalidSpec(f"tensors.{source.name[:64]}", f"has shape {source.shape}, the config asks for {shape}")
    return source


def spec_of(document: bytes, found: dict[str, Stored], notes: tuple[str, ...] = ()) -> Imported:
    """A spec with all its tensors, by their names there. Raises InvalidSpec for one that is missing or does not fit."""
    return Imported(SPEC, document, ordered(parse_spec(document), found), notes)


def ordered(body: Body, found: Mapping[str, Stored]) -> tuple[Stored, ...]:
    """The tensors of a body as its weights file holds them: those that training moves first, in the order in which
    they make up the flat vector. Raises InvalidSpec for one that is missing, unknown or does not fit."""
    wanted = {one.name: one for one in body.stored}
    order = [tensor.name for tensor in body.tensors]
    moved = set(order)
    order += [name for name in wanted if name not in moved]
    if unknown := sorted(found.keys() - wanted.keys()):
        raise InvalidSpec(f"tensors.{unknown[0][:64]}", f"is not a tensor of this {body.kind}")
    tensors = []
    for name in order:
        stored = found.get(name)
        if stored is None:
            raise InvalidSpec(f"tensors.{name}", "is missing")
        if stored.dtype != DTYPES[wanted[name].dtype][0]:
            raise InvalidSpec(f"tensors.{name}", f"is {stored.dtype}, must be {wanted[name].dtype}")
        tensors.append(expect(stored, wanted[name].shape))
    return tuple(tensors)
