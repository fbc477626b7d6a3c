"""Checks, accusations and expulsion at one member, message by message, and in whole runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celluler.errors import PeerViolation, ProtocolViolation
from celluler.identity import seal
from celluler.learning.checking import Checking
from celluler.learning.checks import CheckOutcome, CheckPart, Verdict, checks_for
from celluler.learning.effects import Check, Exclude, Fault
from celluler.learning.evidence import FraudEvidence, check_equivocation, open_accusation, open_fraud
from celluler.learning.evidence_file import Kind, open_evidence_file
from celluler.learning.messages import (
    BodyProposal,
    Certificate,
    Equivocation,
    Fraud,
    Mark,
    Quorum,
    Reduced,
    SetProposal,
    Status,
    Vote,
    check_certificate,
    record_hash,
    signature_of,
)
from celluler.learning.roster import Electorate
from celluler.learning.round import Step
from celluler.learning.run import Run
from simulations.rounds import (
    GENESIS,
    AccusesFalsely,
    HidesInputs,
    Honest,
    KeepsInputs,
    ReducesWrongly,
    ServesHalf,
    Silent,
    Theatre,
    TwoVotes,
    digest,
    identity,
    roster_of,
    signers_of,
)
from simulations.rounds import member as surroundings
from tests.support.heights import (
    DELTA_S,
    EXCHANGE_S,
    PARTS,
    RESULTS,
    ROSTER,
    SIZE,
    Bench,
    body_of,
    body_proposal,
    commit_of,
    inputs,
    part_of,
    quorum_of,
    set_of,
    sign,
    vote,
)
from tests.unit.test_rounds_run import member, quiet, report_of

pytestmark = pytest.mark.thorough

ALL = set_of(0, 1, 2, 3)


def statement(part: int, *, face: str = "", proposal: SetProposal = ALL) -> tuple[int, Reduced]:
    """(reducer, what it signs)"""
    chosen = inputs(proposal)
    return chosen.reducers[part], chosen.states(ROSTER, 0, part, part_of(part, face=face))


def accusation(part: int, *, face: str = "") -> Fraud:
    reducer, said = statement(part, face=face)
    return Fraud(ROSTER.run, 0, sign(reducer, said), ALL.entries)


def exchanged(me: int = 3, *, checks: int = PARTS) -> Bench:
    """A member that has the leader's set and every part; nothing is stated yet."""
    bench = Bench(me, checks=checks)
    bench.all_commit()
    if me != 0:
        bench.say(0, ALL)
    bench.hand_over(0, RESULTS)
    return bench


def proposed(me: int = 3, *, checks: int = PARTS) -> Bench:
    bench = exchanged(me, checks=checks)
    bench.say(0, body_proposal(ALL))
    return bench


# --- what is checked, and what follows ----------------------------------------------------------------------------


def test_a_part_is_looked_at_only_once_its_reducer_has_signed_it() -> None:
    bench = exchanged()
    assert not bench.did(Check)
    reducer, said = statement(1)
    bench.say(reducer, said)
    [check] = bench.did(Check)
    [part] = check.parts
    assert (part.part, part.reducer, part.claimed) == (1, reducer, RESULTS[1])
    assert part.inputs == tuple((place, commit_of(place).hashes[1]) for place in range(SIZE))
    assert (check.members, check.reducers, check.set_hash) == ((0, 1, 2, 3), (0, 1), inputs(ALL).hash)


def test_nobody_checks_its_own_reducing() -> None:
    bench = proposed(1)
    assert [part.part for check in bench.did(Check) for part in check.parts] == [0]


def test_a_member_votes_for_a_body_once_everything_it_drew_came_out_the_same() -> None:
    bench = proposed()
    assert (bench.height.step, bench.said(Vote)) == (Step.CHECK, [])
    bench.find(Verdict.SAME, 0)
    assert not bench.said(Vote)
    bench.find(Verdict.SAME, 1)
    assert bench.said(Vote) == [vote(body_of(ALL), phase=1)]


def test_without_checks_nothing_is_asked_and_the_vote_is_at_once() -> None:
    bench = proposed(checks=0)
    assert not bench.did(Check)
    assert bench.said(Vote) == [vote(body_of(ALL), phase=1)]
    assert not bench.accuse(2, accusation(1))
    assert not bench.did(Check)


def test_a_wrong_part_is_voted_against_and_shown_to_everybody_with_its_reducers_signature() -> None:
    bench = proposed()
    bench.find(Verdict.DIFFERENT, 1)
    assert bench.said(Vote) == [vote(None, phase=1, lacking=0b10)]
    assert bench.said(Fraud) == [accusation(1)]
    [exclude] = bench.did(Exclude)
    assert exclude.peer == ROSTER.members[1].peer
    opened = open_evidence_file(exclude.evidence)
    assert (opened.kind, opened.accused, opened.peer) == (Kind.FRAUD, 1, exclude.peer)
    [case] = opened.frauds
    assert (case.reducer, case.part, case.claimed, case.members) == (1, 1, RESULTS[1], (0, 1, 2, 3))
    assert case.commits == tuple(commit_of(place) for place in range(SIZE))


def test_inputs_that_are_not_served_prove_nothing_but_the_part_is_not_voted_for() -> None:
    bench = proposed()
    bench.find(Verdict.SAME, 0)
    bench.find(Verdict.UNSERVED, 1)
    assert bench.said(Vote) == [vote(None, phase=1, lacking=0b10)]
    assert not bench.did(Exclude)
    assert not bench.did(Fault)


def test_the_next_leader_bars_the_reducer_whose_inputs_were_not_served() -> None:
    bench = proposed(1)
    bench.find(Verdict.UNSERVED, 0)
    for phase in (1, 2):
        for place in (2, 3):
            bench.say(place, vote(None, phase=phase))
    assert [said.barred for said in bench.said(SetProposal)] == [0b0001]


def test_what_could_not_be_checked_is_asked_again_in_the_next_view() -> None:
    bench = proposed()
    bench.find(Verdict.SAME, 0)
    bench.find(Verdict.UNSERVED, 1)
    for phase in (1, 2):
        for place in (1, 2):
            bench.say(place, vote(None, phase=phase))
    bench.say(1, replace(ALL, view=1))
    bench.hand_over(1, RESULTS)
    bench.say(1, body_proposal(replace(ALL, view=1)))
    assert [part.part for part in bench.did(Check)[-1].parts] == [1]  # part 0 is the same result from another reducer
    bench.find(Verdict.SAME, 1)
    assert bench.said(Vote)[-1] == vote(body_of(ALL), phase=1, view=1)


def test_a_leader_does_not_propose_what_it_knows_to_be_wrong() -> None:
    reducer, said = statement(1)
    bench = Bench(0, checks=PARTS)
    bench.all_commit()
    bench.hand_over(0, (RESULTS[0], None))
    bench.say(reducer, said)
    bench.find(Verdict.DIFFERENT, 1)
    bench.height.fetched(RESULTS[1].digest, bench.now)
    bench.effects += bench.height.take()
    assert not bench.said(BodyProposal)
    assert bench.said(Vote) == [vote(None, phase=1, lacking=0b10)]


def test_checks_that_do_not_end_cost_one_view_and_are_held_against_nobody() -> None:
    bench = proposed()
    bench.wait(EXCHANGE_S + DELTA_S - 0.01)
    assert not bench.said(Vote)
    bench.wait(0.01)
    assert bench.said(Vote) == [vote(None, phase=1)]
    assert not bench.did(Exclude)


def test_a_body_with_an_earlier_quorum_needs_no_check_of_ours() -> None:
    bench = Bench(3, checks=PARTS)
    bench.all_commit()
    for result in RESULTS:
        bench.height.fetched(result.digest, 0.0)
    for place in (0, 2):
        bench.say(place, vote(None, phase=1, view=1))
    body = body_of(ALL)
    bench.say(1, BodyProposal(ROSTER.run, 0, 1, body, (), quorum_of(body, 0, 1, 2)))
    assert bench.said(Vote)[0] == vote(body, phase=1, view=1)


def test_fraud_found_after_the_decision_still_convicts() -> None:
    bench = proposed()
    body = body_of(ALL)
    bench.height.certify(Certificate(ROSTER.run, body, quorum_of(body, 0, 1, 2, phase=2)), bench.now)
    bench.find(Verdict.DIFFERENT, 0)
    assert [exclude.peer for exclude in bench.did(Exclude)] == [ROSTER.members[0].peer]
    assert bench.said(Fraud) == [accusation(0)]


# --- accusations --------------------------------------------------------------------------------------------------


def test_an_accusation_is_looked_into_before_anything_is_believed() -> None:
    bench = exchanged()
    assert bench.accuse(2, accusation(1))
    assert not bench.did(Exclude)
    [check] = bench.did(Check)
    assert [(part.part, part.reducer) for part in check.parts] == [(1, 1)]
    bench.find(Verdict.DIFFERENT, 1)
    assert [exclude.peer for exclude in bench.did(Exclude)] == [ROSTER.members[1].peer]


def test_a_false_accusation_is_told_and_the_second_one_is_proof_against_the_accuser() -> None:
    bench = proposed()
    bench.find(Verdict.SAME, 0, 1)
    assert bench.accuse(2, accusation(0))
    assert [fault.peer for fault in bench.did(Fault)] == [ROSTER.members[2].peer]
    assert not bench.accuse(2, accusation(0))
    later = proposed()
    later.height.setting.docket.false.update(bench.height.setting.docket.false)
    later.find(Verdict.SAME, 0, 1)
    assert later.accuse(2, accusation(1))
    [exclude] = later.did(Exclude)
    assert exclude.peer == ROSTER.members[2].peer
    case = open_evidence_file(exclude.evidence)
    assert (case.kind, case.accused, case.frauds_false) == (Kind.FALSE_ACCUSATIONS, 2, True)
    assert [(fraud.part, fraud.claimed) for fraud in case.frauds] == [(0, RESULTS[0]), (1, RESULTS[1])]


def test_a_member_may_hold_up_a_height_with_b_accusations_at_most() -> None:
    bench = exchanged()
    assert bench.accuse(2, accusation(0))
    assert not bench.accuse(2, accusation(1))


def test_an_accusation_that_cannot_be_looked_into_costs_nobody_anything() -> None:
    bench = proposed()
    bench.accuse(2, accusation(1))
    bench.find(Verdict.UNSERVED, 1)
    assert not bench.did(Fault)
    assert not bench.did(Exclude)


def test_commits_that_an_accusation_names_are_asked_for() -> None:
    bench = Bench(3, checks=PARTS)
    assert bench.accuse(2, accusation(1))
    assert not bench.did(Check)
    assert set(bench.height.status(0, 1, 0, 0, 0).wanted) == set(ALL.entries)
    bench.all_commit()
    assert len(bench.did(Check)) == 1


def nonsense() -> list[Fraud]:
    good = accusation(1)
    stranger = seal(identity(77), statement(1)[1])
    return [
        replace(good, round=1),
        replace(good, entries=good.entries[1:]),
        replace(good, statement=sign(1, vote(None, phase=1))),
        replace(good, statement=stranger),
        replace(good, statement=sign(1, replace(statement(1)[1], run=digest("other")))),
        replace(good, statement=sign(1, replace(statement(1)[1], part=PARTS))),
        replace(good, statement=good.statement[:-1]),
    ]


@pytest.mark.parametrize("record", nonsense())
def test_an_accusation_that_is_none_is_a_violation_of_the_accuser(record: Fraud) -> None:
    with pytest.raises(PeerViolation):
        open_accusation(ROSTER, record)


def test_nobody_accuses_itself() -> None:
    with pytest.raises(ProtocolViolation):
        exchanged().accuse(1, accusation(1))


# --- evidence for others ------------------------------------------------------------------------------------------


def test_evidence_with_a_commit_too_few_or_too_many_is_none() -> None:
    commits = tuple(sign(place, commit_of(place)) for place in range(SIZE))
    said = accusation(1).statement
    assert open_fraud(ROSTER, FraudEvidence(ROSTER.run, said, commits)).reducer == 1
    for wrong in (commits[1:], (*commits, commits[0]), commits[::-1], (*commits[:3], said)):
        with pytest.raises(PeerViolation):
            open_fraud(ROSTER, FraudEvidence(ROSTER.run, said, wrong))


def test_a_contradiction_proves_itself_to_whoever_knows_the_roster() -> None:
    first, second = sign(2, vote(None, phase=1)), sign(2, vote(body_of(ALL), phase=1))
    assert check_equivocation(ROSTER, Equivocation(ROSTER.run, 0, first, second))[0] == 2


@pytest.mark.parametrize("pair", [
    (sign(2, vote(None, phase=1)), sign(2, vote(None, phase=1))),
    (sign(2, vote(None, phase=1)), sign(2, vote(None, phase=2))),
    (sign(2, vote(None, phase=1)), sign(1, vote(body_of(ALL), phase=1))),
    (sign(2, vote(None, phase=1)), sign(2, commit_of(2))),
    (sign(1, statement(1)[1]), sign(1, replace(statement(1)[1], view=1, result=part_of(1, face="x")))),
    (sign(2, vote(None, phase=1)), sign(2, replace(vote(body_of(ALL), phase=1), round=1))),
    (sign(2, Status(ROSTER.run, 0, 0, 0, 1, False, 0, False, False, 0, 0, 0, 0, ())),
     sign(2, Status(ROSTER.run, 0, 0, 0, 2, False, 0, False, False, 0, 0, 0, 0, ()))),
])  # fmt: skip
def test_what_an_honest_member_may_sign_is_no_contradiction(pair: tuple[bytes, bytes]) -> None:
    with pytest.raises(PeerViolation):
        check_equivocation(ROSTER, Equivocation(ROSTER.run, 0, *pair))


# --- expulsion ----------------------------------------------------------------------------------------------------


def expelling(*members: int, parts: Any = RESULTS) -> BodyProposal:
    honest = body_proposal(ALL, parts)
    return replace(honest, body=replace(honest.body, expelled=sum(1 << place for place in members)))


def test_a_body_that_expels_is_voted_for_by_those_who_know_why() -> None:
    bench = exchanged(checks=0)
    bench.say(0, expelling(2))
    assert not bench.said(Vote)  # proof may be under way
    bench.condemned.add(2)
    bench.wait(0.1)
    assert bench.said(Vote) == [vote(expelling(2).body, phase=1)]


def test_a_body_that_expels_without_cause_is_voted_against() -> None:
    bench = exchanged(checks=0)
    bench.say(0, expelling(2))
    bench.wait(EXCHANGE_S + DELTA_S)
    assert bench.said(Vote) == [vote(None, phase=1)]


@pytest.mark.parametrize("members", [(9,), (1, 2)])
def test_a_body_that_expels_strangers_or_more_than_b_is_a_violation(members: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolViolation):
        exchanged().say(0, expelling(*members))


@pytest.mark.parametrize(("known", "expelled"), [(2, 0), (3, 0b0100)])
def test_a_leader_expels_whom_a_quorum_says_it_has_proof_against(known: int, expelled: int) -> None:
    bench = Bench(0, checks=PARTS)
    bench.condemned.add(2)
    bench.proofs[2] = known
    bench.all_commit()
    bench.hand_over(0, RESULTS)
    bench.say(1, statement(1)[1])
    assert [said.body.expelled for said in bench.said(BodyProposal)] == [expelled]


def test_a_certificate_counts_only_members_that_nobody_has_expelled() -> None:
    roster = roster_of(5, 2, 2)
    signers = [signers_of(5)[one.peer] for one in roster.members]
    body = replace(body_of(ALL), prev=roster.digest)

    def certificate(*marks: int) -> Certificate:
        said = Vote(roster.run, 0, 0, 2, record_hash(body), 0)
        return Certificate(
            roster.run, body, Quorum(0, tuple(Mark(place, signature_of(seal(signers[place], said))) for place in marks))
        )

    check_certificate(Electorate(roster), certificate(0, 1, 2, 4))
    with pytest.raises(PeerViolation):
        check_certificate(Electorate(roster), certificate(0, 1, 2))
    check_certificate(Electorate(roster, expelled=0b01000), certificate(0, 1, 2))
    with pytest.raises(PeerViolation):
        check_certificate(Electorate(roster, expelled=0b01000), certificate(0, 1, 3))


# --- whole runs ---------------------------------------------------------------------------------------------------


def theatre_of(size: int, liars: dict[int, type[Honest]], *, rounds: int = 4, **other: Any) -> Theatre:
    return Theatre(replace(quiet(size, rounds), liars=liars, checks=True, **other))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_checks_of_honest_members_cost_no_view(size: int) -> None:
    outcome = theatre_of(size, {}).play()
    assert (outcome.broken, outcome.views, outcome.excluded) == ([], 1, set())


@pytest.mark.parametrize("kind", [ReducesWrongly, AccusesFalsely, TwoVotes])
def test_a_liar_that_is_proven_is_out_and_the_others_finish_without_it(kind: type[Honest]) -> None:
    theatre = theatre_of(5, {2: kind})
    outcome = theatre.play()
    liar = theatre.roster.members[2].peer
    assert (outcome.broken, outcome.spoiled) == ([], 0)
    assert outcome.expelled == {kind.__name__}
    reports = [report_of(theatre, place) for place in (0, 1, 3, 4)]
    assert all(one.rounds == reports[0].rounds and one.expelled == reports[0].expelled for one in reports)
    after = reports[0].expelled[liar] + 1
    assert all(liar not in one.contributed and liar not in one.absent for one in reports[0].rounds[after:])


@pytest.mark.parametrize("kind", [HidesInputs, ServesHalf])
def test_a_liar_that_hides_what_would_prove_it_gets_nothing_certified_and_is_soon_barred(kind: type[Honest]) -> None:
    theatre = theatre_of(5, {2: kind}, rounds=8)
    outcome = theatre.play()
    assert (outcome.broken, outcome.spoiled) == ([], 0)
    assert sum(one.views > 1 for one in report_of(theatre, 0).rounds) <= 4


def test_the_simulation_sees_wrong_parts_when_nobody_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "Run", lambda *given, **named: Run(*given, **{**named, "checks": 0}))
    outcome = theatre_of(4, {2: ReducesWrongly}).play()
    assert outcome.spoiled
    assert any("a wrong part" in line for line in outcome.broken)


def test_a_member_that_is_expelled_is_told_and_ends() -> None:
    theatre = theatre_of(5, {2: ReducesWrongly}, rounds=6)
    theatre.play()
    assert (member(theatre, 2).run.stalled or "").startswith("expelled by the others in round ")


def test_who_keeps_its_inputs_from_checkers_stops_nobody_and_is_not_expelled() -> None:
    outcome = theatre_of(5, {2: KeepsInputs}).play()
    assert (outcome.broken, outcome.expelled) == ([], set())


def test_two_liars_that_work_together_get_no_wrong_part_certified() -> None:
    outcome = theatre_of(7, {1: HidesInputs, 4: KeepsInputs}, rounds=6, parts=5).play()
    assert (outcome.broken, outcome.spoiled) == ([], 0)


def test_an_expelled_liar_leaves_room_for_the_next_fault() -> None:
    """Five tolerate one: once the liar is out, the four that are left bear a death."""
    outcome = theatre_of(5, {2: ReducesWrongly}, rounds=8, deaths={0: (25.0, None)}).play()
    assert outcome.expelled == {"ReducesWrongly"}
    assert outcome.broken == []


def test_in_a_large_group_one_honest_member_that_looked_is_heard_before_the_vote() -> None:
    outcome = theatre_of(10, {3: ReducesWrongly, 6: Silent}, rounds=3, parts=5, seed=2).play()
    assert outcome.broken == []


@pytest.mark.parametrize("waits", [True, False])
def test_who_finds_a_wrong_part_last_is_still_waited_for(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of ten look later than the others, and only they drew the wrong part. Without the wait it is certified."""
    if not waits:
        monkeypatch.setattr(Checking, "_await_objections", lambda *_: False)
    slow = dict.fromkeys((7, 8, 9), 1.0)
    outcome = theatre_of(10, {3: ReducesWrongly}, rounds=2, parts=10, seed=3, slow_checks=slow).play()
    assert bool(outcome.broken) is not waits


def test_an_accusation_reaches_a_member_that_missed_it() -> None:
    """Cut from the accuser, and told by the others; what is lost is sent again to whom its status shows to lack it."""
    theatre = theatre_of(5, {2: ReducesWrongly}, cuts=((0, 4), (1, 4)))
    assert theatre.play().broken == []
    assert theatre.outcome.expelled == {"ReducesWrongly"}


def test_late_answers_and_those_of_rounds_long_past_are_harmless() -> None:
    roster = roster_of(4, 2, 2)
    run = Run(roster, signers_of(4)[roster.members[0].peer], state_root=GENESIS, checks=checks_for(4, 2))
    run.start(0.0)
    assert run.checked(7, 0, (), 0.1) == ()
    assert run.checked(0, 3, (), 0.1) == ()
    unknown = CheckPart(inputs(ALL).hash, 1, 0, (), RESULTS[0])
    assert run.checked(0, 0, (CheckOutcome(unknown, Verdict.DIFFERENT),), 0.1) == ()
