"""A model as others meet it: its body, and what stands before and after it. What goes in and comes out, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec
from celluler.models.body import Body
from celluler.models.calls import SAMPLE, check_call, outputs_of
from celluler.models.graph_body import GraphBody
from celluler.models.layers import Shape, Signal
from celluler.models.transforms.base import ITEM_BYTES, TEXT
from celluler.models.transforms.document import PROGRAMS, Answer, Chain, Preprocess, parse_postprocess, parse_preprocess
from celluler.models.transforms.programs import Tokenizer
from celluler.models.transforms.shapes import Crop, Reshape, Take, Transpose
from celluler.models.transforms.texts import ByteTokens, Tokenise

MAX_MODEL_ITEMS = 1 << 22
"""What a batch may come to before the model: a small raw input may become a large one."""


@dataclass(frozen=True, slots=True)
class Interface:
    """Equal bodies and documents give equal interfaces."""

    body: Body
    preprocess: Preprocess | None = None
    answers: tuple[Answer, ...] = ()

    @property
    def outputs(self) -> dict[str, Signal]:
        """Everything that may be asked for, the usual one first; each for one sample at its longest."""
        own = {name: Signal(dtype, shape) for name, (dtype, shape) in outputs_of(self.body).items()}
        return {one.name: one.chain.gives for one in self.answers} | own

    @property
    def usual(self) -> str:
        return next(iter(self.outputs))

    @property
    def chains(self) -> tuple[Chain, ...]:
        """Steps before the body, and after it."""
        return (*([] if self.preprocess is None else [self.preprocess.chain]), *(one.chain for one in self.answers))

    @property
    def kind(self) -> str:
        """Of the first program that stands before or after the body; of the body where none does."""
        programs = [step.KIND for chain in self.chains for step in chain.steps if isinstance(step, PROGRAMS)]
        return programs[0] if programs else self.body.kind

    @property
    def takes(self) -> Signal:
        """One raw sample, where its output is not made from seeds."""
        if self.preprocess is not None:
            return self.preprocess.chain.given
        return Signal(self.body.input.dtype, self.body.input.shape)

    def answer_named(self, output: str) -> Answer | None:
        """None for one of the model's own."""
        return next((one for one in self.answers if one.name == output), None)

    def source(self, output: str) -> str:
        """Which of the model's own outputs this one is made from. Raises InvalidSpec for one there is not."""
        if output not in (named := self.outputs):
            raise InvalidSpec("output", f"is {output[:32]!r}; this model gives {', '.join(named)}")
        found = self.answer_named(output)
        return output if found is None else found.of

    def check(self, dtype: str, shape: tuple[int, ...], output: str) -> None:
        """A batch of that dtype and shape may be asked with, for that output. Raises InvalidSpec with the field.

        The values themselves are the worker's to check.
        """
        source = self.source(output)
        if self.preprocess is None or source == SAMPLE:
            check_call(self.body, dtype, shape, source)
            return
        wanted, name = self.takes, self.preprocess.name
        if dtype != wire_dtype(wanted.dtype):
            told = "uint8, the bytes of a text" if wanted.dtype == TEXT else wanted.dtype
            raise InvalidSpec("input.dtype", f"is {dtype[:32]}, must be {told} ({name})")
        least = self.body.batch[0]
        fits = len(shape) == len(wanted.shape) + 1 and shape[0] >= least
        fits = fits and (0 < shape[1] <= wanted.shape[0] if wanted.dtype == TEXT else shape[1:] == wanted.shape)
        if not fits:
            sides = "".join(f", {'1…' * (wanted.dtype == TEXT)}{side}" for side in wanted.shape)
            told = f"is {shape}, must be (n{sides}){f', n at least {least}' * (least > 1)} ({name})"
            raise InvalidSpec("input.shape", told)
        if (items := shape[0] * self.preprocess.chain.gives.elements) > MAX_MODEL_ITEMS:
            raise InvalidSpec("input.shape", f"comes to {items} items before the model, limit {MAX_MODEL_ITEMS}")

    def check_tokenizer(self, *, given: bool) -> None:
        """Steps may name the model's own tokenizer where it has one. Raises InvalidSpec with the step."""
        if not given and (path := self.own_tokenizer_at) is not None:
            raise InvalidSpec(f"{path}.tokenizer", "is the model's own, and the model has none")

    @property
    def own_tokenizer_at(self) -> str | None:
        """The first step that is the model's own tokenizer."""
        steps = ((chain.path, place, step) for chain in self.chains for place, step in enumerate(chain.steps))
        own = (
            f"{path}.steps[{place}]"
            for path, place, step in steps
            if isinstance(step, Tokenizer) and step.tokenizer is None
        )
        return next(own, None)

    @property
    def token_step(self) -> int | None:
        """Place of the step in `preprocess` whose tokens reach the model, moved about at most; None where none does."""
        return None if self.preprocess is None else _token_step(self.preprocess)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens behind which a text is over, as far as the step says that makes tokens of texts."""
        place = self.token_step
        step = None if place is None or self.preprocess is None else self.preprocess.chain.steps[place]
        if isinstance(step, ByteTokens | Tokenise):
            return frozenset(() if step.end is None else (step.end,))
        return frozenset(step.ends if isinstance(step, Tokenizer) else ())

    def answer(self, samples: int, output: str) -> tuple[str, Shape, int]:
        """(dtype on the wire, shape, bytes) of the answer to a call that fits, at most."""
        one = self.outputs[output]
        return wire_dtype(one.dtype), (samples, *one.shape), samples * one.elements * ITEM_BYTES[one.dtype]


def read_interface(
    body: Body, preprocess: bytes | dict[str, Any] = b"", postprocess: bytes | dict[str, Any] = b""
) -> Interface:
    """Empty documents for none. Raises InvalidSpec where a document is wrong, or does not fit the body."""
    before = parse_preprocess(preprocess) if preprocess else None
    sample = body.input.shape if before is None else _fitting(body, before)
    if not postprocess:
        return Interface(body, before)
    if before is None and isinstance(body, GraphBody) and len(set(body.sequence or (1,))) > 1:
        raise InvalidSpec("postprocess", "needs one length of a sample: a preprocess that gives it")
    given = {}
    for name, (dtype, shape) in outputs_of(body).items():
        varies = name != SAMPLE and shape == body.output
        given[name] = Signal(dtype, body.answer_shape(sample) if varies else shape)
    return Interface(body, before, parse_postprocess(postprocess, given))


def wire_dtype(dtype: str) -> str:
    """Texts travel as bytes."""
    return "uint8" if dtype == TEXT else dtype


def _fitting(body: Body, before: Preprocess) -> Shape:
    """The shape of what comes out, which the body takes. Raises InvalidSpec."""
    gives = before.chain.gives
    if set(outputs_of(body)) == {SAMPLE}:
        raise InvalidSpec("preprocess", "has nothing to do: this model is asked with seeds alone")
    try:
        if gives.dtype != body.input.dtype:
            raise InvalidSpec("input.dtype", f"is {gives.dtype}")
        body.answer_shape(gives.shape)
    except InvalidSpec:
        wanted = f"{body.input.dtype} {body.input.shape}"
        raise InvalidSpec("preprocess", f"gives {gives.dtype} {gives.shape}, the model takes {wanted}") from None
    _check_vocabulary(body, before)
    return gives.shape


def _check_vocabulary(body: Body, before: Preprocess) -> None:
    """Tokens that are moved about at most before the model are among those that it knows. Raises InvalidSpec."""
    place = _token_step(before)
    step = None if place is None else before.chain.steps[place]
    if isinstance(step, ByteTokens | Tokenise) and step.largest >= body.vocabulary:
        told = f"may give {step.largest}, and the model knows numbers below {body.vocabulary}"
        raise InvalidSpec(f"preprocess.steps[{place}]", told)


def _token_step(before: Preprocess) -> int | None:
    steps = before.chain.steps
    for place in reversed(range(len(steps))):
        if isinstance(steps[place], ByteTokens | Tokenise | Tokenizer):
            return place
        if not isinstance(steps[place], Reshape | Transpose | Crop | Take):
            return None
    return None
