"""Whole runs with audits: who does not train is expelled, who hides it suspended, and nobody honest is either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from celluler.errors import LocalError
from celluler.learning.effects import Exclude
from celluler.learning.evidence_file import Case, Kind, open_evidence_file, read_evidence_file
from celluler.learning.run import Run
from simulations.audited_rounds import (
    LIARS,
    QUIET,
    AuditedTheatre,
    CriesUnserved,
    DoesNotTrain,
    LiesAboutMomentum,
    audited_roster,
    draw,
    play,
)
from simulations.rounds.cast import GENESIS, signers_of
from simulations.rounds.liars import Words
from simulations.rounds.schedule import Schedule

pytestmark = pytest.mark.thorough


def calm(size: int, liars: dict[int, type], **changes: Any) -> Schedule:
    return replace(
        draw(0), size=size, rounds=8, liars=liars, deaths={}, partition=None, slow={}, joiners=(), network=QUIET,
        suspension=32, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("seed", [3, 108])
def test_known_schedules_end_well(seed: int) -> None:
    assert play(seed).broken == []


@pytest.mark.parametrize("liar", LIARS)
def test_one_of_four_is_dealt_with_before_the_run_ends(liar: type) -> None:
    outcome = AuditedTheatre(calm(4, {2: liar})).play()
    assert outcome.broken == []
    assert bool(outcome.expelled | outcome.suspended) is (liar is not CriesUnserved)


class LiesLater(LiesAboutMomentum):
    def say(self, to: Sequence[str], raw: bytes) -> Words:
        return super().say(to, raw) if self.run.round >= 5 else [(peer, raw) for peer in to]


def test_a_stranger_opens_what_was_proven_after_members_had_changed() -> None:
    theatre = AuditedTheatre(calm(7, {1: DoesNotTrain, 4: LiesLater}))
    files: list[bytes] = []
    judge = theatre._handlers[Exclude]

    def keep(member: Any, effect: Any, now: float) -> None:
        files.append(effect.evidence)
        judge(member, effect, now)

    theatre._handlers[Exclude] = keep
    assert theatre.play().broken == []
    cases: list[Case] = [open_evidence_file(raw, coordinator=theatre.base.coordinator) for raw in files]
    assert {(case.kind, case.accused) for case in cases} == {(Kind.AUDIT, 1), (Kind.MOMENTUM, 4)}
    chained = [case for raw, case in zip(files, cases, strict=True) if read_evidence_file(raw).chain]
    assert {case.accused for case in chained} == {4}


def test_audits_go_with_checks() -> None:
    roster = audited_roster(4, 2, 2, 32, 32)
    with pytest.raises(LocalError):
        Run(roster, signers_of(4)[roster.members[0].peer], state_root=GENESIS, audits=True)
