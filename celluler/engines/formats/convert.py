"""One model from one format to another, by way of a body of ours.

What is written was read strictly first, and a format of ours is checked as a peer would check it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from celluler.errors import InvalidSpec
from celluler.formats.decoder_configs import config_of
from celluler.formats.decoder_tensors import export_hf
from celluler.formats.decoders import decoder_of_spec
from celluler.formats.hf_folders import CONFIG_FILE
from celluler.formats.hf_folders import WEIGHTS_FILE as HF_WEIGHTS
from celluler.formats.imported import Imported, ordered
from celluler.formats.importing import Wishes, import_gguf, import_hf_folder, import_state, open_tensors
from celluler.formats.recognise import MayCarryCode, recognise
from celluler.formats.safetensors_files import open_safetensors, write_safetensors
from celluler.formats.stored import NUMPY_DTYPES
from celluler.formats.tokenizers import read_own_beside, write_beside
from celluler.formats.torch_files import open_torch
from celluler.models.body import MAX_BODY_BYTES, Body, parse_body
from celluler.models.folder import DOCUMENT, WEIGHTS
from celluler.models.spec import Architecture
from celluler.models.weights import need_float32

TARGETS = ("celluler", "safetensors", "onnx", "hf")
ONNX_FILE = "model.onnx"


@dataclass(frozen=True, slots=True)
class Converted:
    """form: what the source was. body: what it came to, None of weights alone. files: what was written, names in the
    folder. elements, byte_count: of all tensors. deviation: the largest difference of an answer between the two, on
    inputs drawn for it; None where nothing else than ours could give answers."""

    form: str
    body: Body | None
    files: tuple[str, ...]
    elements: int
    byte_count: int
    notes: tuple[str, ...]
    deviation: float | None = None


def convert(source: Path, weights: Path | None, to: str, wishes: Wishes, folder: Path) -> Converted:
    """Read `source`, and write it into `folder`, which is empty. Raises InvalidSpec for what cannot be read or said.

    weights: of a source that says only what to compute.
    """
    if to not in TARGETS:
        raise InvalidSpec("to", f"is {to[:32]!r}, must be one of {', '.join(TARGETS)}")
    if to == "safetensors" and weights is None and _is_checkpoint(source):
        return _weights_alone(source, folder)
    form, imported, deviation = read_model(source, weights, wishes, folder)
    body = parse_body(imported.kind, imported.document)
    files: tuple[str, ...] = (ONNX_FILE,)
    if to == "onnx":
        found = _write_onnx(body, imported, folder)
        deviation = found if deviation is None else deviation
    else:
        files = _WRITERS[to](body, imported, folder)
    return Converted(form, body, files, body.parameter_count, body.parameter_bytes, imported.notes, deviation)


def _weights_alone(source: Path, folder: Path) -> Converted:
    """A state dict under the names and in the types that it has."""
    tensors = tuple(open_torch(source).values())
    write_safetensors(folder / WEIGHTS, tensors, {"format": "pt"})
    byte_count = sum(one.elements * NUMPY_DTYPES[one.dtype].itemsize for one in tensors)
    return Converted("torch", None, (WEIGHTS,), sum(one.elements for one in tensors), byte_count, ())


def _is_checkpoint(source: Path) -> bool:
    try:
        return recognise(source) == "torch"
    except MayCarryCode:
        return False  # it is asked again, by whom it concerns


def read_model(source: Path, weights: Path | None, wishes: Wishes, folder: Path) -> tuple[str, Imported, float | None]:
    """(format, what is in it, deviation where it was compared). folder: for what lies between; nothing of it stays."""
    try:
        form = recognise(source)
    except MayCarryCode as refused:
        if not refused.source or weights is not None:
            raise
        from celluler.engines.formats.keras_import import import_keras  # noqa: PLC0415  as below

        return refused.source, *import_keras(refused, source, wishes, folder)
    if form in ("spec", "graph"):
        return form, _read_ours(form, source, weights, wishes), None
    if form in ("torch", "safetensors"):
        raise InvalidSpec(
            "file",
            f"is {form}: weights alone, which do not say what to compute with them",
            hint="name the architecture, and give the file as its weights: SPEC --weights FILE",
        )
    if weights is not None:
        raise InvalidSpec("weights", f"are in the {form} already")
    if form == "hf":
        return form, import_hf_folder(source, wishes), None
    if form == "gguf":
        return form, import_gguf(source, wishes), None
    from celluler.engines.formats.onnx_import import import_onnx  # noqa: PLC0415  torch.export takes seconds to load

    imported, _, deviation = import_onnx(source, wishes)
    return form, imported, deviation


def _read_ours(form: str, source: Path, weights: Path | None, wishes: Wishes) -> Imported:
    folder = source if source.is_dir() else None
    path = source / DOCUMENT if folder else source
    if weights is None and folder and (folder / WEIGHTS).is_file():
        weights = folder / WEIGHTS
    if weights is None:
        raise InvalidSpec("weights", "are missing: there is nothing to convert", hint="give them with --weights FILE")
    with path.open("rb") as file:
        document = file.read(MAX_BODY_BYTES + 1)  # one too many is refused where it is read
    tensors = open_tensors(weights)
    beside = {} if folder is None else read_own_beside(folder)
    if form == "spec":
        return replace(import_state(document, tensors, wishes), beside=beside)
    body = parse_body(form, document)
    need_float32(body, "converted")
    return Imported(form, document, ordered(body, tensors), beside=beside)


# --- writing ---------------------------------------------------------------------------------------------------------


def _write_ours(_: Body, imported: Imported, folder: Path) -> tuple[str, ...]:
    return (*(path.name for path in imported.write(folder)), *imported.beside)


def _write_safetensors(_: Body, imported: Imported, folder: Path) -> tuple[str, ...]:
    write_safetensors(folder / WEIGHTS, imported.tensors, {"format": "pt"})
    return (WEIGHTS,)


def _write_hf(body: Body, imported: Imported, folder: Path) -> tuple[str, ...]:
    if not isinstance(body, Architecture):
        raise InvalidSpec("to", "a graph is no Hugging Face folder", hint="convert it to onnx")
    decoder = decoder_of_spec(body)
    held = folder / ".own"  # converted once: the source may be dequantised at every read
    write_safetensors(held, imported.tensors)
    try:
        decoder, tensors = export_hf(decoder, open_safetensors(held))
        write_safetensors(folder / HF_WEIGHTS, tensors, {"format": "pt"})
    finally:
        held.unlink()
    (folder / CONFIG_FILE).write_text(json.dumps(config_of(decoder), indent=2) + "\n", encoding="ascii")
    return CONFIG_FILE, HF_WEIGHTS, *write_beside(imported.beside, folder)


def _write_onnx(body: Body, imported: Imported, folder: Path) -> float | None:
    from celluler.engines.formats.onnx_export import export_onnx  # noqa: PLC0415  as above

    held = folder / ".own"
    write_safetensors(held, imported.tensors)
    try:
        return export_onnx(body, held, folder / ONNX_FILE)
    finally:
        held.unlink()


_WRITERS: Mapping[str, Callable[[Body, Imported, Path], tuple[str, ...]]] = {
    "celluler": _write_ours,
    "safetensors": _write_safetensors,
    "hf": _write_hf,
}
