"""docs/reference/graph-ops.md, rendered from the table: `python -m celluler.models.graph_reference > docs/…`."""

from __future__ import annotations

import sys

from celluler.models.graph import DEFAULT_BUDGET, DIMENSIONS, MAX_GRAPH_BYTES, ROLES
from celluler.models.graph_arguments import MAX_INTS, MAX_TENSORS
from celluler.models.graph_ops import DTYPES, FLIPS, OPERATIONS, WORDS, WRITES

_DTYPES = ", ".join(f"`{one}`" for one in DTYPES)
_WORDS = "; ".join(f"`{name}`: {', '.join(words)}" for name, words in WORDS.items())
_FLIPS = ", ".join(f"`{op}` has `{name}` = {value}" for op, (name, value) in FLIPS.items())
_WRITES = ", ".join(f"`{op}`" for op in sorted(WRITES))

_INTRODUCTION = f"""\
# Operations of a graph

<!-- Rendered from the code: python -m celluler.models.graph_reference > docs/reference/graph-ops.md -->

What a graph may hold ([why, and what a graph is](../explanation/graph-models.md)): {len(OPERATIONS)} operations, named
and called as ATen declares them. An argument with a default may be left out. Every other name, and every other
argument, is refused with its place: `nodes[3].op: 'set_.source_Tensor' is not among the operations that a graph may
hold`.

## Document

| field | value |
|---|---|
| `graph` | 1, the version of this format |
| `dimensions` | object: {" or ".join(f"`{one}`" for one in DIMENSIONS)} → `[least, most]`, which is enforced |
| `inputs` | `name`, `dtype`, `shape` of integers and names of dimensions |
| `tensors` | of the weights file: `name`, `role` ({", ".join(f"`{one}`" for one in ROLES)}), `dtype`, `shape`; \
`aliases`, further names of a tied tensor; `persistent`, false for a buffer outside the author's state |
| `nodes` | `name`, `op`, `args`; `train_only`, left out in evaluation; `flip`, its training argument is off in \
evaluation |
| `outputs` | one value, or several, which come back as a tuple |
| `evaluation` | `nodes` and `outputs` of evaluation, where marks cannot say it: they name inputs and tensors anew, \
write nothing, and count towards the same limits |

An argument that is a tensor names an input or a node that stands before it, or with `@` in front a tensor of the
weights file. An integer may be the name of a node that gives one. Numbers are finite, or `"+inf"`, `"-inf"`.

| | at most |
|---|---|
| document | {MAX_GRAPH_BYTES} bytes |
| tensors together | {DEFAULT_BUDGET.tensor_bytes} bytes, {DEFAULT_BUDGET.tensors} of them |
| all values of one pass, at the largest inputs that its runner allows | {DEFAULT_BUDGET.activation_bytes} bytes |
| operations of one sample: multiplications with an addition, elements read and written | {DEFAULT_BUDGET.operations} |
| nodes | {DEFAULT_BUDGET.nodes} |
| integers in a list, tensors in a list | {MAX_INTS}, {MAX_TENSORS} |

Dtypes: {_DTYPES}. Words: {_WORDS}.

In evaluation, where `flip` is set: {_FLIPS}.
Into buffers of the graph, and nothing else, and only in training write: {_WRITES}.
"""


def render() -> str:
    """The whole page."""
    groups: dict[str, list[str]] = {}
    for one in OPERATIONS.values():
        groups.setdefault(one.group, []).append(one.signature)
    parts = [_INTRODUCTION]
    for group, lines in groups.items():
        parts.append(f"## {group}\n\n```text\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(render())
