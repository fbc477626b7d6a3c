"""The attackers on updates, each by itself, and in the place where a real node would have its trainer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from celluler.aggregation.digests import mantissas_of, wire_bytes
from celluler.aggregation.q16 import encode_parts, is_exponent
from celluler.aggregation.rules import RULES
from celluler.errors import LocalError
from celluler_node.training.trainer import RunSetup, Update
from simulations.attacks.catalogue import EVERY, parse_attack
from simulations.attacks.colluders import Adaptive, InnerProduct
from simulations.attacks.trainer import lying
from simulations.attacks.updates import Scene, Wire, forged

DIMENSION, PARTS, MEMBERS, LIARS = 101, 4, 16, 7


def wire(values: Any) -> Wire:
    return Wire(*encode_parts(np.asarray(values, dtype=np.float32), PARTS))


def scene(seed: int = 0, *, number: int = 3, past: int = 4) -> Scene:
    random = np.random.default_rng(seed)
    updates = (0.3 + 0.5 * random.standard_normal((MEMBERS, DIMENSION))).astype(np.float32)
    return Scene(
        number,
        MEMBERS - 1,
        MEMBERS,
        LIARS,
        LIARS,
        wire(updates[-1]),
        updates[: MEMBERS - LIARS],
        tuple(random.standard_normal((past, DIMENSION)).astype(np.float32)),
        updates[0] if number else None,
    )


@pytest.mark.parametrize("name", EVERY)
def test_every_lie_is_well_formed_and_the_same_for_the_same_scene(name: str) -> None:
    for given in (scene(), scene(number=0, past=0)):
        first, again = forged(parse_attack(name), given), forged(parse_attack(name), given)
        assert len(first.exponents) == PARTS
        assert all(is_exponent(exponent) for exponent in first.exponents)
        assert (first.mantissas.shape, first.mantissas.dtype) == ((DIMENSION,), np.int16)
        assert first.exponents == again.exponents
        assert np.array_equal(first.mantissas, again.mantissas)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "label-flip"])
def test_every_lie_differs_from_the_truth(name: str) -> None:
    given = scene()
    assert not np.array_equal(forged(parse_attack(name), given).values(), given.own.values())


@pytest.mark.parametrize("name", EVERY)
def test_a_liar_who_knows_one_update_only_still_has_something_to_send(name: str) -> None:
    whole = scene()
    alone = Scene(0, 0, 4, 1, 1, whole.own, whole.own.values()[None])
    assert np.isfinite(forged(parse_attack(name), alone).values()).all()


def test_min_max_goes_as_far_as_honest_updates_are_apart_and_no_farther() -> None:
    given = scene()
    apart = np.linalg.norm(given.honest[:, None] - given.honest[None], axis=2).max()
    lie = parse_attack("min-max")(given)
    assert np.linalg.norm(given.honest - lie, axis=1).max() == pytest.approx(apart, rel=1e-4)


def test_min_sum_stays_within_the_largest_sum_of_an_honest_update() -> None:
    given = scene()
    squares = np.square(given.honest[:, None] - given.honest[None]).sum(axis=(1, 2))
    lie = parse_attack("min-sum:mean")(given)
    assert np.square(given.honest - lie).sum() == pytest.approx(squares.max(), rel=1e-4)


def test_drift_stays_below_what_a_replay_tolerates_in_every_part() -> None:
    given = scene()
    honest, lie = given.own.values(), forged(parse_attack("drift"), given).values()
    for piece in given.pieces:
        new = 0.2 * np.linalg.norm(honest[piece])
        assert 0 < np.linalg.norm(lie[piece] - honest[piece]) / new <= 1e-3


def test_alie_hides_within_one_deviation_of_seven_in_sixteen() -> None:
    given = scene()
    off = (given.honest.mean(axis=0) - parse_attack("alie")(given)) / given.honest.std(axis=0)
    assert off.std() < 1e-3
    assert 0 < off.mean() < 1.5


def test_a_mimic_sends_what_one_honest_member_sends() -> None:
    given = scene()
    lie = parse_attack("mimic")(given)
    assert any(np.array_equal(lie, row) for row in given.honest)


def test_delayed_sends_what_it_had_five_rounds_ago() -> None:
    given = scene(past=8)
    assert np.array_equal(parse_attack("delayed")(given), given.past[3])


def test_rop_is_at_a_right_angle_to_where_the_aggregate_goes() -> None:
    given = scene(number=0)
    mean = given.honest.mean(axis=0)
    away = parse_attack("rop")(given) - mean
    assert abs(away @ mean) < 1e-3 * np.linalg.norm(away) * np.linalg.norm(mean)


def test_who_adapts_to_the_mean_takes_more_of_it_than_any_fixed_backward_step() -> None:
    given = scene()
    worst = reduced("mean", given, forged(Adaptive("mean"), given))
    fixed = reduced("mean", given, forged(InnerProduct(0.6), given))
    mean = given.honest.mean(axis=0)
    assert mean @ worst < mean @ fixed


def test_who_undoes_goes_against_what_was_learned_even_where_a_round_goes_another_way() -> None:
    attack, first, second = parse_attack("undo:mean"), scene(0), scene(1)
    forged(attack, first)
    learned = first.honest.mean(axis=0) + second.honest.mean(axis=0)
    lie = forged(attack, second)
    assert learned @ reduced("mean", second, lie) <= learned @ reduced("mean", second, forged(Adaptive("mean"), second))


def test_nan_bytes_are_numbers_to_whoever_reads_mantissas() -> None:
    lie = forged(parse_attack("nan-bytes"), scene())
    assert np.isnan(np.frombuffer(bytes(wire_bytes(lie.mantissas))[: 4 * (DIMENSION // 2)], "<f4")).all()
    assert np.isfinite(lie.values()).all()


@pytest.mark.parametrize("text", ["bribery", "scale:much", "mimic:3", "adaptive:bulyan"])
def test_an_attack_that_nobody_knows_is_refused(text: str) -> None:
    with pytest.raises((ValueError, LocalError)):
        parse_attack(text)


# --- in a node ------------------------------------------------------------------------------------------------------


class FakeTrainer:
    """Sends its member's number everywhere, larger from round to round."""

    dimension, state_root, isolation = DIMENSION, bytes(32), "none"

    def __init__(self, setup: RunSetup) -> None:
        self.setup, self.applied = setup, 0

    async def train(self, round_number: int, *, fresh: bool) -> Update:
        sent = wire(np.linspace(1, 2, DIMENSION) * (1 + self.setup.index) * (1 + round_number))
        return Update(sent.exponents, bytes(wire_bytes(sent.mantissas)), 0.5)

    async def apply(self, round_number: int, exponents: tuple[int, ...], mantissas: bytes) -> bytes:
        self.applied += 1
        return bytes(31) + bytes([self.applied])


def setup_of(folder: Path) -> RunSetup:
    return RunSetup(bytes(32), b"{}", folder / "weights", folder / "data", "iid", 2, 5, PARTS, 20, 32, 0.2, "sgd")


@asynccontextmanager
async def a_liar(folder: Path, attack: str, **options: int) -> AsyncIterator[tuple[Any, list[FakeTrainer]]]:
    opened: list[FakeTrainer] = []

    @asynccontextmanager
    async def honest(setup: RunSetup) -> AsyncIterator[FakeTrainer]:
        opened.append(FakeTrainer(setup))
        yield opened[-1]

    async with lying(honest, parse_attack(attack), **options)(setup_of(folder)) as trainer:  # type: ignore[arg-type]
        yield trainer, opened


@pytest.mark.parametrize("name", [name for name in EVERY if name != "label-flip"])
async def test_a_lying_trainer_sends_its_lies_round_after_round(name: str, tmp_path: Path) -> None:
    async with a_liar(tmp_path, name, liars=2) as (trainer, opened):
        assert trainer.dimension == DIMENSION
        for number in range(3):
            update = await trainer.train(number, fresh=False)
            honest = await FakeTrainer(setup_of(tmp_path)).train(number, fresh=False)
            assert len(update.mantissas) == 2 * DIMENSION
            assert all(is_exponent(exponent) for exponent in update.exponents)
            if number:
                assert (update.exponents, update.mantissas) != (honest.exponents, honest.mantissas)
            root = await trainer.apply(number, honest.exponents, honest.mantissas)
            assert root[-1] == number + 1
        assert all(each.applied == 3 for each in opened), "those it trains for must stand where the others stand"


async def test_a_colluder_trains_in_the_place_of_others_and_a_lone_liar_does_not(tmp_path: Path) -> None:
    async with a_liar(tmp_path, "ipm:1", watched=3) as (trainer, opened):
        assert sorted(each.setup.index for each in opened) == [0, 2, 3, 4]
        update = await trainer.train(0, fresh=False)
        backwards = Wire(update.exponents, mantissas_of(update.mantissas)).values()
        assert np.allclose(backwards, -np.linspace(1, 2, DIMENSION) * (3 + 4 + 5 + 1) / 4, rtol=1e-3)
    async with a_liar(tmp_path, "scale:-2") as (_, opened):
        assert len(opened) == 1


async def test_who_flips_labels_trains_on_a_file_of_its_own_and_leaves_none_behind(tmp_path: Path) -> None:
    x, y = np.zeros((4, 2), np.float32), np.array([0, 1, 9, 4])
    save_file({"x": x, "y": y}, tmp_path / "data")
    async with a_liar(tmp_path, "label-flip") as (_, opened):
        flipped = opened[0].setup.data
        assert load_file(flipped)["y"].tolist() == [9, 8, 0, 5]
        assert np.array_equal(load_file(tmp_path / "data")["y"], y)
    assert not flipped.exists()


def reduced(rule: str, given: Scene, lie: Wire) -> Any:
    """What the rule makes of the honest updates and seven times this lie."""
    sent = [*(wire(row) for row in given.honest), *([lie] * LIARS)]
    result = np.empty(DIMENSION, np.float32)
    for part, piece in enumerate(given.pieces):
        exponents = np.array([each.exponents[part] for each in sent], np.int16)
        one = RULES[rule](exponents, np.stack([each.mantissas[piece] for each in sent]), given.f)
        result[piece] = one.mantissas * 2.0**one.exponent
    return result
