"""Optimizers on one flat vector: the inner ones that a member starts afresh each round, and the outer one all share.

The inner ones run where the model runs and need be equal only among peers whose work is compared by replay. The outer
one must be bitwise equal everywhere: it is NumPy on float32, each operation rounded on its own (no fused
multiply-add), in a written order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from celluler.errors import LocalError

Vector = npt.NDArray[np.float32]

OUTER_LEARNING_RATE = 0.7
OUTER_MOMENTUM = 0.4
_HUGE = np.float32(
    2.0**96
)  # no model works near it; keeps a run that diverged finite, so that it can still be compared


class Inner(Protocol):
    def step(self, parameters: Tensor, gradient: Tensor) -> None:
        """Move `parameters` in place; both (dimension,) float32."""


class Sgd:
    """Plain stochastic gradient descent."""

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate

    def step(self, parameters: Tensor, gradient: Tensor) -> None:
        parameters.add_(gradient, alpha=-self._learning_rate)


class Adam:
    """Kingma and Ba 2015, algorithm 1, with its defaults; state begins at zero each round."""

    def __init__(self, learning_rate: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> None:
        self._learning_rate, self._beta1, self._beta2, self._epsilon = learning_rate, beta1, beta2, epsilon
        self._mean: Tensor | None = None
        self._square: Tensor | None = None
        self._steps = 0

    def step(self, parameters: Tensor, gradient: Tensor) -> None:
        if self._mean is None or self._square is None:
            self._mean, self._square = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self._steps += 1
        self._mean.mul_(self._beta1).add_(gradient, alpha=1 - self._beta1)
        self._square.mul_(self._beta2).addcmul_(gradient, gradient, value=1 - self._beta2)
        rate = self._learning_rate / (1 - self._beta1**self._steps)
        spread = (self._square / (1 - self._beta2**self._steps)).sqrt_().add_(self._epsilon)
        parameters.addcdiv_(self._mean, spread, value=-rate)


INNER: dict[str, Callable[[float], Inner]] = {"sgd": Sgd, "adam": Adam}


def inner_named(name: str, learning_rate: float) -> Inner:
    """A fresh inner optimizer. Raises LocalError for a name nobody knows."""
    if name not in INNER:
        raise LocalError(f"no optimizer is called {name!r}; there are {', '.join(INNER)}")
    return INNER[name](learning_rate)


class Outer:
    """SGD with Nesterov momentum on the public state, as Sutskever et al. 2013 in the form that torch uses.

    v ← μ·v + a;  θ ← θ − η·(a + μ·v). Equal aggregates give equal bits on every machine.
    plain: stretches that take θ ← θ − a instead: what is an average and not a weight must not overshoot.
    """

    def __init__(
        self, parameters: Vector, learning_rate: float, momentum: float, plain: tuple[slice, ...] = ()
    ) -> None:
        self.parameters = parameters
        self.velocity: Vector = np.zeros_like(parameters)
        self._learning_rate, self._momentum = np.float32(learning_rate), np.float32(momentum)
        self._plain = plain

    def step(self, aggregate: Vector) -> None:
        """aggregate: (dimension,) float32, finite."""
        averages = [self.parameters[place] - aggregate[place] for place in self._plain]
        with np.errstate(over="ignore"):
            self.velocity *= self._momentum
            self.velocity += aggregate
            np.clip(self.velocity, -_HUGE, _HUGE, out=self.velocity)
            step = self.velocity * self._momentum
            step += aggregate
            step *= self._learning_rate
            self.parameters -= step
        for place, average in zip(self._plain, averages, strict=True):
            self.parameters[place], self.velocity[place] = average, 0
        np.clip(self.parameters, -_HUGE, _HUGE, out=self.parameters)
