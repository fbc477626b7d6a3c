from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from celluler.aggregation.q16 import decode_parts, encode_parts, part_slices
from celluler.aggregation.rules import rule_named
from celluler.engines.build import build
from celluler.engines.config import TrainConfig
from celluler.engines.data import Dataset, load_dataset
from celluler.engines.optimise import Adam, Outer, Sgd
from celluler.engines.predict import Predictor
from celluler.engines.steps import LocalSteps
from celluler.engines.train import Trainer
from celluler.errors import InvalidSpec, LocalError
from celluler.models.spec import Architecture, parse_spec
from celluler.models.weights import initial_vector
from tests.support.specs import CNN, MLP, TINY, WORDS, digits, regression, save_tensors

pytestmark = pytest.mark.thorough

SEED, RUN = b"s" * 32, b"r" * 32
DIGITS = parse_spec(MLP)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(**changes: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "run": RUN,
        "index": 0,
        "members": 1,
        "inner_steps": 5,
        "batch": 16,
        "learning_rate": 0.2,
        "optimizer": "sgd",
    }
    return TrainConfig(**(base | changes))


def learning_set() -> Dataset:
    x, y = digits()
    return Dataset(torch.from_numpy(x[:-360]), torch.from_numpy(y[:-360]))


def held_out() -> Dataset:
    x, y = digits()
    return Dataset(torch.from_numpy(x[-360:]), torch.from_numpy(y[-360:]))


def trainer(architecture: Architecture = DIGITS, **changes: Any) -> Trainer:
    return Trainer(architecture, initial_vector(architecture, SEED), learning_set(), config(**changes))


# --- building and predicting -----------------------------------------------------------------------------------------


def test_a_module_computes_what_the_spec_says() -> None:
    architecture = parse_spec(TINY)
    vector = torch.arange(architecture.dimension, dtype=torch.float32) / 10
    x = np.array([[1.0, -2.0, 0.5]], np.float32)
    w0, b0, w1, b1 = (vector[a:b].numpy() for a, b in ((0, 12), (12, 16), (16, 24), (24, 26)))
    expected = np.maximum(x @ w0.reshape(4, 3).T + b0, 0) @ w1.reshape(2, 4).T + b1
    assert np.allclose(Predictor(architecture, vector).predict(x), expected, rtol=1e-6)


def test_a_module_is_a_view_of_its_vector() -> None:
    vector = torch.zeros(DIGITS.dimension)
    module = build(DIGITS, vector)
    vector.fill_(2.0)
    assert all(bool((parameter == 2.0).all()) for parameter in module.parameters())


def test_predictions_come_raw_as_probabilities_or_as_labels() -> None:
    predictor = Predictor(DIGITS, torch.from_numpy(initial_vector(DIGITS, SEED)))
    x = digits()[0][:7]
    raw, shares, labels = (predictor.predict(x, output) for output in ("raw", "probabilities", "labels"))
    assert raw.shape == shares.shape == (7, 10)
    assert np.allclose(shares.sum(axis=1), 1.0, atol=1e-6)
    assert (labels == raw.argmax(axis=1)).all()
    assert (raw.dtype, shares.dtype, labels.dtype) == (np.float32, np.float32, np.int64)


def test_many_samples_are_predicted_in_batches_with_the_same_result() -> None:
    predictor = Predictor(DIGITS, torch.from_numpy(initial_vector(DIGITS, SEED)))
    x = digits()[0]
    whole = predictor.predict(x)
    assert whole.shape == (1797, 10)
    assert np.allclose(whole[1500:1501], predictor.predict(x[1500:1501]), atol=1e-5)


@pytest.mark.parametrize(
    ("x", "output"),
    [
        (np.zeros((1, 63), np.float32), "raw"),
        (np.zeros((64,), np.float32), "raw"),
        (np.zeros((0, 64), np.float32), "raw"),
        (np.zeros((1, 8, 8), np.float32), "raw"),
        (np.zeros((1, 64), np.float64), "raw"),
        (np.zeros((1, 64), np.int64), "raw"),
        (np.full((1, 64), np.nan, np.float32), "raw"),
        (np.zeros((1, 64), np.float32), "eval"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(x: npt.NDArray[Any], output: str) -> None:
    with pytest.raises(InvalidSpec):
        Predictor(DIGITS, torch.zeros(DIGITS.dimension)).predict(x, output)


def test_a_regression_gives_numbers_only_and_an_embedding_knows_its_words() -> None:
    architecture = parse_spec(WORDS)
    predictor = Predictor(architecture, torch.from_numpy(initial_vector(architecture, SEED)))
    assert predictor.predict(np.zeros((2, 5), np.int64)).shape == (2, 1)
    with pytest.raises(InvalidSpec, match="output"):
        predictor.predict(np.zeros((2, 5), np.int64), "labels")
    for word in (7, -1):
        with pytest.raises(InvalidSpec, match="allowed 0…6"):
            predictor.predict(np.full((1, 5), word), "raw")


# --- datasets --------------------------------------------------------------------------------------------------------


def test_a_dataset_is_mapped_and_checked(tmp_path: Path) -> None:
    x, y = digits()
    data = load_dataset(DIGITS, save_tensors(tmp_path / "d", {"x": x, "y": y}))
    assert len(data) == 1797
    assert np.array_equal(data.x.numpy(), x)
    assert np.array_equal(data.y.numpy(), y)


@pytest.mark.parametrize(
    ("tensors", "path"),
    [
        ({"x": np.zeros((2, 64), np.float32)}, "dataset"),
        ({"x": np.zeros((2, 64), np.float32), "y": np.zeros(2, np.int64), "z": np.zeros(1, np.int64)}, "dataset"),
        ({"x": np.zeros((2, 63), np.float32), "y": np.zeros(2, np.int64)}, "dataset.x"),
        ({"x": np.zeros((2, 64), np.int64), "y": np.zeros(2, np.int64)}, "dataset.x"),
        ({"x": np.full((2, 64), np.inf, np.float32), "y": np.zeros(2, np.int64)}, "dataset.x"),
        ({"x": np.zeros((0, 64), np.float32), "y": np.zeros(0, np.int64)}, "dataset.x"),
        ({"x": np.array(1.0, np.float32), "y": np.zeros(1, np.int64)}, "dataset.x"),
        ({"x": np.zeros((2, 64), np.float32), "y": np.zeros(3, np.int64)}, "dataset.y"),
        ({"x": np.zeros((2, 64), np.float32), "y": np.zeros(2, np.float32)}, "dataset.y"),
        ({"x": np.zeros((2, 64), np.float32), "y": np.array([0, 10])}, "dataset.y"),
        ({"x": np.zeros((2, 64), np.float32), "y": np.array([0, -1])}, "dataset.y"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(tmp_path: Path, tensors: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load_dataset(DIGITS, save_tensors(tmp_path / "d", tensors))
    assert caught.value.path == path


# --- optimizers ------------------------------------------------------------------------------------------------------


def test_the_inner_optimizers_step_as_torchs_do() -> None:
    for ours, theirs in ((Sgd(0.1), torch.optim.SGD), (Adam(0.1), torch.optim.Adam)):
        mine, parameter = torch.ones(50), torch.nn.Parameter(torch.ones(50))
        reference = theirs([parameter], lr=0.1)
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            parameter.grad = torch.randn(50, generator=generator)
            ours.step(mine, parameter.grad)
            reference.step()
        assert torch.allclose(mine, parameter.detach(), rtol=1e-5)


def test_the_outer_optimizer_steps_as_torchs_does_but_for_averages() -> None:
    rng = np.random.default_rng(0)
    outer = Outer(np.ones(50, np.float32), 0.7, 0.4, plain=(slice(40, 50),))
    parameter = torch.nn.Parameter(torch.ones(40))
    reference = torch.optim.SGD([parameter], lr=0.7, momentum=0.4, nesterov=True)
    averages = np.ones(10, np.float32)
    for _ in range(5):
        aggregate = rng.normal(size=50).astype(np.float32)
        parameter.grad = torch.from_numpy(aggregate[:40])
        averages = averages - aggregate[40:]
        outer.step(aggregate)
        reference.step()
    assert np.allclose(outer.parameters[:40], parameter.detach().numpy(), rtol=1e-5)
    assert np.array_equal(outer.parameters[40:], averages)


# --- training --------------------------------------------------------------------------------------------------------


def test_a_round_moves_nothing_and_gives_the_same_again() -> None:
    member = trainer()
    root = member.state_root()
    first, again = member.train(0), member.train(0)
    assert np.array_equal(first[0], again[0])
    assert first[1] == again[1]
    assert member.state_root() == root
    assert not np.array_equal(member.train(1)[0], first[0])


def test_members_draw_other_batches_and_equal_members_the_same() -> None:
    zero, one, twin = (trainer(index=index, members=2) for index in (0, 1, 0))
    assert not np.array_equal(zero.train(0)[0], one.train(0)[0])
    assert np.array_equal(zero.train(0)[0], twin.train(0)[0])


def test_a_shard_is_a_members_own() -> None:
    members = [trainer(index=index, members=3, partition="shard", batch=200) for index in range(3)]
    seen = [set(steps_of(member).rows(step).tolist()) for member in members for step in range(5)]
    shards = [set.union(*seen[5 * index : 5 * index + 5]) for index in range(3)]
    assert not shards[0] & shards[1] | shards[1] & shards[2]
    assert set.union(*shards) <= set(range(1437))
    assert sum(map(len, shards)) > 1200


def steps_of(member: Trainer) -> LocalSteps:
    return member.replaying(0, member._config.index, member.parameters)


def rows_drawn(member: Trainer) -> set[int]:
    steps = steps_of(member)
    return {row for step in range(8) for row in steps.rows(step).tolist()}


def test_who_comes_later_shares_a_shard_and_draws_other_samples_of_it() -> None:
    first, late = (trainer(index=index, members=3, partition="shard", batch=200) for index in (1, 4))
    assert len(rows_drawn(first) & rows_drawn(late)) > 400
    assert steps_of(first).rows(0).tolist() != steps_of(late).rows(0).tolist()


def test_classes_or_keys_are_a_members_own() -> None:
    data = replace(learning_set(), keys=np.arange(1437, dtype=np.int64) % 30)
    for partition, values in (("by-label", data.y.numpy()), ("by-key", data.keys)):
        made = config(index=0, members=3, partition=partition, batch=300)
        members = [
            Trainer(DIGITS, initial_vector(DIGITS, SEED), data, replace(made, index=index)) for index in range(3)
        ]
        drawn = [set(values[list(rows_drawn(member))].tolist()) for member in members]
        assert not drawn[0] & drawn[1] | drawn[1] & drawn[2] | drawn[0] & drawn[2]
        assert set.union(*drawn) == set(values.tolist())


def test_momentum_follows_a_members_own_wire_once_its_round_was_applied() -> None:
    member, fresh = trainer(), trainer()
    update, _ = member.train(0)
    member.sent(0, update)
    zero = np.zeros_like(update)
    member.apply(0, zero)
    fresh.apply(0, zero)  # never sent: its next update stands alone
    alone, _ = fresh.train(1)
    assert np.allclose(member.train(1)[0], 0.8 * update + 0.2 * alone, atol=1e-7)
    assert np.array_equal(member.train(1, fresh=True)[0], alone)
    skipped = trainer()
    skipped.sent(0, update)
    assert np.array_equal(skipped.train(1)[0], trainer().train(1)[0])  # round 0 was discarded


def test_equal_aggregates_give_equal_states() -> None:
    alice, bob = trainer(index=0, members=2), trainer(index=1, members=2)
    for number in range(3):
        aggregate, _ = alice.train(number)
        bob.train(number)
        for member in (alice, bob):
            member.apply(number, aggregate)
        assert alice.state_root() == bob.state_root()


def test_a_member_left_behind_takes_over_the_state() -> None:
    alice, bob = trainer(), trainer()
    update, _ = alice.train(0)
    alice.apply(0, update)
    bob.restore(0, alice.state())
    assert bob.state_root() == alice.state_root()
    assert bob.applied == 0
    assert np.array_equal(alice.train(1)[0], bob.train(1)[0])
    with pytest.raises(LocalError):
        bob.restore(1, alice.state()[:-1])
    with pytest.raises(LocalError):
        bob.restore(1, np.full(2 * DIGITS.dimension, np.nan, "<f4").tobytes())
    assert bob.state_root() == alice.state_root()


def test_no_round_is_applied_twice_and_no_nonsense_at_all() -> None:
    member = trainer()
    zero = np.zeros(DIGITS.dimension, np.float32)
    member.apply(3, zero)
    root = member.state_root()
    for number, aggregate in ((3, zero), (2, zero), (4, zero[1:]), (4, zero.astype(np.float64)), (4, zero + np.inf)):
        with pytest.raises(LocalError):
            member.apply(number, aggregate)
    with pytest.raises(LocalError):
        member.train(3)
    assert member.state_root() == root


def test_a_run_that_diverges_stays_finite() -> None:
    member = trainer(learning_rate=1e30)
    for number in range(3):
        update, loss = member.train(number)
        assert np.isfinite(update).all()
        assert np.isfinite(loss)
        encode_parts(update, 3)
        member.apply(number, np.full(DIGITS.dimension, 3e38, np.float32))
        assert np.isfinite(member.parameters).all()
    assert np.isfinite(member.evaluate(held_out()).loss)


def test_dropout_draws_what_the_run_says_and_leaves_the_generator_alone() -> None:
    layers = [*MLP["layers"][:2], {"kind": "dropout", "rate": 0.5}, *MLP["layers"][2:]]
    architecture = parse_spec(MLP | {"layers": layers})
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = trainer(architecture).train(0)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert np.array_equal(trainer(architecture).train(0)[0], first)


def test_a_regression_learns() -> None:
    architecture = parse_spec(regression({"kind": "dense", "width": 1}, shape=(3,)))
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    data = Dataset(torch.from_numpy(x), torch.from_numpy(x @ np.array([[1.0], [2.0], [-1.0]], np.float32)))
    member = Trainer(architecture, initial_vector(architecture, SEED), data, config(inner_steps=20))
    before = member.evaluate(data).loss
    for number in range(8):
        member.apply(number, member.train(number)[0])
    assert member.evaluate(data).loss < before / 100
    assert member.evaluate(data).accuracy is None


@pytest.mark.parametrize(
    "changes",
    [
        {"run": b"short"},
        {"index": -1},
        {"inner_steps": 0},
        {"batch": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": -1.0},
        {"optimizer": "lion"},
        {"partition": "sorted"},
        {"outer_momentum": 1.0},
        {"outer_learning_rate": 0.0},
        {"partition": "shard", "index": 0, "members": 2000},
        {"partition": "by-label", "index": 0, "members": 11},
        {"partition": "by-key", "index": 0, "members": 2},
    ],
)
def test_a_configuration_that_means_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LocalError):
        trainer(**changes)


def test_a_batch_norm_needs_a_batch() -> None:
    with pytest.raises(LocalError):
        trainer(parse_spec(CNN), batch=1)


# --- several members, as a run does it -------------------------------------------------------------------------------


def train_together(spec: dict[str, Any], rule: str, rounds: int, learning_rate: float, *, liars: int = 0) -> float:
    """Held-out accuracy after `rounds` of five members, the last `liars` of whom send their update times −1000."""
    architecture, count = parse_spec(spec), 5
    members = [
        trainer(architecture, index=index, members=count, inner_steps=20, batch=32, learning_rate=learning_rate)
        for index in range(count)
    ]
    for number in range(rounds):
        wires = []
        for index, member in enumerate(members):
            update, _ = member.train(number)
            wire = encode_parts(update, count)
            member.sent(number, decode_parts(*wire))
            lies = index >= count - liars
            wires.append(encode_parts(np.clip(update * np.float32(-1000), -1e30, 1e30), count) if lies else wire)
        aggregate = decode_parts(*reduce(wires, rule, architecture.dimension))
        for member in members:
            member.apply(number, aggregate)
        assert len({member.state_root() for member in members}) == 1
    accuracy = members[0].evaluate(held_out()).accuracy
    assert accuracy is not None
    return accuracy


def reduce(wires: list[Any], rule: str, dimension: int) -> tuple[tuple[int, ...], npt.NDArray[np.int16]]:
    """Each part by itself, as its reducer would."""
    reduced = []
    for place, piece in enumerate(part_slices(dimension, len(wires))):
        exponents = np.array([wire[0][place] for wire in wires], np.int16)
        mantissas = np.stack([wire[1][piece] for wire in wires])
        reduced.append(rule_named(rule)(exponents, mantissas, (len(wires) - 1) // 2))
    return tuple(part.exponent for part in reduced), np.concatenate([part.mantissas for part in reduced])


def test_five_honest_members_learn_digits() -> None:
    assert train_together(MLP, "nk", 14, 0.2) >= 0.93


def test_one_liar_in_five_changes_nothing_under_nk() -> None:
    assert train_together(MLP, "nk", 14, 0.2, liars=1) >= 0.93


def test_one_liar_in_five_ruins_the_mean() -> None:
    assert train_together(MLP, "mean", 3, 0.2, liars=1) <= 0.3


def test_a_cnn_with_batch_norm_learns_with_a_liar() -> None:
    small = MLP | {
        "layers": [
            {"kind": "reshape", "shape": [1, 8, 8]},
            {"kind": "conv2d", "channels": 4, "kernel": 3, "padding": 1},
            {"kind": "batch_norm"},
            {"kind": "activation", "function": "relu"},
            {"kind": "max_pool2d", "size": 2},
            {"kind": "flatten"},
            {"kind": "dense", "width": 10},
        ]
    }
    assert train_together(small, "nk", 7, 0.1, liars=1) >= 0.80
