"""Whole runs in the simulated world: death, return, silence, and what is reported."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celluler.errors import LocalError
from celluler.identity import seal
from celluler.learning.effects import Fault, Send, Stalled, Train
from celluler.learning.messages import Body, Certificate, Mark, Quorum, Status, open_message
from celluler.learning.report import RunReport
from celluler.learning.roster import tolerated
from celluler.learning.run import Run
from celluler.learning.standing import INACTIVE_ROUNDS
from simulations.rounds import (
    GENESIS,
    Member,
    Poisons,
    Schedule,
    Silent,
    Theatre,
    Traitor,
    draw,
    identity,
    play,
    roster_of,
    signers_of,
)
from simulations.world import Network

pytestmark = pytest.mark.thorough

QUIET = Network(latency_s=(0.005, 0.05))


def quiet(size: int = 5, rounds: int = 2) -> Schedule:
    """Nothing goes wrong."""
    return replace(
        draw(0), size=size, rounds=rounds, parts=2, network=QUIET, liars={}, deaths={}, partition=None, cuts=(),
        flaps=(), cunning=False, slow={},
    )  # fmt: skip


def member(theatre: Theatre, place: int) -> Member:
    found = theatre.world[theatre.roster.members[place].peer]
    assert isinstance(found, Member)
    return found


def report_of(theatre: Theatre, place: int) -> RunReport:
    return member(theatre, place).run.report


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_when_nothing_goes_wrong_every_round_takes_one_view_and_all_contribute(size: int) -> None:
    theatre = Theatre(quiet(size))
    outcome = theatre.play()
    assert (outcome.broken, outcome.views, outcome.excluded) == ([], 1, set())
    report = report_of(theatre, 0)
    assert [len(one.contributed) for one in report.rounds] == [size, size]
    assert report.findings == ()


@pytest.mark.parametrize("dies_s", [0.3, 1.6, 2.8])
@pytest.mark.parametrize("place", range(5))
def test_one_of_five_killed_in_mid_round_costs_one_or_two_timeouts(place: int, dies_s: float) -> None:
    undisturbed = Theatre(quiet(rounds=3)).play()
    theatre = Theatre(replace(quiet(rounds=3), deaths={place: (dies_s, None)}))
    outcome = theatre.play()
    rules = theatre.roster.rules
    assert outcome.broken == []
    timeouts_s = (rules.delta_ms + max(rules.delta_ms, rules.exchange_ms)) / 1000
    assert outcome.finished_s <= undisturbed.finished_s + timeouts_s + 2.0  # and the little things
    last = report_of(theatre, (place + 1) % 5).rounds[-1]
    assert last.absent == (theatre.roster.members[place].peer,)


def test_two_of_five_killed_stall_the_run_in_bounded_time_with_the_reason() -> None:
    theatre = Theatre(replace(quiet(), deaths={1: (1.0, None), 3: (1.0, None)}), stall_ms=10_000)
    outcome = theatre.play()
    assert sorted(outcome.stalled) == [0, 2, 4]
    for at_s, reason in outcome.stalled.values():
        assert at_s <= 1.0 + 2.0 + 10.0 + 1.0  # death, one delta of silence, the patience asked for, a little
        assert reason.startswith("3 of 5 members are alive, 4 are needed; silent: ")
    assert member(theatre, 0).run.next_deadline() is None


def test_a_member_that_cannot_be_reached_by_enough_others_gives_up_alone() -> None:
    cuts = tuple((place, 0) for place in range(1, 5))
    theatre = Theatre(replace(quiet(), cuts=cuts), stall_ms=10_000)
    outcome = theatre.play()
    assert list(outcome.stalled) == [0]
    assert sorted(theatre.finished) == [1, 2, 3, 4]


def test_a_member_cut_off_for_a_while_catches_up_and_ends_in_the_same_state() -> None:
    theatre = Theatre(replace(quiet(rounds=4), partition=(1.0, 9.0, frozenset({2}))))
    outcome = theatre.play()
    assert outcome.broken == []
    assert len(theatre.finished) == 5
    rounds = report_of(theatre, 2).rounds
    assert rounds == report_of(theatre, 0).rounds
    assert any(theatre.roster.members[2].peer in one.absent for one in rounds)


def test_one_cut_link_changes_nothing() -> None:
    outcome = Theatre(replace(quiet(), cuts=((3, 1),))).play()
    assert (outcome.broken, outcome.views) == ([], 1)


def test_a_member_killed_and_started_again_contributes_again_and_never_contradicts_itself() -> None:
    theatre = Theatre(replace(quiet(rounds=8), deaths={2: (1.65, 3.0)}))
    outcome = theatre.play()
    assert outcome.broken == []
    assert theatre.finished[2] == theatre.finished[0]
    back = [theatre.roster.members[2].peer in one.contributed for one in report_of(theatre, 0).rounds]
    assert not all(back)
    assert back[-1]


def test_a_dead_member_leads_no_more_after_three_rounds() -> None:
    theatre = Theatre(replace(quiet(rounds=INACTIVE_ROUNDS + 5), deaths={2: (0.1, None)}))
    assert theatre.play().broken == []
    rounds = report_of(theatre, 0).rounds
    assert all(one.views == 1 for one in rounds[INACTIVE_ROUNDS + 1 :])


def test_a_slow_member_is_absent_but_ends_in_the_same_state() -> None:
    theatre = Theatre(replace(quiet(rounds=3), slow={4: 5.0}))
    outcome = theatre.play()
    assert outcome.broken == []
    assert theatre.roster.members[4].peer in report_of(theatre, 0).rounds[0].absent


def test_who_the_rule_gives_no_weight_is_in_the_report_with_the_rules_name() -> None:
    theatre = Theatre(replace(quiet(), liars={3: Poisons}))
    theatre.play()
    liar = theatre.roster.members[3].peer
    report = report_of(theatre, 0)
    assert all(one.no_weight == (liar,) for one in report.rounds)
    assert (liar, "given no weight by rule nk", 2) in [(f.peer, f.reason, f.count) for f in report.findings]


def test_all_honest_members_write_the_same_report_of_every_round() -> None:
    theatre = Theatre(replace(quiet(7, rounds=3), liars={1: Silent}, deaths={5: (1.0, None)}))
    theatre.play()
    reports = [report_of(theatre, place).rounds for place in (0, 2, 3, 4, 6)]
    assert all(one == reports[0] for one in reports)


def test_a_seed_replays_exactly() -> None:
    one, two, other = play(7), play(7), play(8)
    assert (one.trace, one.finished_s) == (two.trace, two.finished_s)
    assert one.trace != other.trace


def test_the_checks_see_a_fork_when_there_are_more_liars_than_tolerated() -> None:
    """The simulation would notice: with twice b traitors and a cunning network some schedule must break."""
    assert tolerated(4) == 1
    broken = 0
    for seed in range(12):
        schedule = replace(quiet(4, rounds=1), seed=seed, liars={0: Traitor, seed % 3 + 1: Traitor}, cunning=True)
        broken += any("two certificates" in line for line in Theatre(schedule, stall_ms=10_000).play(120.0).broken)
    assert broken


# --- one run, by hand ---------------------------------------------------------------------------------------------


def run_of(place: int = 0, *, size: int = 4, incarnation: int = 0) -> Run:
    roster = roster_of(size, 2, 2)
    return Run(roster, signers_of(size)[roster.members[place].peer], state_root=GENESIS, incarnation=incarnation)


def test_a_stranger_has_no_run() -> None:
    with pytest.raises(LocalError):
        Run(roster_of(4, 2, 2), identity(77), state_root=GENESIS)


def test_a_run_starts_by_training_and_telling_where_it_is() -> None:
    run = run_of()
    effects = run.start(0.0)
    assert Train(0, True) in effects
    [send] = [effect for effect in effects if isinstance(effect, Send)]
    assert isinstance(open_message(send.data).record, Status)


def test_a_run_that_was_started_again_trains_only_when_it_knows_that_it_may_sign() -> None:
    assert not [effect for effect in run_of(incarnation=1).start(0.0) if isinstance(effect, Train)]


def test_garbage_is_blamed_on_who_brought_it_and_lies_on_who_signed_them() -> None:
    run = run_of()
    run.start(0.0)
    bringer, author = run.roster.members[1].peer, run.roster.members[2].peer
    for garbage in (b"", b"\x00", b"x" * 1000, b"\xff" * 70_000):
        assert [effect.peer for effect in run.receive(bringer, garbage, 0.1) if isinstance(effect, Fault)] == [bringer]
    forgery = Certificate(run.roster.run, *_forged(run))
    assert run.receive(bringer, seal(identity(50), forgery), 0.1) == ()  # of a member, perhaps, that we lag behind
    elsewhere = seal(signers_of(4)[author], replace(forgery, run=b"x" * 32))
    assert [e.peer for e in run.receive(bringer, elsewhere, 0.1) if isinstance(e, Fault)] == [bringer]
    forged = seal(signers_of(4)[author], forgery)
    assert [e.peer for e in run.receive(bringer, forged, 0.1) if isinstance(e, Fault)] == [author]


def _forged(run: Run) -> tuple[Body, Quorum]:
    body = Body(0, run.roster.digest, b"s" * 32, 0b1111, GENESIS, ())
    return body, Quorum(0, tuple(Mark(place, b"x" * 64) for place in range(3)))


def test_wrong_answers_of_our_own_side_are_errors_of_ours_and_late_ones_are_ignored() -> None:
    run = run_of()
    run.start(0.0)
    hashes, exponents = (b"h" * 32,) * 2, (0, 0)
    assert run.trained(1, hashes, exponents, GENESIS, 0.1) == ()
    assert run.exchanged(1, 0, (None, None), 0.1) == ()
    assert run.applied(0, GENESIS, 0.1) == ()
    for wrong in ((hashes, exponents, b"other" * 6 + b"__"), (hashes[:1], exponents, GENESIS)):
        with pytest.raises(LocalError):
            run.trained(0, *wrong, 0.1)
    with pytest.raises(LocalError):
        run.exchanged(0, 0, (None,), 0.1)


def test_a_run_without_progress_says_what_it_waited_for() -> None:
    run = run_of(size=1)
    run.start(0.0)
    effects = run.tick(10_000.0)
    assert [effect for effect in effects if isinstance(effect, Stalled)] == [
        Stalled("no progress for 633 s; round 0, view 0: 0 of the 1 updates needed from one state")
    ]
    assert run.receive(run.roster.members[0].peer, b"", 10_001.0) == ()
