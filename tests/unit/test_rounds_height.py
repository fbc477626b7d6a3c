"""One height, message by message: four members, one of them possibly a liar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celluler.errors import PeerViolation, ProtocolViolation
from celluler.learning.effects import Diverged, Exchange, Exclude, Fault, Fetch, Send
from celluler.learning.evidence_file import MAX_FILE_BYTES, open_evidence_file, read_evidence_file
from celluler.learning.inputs import assign_reducers, check_part
from celluler.learning.messages import (
    BodyProposal,
    Certificate,
    Entry,
    Equivocation,
    Part,
    Reduced,
    SetProposal,
    Vote,
    check_certificate,
    open_message,
    record_hash,
    set_hash,
)
from celluler.learning.roster import Electorate
from celluler.learning.round import Step
from celluler.wire import unpack
from simulations.rounds import digest
from tests.support.heights import (
    DELTA_S,
    EXCHANGE_S,
    PARTS,
    RESULTS,
    ROOT,
    ROSTER,
    Bench,
    body_of,
    body_proposal,
    commit_of,
    entries_of,
    inputs,
    part_of,
    quorum_of,
    set_of,
    vote,
)


def locked_bench() -> Bench:
    """Member 3, locked in view 0 on the body of all four; view 1 has just begun."""
    bench = Bench(3)
    bench.all_commit()
    bench.say(0, set_of(0, 1, 2, 3))
    bench.hand_over(0, RESULTS)
    bench.say(0, body_proposal(set_of(0, 1, 2, 3)))
    for place in (0, 1):
        bench.say(place, vote(body_of(set_of(0, 1, 2, 3)), phase=1))
    for place in (1, 2):
        bench.say(place, vote(None, phase=2))
    bench.wait(DELTA_S)
    assert (bench.height.step, bench.height.view) == (Step.SET, 1)
    return bench


# --- the way it should go -----------------------------------------------------------------------------------------


def test_the_leader_takes_a_height_from_commits_to_a_certificate() -> None:
    bench = Bench(0)
    bench.all_commit()
    [proposal] = bench.said(SetProposal)
    assert proposal == set_of(0, 1, 2, 3)
    [exchange] = bench.did(Exchange)
    assert exchange.reducers == (0, 1)
    bench.hand_over(0, RESULTS)
    [statement] = bench.said(Reduced)  # part 0 is ours; part 1 is stated by member 1
    assert statement == inputs(proposal).states(ROSTER, 0, 0, RESULTS[0])
    assert not bench.said(BodyProposal)
    bench.say(1, inputs(proposal).states(ROSTER, 0, 1, RESULTS[1]))
    assert [said.body for said in bench.said(BodyProposal)] == [body_of(proposal)]
    for phase in (1, 2):
        for place in (1, 2):
            bench.say(place, vote(body_of(proposal), phase=phase))
    assert [said.phase for said in bench.said(Vote)] == [1, 2]
    certificate = bench.height.certificate
    assert certificate is not None
    check_certificate(Electorate(ROSTER), certificate)
    assert bench.height.complete


def test_nothing_is_timed_before_a_quorum_has_committed() -> None:
    bench = Bench(1)
    bench.commit()
    bench.say(2, commit_of(2))
    assert bench.height.next_deadline() is None
    bench.say(3, commit_of(3))
    assert bench.height.next_deadline() == DELTA_S


def test_the_leader_waits_half_a_delta_for_those_alive_and_not_for_the_dead() -> None:
    waiting, alone = Bench(0), Bench(0, alive=(0, 1, 2))
    for bench in (waiting, alone):
        bench.all_commit(1, 2)
    assert alone.said(SetProposal) == [set_of(0, 1, 2)]
    assert not waiting.said(SetProposal)
    waiting.wait(DELTA_S / 2)
    assert waiting.said(SetProposal) == [set_of(0, 1, 2)]


def test_commits_from_another_state_are_not_in_the_set() -> None:
    bench = Bench(0)
    bench.commit()
    bench.say(1, commit_of(1, root=digest("elsewhere")))
    bench.say(2, commit_of(2))
    bench.say(3, commit_of(3))
    assert bench.said(SetProposal) == [set_of(0, 2, 3)]


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_silent_leader_costs_one_delta_and_the_next_one_proposes() -> None:
    bench = Bench(1)
    bench.all_commit()
    bench.wait(DELTA_S)
    assert bench.said(Vote) == [vote(None, phase=1)]
    for phase in (1, 2):
        for place in (2, 3):
            bench.say(place, vote(None, phase=phase))
    assert bench.height.view == 1
    assert bench.said(SetProposal) == [set_of(0, 1, 2, 3, view=1)]


def test_a_part_that_does_not_come_is_not_voted_for_and_its_reducer_is_barred() -> None:
    bench = Bench(1)
    bench.all_commit()
    bench.say(0, set_of(0, 1, 2, 3))
    bench.hand_over(0, (None, RESULTS[1]))
    bench.wait(EXCHANGE_S + DELTA_S)
    assert bench.said(Vote) == [vote(None, phase=1, lacking=0b01)]
    for phase in (1, 2):
        for place in (2, 3):
            bench.say(place, vote(None, phase=phase))
    [proposal] = bench.said(SetProposal)
    assert proposal.barred == 0b0001
    assert 0 not in inputs(proposal).reducers


def test_a_member_votes_only_with_every_part_here_and_fetches_what_it_lacks() -> None:
    bench = Bench(3)
    bench.all_commit()
    bench.say(0, set_of(0, 1, 2, 3))
    bench.hand_over(0, (RESULTS[0], None))
    bench.say(0, body_proposal(set_of(0, 1, 2, 3)))
    assert not bench.said(Vote)
    [fetch] = bench.did(Fetch)
    assert fetch.parts == ((1, RESULTS[1]),)
    assert fetch.holders == (ROSTER.members[0].peer,)
    bench.height.fetched(RESULTS[1].digest, bench.now)
    bench.effects += bench.height.take()
    assert bench.said(Vote) == [vote(body_of(set_of(0, 1, 2, 3)), phase=1)]


def test_a_fetch_is_asked_again_with_the_next_holder_first() -> None:
    bench = Bench(3)
    whole = tuple(part_of(number, 3) for number in range(PARTS))
    body = body_of(set_of(0, 1, 2), whole)
    bench.height.certify(Certificate(ROSTER.run, body, quorum_of(body, 0, 1, 2, phase=2)), 0.0)
    bench.wait(0.0)
    bench.wait(DELTA_S)
    first, second = bench.did(Fetch)
    assert first.holders[0] != second.holders[0]
    assert set(first.holders) == {ROSTER.members[place].peer for place in (0, 1, 2)}
    assert not bench.height.complete


def test_a_member_follows_those_that_are_views_ahead() -> None:
    bench = Bench(3)
    bench.all_commit()
    bench.say(1, vote(None, phase=1, view=5))
    assert bench.height.view == 0  # one member alone may be a liar
    bench.say(2, vote(None, phase=1, view=4))
    assert bench.height.view == 4


# --- locks --------------------------------------------------------------------------------------------------------


def test_a_locked_member_votes_for_no_other_body() -> None:
    bench = locked_bench()
    fewer = set_of(0, 1, 2, view=1)
    parts = tuple(part_of(number, 3) for number in range(PARTS))
    bench.say(1, fewer)
    for part in parts:
        bench.height.fetched(part.digest, bench.now)
    bench.say(1, body_proposal(fewer, parts))
    assert bench.said(Vote)[-1] == vote(None, phase=1, view=1)


def test_a_locked_member_votes_for_the_body_it_is_locked_on() -> None:
    bench = locked_bench()
    again = BodyProposal(
        ROSTER.run, 0, 1, body_of(set_of(0, 1, 2, 3)), (), quorum_of(body_of(set_of(0, 1, 2, 3)), 0, 1, 3)
    )
    bench.say(1, again)
    assert bench.said(Vote)[-1] == vote(body_of(set_of(0, 1, 2, 3)), phase=1, view=1)


def test_a_locked_member_is_freed_by_a_later_quorum_for_another_body() -> None:
    bench = locked_bench()
    fewer = set_of(0, 1, 2, view=1)
    parts = tuple(part_of(number, 3) for number in range(PARTS))
    other = body_of(fewer, parts)
    for part in parts:
        bench.height.fetched(part.digest, bench.now)
    for place in (0, 1):
        bench.say(place, vote(None, phase=1, view=2))
    assert bench.height.view == 2
    bench.say(2, BodyProposal(ROSTER.run, 0, 2, other, (), quorum_of(other, 0, 1, 2, view=1)))
    assert vote(other, phase=1, view=2) in bench.said(Vote)


def test_a_leader_that_saw_a_quorum_proposes_that_body_again_with_the_proof() -> None:
    bench = Bench(1)
    bench.all_commit()
    bench.say(0, set_of(0, 1, 2, 3))
    bench.hand_over(0, RESULTS)
    bench.say(0, body_proposal(set_of(0, 1, 2, 3)))
    for place in (0, 2):
        bench.say(place, vote(body_of(set_of(0, 1, 2, 3)), phase=1))
        bench.say(place, vote(None, phase=2))
    bench.wait(DELTA_S)
    [again] = bench.said(BodyProposal)
    assert again.view == 1
    assert again.proof is not None
    assert {mark.member for mark in again.proof.marks} == {0, 1, 2}
    assert not bench.said(SetProposal)


@pytest.mark.parametrize("places", [(0, 1), (0, 0, 1), (1, 0, 2)])
def test_a_body_proposed_again_without_a_real_quorum_is_a_violation(places: tuple[int, ...]) -> None:
    bench = locked_bench()
    body = body_of(set_of(0, 1, 2, 3))
    with pytest.raises(ProtocolViolation):
        bench.say(1, BodyProposal(ROSTER.run, 0, 1, body, (), quorum_of(body, *places)))


# --- lies ---------------------------------------------------------------------------------------------------------


def lies() -> list[tuple[int, Any, Any]]:
    """(member, what it signed first, what it signed too)"""
    chosen = inputs(set_of(0, 1, 2, 3))
    return [
        (2, commit_of(2), commit_of(2, fresh=True)),
        (0, set_of(0, 1, 2, 3), set_of(0, 1, 2)),
        (2, vote(None, phase=1), vote(None, phase=1, lacking=1)),
        (2, vote(None, phase=2), vote(body_of(set_of(0, 1, 2)), phase=2)),
        (1, chosen.states(ROSTER, 0, 1, part_of(1)), chosen.states(ROSTER, 0, 1, part_of(1, face="other"))),
        (0, body_proposal(set_of(0, 1, 2, 3)), body_proposal(set_of(0, 1, 2, 3), (part_of(0, face="x"), part_of(1)))),
    ]


@pytest.mark.parametrize(("member", "first", "second"), lies(), ids=lambda value: type(value).__name__)
def test_two_different_words_are_proof_and_the_first_one_counts(member: int, first: Any, second: Any) -> None:
    bench = Bench(3)
    bench.say(member, first, second, second)
    [exclude] = bench.did(Exclude)
    assert exclude.peer == ROSTER.members[member].peer
    assert open_evidence_file(exclude.evidence).accused == member
    told = unpack(Equivocation, read_evidence_file(exclude.evidence).body, limit=MAX_FILE_BYTES)
    assert [open_message(raw).record for raw in (told.first, told.second)] == [first, second]


def test_the_same_word_twice_is_no_lie() -> None:
    bench = Bench(3)
    for member, first, _ in lies():
        bench.say(member, first, first)
    assert not bench.did(Exclude)


def test_a_reducer_whose_signed_result_differs_from_the_body_is_found_out_by_the_body() -> None:
    bench = Bench(3)
    bench.all_commit()
    proposal = set_of(0, 1, 2, 3)
    bench.say(0, proposal)
    bench.say(1, inputs(proposal).states(ROSTER, 0, 1, part_of(1, face="for member 3")))
    bench.say(0, body_proposal(proposal))
    assert [exclude.peer for exclude in bench.did(Exclude)] == [ROSTER.members[1].peer]


def test_a_leader_cannot_put_words_in_a_reducers_mouth() -> None:
    bench = Bench(3)
    bench.all_commit()
    proposal = set_of(0, 1, 2, 3)
    bench.say(0, proposal)
    honest = body_proposal(proposal)
    bench.say(0, replace(honest, body=body_of(proposal, (RESULTS[0], part_of(1, face="made up")))))
    assert [fault.peer for fault in bench.did(Fault)] == [ROSTER.members[0].peer]
    assert bench.said(Vote) == [vote(None, phase=1)]  # the reducers had their time still


def test_a_set_that_mixes_states_is_refused_and_its_leader_named() -> None:
    bench = Bench(3)
    bench.all_commit(1, 2)
    odd = commit_of(0, root=digest("elsewhere"))
    bench.say(0, odd)
    mixed = (Entry(0, record_hash(odd)), *entries_of(1, 2))
    bench.say(0, SetProposal(ROSTER.run, 0, 0, mixed, 0))
    assert [fault.peer for fault in bench.did(Fault)] == [ROSTER.members[0].peer]
    assert bench.said(Vote) == [vote(None, phase=1)]


@pytest.mark.parametrize(("member", "record"), [
    (1, set_of(0, 1, 2, 3)),
    (0, set_of(0, 1)),
    (0, replace(set_of(0, 1, 2), entries=tuple(reversed(entries_of(0, 1, 2))))),
    (0, replace(set_of(0, 1, 2), entries=(*entries_of(0, 1), Entry(9, ROOT)))),
    (0, set_of(0, 1, 2, barred=0b011)),
    (0, set_of(0, 1, 2, barred=0b1000)),
    (1, replace(commit_of(1), prev=digest("another history"))),
    (1, replace(commit_of(1), hashes=(ROOT,))),
    (1, Reduced(ROSTER.run, 0, 0, ROOT, PARTS, part_of(0))),
    (1, replace(vote(body_of(set_of(0, 1, 2)), phase=1), lacking=1)),
    (0, replace(body_proposal(set_of(0, 1, 2, 3)), statements=())),
    (0, replace(body_proposal(set_of(0, 1, 2, 3)), body=replace(body_of(set_of(0, 1, 2, 3)), members=0b11))),
    (0, replace(body_proposal(set_of(0, 1, 2, 3)), body=replace(body_of(set_of(0, 1, 2, 3)), round=1))),
])  # fmt: skip
def test_what_no_honest_member_signs_is_a_violation(member: int, record: Any) -> None:
    with pytest.raises(ProtocolViolation):
        Bench(3).say(member, record)


@pytest.mark.parametrize("part", [
    part_of(0, 3), replace(part_of(0), used=0b11), replace(part_of(0), used=0b11111),
    replace(part_of(0), used=0b0111),
])  # fmt: skip
def test_a_part_that_cannot_come_from_its_inputs_is_refused(part: Part) -> None:
    with pytest.raises(ProtocolViolation):
        check_part(part, 4, 1)


def test_a_certificate_needs_distinct_members_with_good_signatures_for_this_body() -> None:
    body = body_of(set_of(0, 1, 2, 3))
    good = Certificate(ROSTER.run, body, quorum_of(body, 0, 1, 2, phase=2))
    check_certificate(Electorate(ROSTER), good)
    marks = good.quorum.marks
    for quorum in (
        replace(good.quorum, marks=marks[:2]),
        replace(good.quorum, marks=(marks[0], marks[0], marks[1])),
        replace(good.quorum, marks=(marks[0], marks[1], replace(marks[2], signature=marks[0].signature))),
        replace(good.quorum, marks=(*marks[:2], replace(marks[2], member=9))),
        replace(good.quorum, view=1),
        quorum_of(body, 0, 1, 2, phase=1),
    ):
        with pytest.raises(PeerViolation):
            check_certificate(Electorate(ROSTER), replace(good, quorum=quorum))
    with pytest.raises(PeerViolation):
        check_certificate(Electorate(ROSTER), replace(good, body=replace(body, state_root=digest("other"))))


# --- who signs what -----------------------------------------------------------------------------------------------


def test_a_member_in_another_state_says_so_and_neither_exchanges_nor_votes() -> None:
    bench = Bench(3)
    for place in (0, 1, 2):
        bench.say(place, commit_of(place, root=digest("elsewhere")))
    commits = [commit_of(place, root=digest("elsewhere")) for place in (0, 1, 2)]
    entries = tuple(Entry(place, record_hash(commit)) for place, commit in enumerate(commits))
    bench.say(0, SetProposal(ROSTER.run, 0, 0, entries, 0))
    [diverged] = bench.did(Diverged)
    assert (diverged.own_root, diverged.agreed_root) == (ROOT, digest("elsewhere"))
    bench.wait(10 * EXCHANGE_S)
    assert not bench.did(Send)


def test_a_mute_member_follows_without_a_word() -> None:
    bench = Bench(0, mute=True)
    bench.all_commit()
    for phase in (1, 2):
        for place in (1, 2, 3):
            bench.say(place, vote(None, phase=phase))
    bench.wait(DELTA_S)
    assert bench.height.view == 1
    assert not bench.did(Send)


# --- reducers -----------------------------------------------------------------------------------------------------


def test_reducers_turn_with_round_and_view_and_skip_the_absent_and_the_barred() -> None:
    def assign(*able: int, round_number: int = 0, view: int = 0) -> tuple[int, ...]:
        return assign_reducers(5, able, topology="mesh", round_number=round_number, view=view, parts=5)

    assert assign(0, 1, 3, 4) == (0, 1, 3, 3, 4)
    assert assign(0, 1, 3, 4, view=1) == assign(0, 1, 3, 4, round_number=1) == (1, 3, 3, 4, 0)
    assert assign(0, 1, 4) == (0, 1, 4, 4, 4)


def test_in_a_star_one_member_reduces_everything_for_as_long_as_it_works() -> None:
    def assign(*able: int, round_number: int = 0, view: int = 0) -> tuple[int, ...]:
        return assign_reducers(5, able, topology="star", round_number=round_number, view=view, parts=2)

    assert assign(0, 1, 3, 4) == assign(0, 1, 3, 4, round_number=3) == (0, 0)
    assert assign(0, 1, 3, 4, view=1) == (1, 1)
    assert assign(0, 1, 3, 4, view=2) == (3, 3)
    with pytest.raises(ProtocolViolation):
        assign()


def test_the_name_of_a_set_depends_on_every_entry() -> None:
    names = {set_hash(entries_of(*places)) for places in ((0, 1, 2), (0, 1, 3), (0, 1, 2, 3), (1, 2, 3))}
    assert len(names) == 4
