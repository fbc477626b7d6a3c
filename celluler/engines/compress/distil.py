"""Distillation: a student learns from what a teacher answers, and from the data's own labels.

Loss of a step: (1 − hard) · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) + hard · the objective's own; where
answers are numbers the first is the mean square of the difference. Adam, batches drawn with replacement. The same
teacher, student, data and settings give the same student, on the same kind of machine with as many threads.
Source: Hinton et al. 2015, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from celluler.engines.data import Dataset
from celluler.engines.load import Model
from celluler.engines.modules import idle_of, module_of, parameters_of
from celluler.engines.objectives import finite, loss_of
from celluler.engines.optimise import Adam
from celluler.engines.predict import Predictor
from celluler.errors import InvalidSpec, LocalError
from celluler.models.body import Body
from celluler.models.objectives import Classification, NextToken, Reconstruction, Regression
from celluler.models.weights import Vector, need_float32

MAX_STEPS = 1_000_000
MAX_BATCH = 4096
_LEARNT = (Classification, NextToken, Regression, Reconstruction)


@dataclass(frozen=True, slots=True)
class Lesson:
    """How a student is taught. temperature: by which logits are divided. hard: share of the data's own labels in the
    loss, 0…1. seed: of the batches."""

    steps: int = 500
    batch: int = 64
    learning_rate: float = 1e-3
    temperature: float = 2.0
    hard: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, MAX_STEPS),
            ("batch", 1, MAX_BATCH),
            ("learning_rate", 1e-9, 10.0),
            ("temperature", 0.1, 100.0),
            ("hard", 0.0, 1.0),
            ("seed", 0, (1 << 63) - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidSpec(name, f"is {value:g}, must be in {low:g}…{high:g}")


def check_pair(teacher: Body, student: Body) -> None:
    """Both answer the same question. Raises InvalidSpec for the student's field that differs."""
    if not isinstance(teacher.objective, _LEARNT):
        raise InvalidSpec("objective.kind", f"{teacher.objective.KIND}: its answers are no lesson for a student")
    for field, one, other in (
        ("objective.kind", teacher.objective.KIND, student.objective.KIND),
        ("input", teacher.input, student.input),
        ("output", teacher.output, student.output),
    ):
        if one != other:
            raise InvalidSpec(f"student.{field}", f"is {other}, the teacher's is {one}")
    need_float32(student, "trained")


def distil(teacher: Predictor, student: Model, data: Dataset, lesson: Lesson) -> tuple[Vector, float]:
    """(the student's vector after the lesson, mean loss of its last tenth). The caller pins the threads.

    Raises InvalidSpec for two that answer different questions, LocalError when the loss leaves all bounds.
    """
    check_pair(teacher.architecture, student.body)
    return _Pupil(teacher, student, data, lesson).learn()


class _Pupil:
    def __init__(self, teacher: Predictor, student: Model, data: Dataset, lesson: Lesson) -> None:
        self._teacher, self._body, self._data, self._lesson = teacher, student.body, data, lesson
        self._vector = torch.from_numpy(np.array(student.vector, dtype=np.float32))
        self._gradient = torch.zeros_like(self._vector)
        self._module = module_of(student.body, self._vector, student.still).train()
        self._idle = self._alias()
        self._soft = _soft_loss(student.body, lesson.temperature)

    def learn(self) -> tuple[Vector, float]:
        lesson, losses = self._lesson, list[float]()
        optimizer, places = Adam(lesson.learning_rate), np.random.default_rng(lesson.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(lesson.seed)
            for _ in range(lesson.steps):
                rows = torch.from_numpy(places.integers(0, len(self._data), lesson.batch))
                self._gradient.zero_()
                loss = self._loss(rows)
                torch.autograd.backward(loss)
                losses.append(finite(float(loss.detach())))
                for place in self._idle:
                    self._gradient[place] = 0
                optimizer.step(self._vector, self._gradient)
        if not bool(torch.isfinite(self._vector).all()):
            raise LocalError("the student's weights left all bounds", hint="choose a smaller --learning-rate")
        last = losses[-max(1, len(losses) // 10) :]
        vector: Vector = self._vector.numpy()
        return vector, sum(last) / len(last)

    def _loss(self, rows: Tensor) -> Tensor:
        x, y, hard = self._data.x[rows], self._data.y[rows], self._lesson.hard
        told = torch.from_numpy(self._teacher.predict(x.numpy()))
        answer = self._module(x).float()
        return (1 - hard) * self._soft(answer, told) + hard * loss_of(self._body, answer, y)

    def _alias(self) -> tuple[slice, ...]:
        """Let autograd accumulate into one flat vector; where in it there is nothing but rounding, ever."""
        start, idle, idle_names = 0, list[slice](), idle_of(self._body)
        named = parameters_of(self._body, self._module)
        for tensor in self._body.tensors:
            place = slice(start, start + tensor.elements)
            if tensor.trained:
                named[tensor.name].grad = self._gradient[place].view(tensor.shape)
            if tensor.name in idle_names:
                idle.append(place)
            start = place.stop
        return tuple(idle)


def _soft_loss(body: Body, temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """(student's answer, teacher's) → mean over the batch."""
    if not isinstance(body.objective, Classification | NextToken):
        return nn.functional.mse_loss

    def divergence(answer: Tensor, told: Tensor) -> Tensor:
        student = nn.functional.log_softmax(answer.flatten(0, -2) / temperature, dim=-1)
        teacher = nn.functional.log_softmax(told.flatten(0, -2) / temperature, dim=-1)
        return temperature**2 * nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)

    return divergence
