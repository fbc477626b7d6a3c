"""What a model is for: what its layers must give, and what they are held against. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from celluler.errors import InvalidSpec
from celluler.models.fields import MAX_SIZE, Whole, declare
from celluler.models.layers import Attention, Layer, Signal, walk


@dataclass(frozen=True, slots=True)
class Planned:
    """One sample that went through all layers. vocabulary: integers that may come in are below it."""

    given: Signal
    out: Signal
    vocabulary: int
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Classification:
    """One class out of several: the last layer gives one logit a class; trained by cross-entropy."""

    KIND: ClassVar[str] = "classification"
    FROM_INPUT: ClassVar[bool] = False
    classes: int = declare(Whole(2, MAX_SIZE), "must be the width of the last layer")

    def check(self, planned: Planned) -> None:
        if planned.out.shape != (self.classes,):
            raise InvalidSpec("objective.classes", f"is {self.classes}, but the layers give {planned.out.shape}")


@dataclass(frozen=True, slots=True)
class Regression:
    """Numbers: whatever shape the last layer gives; trained by mean squared error."""

    KIND: ClassVar[str] = "regression"
    FROM_INPUT: ClassVar[bool] = False

    def check(self, planned: Planned) -> None:
        pass


@dataclass(frozen=True, slots=True)
class NextToken:
    """A language model: int64 (time) comes in, at every place the last layer gives one logit for each number that may
    stand at the next; trained by cross-entropy against the input itself, one place on. Data needs no labels.

    Attention must be causal: no place may see what it is to tell.
    """

    KIND: ClassVar[str] = "next_token"
    FROM_INPUT: ClassVar[bool] = True
    vocabulary: int = declare(Whole(2, MAX_SIZE), "must be the width of the last layer, and that of the embedding")

    def check(self, planned: Planned) -> None:
        given, out = planned.given, planned.out
        if given.dtype != "int64" or len(given.shape) != 1 or given.shape[0] < 2:
            raise InvalidSpec("input", f"is {given.dtype} {given.shape}, next_token takes int64 (time), two at least")
        if out.shape != (*given.shape, self.vocabulary):
            path, wanted = "objective.vocabulary", (*given.shape, self.vocabulary)
            raise InvalidSpec(path, f"asks for {wanted}, but the layers give {out.shape}")
        if planned.vocabulary > self.vocabulary:
            raise InvalidSpec("objective.vocabulary", f"is less than the {planned.vocabulary} of the embedding")
        if any(isinstance(layer, Attention) and not layer.causal for layer in walk(planned.layers)):
            raise InvalidSpec("objective.kind", "next_token needs attention that is causal")


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """An autoencoder: the last layer gives what came in; trained by mean squared error against the input itself. Data
    needs no labels."""

    KIND: ClassVar[str] = "reconstruction"
    FROM_INPUT: ClassVar[bool] = True

    def check(self, planned: Planned) -> None:
        if planned.out != planned.given:
            given, out = ((one.dtype, one.shape) for one in (planned.given, planned.out))
            raise InvalidSpec("objective.kind", f"reconstruction of {given}, but the layers give {out}")


Objective = Classification | Regression | NextToken | Reconstruction
OBJECTIVES: dict[str, type[Classification] | type[Regression] | type[NextToken] | type[Reconstruction]] = {
    cls.KIND: cls for cls in (Classification, Regression, NextToken, Reconstruction)
}
"""Every objective there is, by its name in a document. FROM_INPUT: what is asked for is the input itself."""
