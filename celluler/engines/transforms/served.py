"""A model as it is asked: raw inputs in, answers with names out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from celluler.engines.predict import Predictor
from celluler.engines.transforms.decoding import codec_of
from celluler.engines.transforms.graphs import graph_program
from celluler.engines.transforms.tokens import tokenizer_program
from celluler.engines.transforms.wasm import wasm_program
from celluler.errors import InvalidSpec
from celluler.models.calls import NEXT_TOKEN, SAMPLE
from celluler.models.interface import Interface
from celluler.models.transforms.decoding import TextCodec
from celluler.models.transforms.document import Chain
from celluler.models.transforms.programs import GraphStep, Tokenizer, Wasm
from celluler.models.transforms.run import Program, raw_input, run_chain
from celluler.models.transforms.texts import ByteTokens, Tokenise, texts_of


class Served:
    """A predictor and its transforms. Programs are compiled and checked here, once."""

    def __init__(self, predictor: Predictor, interface: Interface, tokenizer: Path | None = None) -> None:
        """tokenizer: the model's own, a file.

        Raises InvalidSpec for a program that is none or gives other things than it says; LocalError where the
        package that it needs is missing."""
        self._predictor, self._interface = predictor, interface
        self._tokenizer = tokenizer
        known = (interface.token_step, interface.body.vocabulary)
        before = interface.preprocess and interface.preprocess.chain
        self._programs = {
            chain.path: programs_of(chain, tokenizer, known if chain is before else (None, 0))
            for chain in interface.chains
        }

    def predict(self, x: npt.NDArray[Any], output: str) -> npt.NDArray[Any]:
        """x: a raw batch, or seeds. Raises InvalidSpec for one that does not fit, or values that a step refuses."""
        interface = self._interface
        interface.check(x.dtype.name, x.shape, output)
        source, answer = interface.source(output), interface.answer_named(output)
        before = interface.preprocess
        lengths = None
        if before is not None and source != SAMPLE:
            given = raw_input(before.chain.given, x)
            lengths = self._lengths(given) if source == NEXT_TOKEN else None
            x = self._run(before.chain, given)
        # What follows the last token of each text, not what follows the filling behind it.
        told = self._predictor.predict(x, source) if lengths is None else self._after(x, lengths)
        return told if answer is None else self._run(answer.chain, told)

    @cached_property
    def codec(self) -> TextCodec | None:
        """Texts as its tokens and back, by the step that makes them; None where there is none. Raises as `codec_of`."""
        return codec_of(self._interface, self._tokenizer)

    @property
    def ends(self) -> frozenset[int]:
        """See `Interface.ends`."""
        return self._interface.ends

    def _lengths(self, x: npt.NDArray[Any]) -> list[int] | None:
        """Tokens that each text of a raw batch comes to, filling not counted. None where those that reach the model are
        not made of what it is asked with, or it takes several samples at once or not at all."""
        before, codec = self._interface.preprocess, self.codec
        if before is None or codec is None or len(before.chain.steps) != 1 or self._interface.body.batch[0] > 1:
            return None
        step = before.chain.steps[0]
        assert isinstance(step, ByteTokens | Tokenise | Tokenizer)
        end = not isinstance(step, Tokenizer) and step.end is not None
        return [min(step.length, len(codec.encode(text.decode("utf-8"))) + end) for text in texts_of(x)]

    def _after(self, x: npt.NDArray[Any], lengths: list[int]) -> npt.NDArray[Any]:
        """x: (n, time)."""
        return self._predictor.following(x, [max(0, length - 1) for length in lengths])

    def _run(self, chain: Chain, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return run_chain(chain, x, self._programs[chain.path])


def programs_of(
    chain: Chain, tokenizer: Path | None = None, known: tuple[int | None, int] = (None, 0)
) -> Mapping[int, Program]:
    """What runs the steps that are programs, by their places. Raises InvalidSpec, LocalError.

    tokenizer: the model's own. known: the step whose tokens reach the model, and how many it knows.
    """
    found: dict[int, Program] = {}
    for place, (step, given) in enumerate(zip(chain.steps, chain.signals, strict=False)):
        try:
            match step:
                case GraphStep():
                    found[place] = graph_program(step)
                case Wasm():
                    found[place] = wasm_program(step, given)
                case Tokenizer():
                    found[place] = tokenizer_program(step, tokenizer, known[1] if place == known[0] else None)
        except InvalidSpec as error:
            path = f"{chain.path}.steps[{place}]"
            raise InvalidSpec(f"{path}.{error.path}" if error.path else path, error.problem) from error
    return found
