"""From a recognised file to a body of ours, for all formats that need no torch to be understood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from celluler.errors import InvalidSpec
from celluler.formats.decoder_configs import decoder_of_config, decoder_of_gguf
from celluler.formats.decoder_tensors import gguf_as_hf, import_hf
from celluler.formats.gguf_files import open_gguf
from celluler.formats.hf_folders import open_hf
from celluler.formats.imported import Imported, spec_of, turned
from celluler.formats.recognise import recognise
from celluler.formats.safetensors_files import open_safetensors
from celluler.formats.stored import Stored
from celluler.formats.tokenizers import gguf_beside, read_beside
from celluler.formats.torch_files import open_torch
from celluler.models.spec import parse_spec
from celluler.models.weights import need_float32

PREFIXES = ("module.", "model.", "_orig_mod.", "net.")
"""What wrappers put in front of the names of a state dict."""
_COUNTERS = ".num_batches_tracked"
ROTARY_FACTORS, MAX_FACTORS = "rope_freqs.weight", 4096
"""Of a GGUF: by what each pair of a head turns slower. At most so many."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """context: places of a sample of a language model; None for as many as model and budget allow.

    by_order: let tensors be told by their order and shape where their names are not those of the spec. objective: what
    a graph is for, where its format does not say; empty for regression.
    """

    context: int | None = None
    by_order: bool = False
    objective: str = ""


def open_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file that holds nothing else. Raises InvalidSpec for every other."""
    form = recognise(path)
    if form == "torch":
        return open_torch(path)
    if form == "safetensors":
        return open_safetensors(path)
    raise InvalidSpec("weights", f"are {form}; they can be safetensors or a PyTorch state dict")


def import_hf_folder(folder: Path, wishes: Wishes) -> Imported:
    held = open_hf(folder)
    decoder = decoder_of_config(held.config)
    imported = import_hf(decoder, held.tensors, wishes.context)
    places = parse_spec(imported.document).input.shape[0]
    beside, notes = read_beside(folder, decoder.vocabulary, places)
    return replace(imported, beside=beside, notes=(*imported.notes, *notes))


def import_gguf(path: Path, wishes: Wishes) -> Imported:
    held = open_gguf(path)
    embedding = held.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InvalidSpec("tensors.token_embd.weight", "is missing: this is no language model")
    tied = "output.weight" not in held.tensors
    tensors = dict(held.tensors)
    factors = tensors.pop(ROTARY_FACTORS, None)
    if factors is not None and factors.elements > MAX_FACTORS:
        raise InvalidSpec(f"tensors.{ROTARY_FACTORS}", f"has {factors.elements} numbers")
    decoder = decoder_of_gguf(
        held.metadata, embedding.shape[0], tied=tied, factors=None if factors is None else factors.floats().reshape(-1)
    )
    renamed = gguf_as_hf(decoder, str(held.metadata["general.architecture"]), tensors)
    imported = import_hf(decoder, renamed, wishes.context)
    beside, notes = gguf_beside(held, decoder.vocabulary, parse_spec(imported.document).input.shape[0])
    return replace(imported, beside=beside, notes=(*imported.notes, *notes))


def import_state(document: bytes, tensors: Mapping[str, Stored], wishes: Wishes) -> Imported:
    """A spec with the tensors of a state dict of whatever floating-point type, under the spec's names or wrapped ones.

    Raises InvalidSpec.
    """
    architecture = parse_spec(document)
    need_float32(architecture, "converted")
    wanted = {tensor.name: tensor for tensor in architecture.tensors}
    held = {name: one for name, one in tensors.items() if not name.endswith(_COUNTERS) or name in wanted}
    while wanted.keys() - held.keys():
        prefix = next((one for one in PREFIXES if held and all(name.startswith(one) for name in held)), None)
        if prefix is None:
            break
        held = {name.removeprefix(prefix): one for name, one in held.items()}
    notes: tuple[str, ...] = ()
    if wanted.keys() - held.keys() and wishes.by_order:
        if [one.shape for one in held.values()] != [one.shape for one in wanted.values()]:
            raise InvalidSpec("weights", "have other shapes, or another order, than the spec's tensors")
        held = dict(zip(wanted, held.values(), strict=True))
        notes = ("tensors were told by their order and shape, not by name",)
    if unknown := sorted(held.keys() - wanted.keys()):
        raise InvalidSpec(
            f"weights.{unknown[0][:64]}",
            "is not a tensor of this spec",
            hint="rename them, or say --by-order if they stand in the order of the spec",
        )
    found = {name: turned(one, name, one.shape) for name, one in held.items()}
    return spec_of(document, found, notes)
