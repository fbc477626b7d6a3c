"""Whole runs in the simulated world in which members come late, sit out, return, or do not do everything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celluler.learning.effects import Behind, Exchange
from celluler.learning.roster import ALL_ROLES, Role
from simulations.rounds import Honest, Joiner, KeepsParts, Member, ReducesWrongly, Schedule, Theatre
from simulations.rounds.liars import AdmitsAnybody, SuspendsOthers
from tests.unit.test_rounds_run import member, quiet, report_of


def theatre_of(size: int = 4, rounds: int = 5, **changes: Any) -> Theatre:
    base: Schedule = replace(quiet(size, rounds), checks=True, probation=1, suspension=3, forgets=True)
    return Theatre(replace(base, **changes))


@pytest.mark.parametrize("invited", [True, False])
def test_who_comes_late_follows_then_contributes_and_ends_in_the_same_state(invited: bool) -> None:
    theatre = theatre_of(rounds=7, joiners=(Joiner(0.5, invited, vanishes=False),))
    outcome = theatre.play()
    assert (outcome.broken, outcome.joined) == ([], 1)
    assert len(theatre.finished) == 5
    peer = theatre.roster.members[4].peer
    rounds = report_of(theatre, 0).rounds
    admitted = next(one.round for one in rounds if peer in one.admitted)
    assert peer not in rounds[admitted + 1].contributed
    assert peer in rounds[-1].contributed
    assert 4 in member(theatre, 0).run.standing.electorate
    assert report_of(theatre, 4).rounds == rounds


def test_a_newcomer_that_is_gone_again_keeps_nobody_waiting_and_raises_no_quorum() -> None:
    joiners = tuple(Joiner(0.2 * number, invited=True, vanishes=True) for number in range(3))
    theatre = theatre_of(rounds=6, joiners=joiners)
    assert theatre.play().broken == []
    standing = member(theatre, 0).run.standing
    assert len(standing.roster) == 7
    assert (len(standing.electorate), standing.electorate.q) == (4, 3)


def test_who_keeps_its_parts_from_all_is_suspended_and_comes_back() -> None:
    theatre = theatre_of(rounds=8, parts=4, liars={2: KeepsParts})
    outcome = theatre.play()
    assert (outcome.broken, outcome.suspended) == ([], {"KeepsParts"})
    peer, rounds = theatre.roster.members[2].peer, report_of(theatre, 0).rounds
    when = next(one.round for one in rounds if peer in one.suspended)
    assert all(peer not in one.contributed + one.absent for one in rounds[when + 1 : when + 4])
    assert peer in rounds[when + 4].contributed + rounds[when + 4].absent


def test_who_was_away_for_longer_than_parts_are_kept_begins_anew_with_the_chain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theatre, told = theatre_of(rounds=12, away={1: (2.0, 15.0)}), list[Behind]()
    revive = theatre._revive

    def hear(who: Member, effect: Behind, now: float) -> None:
        told.append(effect)
        revive(who, effect, now)

    monkeypatch.setitem(theatre._handlers, Behind, hear)
    outcome = theatre.play()
    assert (outcome.broken, outcome.revived) == ([], 1)
    assert len(set(theatre.finished.values())) == 1
    assert len(theatre.finished) == 4
    assert told[0].holders
    assert theatre.roster.members[1].peer not in told[0].holders


@pytest.mark.parametrize("kind", [SuspendsOthers, AdmitsAnybody])
def test_a_leader_that_sends_away_or_lets_in_whom_it_likes_is_not_followed(kind: type[Honest]) -> None:
    theatre = theatre_of(liars={1: kind})
    outcome = theatre.play()
    assert (outcome.broken, outcome.suspended) == ([], set())
    assert len(member(theatre, 0).run.roster) == 4


def test_in_a_star_one_member_reduces_everything_round_after_round() -> None:
    theatre = theatre_of(topology="star")
    seen, exchange = set[tuple[int, ...]](), theatre.hands.exchange

    def look(who: Member, effect: Exchange, now: float) -> None:
        seen.add(effect.reducers)
        exchange(who, effect, now)

    theatre._handlers[Exchange] = look
    assert theatre.play().broken == []
    assert seen == {(0, 0)}


def test_when_the_aggregator_of_a_star_dies_another_takes_over() -> None:
    outcome = theatre_of(topology="star", rounds=6, deaths={0: (4.0, None)}).play()
    assert outcome.broken == []


def test_some_train_and_others_vote() -> None:
    trains, votes = Role.WORKER | Role.AGGREGATOR, Role.VALIDATOR
    theatre = theatre_of(7, roles=(ALL_ROLES, trains, votes, trains, ALL_ROLES, votes, trains), rounds=5)
    outcome = theatre.play()
    assert (outcome.broken, outcome.views, len(theatre.finished)) == ([], 1, 7)
    run = member(theatre, 0).run
    assert all(len(one.contributed) == 5 for one in run.report.rounds)
    marks = {mark.member for certificate in run.certificates for mark in certificate.quorum.marks}
    assert marks <= {0, 2, 4, 5}
    assert run.standing.leaders == (0, 2, 4, 5)
    assert [credit.accrued > 0 for credit in run.standing.credits] == [True] * 7


def test_who_reduces_wrongly_without_a_vote_is_proven_a_liar_and_expelled() -> None:
    trains = Role.WORKER | Role.AGGREGATOR
    theatre = theatre_of(5, roles=(ALL_ROLES, ALL_ROLES, trains, ALL_ROLES, ALL_ROLES), liars={2: ReducesWrongly})
    outcome = theatre.play()
    assert (outcome.broken, outcome.expelled) == ([], {"ReducesWrongly"})
