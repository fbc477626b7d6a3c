"""What a member tells of a certified round."""

from __future__ import annotations

from celluler.jobs.telemetry import RoundFigures
from celluler.learning.report import RoundReport
from celluler.learning.standing import Standing
from celluler_node.training.averaging import Seen
from celluler_node.training.figures import Figures
from simulations.rounds import roster_of

SIZE = 4
STANDING = Standing.of(roster_of(SIZE, 3, 1))
PARTS = STANDING.roster.rules.parts


class Teller:
    def __init__(self) -> None:
        self.told: list[RoundFigures] = []
        self.figures = Figures(lambda: 0.0, lambda: (0, 0), lambda at_s, metrics, told: self.told.append(told))

    def norms(self, number: int) -> dict[int, float]:
        peers = tuple(member.peer for member in STANDING.roster.members)
        self.figures.certified(STANDING.roster, RoundReport(number, 1, peers, (), ()), STANDING, 0)
        return {one.member: one.value for one in self.told[-1].norms}


def test_norms_are_told_of_all_members_whose_every_part_was_seen() -> None:
    teller = Teller()
    for part in range(PARTS):
        seen = {1: 4.0, 2: 9.0, 3: 1.0} if part else {1: 4.0, 2: 9.0}  # of the last member one part was not there
        teller.figures.seen(0, Seen(part, seen))
    assert teller.norms(0) == {1: (4.0 * PARTS) ** 0.5, 2: (9.0 * PARTS) ** 0.5}


def test_a_part_that_was_seen_twice_counts_once_and_no_norm_outlives_its_round() -> None:
    teller = Teller()
    for part in (*range(PARTS), 0, 0):
        teller.figures.seen(0, Seen(part, {1: 4.0}))
    assert teller.norms(0) == {1: (4.0 * PARTS) ** 0.5}
    assert teller.norms(1) == {}


def test_our_own_norm_is_told_also_when_our_update_came_too_late_for_the_others() -> None:
    teller = Teller()
    teller.figures.trained(0, 0.25, 5.0)
    assert teller.norms(0) == {0: 5.0}


def test_what_the_objective_is_judged_by_is_told_under_its_own_name() -> None:
    told: list[dict[str, float]] = []
    figures = Figures(lambda: 0.0, lambda: (0, 0), lambda at_s, metrics, round_: told.append(dict(metrics)))
    teller = Teller()
    for one in (figures, teller.figures):
        one.trained(0, 0.5, 1.0, metric="perplexity", value=12.5)
        one.trained(1, 0.5, 1.0, metric="perplexity", value=float("inf"))
    for number in range(2):
        figures.certified(STANDING.roster, RoundReport(number, 1, (), (), ()), STANDING, 0)
        teller.norms(number)
    assert [one.get("perplexity") for one in told] == [12.5, None]
    assert [(one.metric, one.value) for one in teller.told] == [("perplexity", 12.5), ("", None)]
