"""A model as it is asked: raw inputs in, answers with names out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.engines.predict import Predictor
from celluler.engines.transforms.graphs import graph_program
from celluler.engines.transforms.tokens import tokenizer_program
from celluler.engines.transforms.wasm import wasm_program
from celluler.errors import InvalidSpec
from celluler.models.calls import SAMPLE
from celluler.models.interface import Interface
from celluler.models.transforms.document import Chain
from celluler.models.transforms.programs import GraphStep, Tokenizer, Wasm
from celluler.models.transforms.run import Program, raw_input, run_chain


class Served:
    """A predictor and its transforms. Programs are compiled and checked here, once."""

    def __init__(self, predictor: Predictor, interface: Interface) -> None:
        """Raises InvalidSpec for a program that is none or gives other things than it says; LocalError where the
        package that it needs is missing."""
        self._predictor, self._interface = predictor, interface
        chains = [one.chain for one in interface.answers]
        if interface.preprocess is not None:
            chains.append(interface.preprocess.chain)
        self._programs = {chain.path: programs_of(chain) for chain in chains}

    def predict(self, x: npt.NDArray[Any], output: str) -> npt.NDArray[Any]:
        """x: a raw batch, or seeds. Raises InvalidSpec for one that does not fit, or values that a step refuses."""
        interface = self._interface
        interface.check(x.dtype.name, x.shape, output)
        source, answer = interface.source(output), interface.answer_named(output)
        before = interface.preprocess
        if before is not None and source != SAMPLE:
            x = self._run(before.chain, raw_input(before.chain.given, x))
        told: npt.NDArray[Any] = self._predictor.predict(x, source)
        return told if answer is None else self._run(answer.chain, told)

    def _run(self, chain: Chain, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return run_chain(chain, x, self._programs[chain.path])


def programs_of(chain: Chain) -> Mapping[int, Program]:
    """What runs the steps that are programs, by their places. Raises InvalidSpec, LocalError."""
    found: dict[int, Program] = {}
    for place, (step, given) in enumerate(zip(chain.steps, chain.signals, strict=False)):
        try:
            match step:
                case GraphStep():
                    found[place] = graph_program(step)
                case Wasm():
                    found[place] = wasm_program(step, given)
                case Tokenizer():
                    found[place] = tokenizer_program(step)
        except InvalidSpec as error:
            path = f"{chain.path}.steps[{place}]"
            raise InvalidSpec(f"{path}.{error.path}" if error.path else path, error.problem) from error
    return found


def run_alone(chain: Chain, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A chain without a model, with whatever programs it has."""
    return np.ascontiguousarray(run_chain(chain, raw_input(chain.given, x), programs_of(chain)))
