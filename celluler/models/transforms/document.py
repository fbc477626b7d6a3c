"""The two documents of a model: `preprocess`, from a raw input to what the model takes, and `postprocess`, from what it
gives to answers with names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from celluler.documents import read_json
from celluler.errors import InvalidSpec
from celluler.models.fields import Choice, Sizes, Whole, declare, read_fields
from celluler.models.layers import Signal
from celluler.models.names import check_word
from celluler.models.transforms import elements, programs, shapes, texts
from celluler.models.transforms.base import (
    ITEM_BYTES,
    MAX_RANK,
    MAX_STEPS,
    MAX_TEXT_BYTES,
    MAX_TOTAL,
    TEXT,
    Step,
    bounded,
)
from celluler.models.transforms.rules import Several, Words

FORMAT = 1
MAX_TRANSFORM_BYTES = 1 << 17
MAX_OUTPUTS = 8
MAX_NAME_BYTES = 16

NUMBER_STEPS = (
    elements.Cast,
    elements.Scale,
    elements.Normalise,
    elements.Clip,
    elements.OneHot,
    elements.Softmax,
    elements.Sigmoid,
    elements.Argmax,
    elements.TopK,
    elements.Threshold,
    shapes.Resize,
    shapes.Crop,
    shapes.Pad,
    shapes.Reshape,
    shapes.Transpose,
    shapes.Take,
    texts.ByteTokens,
    texts.Tokenise,
    texts.Labels,
)
PROGRAMS = (programs.GraphStep, programs.Wasm, programs.Tokenizer)
STEPS: dict[str, type[Step]] = {one.KIND: one for one in (*NUMBER_STEPS, *PROGRAMS)}
"""Every step there is, by its name in a document."""


@dataclass(frozen=True, slots=True)
class RawInput:
    """What is asked with. Of a text: UTF-8, and the longest that is taken, in bytes."""

    name: str = declare(Words(1, MAX_NAME_BYTES), "for people, and for errors")
    dtype: str = declare(Choice(tuple(ITEM_BYTES)), "of one sample")
    shape: tuple[int, ...] = declare(Sizes(MAX_RANK), f"of one sample; of a text `[bytes]`, at most {MAX_TEXT_BYTES}")


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps in order. signals: what flows: the given one, then what comes of each step."""

    path: str
    steps: tuple[Step, ...]
    signals: tuple[Signal, ...]

    @property
    def given(self) -> Signal:
        return self.signals[0]

    @property
    def gives(self) -> Signal:
        return self.signals[-1]

    @property
    def largest_bytes(self) -> int:
        """Of one value of one sample, on the way."""
        return max(one.elements * ITEM_BYTES[one.dtype] for one in self.signals)


@dataclass(frozen=True, slots=True)
class Preprocess:
    name: str
    chain: Chain


@dataclass(frozen=True, slots=True)
class Answer:
    """One output with a name. of: which of the model's outputs it is made from."""

    name: str
    of: str
    chain: Chain


@dataclass(frozen=True, slots=True)
class _StepRule:
    @property
    def text(self) -> str:
        return "step"

    def read(self, value: Any, path: str) -> Step:
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in STEPS:
            raise InvalidSpec(f"{path}.kind", f"must be one of {', '.join(STEPS)}")
        return STEPS[kind](**read_fields(STEPS[kind], value, path, besides=("kind",)))


@dataclass(frozen=True, slots=True)
class _InputRule:
    @property
    def text(self) -> str:
        return "object"

    def read(self, value: Any, path: str) -> RawInput:
        return RawInput(**read_fields(RawInput, value, path))


@dataclass(frozen=True, slots=True)
class AnswerDocument:
    """One of the outputs."""

    name: str = declare(Words(1, MAX_NAME_BYTES), "by which it is asked for; none that the model has itself")
    of: str = declare(Words(1, MAX_NAME_BYTES), "output of the model that it is made from", default="raw")
    steps: tuple[Step, ...] = declare(Several(_StepRule(), 0, MAX_STEPS), "in order", default=())


@dataclass(frozen=True, slots=True)
class _AnswerRule:
    @property
    def text(self) -> str:
        return "object"

    def read(self, value: Any, path: str) -> AnswerDocument:
        return AnswerDocument(**read_fields(AnswerDocument, value, path))


@dataclass(frozen=True, slots=True)
class PreprocessDocument:
    transforms: int = declare(Whole(FORMAT, FORMAT), "version of this format")
    input: RawInput = declare(_InputRule(), "what is asked with")  # noqa: RUF009
    steps: tuple[Step, ...] = declare(Several(_StepRule(), 0, MAX_STEPS), "in order")


@dataclass(frozen=True, slots=True)
class PostprocessDocument:
    transforms: int = declare(Whole(FORMAT, FORMAT), "version of this format")
    outputs: tuple[AnswerDocument, ...] = declare(
        Several(_AnswerRule(), 1, MAX_OUTPUTS), "what may be asked for; the first is the usual one"
    )


def parse_preprocess(document: bytes | dict[str, Any]) -> Preprocess:
    """Raises InvalidSpec with the place that is wrong. Whether it ends in what a model takes, the model says."""
    read = PreprocessDocument(**_fields(PreprocessDocument, document, "preprocess"))
    raw, path = read.input, "preprocess.input"
    check_word(raw.name, f"{path}.name")
    if raw.dtype == TEXT and (len(raw.shape) != 1 or raw.shape[0] > MAX_TEXT_BYTES):
        raise InvalidSpec(f"{path}.shape", f"of a text must be [1…{MAX_TEXT_BYTES}]")
    return Preprocess(raw.name, plan_steps(read.steps, bounded(raw.dtype, raw.shape, f"{path}.shape"), "preprocess"))


def parse_postprocess(document: bytes | dict[str, Any], given: dict[str, Signal]) -> tuple[Answer, ...]:
    """given: what the model has, by name. Raises InvalidSpec with the place that is wrong."""
    read = PostprocessDocument(**_fields(PostprocessDocument, document, "postprocess"))
    taken, answers = set(given), []
    for place, one in enumerate(read.outputs):
        path = f"postprocess.outputs[{place}]"
        check_word(one.name, f"{path}.name")
        if one.name in taken:
            raise InvalidSpec(f"{path}.name", f"{one.name!r} is there already")
        if one.of not in given:
            raise InvalidSpec(f"{path}.of", f"is {one.of!r}; this model gives {', '.join(given)}")
        taken.add(one.name)
        answers.append(Answer(one.name, one.of, plan_steps(one.steps, given[one.of], path)))
    return tuple(answers)


def canonical(document: dict[str, Any]) -> bytes:
    """Sorted keys, no spaces. Raises InvalidSpec for what is no JSON."""
    try:
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidSpec("", f"not JSON: {str(error)[:128]}") from None


def plan_steps(steps: tuple[Step, ...], given: Signal, path: str) -> Chain:
    signals = [given]
    for place, step in enumerate(steps):
        at = f"{path}.steps[{place}]"
        signals.append(step.plan(signals[-1], at))
        if (total := sum(one.elements for one in signals)) > MAX_TOTAL:
            raise InvalidSpec(at, f"brings a sample to {total} elements, limit {MAX_TOTAL}")
    return Chain(path, steps, tuple(signals))


def _fields(cls: type, document: bytes | dict[str, Any], path: str) -> dict[str, Any]:
    try:
        root = read_json(document, limit=MAX_TRANSFORM_BYTES) if isinstance(document, bytes) else document
    except InvalidSpec as error:
        raise InvalidSpec(f"{path}.{error.path}" if error.path else path, error.problem) from error
    return read_fields(cls, root, path)
