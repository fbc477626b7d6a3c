"""Local steps: in turns, in pieces, in a lower precision; and how a process computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.engines.audit_class import MAX_BYTES, audit_class
from celluler.engines.build import idle_biases
from celluler.engines.config import PRECISIONS, TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.steps import LocalSteps, Vector
from celluler.engines.train import Trainer
from celluler.errors import LocalError
from celluler.models.memory import COPIES, RUNTIME_BYTES, micro_batch
from celluler.models.spec import Architecture, parse_spec
from celluler.models.weights import initial_vector
from tests.support.specs import CNN, MLP, dense, digits, regression

DIGITS = parse_spec(MLP)
NOISY = parse_spec(MLP | {"layers": [{"kind": "dropout", "rate": 0.3}, *MLP["layers"]]})
CONFIG = TrainConfig(bytes(32), index=0, members=1, inner_steps=6, batch=16, learning_rate=0.1, optimizer="sgd")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def samples(architecture: Architecture) -> Dataset:
    x, y = digits()
    return Dataset(torch.from_numpy(x).reshape(-1, *architecture.input.shape), torch.from_numpy(y))


def walked(architecture: Architecture = DIGITS, stops: Iterator[bool] | None = None, **changes: Any) -> Vector:
    steps = LocalSteps(architecture, replace(CONFIG, **changes), samples(architecture))
    steps.begin(initial_vector(architecture, bytes(32)), 3, 0, None)
    while not steps.done:
        left = steps.left
        steps.take((lambda: False) if stops is None else lambda: next(stops))
        assert steps.left < left
    return steps.vector.copy()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_steps_taken_in_turns_are_the_same_steps(stops: list[bool]) -> None:
    for optimizer in ("sgd", "adam"):
        whole = walked(NOISY, optimizer=optimizer)
        assert np.array_equal(walked(NOISY, iter(stops), optimizer=optimizer), whole)


def test_two_rounds_under_way_do_not_disturb_each_other() -> None:
    start = initial_vector(DIGITS, bytes(32))
    trainer = Trainer(DIGITS, start, samples(DIGITS), replace(CONFIG, members=2))
    alone = trainer.work(1, 1, None).update
    other = trainer.replaying(1, 1, start.copy())
    other.take(lambda: True)
    trainer.apply(0, trainer.work(0, 0, None).update)
    other.take()
    assert np.array_equal(trainer.work_of(other, None).update, alone)


@pytest.mark.parametrize("micro", [1, 5, 8, 16, 64])
def test_a_batch_in_pieces_takes_the_same_samples_and_comes_to_the_same_but_for_rounding(micro: int) -> None:
    whole, pieces = walked(), walked(micro_batch=micro)
    assert np.allclose(whole, pieces, atol=1e-5)
    assert np.array_equal(pieces, walked(micro_batch=micro))
    assert np.array_equal(whole, pieces) or micro < 16


def test_a_batch_norm_takes_its_batch_whole() -> None:
    architecture = parse_spec(regression(dense(8), {"kind": "batch_norm"}, dense(1)))
    data = Dataset(torch.zeros(4, 8), torch.zeros(4, 1))
    LocalSteps(architecture, CONFIG, data)
    with pytest.raises(LocalError, match="whole"):
        LocalSteps(architecture, replace(CONFIG, micro_batch=8), data)
    assert micro_batch(architecture, 1 << 16, RUNTIME_BYTES) == 1 << 16


def test_a_bias_that_a_batch_norm_takes_out_again_stays_where_it_is() -> None:
    conv, norm = {"kind": "conv2d", "channels": 2, "kernel": 1}, {"kind": "batch_norm"}
    twice = {"kind": "repeat", "times": 2, "layers": [conv, norm]}
    layers = [conv, norm, twice, {"kind": "residual", "layers": [conv, norm, conv]}]
    tail = [{"kind": "flatten"}, dense(3), norm, dense(1)]
    architecture = parse_spec(regression(*layers, *tail, shape=(2, 4, 4)))
    assert idle_biases(architecture) == {"0.bias", "2.0.0.bias", "2.1.0.bias", "3.0.bias", "5.bias"}
    rows = parse_spec(regression(dense(4), norm, {"kind": "flatten"}, dense(1), shape=(4, 3)))
    assert idle_biases(rows) == frozenset()  # it norms by rows, and the bias is one of columns

    data = Dataset(torch.rand(64, 2, 4, 4), torch.rand(64, 1))
    start = initial_vector(architecture, bytes(32))
    steps = LocalSteps(architecture, replace(CONFIG, optimizer="adam"), data)
    steps.begin(start, 0, 0, None)
    steps.take()
    place = 0
    for tensor in architecture.tensors:
        moved = (steps.vector != start)[place : place + tensor.elements]
        place += tensor.elements
        assert bool(moved.any()) is (tensor.name not in idle_biases(architecture)), tensor.name


CASES = [*((MLP, precision) for precision in PRECISIONS), (CNN, "bf16")]  # fp16 convolutions take a CPU long


@pytest.mark.parametrize(("document", "precision"), CASES)
def test_every_precision_learns_and_gives_the_same_bits_again(document: dict[str, Any], precision: str) -> None:
    architecture = parse_spec(document)
    config = replace(CONFIG, inner_steps=30, precision=precision, batch=32, learning_rate=0.2)
    trainer = Trainer(architecture, initial_vector(architecture, bytes(32)), samples(architecture), config)
    before = trainer.evaluate(samples(architecture)).loss
    update, _ = trainer.train(0)
    assert update.dtype == np.float32
    assert np.array_equal(trainer.train(0)[0], update)
    for number in range(3):
        trainer.apply(number, trainer.train(number, fresh=True)[0])
    assert trainer.evaluate(samples(architecture)).loss < 0.9 * before


def test_half_precision_leaves_out_a_step_whose_gradient_is_too_large_for_it() -> None:
    data = Dataset(torch.full((8, 8), 1e4), torch.full((8, 1), 1e8))
    architecture = parse_spec(regression(dense(1)))
    steps = LocalSteps(architecture, replace(CONFIG, precision="fp16"), data)
    start = initial_vector(architecture, bytes(32))
    steps.begin(start, 0, 0, None)
    steps.take()
    assert np.array_equal(steps.vector, start)


@given(st.integers(1, 1 << 16), st.integers(0, 1 << 34))
def test_what_does_not_fit_is_cut_by_powers_of_two(batch: int, memory: int) -> None:
    micro = micro_batch(DIGITS, batch, memory)
    assert 1 <= micro <= batch
    assert micro == batch or micro & (micro - 1) == 0
    held = 2 * COPIES * micro * DIGITS.cost.activation_bytes + RUNTIME_BYTES
    assert held <= memory or micro == 1
    assert micro <= micro_batch(DIGITS, batch, memory + (1 << 28)) or micro == batch
    assert micro_batch(DIGITS, batch, None) == batch


def test_two_processes_that_compute_otherwise_bear_other_names() -> None:
    name = audit_class()
    assert name == audit_class()
    assert f"-t1-{torch.__version__}-fp32-cpu-" in name
    torch.set_num_threads(2)
    others = [audit_class(), audit_class("bf16"), audit_class("fp32", 8)]
    assert len({name, *others}) == 4
    assert all(len(each.encode()) <= MAX_BYTES for each in others)
