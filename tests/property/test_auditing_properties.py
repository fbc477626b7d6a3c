"""Audits whatever the schedule: nobody honest is proven guilty, the lazy are found as often as was drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import PeerViolation
from celluler.learning.auditing import draw
from celluler.learning.effects import Exclude
from celluler.learning.evidence_file import open_evidence_file
from simulations.audit_liars import Conspirator, FalseMomentum, Lazy, LazyAndHiding, LazyAndPicky
from simulations.auditing import QUIET, Schedule, Theatre, play
from tests.support.audits import Audits


@settings(max_examples=12, deadline=None)
@given(st.integers(1000, 100_000))
def test_nobody_honest_is_proven_guilty_or_blamed_whatever_the_schedule(seed: int) -> None:
    assert play(seed).broken == []


@pytest.mark.parametrize("seed", range(8))
def test_known_schedules_end_well(seed: int) -> None:
    assert play(seed).broken == []


def thorough(size: int, liars: Mapping[int, type]) -> Schedule:
    """A prompt network, and one audit a member and round."""
    return Schedule(5, size, 6, size * 1000, QUIET, dict(liars))


@pytest.mark.parametrize(("liar", "proven"), [
    (Lazy, True), (LazyAndHiding, False), (LazyAndPicky, False), (FalseMomentum, True), (Conspirator, True),
])  # fmt: skip
def test_whoever_is_audited_is_found_out(liar: type, proven: bool) -> None:
    outcome = Theatre(thorough(4, {2: liar})).play()
    assert outcome.broken == []
    assert (2 in outcome.proven, 2 in outcome.unserved) == (proven, not proven)


class AgainstOne(Conspirator):
    """All of them accuse the same one."""

    def deeds(self) -> Iterable[tuple[int, bytes]]:
        record = self.accusation(len(self.chain.bodies) - 1, 3, (0.7, 0.7))
        return [] if record is None else self.to_all(record)


def test_the_simulation_sees_when_more_members_lie_than_are_tolerated() -> None:
    liars = dict.fromkeys((0, 1, 2, 4, 5), AgainstOne)
    assert any("honest member 3 is proven guilty" in line for line in Theatre(thorough(7, liars)).play().broken)


@pytest.mark.parametrize("expected", [0.125, 0.5, 1.0, 2.25])
def test_so_many_are_drawn_as_the_rules_expect_and_each_as_often(expected: float) -> None:
    rounds, candidates = 4000, range(10)
    drawn = [draw(number.to_bytes(4, "big"), candidates, expected) for number in range(rounds)]
    total = sum(map(len, drawn))
    assert abs(total - rounds * expected) <= 4 * math.sqrt(rounds / 4)
    counts = [sum(place in one for one in drawn) for place in candidates]
    spread = 4 * math.sqrt(total / len(candidates))
    assert all(abs(count - total / len(candidates)) <= spread for count in counts)


def test_a_lazy_member_of_sixteen_is_audited_by_somebody_as_often_as_promised() -> None:
    """With an eighth of an audit a member: 1 − (1 − 1/(8·15))¹⁵ = .118 a round."""
    rounds, size, lazy = 600, 16, 5
    hits = 0
    for number in range(rounds):
        drawn = [
            draw(bytes((member,)) + number.to_bytes(4, "big"), [m for m in range(size) if m != member], 1 / 8)
            for member in range(size) if member != lazy
        ]  # fmt: skip
        hits += any(lazy in one for one in drawn)
    promised = 1 - (1 - 1 / (8 * 15)) ** 15
    assert abs(hits / rounds - promised) <= 4 * math.sqrt(promised * (1 - promised) / rounds)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_changed_evidence_is_none(data: st.DataObject) -> None:
    audits = Audits()
    audits.certify(odd=(2,))
    raw = audits.did(Exclude)[0].evidence
    place = data.draw(st.integers(0, len(raw) - 1))
    changed = raw[:place] + bytes((raw[place] ^ data.draw(st.integers(1, 255)),)) + raw[place + 1 :]
    with pytest.raises(PeerViolation):
        open_evidence_file(changed, coordinator=audits.roster.coordinator)


@given(st.binary(max_size=300))
def test_garbage_is_no_evidence(raw: bytes) -> None:
    with pytest.raises(PeerViolation):
        open_evidence_file(raw)
    with pytest.raises(PeerViolation):
        open_evidence_file(b"celluler-evidence-1\n" + raw)
