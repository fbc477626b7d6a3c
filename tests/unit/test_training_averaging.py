from __future__ import annotations

from celluler.learning.effects import Exchange
from celluler.learning.messages import Commit
from celluler_node.training.averaging import plan_of
from simulations.rounds import digest, roster_of

SIZE, DIMENSION = 5, 100


def test_what_came_of_an_exchange_can_be_told_before_its_time_is_over() -> None:
    """Else a leader gives its view up at that very moment, bars nobody, and the same member fails it again."""
    roster = roster_of(SIZE, 3, SIZE)
    parts = roster.rules.parts
    commit = Commit(roster.run, 0, digest("prev"), digest("state"), (digest("part"),) * parts, (0,) * parts, True)
    members = tuple(range(SIZE))
    reducers = tuple(part % SIZE for part in range(parts))
    asked = Exchange(0, 0, digest("set"), members, (commit,) * SIZE, reducers, 15.0, 4)
    plan = plan_of(roster, 0, asked, DIMENSION)
    assert plan.gather_s < plan.deadline_s <= 0.9 * asked.within_s
