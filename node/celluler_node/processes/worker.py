"""The worker: the one process that runs models. Started confined, before this module and torch are imported.

Does what it is asked, one request after another; holds the model, the data and the run's state, and no socket but
the channel. Knows nothing of peers, rounds' votes or content: paths and arrays come in, arrays and paths go out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from celluler.aggregation.q16 import WIRE_DTYPE, decode_parts, part_slices
from celluler.aggregation.wires import FINEST, wire_named
from celluler.engines.audit_class import audit_class
from celluler.engines.config import TrainConfig
from celluler.engines.data import load_dataset
from celluler.engines.evaluate import Evaluation
from celluler.engines.load import load_model
from celluler.engines.prepare import prepare
from celluler.engines.summarise import summarise
from celluler.engines.torch_engine import TorchEngine, TorchModel
from celluler.engines.train import Trainer, weights_of
from celluler.engines.transforms.served import Served
from celluler.errors import InvalidSpec, LocalError
from celluler.models.body import parse_body
from celluler.models.interface import read_interface
from celluler.models.memory import check_batch, micro_batch
from celluler_node.processes.serving import Link, serve_sync
from celluler_node.processes.words import Reply
from celluler_node.processes.worker_generate import Generator
from celluler_node.processes.worker_mix import Mixer
from celluler_node.processes.worker_replay import ReplayUnderWay
from celluler_node.processes.worker_score import Scorer
from celluler_node.processes.worker_states import KeptStates
from celluler_node.processes.worker_wire import encode_update
from celluler_node.processes.worker_words import (
    REPLIES,
    REQUESTS,
    Applied,
    ApplyRound,
    Describe,
    Described,
    Evaluate,
    Evaluated,
    Export,
    Exported,
    GetState,
    GoOn,
    Loaded,
    LoadModel,
    Predict,
    Predicted,
    Prepare,
    Prepared,
    Replay,
    Replayed,
    Replaying,
    RunReady,
    SetState,
    StartRun,
    State,
    Summarise,
    Summarised,
    Trained,
    TrainRound,
    Warm,
    WarmUp,
)

_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
}
Blobs = tuple[bytearray, ...]


def main(link: Link) -> None:
    torch.set_num_threads(max(1, link.boot.limits.threads))
    torch.set_num_interop_threads(1)
    # Read by pyarrow when a table is first opened. Its usual allocator reserves a gigabyte of address space at once,
    # and address space is what the limit counts.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    worker = Worker(Path(link.boot.scratch), link.boot.limits.memory_bytes)
    serve_sync(link, REQUESTS, REPLIES, worker.handlers)


class Worker:
    """The state between two requests: at most one model and one run."""

    def __init__(self, scratch: Path, memory_bytes: int | None = None) -> None:
        """memory_bytes: what this process may take."""
        self._scratch, self._memory = scratch, memory_bytes
        self._engine = TorchEngine()
        self._model: TorchModel | None = None
        self._served: Served | None = None
        self._run: Trainer | None = None
        self._parts, self._wire = 1, FINEST
        self._states = KeptStates(scratch, 0)
        self._replay: ReplayUnderWay | None = None
        self._mixer = Mixer(scratch, lambda: (self._need_run(), self._parts))
        self._generator = Generator(self._need_model, memory_bytes)
        self._scorer = Scorer(self._need_model, memory_bytes)

    @property
    def handlers(self) -> Mapping[type, Callable[[Any, Blobs], Any]]:
        return {
            LoadModel: self.load_model,
            WarmUp: self.warm_up,
            Predict: self.predict,
            StartRun: self.start_run,
            TrainRound: self.train_round,
            ApplyRound: self.apply_round,
            Evaluate: self.evaluate,
            Export: self.export,
            GetState: self.get_state,
            SetState: self.set_state,
            Summarise: self.summarise,
            Replay: self.replay,
            GoOn: self.go_on,
            Describe: self.describe,
            Prepare: self.prepare,
            **self._mixer.handlers,
            **self._generator.handlers,
            **self._scorer.handlers,
        }

    def load_model(self, request: LoadModel, _: Blobs) -> Loaded:
        body = parse_body(request.body, request.spec)
        interface = read_interface(body, request.preprocess, request.postprocess)
        model = self._engine.load(body, Path(request.weights), memory_bytes=self._memory)
        served = Served(model, interface, Path(request.tokenizer) if request.tokenizer else None)
        self._model, self._served = model, served
        self._generator.close()
        return Loaded(body.parameter_count, body.parameter_bytes, self._engine.caps.device, body.dtype)

    def warm_up(self, request: WarmUp, _: Blobs) -> Warm:
        model, _served = self._need_model()
        model.warm_up()
        return Warm(not request.trial or model.stand_apart())

    def predict(self, request: Predict, blobs: Blobs) -> Reply:
        if self._served is None:
            raise LocalError("no model is loaded")
        answer = self._served.predict(_array(request.dtype, request.shape, _only(blobs)), request.output)
        return Reply(Predicted(answer.dtype.name, answer.shape), (_little_endian(answer),))

    def start_run(self, request: StartRun, _: Blobs) -> RunReady:
        architecture = parse_body(request.body, request.spec)
        part_slices(architecture.dimension, request.parts)  # refuses more parts than values
        wire = wire_named(request.wire).name
        data = load_dataset(architecture, Path(request.data), request.selection)
        micro = micro_batch(architecture, request.batch, self._memory)
        check_batch(architecture, request.batch, micro)
        config = TrainConfig(
            run=request.run,
            index=request.index,
            members=request.members,
            inner_steps=request.inner_steps,
            batch=request.batch,
            learning_rate=request.learning_rate,
            optimizer=request.optimizer,
            partition=request.partition,
            outer_learning_rate=request.outer_learning_rate,
            outer_momentum=request.outer_momentum,
            precision=request.precision,
            micro_batch=micro,
        )
        model = load_model(architecture, Path(request.weights), memory_bytes=self._memory, micro=micro)
        self._run = Trainer(architecture, model.vector, data, config, model.still)
        self._parts, self._wire = request.parts, wire
        self._states, self._replay = KeptStates(self._scratch, request.kept_states), None
        told = audit_class(request.precision, micro if micro < request.batch else 0)
        return RunReady(self._run.dimension, self._run.state_root(), config.micro, told)

    def train_round(self, request: TrainRound, _: Blobs) -> Reply:
        run = self._need_run()
        judged = run.judged()
        update, loss = run.train(request.round, fresh=request.fresh)
        exponents, mantissas = encode_update(update, self._parts, self._wire)
        run.sent(request.round, decode_parts(exponents, mantissas))
        return Reply(Trained(loss, exponents, judged.metric, judged.value), (_little_endian(mantissas),))

    def apply_round(self, request: ApplyRound, blobs: Blobs) -> Applied:
        run = self._need_run()
        mantissas = _only(blobs)
        if len(request.exponents) != self._parts or len(mantissas) != 2 * run.dimension:
            raise LocalError(
                f"an aggregate of {len(request.exponents)} parts and {len(mantissas)} bytes, "
                f"must be {self._parts} and {2 * run.dimension}"
            )
        aggregate = decode_parts(request.exponents, np.frombuffer(mantissas, dtype=WIRE_DTYPE))
        run.check(request.round, aggregate)
        self._states.keep(request.round, run.state_pieces())
        run.apply(request.round, aggregate)
        return Applied(run.state_root())

    def evaluate(self, request: Evaluate, _: Blobs) -> Evaluated:
        judge = self._run or self._model
        if judge is None:
            raise LocalError("no model is loaded and no run started")
        data = load_dataset(judge.architecture, Path(request.data), request.selection)
        evaluation: Evaluation = judge.evaluate(data)
        metric, value = evaluation.metric, evaluation.value
        return Evaluated(evaluation.accuracy, evaluation.loss, evaluation.count, metric, value)

    def export(self, request: Export, _: Blobs) -> Exported:
        if Path(request.name).name != request.name or request.name.startswith("."):
            raise InvalidSpec("name", f"{request.name!r} is no plain file name")
        path = self._scratch / request.name
        run = self._need_run()
        run.export(path)
        return Exported(str(path), path.stat().st_size, run.applied + 1)

    def get_state(self, request: GetState, __: Blobs) -> Reply:
        run = self._need_run()
        if request.round is None or request.round == run.applied + 1:
            return Reply(State(run.applied + 1), (run.state(),))
        return Reply(State(request.round), (self._kept(request.round),))

    def set_state(self, request: SetState, blobs: Blobs) -> Applied:
        run = self._need_run()
        run.restore(request.next_round - 1, _only(blobs))
        self._states.clear()
        self._replay = None
        return Applied(run.state_root())

    def summarise(self, request: Summarise, _: Blobs) -> Summarised:
        return Summarised(summarise(Path(request.data), request.format, request.label))

    def replay(self, request: Replay, blobs: Blobs) -> Replaying | Replayed:
        run, self._replay = self._need_run(), None
        current = request.round == run.applied + 1
        start = run.parameters.copy() if current else weights_of(self._kept(request.round))
        self._replay = ReplayUnderWay(run, self._parts, self._wire, request, blobs, start)
        return self.go_on(GoOn(request.within_ms), ())

    def go_on(self, request: GoOn, _: Blobs) -> Replaying | Replayed:
        if self._replay is None:
            raise LocalError("no replay is under way")
        answer = self._replay.go_on(request.within_ms)
        if isinstance(answer, Replayed):
            self._replay = None
        return answer

    def describe(self, request: Describe, _: Blobs) -> Described:
        return Described(audit_class(request.precision), torch.__version__[:32])

    def prepare(self, _: Prepare, __: Blobs) -> Prepared:
        prepare()
        return Prepared()

    def _kept(self, round_number: int) -> bytes:
        state = self._states.find(round_number)
        if state is None:
            raise LocalError(f"the state before round {round_number} is not here; kept: {self._states.rounds}")
        return state

    def _need_model(self) -> tuple[TorchModel, Served]:
        if self._model is None or self._served is None:
            raise LocalError("no model is loaded")
        return self._model, self._served

    def _need_run(self) -> Trainer:
        if self._run is None:
            raise LocalError("no run is started")
        return self._run


def _only(blobs: Blobs) -> bytearray:
    if len(blobs) != 1:
        raise LocalError(f"{len(blobs)} blobs, must be one")
    return blobs[0]


def _array(dtype: str, shape: tuple[int, ...], blob: bytearray) -> np.ndarray[Any, Any]:
    """A view of the blob. Raises InvalidSpec when the bytes are not what dtype and shape say."""
    if dtype not in _DTYPES:
        raise InvalidSpec("input.dtype", f"is {dtype!r}, must be one of {', '.join(_DTYPES)}")
    if math.prod(shape) * _DTYPES[dtype].itemsize != len(blob):
        raise InvalidSpec("input.shape", f"{shape} of {dtype} is not {len(blob)} bytes")
    array: np.ndarray[Any, Any] = np.frombuffer(blob, dtype=_DTYPES[dtype])
    return array.reshape(shape)


def _little_endian(array: np.ndarray[Any, Any]) -> memoryview:
    return memoryview(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes())
