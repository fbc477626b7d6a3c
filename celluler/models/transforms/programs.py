"""Steps that are programs: a graph of allowed operations, a WebAssembly module, a tokenizer of another package.

They are described and checked here and run by `celluler.engines.transforms`, in a confined worker alone. What a program
gives stands beside it, and a worker refuses one that gives anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from celluler.errors import InvalidSpec
from celluler.models.fields import Choice, Flag, Sizes, Whole, declare
from celluler.models.graph import Graph, GraphBudget, parse_graph
from celluler.models.graph_ops import RANDOM
from celluler.models.layers import Signal
from celluler.models.transforms.base import MAX_RANK, MAX_TEXT_BYTES, NUMBERS, bounded, need
from celluler.models.transforms.rules import Document, Octets, Several
from celluler.models.transforms.texts import text_signal

GRAPH_BUDGET = GraphBudget(tensor_bytes=0, activation_bytes=256 << 20, operations=10**9, nodes=1024, tensors=0)
"""Of one sample."""
MAX_MODULE_BYTES = 95 << 10
WASM_FUEL_A_SAMPLE = 50_000_000
WASM_FUEL_A_CALL = 2_000_000_000
"""A unit is about one instruction; whichever of the two is less."""
WASM_MEMORY_BYTES = 64 << 20
WASM_INPUT_BYTES = 256 << 10
"""Of a call, as far as it has more than one sample."""
_MAGIC = b"\0asm\1\0\0\0"
MAX_LOCALS = 1 << 16
"""Of all functions of a module together: three bytes declare thousands, and each takes a compiler its time."""
_IMPORTS, _START, _CODE, _LAST_SECTION = 2, 8, 10, 13
_TYPED_REFERENCES = (0x63, 0x64)
MAX_ENDS = 16
_NUMBER = Whole(0, (1 << 20) - 1)


@dataclass(frozen=True, slots=True)
class GraphStep:
    """A [graph](graph-ops.md) that holds no tensors and draws no random numbers. Its one input is the sample with
    `batch` before it, its one output what is said here, with the batch before it."""

    KIND: ClassVar[str] = "graph"

    graph: Mapping[str, Any] = declare(Document("graph document"), "what is computed")
    dtype: str = declare(Choice(("float32", "int64")), "of what comes out")
    shape: tuple[int, ...] = declare(Sizes(MAX_RANK), "of what comes out, for one sample")

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS)
        graph = self.parsed(path)
        wanted: tuple[int | str, ...] = ("batch", *given.shape)
        if len(graph.inputs) != 1 or (graph.inputs[0].dtype, graph.inputs[0].shape) != (given.dtype, wanted):
            raise InvalidSpec(f"{path}.graph.inputs", f"must be one, {given.dtype} {_text(wanted)}")
        if len(graph.outputs) != 1:
            raise InvalidSpec(f"{path}.graph.outputs", "must be one")
        if self.batch(graph)[0] != 1:
            raise InvalidSpec(f"{path}.graph.dimensions", "must let a batch be one sample")
        if graph.evaluation is not None:
            raise InvalidSpec(f"{path}.graph.evaluation", "has no place here: nothing is trained")
        for place, node in enumerate(graph.nodes):
            if node.op in RANDOM:
                raise InvalidSpec(f"{path}.graph.nodes[{place}].op", f"{node.op} may draw random numbers")
        return bounded(self.dtype, self.shape, path)

    def parsed(self, path: str = "") -> Graph:
        try:
            return parse_graph(dict(self.graph), budget=GRAPH_BUDGET)
        except InvalidSpec as error:
            inside = f".{error.path}" if error.path else ""
            raise InvalidSpec(f"{path}.graph{inside}", error.problem) from error

    @staticmethod
    def batch(graph: Graph) -> tuple[int, int]:
        """Least and most samples at once."""
        return {name: (low, high) for name, low, high in graph.dimensions}["batch"]


@dataclass(frozen=True, slots=True)
class Wasm:
    """A WebAssembly module: arbitrary code without a way out. It imports nothing, and exports `memory`,
    `alloc(bytes: i32) -> i32` and `run(samples: i32, input: i32) -> i32`. What it may take: [below](#webassembly)."""

    KIND: ClassVar[str] = "wasm"

    module: bytes = declare(Octets(MAX_MODULE_BYTES), "the binary module")
    dtype: str = declare(Choice(NUMBERS), "of what comes out")
    shape: tuple[int, ...] = declare(Sizes(MAX_RANK), "of what comes out, for one sample")

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS, "text")
        _check_module(self.module, f"{path}.module")
        return bounded(self.dtype, self.shape, path)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer as the `tokenizers` package writes it, `tokenizer.json`: the one given here, or without that the
    model's own, a [file beside its weights](model-records.md#files-beside-the-weights). Whoever serves the model needs
    that package (`pip install 'celluler[transforms]'`). Its own cutting and filling up are not used. None of its
    numbers may be one that the model does not know."""

    KIND: ClassVar[str] = "tokenizer"

    length: int = declare(Whole(1, MAX_TEXT_BYTES), "how many numbers come out: cut, or filled up")
    tokenizer: Mapping[str, Any] | None = declare(
        Document("tokenizer document"), "vocabulary, merges and all; the model's own without it", default=None
    )
    pad: int = declare(_NUMBER, "fills up", default=0)
    special: bool = declare(Flag(), "with the tokens that the tokenizer puts around a text", default=True)
    begin: int | None = declare(_NUMBER, "begins a text: `bos_token` of a chat template", default=None)
    ends: tuple[int, ...] = declare(
        Several(_NUMBER, 0, MAX_ENDS),
        "behind each of them what the model writes is over; the first is `eos_token` of a chat template",
        default=(),
    )

    def plan(self, given: Signal, path: str) -> Signal:
        text_signal(given, path)
        return bounded("int64", (self.length,), path)


def _check_module(module: bytes, path: str) -> None:
    """As far as can be seen without a compiler: sections that fill the module, none of imports, no start."""
    if not module.startswith(_MAGIC):
        raise InvalidSpec(path, "is no WebAssembly module of version 1")
    at = len(_MAGIC)
    while at < len(module):
        kind = module[at]
        size, start = _unsigned(module, at + 1, path)
        if kind > _LAST_SECTION or start + size > len(module):
            raise InvalidSpec(path, f"section {kind} at byte {at} is none, or too long")
        if kind == _IMPORTS and _unsigned(module, start, path)[0]:
            raise InvalidSpec(path, "imports something, and is given nothing")
        if kind == _START:
            raise InvalidSpec(path, "has a start function: it runs when it is asked, never when it is loaded")
        if kind == _CODE and (locals_ := _count_locals(module[: start + size], start, path)) > MAX_LOCALS:
            raise InvalidSpec(path, f"declares {locals_} local variables, limit {MAX_LOCALS}")
        at = start + size


def _count_locals(module: bytes, at: int, path: str) -> int:
    """Of the functions of a code section that begins there and ends the bytes. Each byte is looked at once: what a
    function declares lies within it."""
    total = 0
    functions, at = _unsigned(module, at, path)
    for _ in range(functions):
        size, body = _unsigned(module, at, path)
        at = body + size
        groups, inside = _unsigned(module, body, path)
        for _ in range(groups):
            count, inside = _unsigned(module, inside, path)
            typed = inside < len(module) and module[inside] in _TYPED_REFERENCES
            inside = _unsigned(module, inside + 1, path)[1] if typed else inside + 1
            if inside > at:
                raise InvalidSpec(path, f"declares local variables beyond the function's end at byte {at}")
            total += count
    return total


def _unsigned(module: bytes, at: int, path: str) -> tuple[int, int]:
    """A LEB128 number of at most 32 bits, and where it ends."""
    value = 0
    for place in range(5):
        if at + place >= len(module):
            break
        value |= (module[at + place] & 0x7F) << (7 * place)
        if module[at + place] < 0x80:
            return value, at + place + 1
    raise InvalidSpec(path, f"has no number at byte {at}")


def _text(sides: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, sides))})"
