"""docs/reference/model-spec.md, rendered from the declarations: `python -m celluler.models.reference > docs/…`."""

from __future__ import annotations

import json
import sys
from dataclasses import MISSING, fields

from celluler.models.fields import rule_of
from celluler.models.layers import KINDS, Attention
from celluler.models.layers.rotary import SCALINGS
from celluler.models.objectives import OBJECTIVES, Objective
from celluler.models.spec import DEFAULT_BUDGET, DOCUMENT, MAX_SPEC_BYTES, Input, parse_spec
from celluler.models.templates import TEMPLATES, Template

_INTRODUCTION = f"""\
# Model spec

<!-- Rendered from the code: python -m celluler.models.reference > docs/reference/model-spec.md -->

A model's architecture is a JSON document of at most {MAX_SPEC_BYTES} bytes: data that is checked, never code that is
run. Unknown kinds, unknown fields and shapes that do not fit are refused with their place
(`layers[2].width: must be an integer in 1…1048576`). Weights are a safetensors file beside it.
"""

_OBJECTIVES = """\
## Objectives

What a model is for says which nets it is made of: one list, `layers`, or several with names, `nets`. How each is
trained, asked and judged: [objectives](../explanation/objectives.md).
"""

_BUDGET = f"""\
## Budget

Costs are counted while the document is read; nothing is allocated before. Refused is what needs more than

| | |
|---|---|
| parameters, running statistics included | {DEFAULT_BUDGET.parameter_bytes} bytes |
| activations of one sample, all layers, as training keeps them | {DEFAULT_BUDGET.activation_bytes} bytes |
| what one layer takes, makes and works with, and what waits for a `residual` | {DEFAULT_BUDGET.working_bytes} bytes |
| multiply-adds for one sample | {DEFAULT_BUDGET.multiply_adds} |
| layers, repeats unrolled | {DEFAULT_BUDGET.layers} |
"""

_WEIGHTS = """\
## Weights

All tensors are float32 and named by the place of their layer: `0.weight` of the first; `3.0.bias` of the first layer in
a `residual` that stands fourth; `4.1.0.bias` of the first layer in the second repetition of a `repeat` that stands
fifth; of named nets with the name before, `encoder.0.weight`. The file holds exactly these tensors, and no NaN or
infinity. The flat vector that a training round moves is all of them in the order of the document, and nets in the order
in which their objective names them: weight before bias, a batch norm's running mean and variance last.

Untrained weights come from a 32-byte seed, the same on every machine: weights uniform within ±√(6 / inputs) (embeddings
±√3, positions ±√3 / 10, an LSTM ±1 / √hidden), offsets zero, norms one.

A document with another `dtype` is of a model [made smaller](../how-to/make-a-model-smaller.md). Then the float32
tensors are those of one axis alone, and behind them lies every other one: `bfloat16` and `float16` in its shape; `int8`
in its shape, with `NAME.scale`, one float32 for each place of the first axis; `int4`, where what is behind the first
axis is a multiple of 32 values, as (rows, values / 2) uint8, two a byte, the first in the lower half, each 8 more than
it is, with `NAME.scale`, (rows, values / 32) float16; else as int8. A value is its code times its scale. Such a model
answers and is judged; it is not trained: start from the model it was made from.
"""


_TEMPLATES = """\
## Templates

`celluler model new --template NAME` writes one of these documents down; `--set layers[0].width=64` changes a value, by
the path that errors name it with.
"""


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, "## Document\n\n" + _table(DOCUMENT), "### `input`\n\n" + _table(Input)]
    parts += [_OBJECTIVES, *(_objective(kind, cls) for kind, cls in OBJECTIVES.items())]
    parts += ["## Layers\n\nShapes are of one sample: the batch axis is never written.\n"]
    parts += [_section(kind, cls) for kind, cls in KINDS.items()]
    parts += [_BUDGET, _WEIGHTS, _TEMPLATES, *(_example(name, one) for name, one in TEMPLATES.items())]
    return "\n".join(parts)


def _objective(kind: str, cls: type[Objective]) -> str:
    sets = (f"`nets` {' and '.join(f'`{name}`' for name in names)}" if names else "`layers`" for names in cls.NETS)
    return f"{_section(kind, cls)}\nTakes {', or '.join(sets)}. Judged by `{cls.METRIC}`.\n"


def _section(kind: str, cls: type) -> str:
    doc = "\n".join(line.strip() for line in (cls.__doc__ or "").strip().splitlines())
    return f"### `{kind}`\n\n{doc}\n\n{_table(cls)}" + (_scalings() if cls is Attention else "")


def _scalings() -> str:
    return "".join(f"\n#### `rope_scaling` of the kind `{_section(kind, cls)[5:]}" for kind, cls in SCALINGS.items())


def _table(cls: type) -> str:
    rows = []
    for one in fields(cls):
        if "rule" in one.metadata:
            default = "required" if one.default is MISSING else f"`{json.dumps(one.default)}`"
            rows.append(f"| `{one.name}` | {rule_of(one).text} | {default} | {one.metadata['doc']} |")
    return "\n".join(["| field | value | default | |", "|---|---|---|---|", *rows, ""]) if rows else "No fields.\n"


def _example(name: str, template: Template) -> str:
    architecture = parse_spec(template.document)
    facts = f"{architecture.parameter_count} parameters, {architecture.parameter_bytes} bytes of weights"
    return f"### {name}\n\nIt {template.about}; {facts}.\n\n```json\n{json.dumps(template.document)}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(render())
