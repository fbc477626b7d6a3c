"""The tensors of decoders: what each of a spec's is called elsewhere, and how it lies there.

Hugging Face's Llama pairs element i of a head with element i + half of it when it turns them, as a spec does; GGUF's
pairs neighbours, so there the rows of queries and keys stand in another order. GPT-2 keeps its matrices transposed,
and queries, keys and values in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from celluler.errors import InvalidSpec
from celluler.formats.decoders import GPT2, LLAMA, Decoder, document_of
from celluler.formats.imported import Imported, expect, spec_of, turned
from celluler.formats.stored import Floats, Stored
from celluler.models.spec import parse_spec

_IGNORED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Buffers that older checkpoints carry; they are computed from the config."""
_GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass(frozen=True, slots=True)
class _Part:
    """ours: name in the spec; theirs, of that shape there. transposed: their axes are swapped. cut: ours are these
    rows of theirs, after that."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    transposed: bool = False
    cut: slice | None = None


def import_hf(decoder: Decoder, tensors: Mapping[str, Stored], context: int | None = None) -> Imported:
    """A spec with the tensors of a Hugging Face checkpoint. Raises InvalidSpec for one that is missing or unknown."""
    held = _without_prefix(decoder, tensors)
    notes = ("the last layer had the embedding's weights; here each has its own copy",) if decoder.tied else ()
    document = document_of(decoder, context)
    places = parse_spec(document).input.shape[0]
    embedding = "model.embed_tokens.weight" if decoder.family == LLAMA else "transformer.wte.weight"
    found: dict[str, Stored] = {}
    used = {"lm_head.weight"}
    for part in _parts(decoder):
        theirs = embedding if part.theirs == "lm_head.weight" and decoder.tied else part.theirs
        stored = held.get(theirs)
        if stored is None:
            raise InvalidSpec(f"tensors.{theirs}", "is missing")
        used.add(theirs)
        expect(stored, part.shape)
        found[part.ours] = _ours(part, stored, places)
    found |= _missing_biases(decoder)
    unknown = sorted(name for name in held.keys() - used if not name.endswith(_IGNORED))
    if unknown:
        raise InvalidSpec(f"tensors.{unknown[0][:64]}", f"is nothing that a {decoder.family} of this config has")
    return spec_of(document, found, notes)


def export_hf(decoder: Decoder, tensors: Mapping[str, Stored]) -> tuple[Decoder, list[Stored]]:
    """The tensors of a spec under their names in a Hugging Face checkpoint, one copy of what is tied.

    The decoder that comes back says whether it is tied.
    """
    head, embedding = tensors[_head_name(decoder)], tensors["0.weight"]
    decoder = replace(decoder, tied=bool(np.array_equal(head.floats(), embedding.floats())))
    grouped: dict[str, list[_Part]] = {}
    for part in _parts(decoder):
        if not (decoder.tied and part.theirs == "lm_head.weight"):
            grouped.setdefault(part.theirs, []).append(part)
    return decoder, [_theirs(name, parts, tensors) for name, parts in grouped.items()]


def gguf_as_hf(decoder: Decoder, architecture: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Tensors of a GGUF under their names in a Hugging Face checkpoint, and in its order of rows."""
    renamed: dict[str, Stored] = {}
    for name, stored in tensors.items():
        theirs = _gguf_name(name)
        if theirs is None:
            raise InvalidSpec(f"tensors.{name[:64]}", "is nothing that a spec can say")
        turns = architecture == "llama" and (".q_proj." in theirs or ".k_proj." in theirs)
        heads = decoder.heads if ".q_proj." in theirs else decoder.kv_heads
        if turns and stored.shape[0] % (2 * heads):
            raise InvalidSpec(f"tensors.{name[:64]}", f"has {stored.shape[0]} rows, no whole pairs of {heads} heads")
        renamed[theirs] = (
            turned(stored, theirs, stored.shape, lambda rows, heads=heads: _halves(rows, heads))  # type: ignore[misc]
            if turns
            else turned(stored, theirs, stored.shape)
        )
    return renamed


def _halves(rows: Floats, heads: int) -> Floats:
    """Of each head: neighbours that are a pair → first halves of all pairs, then the second ones."""
    paired = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)


def _gguf_name(name: str) -> str | None:
    if name in _GGUF_OUTSIDE:
        return _GGUF_OUTSIDE[name]
    match name.split("."):
        case ["blk", number, part, kind] if part in _GGUF_NAMES and kind in ("weight", "bias") and number.isdigit():
            return f"model.layers.{int(number)}.{_GGUF_NAMES[part]}.{kind}"
    return None


def _without_prefix(decoder: Decoder, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """A checkpoint of the model without its last layer lacks a prefix."""
    prefix = "model." if decoder.family == LLAMA else "transformer."
    if any(name.startswith(prefix) for name in tensors):
        return dict(tensors)
    return {name if name.startswith("lm_head.") else prefix + name: stored for name, stored in tensors.items()}


def _ours(part: _Part, stored: Stored, places: int) -> Stored:
    if part.ours == "1.weight" and part.theirs.endswith("wpe.weight"):
        return turned(stored, part.ours, (places, part.shape[1]), lambda values: values[:places])
    shape = part.shape[::-1] if part.transposed else part.shape
    if part.cut is not None:
        shape = (part.cut.stop - part.cut.start, *shape[1:])

    def turn(values: Floats) -> Floats:
        values = values.T if part.transposed else values
        return np.ascontiguousarray(values if part.cut is None else values[part.cut])

    return turned(stored, part.ours, shape, turn)


def _theirs(name: str, parts: list[_Part], tensors: Mapping[str, Stored]) -> Stored:
    def load() -> Floats:
        values = np.concatenate([tensors[part.ours].floats() for part in parts])
        return np.ascontiguousarray(values.T if parts[0].transposed else values)

    return Stored(name, "F32", parts[0].shape, load)


def _missing_biases(decoder: Decoder) -> dict[str, Stored]:
    """A spec's attention has a bias behind each of its four layers or behind none; behind the fourth it is zero."""
    if decoder.family == GPT2 or decoder.output_bias or not decoder.biases:
        return {}
    names = [f"1.{block}.0.1.output.bias" for block in range(decoder.blocks)]
    shape = (decoder.width,)
    return {name: Stored(name, "F32", shape, lambda: np.zeros(shape, np.float32)) for name in names}


def _head_name(decoder: Decoder) -> str:
    return "3.weight" if decoder.family == LLAMA else "4.weight"


def _parts(decoder: Decoder) -> Iterator[_Part]:
    n, vocabulary = decoder.width, decoder.vocabulary
    if decoder.family == LLAMA:
        yield _Part("0.weight", "model.embed_tokens.weight", (vocabulary, n))
        for block in range(decoder.blocks):
            yield from _llama_block(decoder, f"1.{block}.", f"model.layers.{block}.")
        yield _Part("2.weight", "model.norm.weight", (n,))
    else:
        yield _Part("0.weight", "transformer.wte.weight", (vocabulary, n))
        yield _Part("1.weight", "transformer.wpe.weight", (decoder.context, n))
        for block in range(decoder.blocks):
            yield from _gpt2_block(decoder, f"2.{block}.", f"transformer.h.{block}.")
        for kind in ("weight", "bias"):
            yield _Part(f"3.{kind}", f"transformer.ln_f.{kind}", (n,))
    yield _Part(_head_name(decoder), "lm_head.weight", (vocabulary, n))


def _llama_block(decoder: Decoder, ours: str, theirs: str) -> Iterator[_Part]:
    n, few, hidden = decoder.width, decoder.kv_width, decoder.hidden
    yield _Part(f"{ours}0.0.weight", f"{theirs}input_layernorm.weight", (n,))
    for part, short, rows, biased in (
        ("query", "q", n, decoder.biases),
        ("key", "k", few, decoder.biases),
        ("value", "v", few, decoder.biases),
        ("output", "o", n, decoder.output_bias),
    ):
        yield _Part(f"{ours}0.1.{part}.weight", f"{theirs}self_attn.{short}_proj.weight", (rows, n))
        if biased:
            yield _Part(f"{ours}0.1.{part}.bias", f"{theirs}self_attn.{short}_proj.bias", (rows,))
    yield _Part(f"{ours}1.0.weight", f"{theirs}post_attention_layernorm.weight", (n,))
    for part, shape in (("gate", (hidden, n)), ("up", (hidden, n)), ("down", (n, hidden))):
        yield _Part(f"{ours}1.1.{part}.weight", f"{theirs}mlp.{part}_proj.weight", shape)
        if decoder.hidden_bias:
            yield _Part(f"{ours}1.1.{part}.bias", f"{theirs}mlp.{part}_proj.bias", shape[:1])


def _gpt2_block(decoder: Decoder, ours: str, theirs: str) -> Iterator[_Part]:
    n, hidden = decoder.width, decoder.hidden
    for place, norm in ((0, "ln_1"), (1, "ln_2")):
        for kind in ("weight", "bias"):
            yield _Part(f"{ours}{place}.0.{kind}", f"{theirs}{norm}.{kind}", (n,))
    for at, part in enumerate(("query", "key", "value")):
        rows = slice(at * n, at * n + n)
        yield _Part(f"{ours}0.1.{part}.weight", f"{theirs}attn.c_attn.weight", (n, 3 * n), True, rows)
        yield _Part(f"{ours}0.1.{part}.bias", f"{theirs}attn.c_attn.bias", (3 * n,), False, rows)
    for name, inner, outputs, inputs in (
        ("0.1.output", "attn.c_proj", n, n),
        ("1.1.up", "mlp.c_fc", hidden, n),
        ("1.1.down", "mlp.c_proj", n, hidden),
    ):
        yield _Part(f"{ours}{name}.weight", f"{theirs}{inner}.weight", (inputs, outputs), True)
        yield _Part(f"{ours}{name}.bias", f"{theirs}{inner}.bias", (outputs,))
