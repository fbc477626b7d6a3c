"""Who counts as excluded from a run."""

from __future__ import annotations

from celluler.identity import Identity
from celluler.learning.report import RoundReport, RunReport
from celluler_node.training.publish import publishers
from celluler_node.training.record import excluded

ALICE, BOB, MALLORY = (Identity.generate().peer_id for _ in range(3))
ALL = (ALICE, BOB, MALLORY)


def report_of(*no_weight: tuple[str, ...], absent: tuple[str, ...] = ()) -> RunReport:
    """One entry a round: who was given no weight in it."""
    report = RunReport("nk")
    for number, ignored in enumerate(no_weight):
        inside = tuple(peer for peer in ALL if peer not in absent)
        report.rounds.append(RoundReport(number, 1, inside, ignored, absent))  # type: ignore[arg-type]
    return report


def test_a_member_that_never_had_weight_is_excluded_with_the_count() -> None:
    (one,) = excluded(report_of((MALLORY,), (MALLORY, ALICE), (MALLORY,)))
    assert (one.peer, one.reason) == (MALLORY, "given no weight by rule nk in 3 of 3 rounds")


def test_a_member_passed_over_in_most_rounds_but_not_all_is_not_excluded() -> None:
    assert not excluded(report_of((ALICE,), (ALICE,), (ALICE,), (BOB,)))


def test_two_rounds_say_nothing_about_a_member() -> None:
    assert not excluded(report_of((MALLORY,), (MALLORY,)))


def test_an_absent_member_is_told_of() -> None:
    (one,) = excluded(report_of((), (), absent=(BOB,)))
    assert (one.peer, one.reason) == (BOB, "absent in 2 of 2 rounds")


def test_who_was_excluded_does_not_publish_and_all_members_agree_on_the_order() -> None:
    report = report_of((MALLORY,), (MALLORY,), (MALLORY,))
    assert publishers(report, ALL) == (ALICE, BOB)
