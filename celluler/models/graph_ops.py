"""The frozen allow-list of operations, read from `celluler.models.graph_table`. Knows no torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from celluler.models.graph_table import SIGNATURES

REQUIRED = object()
"""The default of an argument that must be given."""

DTYPES = MappingProxyType(
    {
        "float32": ("F32", 4),
        "float64": ("F64", 8),
        "float16": ("F16", 2),
        "bfloat16": ("BF16", 2),
        "int64": ("I64", 8),
        "int32": ("I32", 4),
        "int16": ("I16", 2),
        "int8": ("I8", 1),
        "uint8": ("U8", 1),
        "bool": ("BOOL", 1),
    }
)
"""Name of a dtype in a document → (its name in safetensors, bytes an element)."""

WORDS = MappingProxyType(
    {
        "padding": ("valid", "same"),
        "approximate": ("none", "tanh"),
        "rounding_mode": ("floor", "trunc"),
        "mode": ("constant", "reflect", "replicate", "circular"),
    }
)
"""What a text argument of this name may say. `equation`, of an einsum, has a rule of its own."""

FLIPS = MappingProxyType(
    {
        "dropout.default": ("train", False),
        "feature_dropout.default": ("train", False),
        "alpha_dropout.default": ("train", False),
        "batch_norm.default": ("training", False),
        "instance_norm.default": ("use_input_stats", False),
        "lstm.input": ("train", False),
        "gru.input": ("train", False),
        "rnn_tanh.input": ("train", False),
        "rnn_relu.input": ("train", False),
        "scaled_dot_product_attention.default": ("dropout_p", 0.0),
    }
)
"""Operations that may be marked `flip`: (argument, what it is in evaluation)."""

WRITES = frozenset(("add_.Tensor", "mul_.Tensor", "copy_.default"))
"""They write into `self`, which must be a buffer of the graph."""

FACTORIES = frozenset(
    f"{name}.{overload}"
    for name, overloads in {
        "zeros": ("default",),
        "ones": ("default",),
        "full": ("default",),
        "arange": ("default", "start", "start_step"),
        "rand": ("default",),
        "randn": ("default",),
        "scalar_tensor": ("default",),
    }.items()
    for overload in overloads
)
"""They make a tensor out of nothing: the interpreter says on which device."""

RANDOM = frozenset(
    (
        "rand.default",
        "randn.default",
        "rand_like.default",
        "randn_like.default",
        *(op for op in FLIPS if "dropout" in op),
        "scaled_dot_product_attention.default",
        "lstm.input",
        "gru.input",
        "rnn_tanh.input",
        "rnn_relu.input",
    )
)
"""They may draw random numbers, so that leaving one out changes the others."""


@dataclass(frozen=True, slots=True)
class Argument:
    """kind: `Tensor`, `Tensor?`, `Tensor[]`, `Tensor?[]`, `int`, `int[]`, `float`, `bool`, `Scalar`, `str`, `dtype`,
    and some with `?`, which may be null."""

    name: str
    kind: str
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@dataclass(frozen=True, slots=True)
class Operation:
    """gives: `Tensor`, `Tensor[]` (to be taken apart by getitem), `int`, or `()`: nothing."""

    name: str
    arguments: tuple[Argument, ...]
    gives: str
    group: str

    @property
    def signature(self) -> str:
        return f"{self.name}({', '.join(_text(one) for one in self.arguments)}) -> {self.gives}"


def _text(one: Argument) -> str:
    default = "" if one.required else "=" + json.dumps(one.default, separators=(",", ":"))
    return f"{one.kind} {one.name}{default}"


_SIGNATURE = re.compile(r"^([\w.]+)\((.*)\) -> (Tensor|Tensor\[\]|int|\(\))$")
_ARGUMENT = re.compile(r"^([\w\[\]?]+) (\w+)(?:=(.*))?$")


def read_signature(line: str, group: str = "") -> Operation:
    """An operation from one line of the table."""
    found = _SIGNATURE.match(line)
    assert found, line
    arguments = []
    for part in found[2].split(", "):
        one = _ARGUMENT.match(part)
        assert one, part
        arguments.append(Argument(one[2], one[1], REQUIRED if one[3] is None else json.loads(one[3])))
    return Operation(found[1], tuple(arguments), found[3], group)


def _read_table() -> dict[str, Operation]:
    operations = {}
    for group, text in SIGNATURES.items():
        for line in text.replace("\n    ", " ").strip().splitlines():
            operation = read_signature(line, group)
            assert operation.name not in operations, operation.name
            operations[operation.name] = operation
    return operations


OPERATIONS: MappingProxyType[str, Operation] = MappingProxyType(_read_table())
