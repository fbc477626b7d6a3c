"""A worker with a model of its own: steps from it, neighbours mixed in, a file compared with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from celluler.aggregation.q16 import decode_parts
from celluler.engines.config import TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.train import Trainer
from celluler.errors import LocalError
from celluler.models.spec import parse_spec
from celluler.models.weights import initial_vector
from celluler_node.processes.worker_mix import Mixer
from celluler_node.processes.worker_mix_words import CompareOwn, MixOwn, MixRow, StepOwn
from tests.support.specs import MLP, digits

DIGITS, PARTS = parse_spec(MLP), 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trainer(index: int = 0) -> Trainer:
    x, y = digits()
    data = Dataset(torch.from_numpy(x[:600]), torch.from_numpy(y[:600]))
    config = TrainConfig(
        run=b"r" * 32, index=index, members=2, inner_steps=4, batch=16, learning_rate=0.2, optimizer="sgd"
    )
    return Trainer(DIGITS, initial_vector(DIGITS, b"s" * 32), data, config)


def mixer(tmp_path: Path, own: Trainer) -> Mixer:
    return Mixer(tmp_path, lambda: (own, PARTS))


def test_two_that_step_and_mix_come_to_one_model_and_both_have_learned(tmp_path: Path) -> None:
    owns = [trainer(0), trainer(1)]
    mixers = [mixer(tmp_path, own) for own in owns]
    x, y = digits()
    judged = Dataset(torch.from_numpy(x[-360:]), torch.from_numpy(y[-360:]))
    start = owns[0].evaluate(judged).loss
    for number in range(8):
        shown = [one.step(StepOwn(number, number < 6), ()) for one in mixers]
        for place, one in enumerate(mixers):
            other = shown[1 - place]
            row = MixRow(0.5, other.record.exponents)
            told = one.mix(MixOwn(number, (row,), None, True), (bytearray(other.blobs[0]),))
            assert told.state_root == owns[place].state_root()
    assert told.deviations[0] < 0.01
    assert np.allclose(owns[0].parameters, owns[1].parameters, atol=1e-2)
    assert owns[0].evaluate(judged).loss < start * 0.8


def test_what_is_shown_is_the_way_from_the_start_and_a_lonely_mix_keeps_it(tmp_path: Path) -> None:
    own = trainer()
    start = own.parameters.copy()
    mine = mixer(tmp_path, own)
    shown = mine.step(StepOwn(0, True), ())
    told = mine.mix(MixOwn(0, (), None, True), ())
    assert told.deviations == told.pulls == ()
    difference = decode_parts(shown.record.exponents, np.frombuffer(shown.blobs[0], dtype="<i2"))
    assert np.allclose(own.parameters - start, difference, atol=1e-4)
    own.export(tmp_path / "mine.safetensors")
    assert mine.compare(CompareOwn("mine.safetensors"), ()).deviation == 0.0
    trainer().export(tmp_path / "start.safetensors")
    assert mine.compare(CompareOwn("start.safetensors"), ()).deviation == pytest.approx(1.0)


def test_what_is_out_of_order_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    mine = mixer(tmp_path, trainer())
    with pytest.raises(LocalError, match="no step"):
        mine.mix(MixOwn(0, (), None, True), ())
    shown = mine.step(StepOwn(0, True), ())
    exponents = shown.record.exponents
    for row, blob in ((exponents[:-1], shown.blobs[0]), (exponents, b""), ((500, *exponents[1:]), shown.blobs[0])):
        with pytest.raises(LocalError):
            mine.mix(MixOwn(0, (MixRow(0.5, tuple(row)),), None, True), (bytearray(blob),))
    with pytest.raises(LocalError):
        mine.mix(MixOwn(0, (), None, True), (bytearray(2),))
    with pytest.raises(LocalError):
        mine.compare(CompareOwn("../secret"), ())
    begun = trainer()
    begun.apply(0, np.zeros(begun.dimension, dtype=np.float32))
    with pytest.raises(LocalError, match="certificates"):
        mixer(tmp_path, begun).step(StepOwn(1, True), ())


def test_a_liar_under_the_mean_is_followed_but_nothing_overflows(tmp_path: Path) -> None:
    own = trainer()
    mine = mixer(tmp_path, own)
    shown = mine.step(StepOwn(0, True), ())
    lie = bytearray(np.full(own.dimension, 32767, dtype="<i2").tobytes())
    mine.mix(MixOwn(0, (MixRow(0.5, (113,) * PARTS),), None, False), (lie,))
    assert np.isfinite(own.parameters).all()
    assert mine.step(StepOwn(1, True), ()).record.exponents != shown.record.exponents
