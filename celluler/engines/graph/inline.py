"""Parts of a trace that torch.export keeps for themselves, laid into the trace that calls them.

`with torch.no_grad():` in a forward becomes a call of a part of its own: what it gives is detached instead, and so is
what it writes into buffers. `with torch.autocast(…, enabled=False):` is what happens anyway, in float32.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx


def inline_parts(module: fx.GraphModule) -> None:
    """In place, and in parts of parts. What is left of other kinds is refused by whoever translates the trace."""
    for node in list(module.graph.nodes):
        found = _part_of(module, node)
        if found is not None:
            part, given, detached = found
            inline_parts(part)
            _lay(module.graph, node, part, given, detached)
    for node in reversed(list(module.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)


def _part_of(module: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, Sequence[Any], bool] | None:
    """(part, its arguments, whether no gradient goes through it) of a call that can be laid in."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    name = str(node.target.name())  # type: ignore[no-untyped-call]
    match name, node.args:
        case "wrap_with_set_grad_enabled", (False, fx.Node() as called, *given):
            pass
        case "wrap_with_autocast", (_, _, False, _, fx.Node() as called, *given):
            pass
        case _:
            return None
    part = module.get_submodule(str(called.target))
    assert isinstance(part, fx.GraphModule)
    return part, given, name == "wrap_with_set_grad_enabled"


def _lay(graph: fx.Graph, call: fx.Node, part: fx.GraphModule, given: Sequence[Any], detached: bool) -> None:
    copies: dict[fx.Node, Any] = {}
    arguments = iter(given)
    told: Any = ()
    with graph.inserting_before(call):
        for node in part.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(arguments)
            elif node.op == "output":
                told = fx.map_arg(node.args[0], copies.__getitem__)
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
                if detached:
                    _detach_written(graph, copies[node])
        gives = [_detach(graph, one) if detached else one for one in told]
    for user in list(call.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(gives[int(user.args[1])])  # type: ignore[arg-type]
        graph.erase_node(user)
    graph.erase_node(call)


def _detach_written(graph: fx.Graph, node: fx.Node) -> None:
    """What an operation writes into its first argument carries no gradient there."""
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable and node.args:
        with graph.inserting_before(node):
            node.args = (node.args[0], *(_detach(graph, one) for one in node.args[1:]))


def _detach(graph: fx.Graph, value: Any) -> Any:
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    made = graph.call_function(torch.ops.aten.detach.default, (value,))
    made.meta = dict(value.meta)
    return made
