"""The accuracy tables: what is planned, kept and shown, and one small run of the shipped trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from celluler.aggregation.rules import RULES
from simulations.accuracy import Plan, Results, measure, tables
from simulations.attacks.catalogue import EVERY
from simulations.federation import HONEST, LEAST_SAMPLES, Federation, Outcome, Setting, dirichlet


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_plan_is_everything_against_everything_and_begins_with_nk_under_the_most_liars() -> None:
    settings = Plan().settings()
    under_attack = 2 * 2 * 3 * len(EVERY) * len(RULES) * 3
    assert len(settings) == len(set(settings)) == under_attack + 2 * 2 * len(RULES) * 3
    assert (settings[0].rule, settings[0].data, settings[0].seed) == ("nk", "digits", 0)
    assert {(one.partition, one.liars) for one in settings[: 2 * len(EVERY)]} == {("iid", 7), ("dirichlet", 3)}


def test_who_adapts_adapts_to_the_rule_it_meets() -> None:
    settings = Plan(("digits",), ("iid",), (7,), ("adaptive",), ("nk", "mean"), 1).settings()
    assert [(one.rule, one.attack) for one in settings] == [("nk", "adaptive:nk"), ("mean", "adaptive:mean")]


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    setting = Setting("digits", "iid", 7, "alie", "nk", 0, 2)
    Results(tmp_path / "results").add(setting, Outcome(0.5, "00", 1.0))
    again = Results(tmp_path / "results")
    assert again.outcomes == {setting: Outcome(0.5, "00", 1.0)}
    measure([setting], again, processes=1, within_s=0.0)


def test_a_table_shows_the_mean_over_seeds_and_the_worst_attack() -> None:
    outcomes = {
        Setting("digits", "iid", 7, attack, "nk", seed): Outcome(value, "", 0.0)
        for attack, values in {"alie": (0.9, 0.8), "adaptive:nk": (0.5, 0.6)}.items()
        for seed, value in enumerate(values)
    }
    shown = tables(outcomes)
    assert "**digits, IID, 7 of 16 lie** (2 seeds)" in shown
    assert "| alie | 85 |" in shown
    assert "| adaptive | 55 |" in shown
    assert "| **worst** | **55** |" in shown


def test_no_worst_is_told_of_a_rule_that_did_not_meet_every_attack() -> None:
    met = {Setting("digits", "iid", 7, attack, "nk", 0): Outcome(0.5, "", 0.0) for attack in ("alie", "noise")}
    assert "| **worst** | **50** |  |" in tables(
        {**met, Setting("digits", "iid", 7, "alie", "mean", 0): met.popitem()[1]}
    )


def test_dirichlet_deals_every_sample_once_and_unevenly() -> None:
    labels = np.repeat(np.arange(10), 140)
    hands = dirichlet(labels, 16, 0.3, np.random.default_rng(1))
    assert np.array_equal(np.sort(np.concatenate(hands)), np.arange(1400))
    assert min(map(len, hands)) >= LEAST_SAMPLES
    assert max(np.bincount(labels[hand]).max() / len(hand) for hand in hands) > 0.4


def test_honest_members_learn_and_hold_the_same_state_while_others_lie() -> None:
    federation = Federation(Setting("digits", "iid", 7, "scale:-1000", "nk", 0))
    for number in range(2):
        federation.round(number)
    assert len(federation.honest) == 9
    assert len({trainer.state_root() for trainer in federation.honest}) == 1
    assert (federation.honest[0].evaluate(federation.task.judging).accuracy or 0) > 0.4


def test_a_federation_follows_from_its_setting() -> None:
    roots = []
    for _ in range(2):
        federation = Federation(Setting("digits", "dirichlet", 3, "label-flip", "median", 5))
        federation.round(0)
        roots.append(federation.honest[0].state_root())
    assert roots[0] == roots[1]


def test_nobody_lies_where_nobody_is_said_to() -> None:
    federation = Federation(Setting("digits", "iid", 0, HONEST, "mean", 0))
    assert len(federation.honest) == 16
