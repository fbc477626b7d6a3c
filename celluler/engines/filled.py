"""Inputs beside the tokens of a text that a model takes, and that follow from the tokens: a model of ours takes one
input, so they are computed where it is made. By the names that they have at Hugging Face."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from celluler.engines.graph.translate import NotExportable

FILLED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "attention_mask": torch.ones_like,
    "token_type_ids": torch.zeros_like,
    "position_ids": lambda x: torch.arange(x.shape[1], device=x.device).unsqueeze(0).expand(x.shape[0], -1),
}
TOLD: Mapping[str, str] = {
    "attention_mask": "every token counts",
    "token_type_ids": "all tokens are of one text",
    "position_ids": "tokens stand in their order",
}
"""What that says of a text."""


def of_one_input(
    module: nn.Module, given: Sequence[Tensor] | Mapping[str, Tensor]
) -> tuple[nn.Module, Tensor, tuple[str, ...]]:
    """(a module that takes the first input alone, that input, names of those that it computes now).

    given: by their names, or in the order of `forward`. With one input the module is the one given. Raises
    NotExportable for an input that does not follow from the first.
    """
    named = dict(given) if isinstance(given, Mapping) else _named(module, given)
    if not named:
        raise NotExportable("", "inputs", "there is no example of one")
    (first, x), *others = named.items()
    if first in FILLED and others:
        raise NotExportable("", "inputs", f"the first is {first}; it must be the one that the model is asked with")
    for name, example in others:
        if name not in FILLED or x.dim() != 2 or x.is_floating_point():
            known = ", ".join(FILLED)
            raise NotExportable(
                "",
                "inputs",
                f"there is {name} beside {first}: a model of ours takes one input, and beside tokens {known}",
            )
        if not torch.equal(example.to(x.dtype), FILLED[name](x).to(x.dtype)):
            raise NotExportable("", "inputs", f"{name} of the example is not what it is filled with: {TOLD[name]}")
    if not others and not isinstance(given, Mapping):
        return module, x, ()
    return (
        _filling(module, first, {name: example.dtype for name, example in others}),
        x,
        tuple(name for name, _ in others),
    )


def _named(module: nn.Module, given: Sequence[Tensor]) -> dict[str, Tensor]:
    taken = [
        name
        for name, one in inspect.signature(module.forward).parameters.items()
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    names = [*taken, *(f"input {place}" for place in range(len(taken), len(given)))]
    return dict(zip(names, given, strict=False))


def _filling(module: nn.Module, first: str, filled: Mapping[str, torch.dtype]) -> nn.Module:
    """A copy whose tensors are called as before: of a class of its own, with another `forward`."""
    forward = type(module).forward

    def of_one(self: nn.Module, x: Tensor) -> Any:
        return forward(self, **{first: x}, **{name: FILLED[name](x).to(dtype) for name, dtype in filled.items()})

    made = copy.deepcopy(module)
    made.__class__ = type(type(module).__name__, (type(module),), {"forward": of_one})
    return made
