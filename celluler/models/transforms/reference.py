"""docs/reference/transforms.md, rendered from the steps: `python -m celluler.models.transforms.reference > docs/…`."""

from __future__ import annotations

import json
import sys
from dataclasses import MISSING, fields
from typing import Any

from celluler.models.fields import rule_of
from celluler.models.transforms.base import ITEM_BYTES, MAX_ELEMENTS, MAX_RANK, MAX_STEPS, MAX_TEXT_BYTES, MAX_TOTAL
from celluler.models.transforms.document import (
    MAX_OUTPUTS,
    MAX_TRANSFORM_BYTES,
    STEPS,
    AnswerDocument,
    PostprocessDocument,
    PreprocessDocument,
    RawInput,
)
from celluler.models.transforms.programs import (
    GRAPH_BUDGET,
    MAX_MODULE_BYTES,
    WASM_FUEL_A_CALL,
    WASM_FUEL_A_SAMPLE,
    WASM_INPUT_BYTES,
    WASM_MEMORY_BYTES,
)

PREPROCESS: dict[str, Any] = {
    "transforms": 1,
    "input": {"name": "image", "dtype": "uint8", "shape": [28, 28]},
    "steps": [
        {"kind": "resize", "height": 8, "width": 8, "layout": "hw"},
        {"kind": "scale", "by": 1 / 16},
        {"kind": "reshape", "shape": [64]},
    ],
}
POSTPROCESS: dict[str, Any] = {
    "transforms": 1,
    "outputs": [
        {"name": "digit", "of": "labels", "steps": [{"kind": "labels", "names": list("0123456789")}]},
        {"name": "best", "of": "probabilities", "steps": [{"kind": "top_k", "k": 3}]},
    ],
}

_INTRODUCTION = f"""\
# Transforms

<!-- Rendered from the code: python -m celluler.models.transforms.reference > docs/reference/transforms.md -->

What stands before a model and after it, as part of the model: from a raw input to what the model takes, and from what
it gives to answers with names. [How to add them to a model](../how-to/add-transforms.md). Two JSON documents of at most
{MAX_TRANSFORM_BYTES} bytes each, which the model's [manifest](model-records.md) carries: data that is checked, never
code that is run in a node. Every step says what comes out of what goes in, so a chain that does not fit its model is
refused when the model is published, with its place (`preprocess.steps[1].mean: has 2 numbers for 3 channels`). A worker
runs them, confined like the model between them.
"""

_ASKING = """\
## Asking

The inputs of a model with a `preprocess` are raw ones, whatever is asked for. `output` names what comes back: one of
the `postprocess`, or one that the model [has itself](../explanation/objectives.md#what-may-be-asked), such as `raw`;
without it the first of the `postprocess`, else the first of the model's own. What is made from the output `sample` is
asked with seeds, which go past the `preprocess`.

An input that does not fit is refused before anything runs: `input.dtype`, `input.shape`. A worker then looks at the
values: `input[2]: holds values that are not finite`, `input[0]: is not UTF-8`, `preprocess.steps[3]: is given 12, must
be 0…9`.

A text is UTF-8 in `uint8`, filled up with zeros to the longest of the batch; clients take strings and give strings.
`next_token` of a text that becomes tokens is what follows its last one, not what follows the filling behind it.
"""

_LIMITS = f"""\
## Limits

| | at most |
|---|---|
| a document | {MAX_TRANSFORM_BYTES} bytes |
| steps in a chain; outputs | {MAX_STEPS}; {MAX_OUTPUTS} |
| sides of one sample | {MAX_RANK} |
| elements of one value of one sample; of all values together | {MAX_ELEMENTS}; {MAX_TOTAL} |
| a text | {MAX_TEXT_BYTES} bytes |
| a `graph`, for one sample | {GRAPH_BUDGET.nodes} nodes, {GRAPH_BUDGET.activation_bytes} bytes, \
{GRAPH_BUDGET.operations} operations |

Dtypes: {", ".join(f"`{one}`" for one in ITEM_BYTES)}. Shapes are of one sample: the batch axis is never written.
Axes count from 0, negative ones from the end.
"""

_WASM = f"""\
## WebAssembly

For whatever no other step does. Whoever serves the model needs `wasmtime` (`pip install 'celluler[transforms]'`); a
node without it says so. A module

- imports nothing, not even WASI, and has no start function;
- exports `memory`; `alloc(bytes: i32) -> i32`, which gives a place for the input; and
  `run(samples: i32, input: i32) -> i32`, which gives the place of the answer.

Input and answer are the samples one after another, row-major, little-endian, without gaps: of `samples` samples as many
bytes as the shapes say. Every call gets a fresh instance, so nothing stays from one to the next. The input of a call
has at most {WASM_INPUT_BYTES >> 10} KiB, or one sample.

| | at most |
|---|---|
| the module | {MAX_MODULE_BYTES >> 10} KiB |
| fuel, a unit about an instruction | {WASM_FUEL_A_SAMPLE} a sample, {WASM_FUEL_A_CALL} a call |
| memory | {WASM_MEMORY_BYTES >> 20} MiB |

No threads, no relaxed SIMD, no 64-bit memory, one form of NaN: the same bytes on every machine. What runs out of fuel,
grows too large, traps, or points outside its memory ends in an error that names the step.

As the [sandbox](sandbox.md) has it for graphs: a model of another peer that has a `graph`, `wasm` or `tokenizer` step
runs only where the sandbox is full, unless the operator allows it.
"""


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, "## `preprocess`\n\n" + _table(PreprocessDocument), "### `input`\n\n" + _table(RawInput)]
    parts += [_example(PREPROCESS), "## `postprocess`\n\n" + _table(PostprocessDocument)]
    parts += ["### `outputs`\n\n" + _table(AnswerDocument), _example(POSTPROCESS), _ASKING, "## Steps\n"]
    parts += [_section(kind, cls) for kind, cls in STEPS.items()]
    return "\n".join([*parts, _LIMITS, _WASM])


def _section(kind: str, cls: type) -> str:
    doc = "\n".join(line.strip() for line in (cls.__doc__ or "").strip().splitlines())
    return f"### `{kind}`\n\n{doc}\n\n{_table(cls)}"


def _table(cls: type) -> str:
    rows = []
    for one in fields(cls):
        if "rule" in one.metadata:
            default = "required" if one.default is MISSING else f"`{json.dumps(one.default)}`"
            rows.append(f"| `{one.name}` | {rule_of(one).text} | {default} | {one.metadata['doc']} |")
    return "\n".join(["| field | value | default | |", "|---|---|---|---|", *rows, ""]) if rows else "No fields.\n"


def _example(document: dict[str, Any]) -> str:
    return f"```json\n{json.dumps(document)}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(render())
