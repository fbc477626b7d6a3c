"""Audits inside a run at one member of four, message by message. b is 1, a quorum 3."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celluler.errors import PeerViolation, ProtocolViolation
from celluler.learning.audit_messages import Accuse, Conviction, Judgement, Verdict
from celluler.learning.court import KEPT_STATES, VAIN_ROUNDS, VERDICT_ROUNDS
from celluler.learning.effects import Audit, Exclude, Fault
from celluler.learning.evidence_file import Basis, Kind, open_evidence_file
from celluler.learning.messages import open_message
from simulations.audit_liars import TOLERANCE
from tests.support.audits import RIGHT, WRONG, Audits

GUILTY, INNOCENT, UNSERVED = Judgement.GUILTY, Judgement.INNOCENT, Judgement.UNSERVED


def audited(found: tuple[float, ...] | None) -> tuple[Audits, Audit]:
    """We drew somebody, and found this."""
    audits = Audits(audits=4000)
    audits.idle()
    return audits, audits.find(found)


# --- our own looking ----------------------------------------------------------------------------------------------


def test_an_audit_waits_until_there_is_nothing_to_train_and_for_the_one_before_it() -> None:
    audits = Audits(audits=12_000)
    assert not audits.did(Audit)
    audits.idle()
    [first] = audits.did(Audit)
    assert (first.round, first.before, first.accused, first.parts) == (0, None, False, (0, 1))
    audits.find(RIGHT)
    audits.find(RIGHT)
    audits.find(RIGHT)
    assert sorted(audit.member for audit in audits.did(Audit)) == [1, 2, 3]


def test_an_update_that_carries_momentum_is_audited_with_the_one_before_it() -> None:
    audits = Audits(audits=4000, rounds=2)
    audits.idle()
    audits.find(RIGHT)
    later = audits.did(Audit)[-1]
    assert later.round == 1
    assert later.before == open_message(audits.chain.commits[0][later.member]).record


def test_who_may_sign_nothing_audits_nobody() -> None:
    audits = Audits(audits=12_000, speaks=False)
    audits.idle()
    assert not audits.did(Audit)


def test_nobody_audits_who_computes_otherwise() -> None:
    audits = Audits(audits=12_000, classes=("cpu", "gpu", "cpu", "gpu"))
    audits.idle()
    audits.find(RIGHT)
    mine = audits.roster.members[0].audit_class
    [asked] = {audit.member for audit in audits.did(Audit)}
    assert audits.roster.members[asked].audit_class == mine


def test_nobody_audits_where_no_class_is_known() -> None:
    audits = Audits(audits=12_000, classes=("", "", "", ""))
    audits.idle()
    assert not audits.did(Audit)


def test_what_is_in_order_is_not_worth_a_word() -> None:
    audits, _ = audited(RIGHT)
    assert not audits.said(Accuse)
    assert not audits.said(Verdict)


def test_what_could_not_be_done_here_says_nothing_of_anybody() -> None:
    audits, _ = audited(())
    assert not audits.said(Accuse)
    assert audits.machine.done == 0


@pytest.mark.parametrize(("found", "judgement"), [(WRONG, GUILTY), (None, UNSERVED)])
def test_what_is_wrong_or_kept_back_is_shown_to_all_with_our_verdict(
    found: tuple[float, ...] | None, judgement: Judgement
) -> None:
    audits, audit = audited(found)
    [accuse], [verdict] = audits.said(Accuse), audits.said(Verdict)
    assert (accuse.round, accuse.target, accuse.deviations) == (0, audit.member, found or ())
    assert (verdict.target, verdict.judgement) == (audit.member, judgement)
    assert not audits.did(Exclude)
    assert not audits.did(Fault)


def test_where_too_few_compute_alike_what_is_wrong_is_told_and_nobody_is_accused() -> None:
    audits = Audits(audits=12_000, classes=("cpu", "cpu", "cpu", "gpu"))
    audits.idle()
    audit = audits.find(WRONG)
    assert not audits.said(Accuse)
    assert [fault.peer for fault in audits.did(Fault)] == [audits.roster.members[audit.member].peer]


def test_one_accusation_of_ours_is_open_at_a_time() -> None:
    audits = Audits(audits=12_000)
    audits.idle()
    first = audits.find(WRONG)
    audits.find(WRONG)
    assert len(audits.said(Accuse)) == 1
    audits.judge(first.member, GUILTY, *({1, 2, 3} - {first.member}))
    assert [one.target for one in audits.said(Accuse)][1:] == [audits.did(Audit)[1].member]


# --- what others say ----------------------------------------------------------------------------------------------


def test_an_accusation_is_looked_into_before_anything_is_said() -> None:
    audits = Audits()
    assert audits.say(1, audits.accusation(2))
    assert not audits.did(Audit)
    audits.idle()
    [audit] = audits.did(Audit)
    assert (audit.round, audit.member, audit.accused) == (0, 2, True)
    audits.find(WRONG)
    assert [verdict.judgement for verdict in audits.said(Verdict)] == [GUILTY]


def test_what_was_found_already_is_not_looked_at_again() -> None:
    audits = Audits(audits=12_000)
    audits.idle()
    target = audits.find(RIGHT).member
    assert audits.say(*_accuser_of(audits, target))
    assert [(verdict.target, verdict.judgement) for verdict in audits.said(Verdict)] == [(target, INNOCENT)]


def _accuser_of(audits: Audits, target: int) -> tuple[int, Accuse]:
    return next(place for place in (1, 2, 3) if place != target), audits.accusation(target)


@pytest.mark.parametrize("found", [TOLERANCE, TOLERANCE * 0.6])
def test_between_clear_and_guilty_nothing_is_said(found: float) -> None:
    audits = Audits()
    audits.say(1, audits.accusation(2))
    audits.idle()
    audits.find((found, 0.0))
    assert not audits.said(Verdict)


def test_of_ourselves_we_know_that_we_did_the_work() -> None:
    audits = Audits()
    audits.say(1, audits.accusation(0))
    audits.idle()
    assert not audits.did(Audit)
    assert [verdict.judgement for verdict in audits.said(Verdict)] == [INNOCENT]


def test_who_was_started_again_says_nothing_of_what_it_may_have_judged_before() -> None:
    audits = Audits(speaks=False)
    assert audits.say(1, audits.accusation(2))
    audits.idle()
    assert not audits.did(Audit)
    assert not audits.said(Verdict)


def test_accusations_of_what_is_too_old_or_not_yet_here_or_known_are_not_looked_into() -> None:
    audits = Audits(rounds=KEPT_STATES + 1)
    assert not audits.say(1, audits.accusation(2, number=0))
    assert not audits.say(1, replace(audits.accusation(2), round=audits.height))
    assert audits.say(1, audits.accusation(2))
    assert not audits.say(1, audits.accusation(2))
    assert not audits.say(1, audits.accusation(3))  # its first one is still open
    assert audits.say(3, audits.accusation(1))
    audits.idle()
    assert len(audits.did(Audit)) == 1


def test_an_accuser_is_heard_again_once_the_first_was_true_or_is_long_past() -> None:
    true, past = Audits(), Audits()
    for audits in (true, past):
        assert audits.say(1, audits.accusation(2))
    true.judge(2, GUILTY, 0, 1, 3)
    assert true.say(1, true.accusation(3))
    for _ in range(KEPT_STATES - 1):
        past.certify()
    assert past.say(1, past.accusation(3))


def nonsense(audits: Audits) -> list[Accuse]:
    good = audits.accusation(2)
    other = audits.accusation(3)
    return [
        replace(good, target=1),
        replace(good, target=63),
        replace(good, commit=other.commit),
        replace(good, before=other.before),
        replace(good, before=None),
        replace(good, before=None, inside_before=()),
        replace(good, inside=good.inside[:-1]),
        replace(good, inside=good.inside[::-1]),
        replace(good, inside_before=good.inside),
        replace(good, deviations=(0.4,)),
        replace(good, deviations=(1e-5, 1e-6)),
        replace(good, deviations=(-1.0, 0.4)),
        replace(good, round=0),
    ]


@pytest.mark.parametrize("number", range(13))
def test_an_accusation_that_is_none_is_a_violation_of_the_accuser(number: int) -> None:
    audits = Audits(rounds=2)
    with pytest.raises(PeerViolation):
        audits.say(1, nonsense(audits)[number])


def test_a_verdict_that_contradicts_itself_is_a_violation() -> None:
    audits = Audits()
    for verdict in (
        audits.verdict(2, GUILTY, found=TOLERANCE / 2),
        audits.verdict(2, INNOCENT, found=TOLERANCE),
        audits.verdict(2, UNSERVED, found=0.1),
        audits.verdict(1, GUILTY),
        replace(audits.verdict(2, GUILTY), target=63),
    ):
        with pytest.raises(ProtocolViolation):
            audits.say(1, verdict)


def test_verdicts_may_come_before_the_accusation_but_not_without_end() -> None:
    audits = Audits()
    audits.judge(2, GUILTY, 0, 1, 3)
    assert not audits.did(Exclude)
    audits.say(1, audits.accusation(2))
    assert [exclude.peer for exclude in audits.did(Exclude)] == [audits.roster.members[2].peer]
    many = Audits(rounds=VERDICT_ROUNDS)
    told = [many.say(1, many.verdict(2, GUILTY, number=number)) for number in range(VERDICT_ROUNDS)]
    assert told == [True] * 4 + [False] * 4


# --- what follows -------------------------------------------------------------------------------------------------


def test_a_quorum_that_finds_it_wrong_is_proof_that_a_stranger_can_open() -> None:
    audits = Audits()
    audits.say(1, audits.accusation(2))
    audits.judge(2, GUILTY, 1, 3)
    assert not audits.did(Exclude)
    audits.idle()
    audits.find(WRONG)
    [exclude] = audits.did(Exclude)
    case = open_evidence_file(exclude.evidence, coordinator=audits.roster.coordinator)
    assert (case.kind, case.basis, case.accused, case.peer, case.round) == (
        Kind.AUDIT, Basis.VERDICTS, 2, exclude.peer, 0
    )  # fmt: skip
    [audit] = case.audits
    assert (audit.judges, audit.deviation, audit.judgement) == ((0, 1, 3), 0.4, GUILTY)
    assert audit.accusal.commit.record == open_message(audits.chain.commits[0][2]).record
    other = Audits()
    [word] = audits.said(Conviction)
    assert other.say(1, word)
    assert not other.say(3, word)
    assert set(other.docket.proven) == {2}


def test_b_liars_convict_nobody_and_acquit_nobody() -> None:
    audits = Audits(rounds=2)
    audits.say(1, audits.accusation(2))
    audits.judge(2, GUILTY, 1)
    audits.say(3, audits.accusation(1))
    audits.judge(1, INNOCENT, 1)
    assert not audits.docket.proven
    assert not audits.docket.refuted


def test_one_refuted_accusation_is_told_and_the_second_one_is_proof_against_the_accuser() -> None:
    audits = Audits()
    audits.say(1, audits.accusation(0))
    audits.judge(0, INNOCENT, 2, 3)
    assert [fault.peer for fault in audits.did(Fault)] == [audits.roster.members[1].peer]
    assert not audits.did(Exclude)
    for _ in range(KEPT_STATES - 1):
        audits.certify()
    audits.say(1, audits.accusation(0))
    audits.judge(0, INNOCENT, 2, 3)
    [exclude] = audits.did(Exclude)
    case = open_evidence_file(exclude.evidence)
    assert (case.kind, case.accused, case.round, len(case.audits)) == (Kind.REFUTED, 1, KEPT_STATES - 1, 2)


def test_who_serves_nobody_is_not_proven_guilty_but_known_as_that() -> None:
    audits = Audits()
    audits.say(1, audits.accusation(2, ()))
    audits.judge(2, UNSERVED, 1, 3)
    audits.idle()
    audits.find(None)
    assert set(audits.docket.unserved) == {2}
    assert not audits.did(Exclude)
    assert not audits.did(Fault)
    other = Audits()
    assert other.say(1, audits.said(Conviction)[0])
    assert set(other.docket.unserved) == {2}


def test_who_serves_some_only_does_not_get_away_with_it() -> None:
    audits = Audits()
    audits.say(1, audits.accusation(2, ()))
    audits.judge(2, UNSERVED, 1)
    audits.judge(2, GUILTY, 3)
    audits.idle()
    audits.find(None)
    assert set(audits.docket.unserved) == {2}


def test_who_cries_in_vain_that_it_was_not_served_is_not_proven_a_liar_but_not_heard_in_that() -> None:
    audits = Audits()
    audits.say(1, audits.accusation(0, ()))
    audits.judge(0, INNOCENT, 2, 3)
    assert not audits.did(Fault)
    for _ in range(KEPT_STATES):
        audits.certify()
    assert not audits.say(1, audits.accusation(0, ()))
    assert audits.say(1, audits.accusation(0))
    assert VAIN_ROUNDS > KEPT_STATES


def test_two_different_verdicts_are_proof_against_who_signed_them() -> None:
    audits = Audits()
    audits.judge(2, GUILTY, 1)
    audits.judge(2, INNOCENT, 1)
    [exclude] = audits.did(Exclude)
    case = open_evidence_file(exclude.evidence)
    assert (case.kind, case.basis, case.accused) == (Kind.EQUIVOCATION, Basis.SIGNATURES, 1)


def test_two_different_accusations_of_one_update_are_proof_against_the_accuser() -> None:
    audits = Audits()
    audits.say(1, audits.accusation(2))
    audits.say(1, audits.accusation(2, (0.5, 0.5)))
    assert [exclude.peer for exclude in audits.did(Exclude)] == [audits.roster.members[1].peer]


def test_an_accusation_that_comes_again_asks_what_is_known() -> None:
    audits = Audits()
    audits.say(1, audits.accusation(0))
    audits.say(1, audits.accusation(0), sender=3)
    assert not audits.said(Verdict, to=3)
    audits.wait(1.5)
    audits.say(1, audits.accusation(0), sender=3)
    audits.say(1, audits.accusation(0), sender=3)
    assert [verdict.judgement for verdict in audits.said(Verdict, to=3)] == [INNOCENT]


def test_those_who_have_not_judged_yet_are_reminded_until_it_is_over() -> None:
    audits = Audits()
    audits.say(1, audits.accusation(0))
    audits.wait(2.0)
    assert [len(audits.said(Accuse, to=place)) for place in (1, 2, 3)] == [1, 1, 1]
    audits.judge(0, INNOCENT, 2, 3)
    audits.wait(2.0)
    assert len(audits.said(Accuse, to=1)) == 1
    assert audits.machine.next_deadline() is None


def test_what_proves_nothing_is_blamed_on_who_passes_it_off_and_then_not_looked_at() -> None:
    audits = Audits()
    word = Conviction(audits.roster.run, 0, "audit", b"nothing")
    with pytest.raises(ProtocolViolation):
        audits.say(1, word)
    assert not audits.say(1, word)
    with pytest.raises(ProtocolViolation):
        audits.say(2, replace(word, kind="gossip"))


# --- momentum -----------------------------------------------------------------------------------------------------


def test_an_update_that_is_wrong_about_its_momentum_proves_itself() -> None:
    audits = Audits()
    audits.certify(odd=(2,))
    [exclude] = audits.did(Exclude)
    case = open_evidence_file(exclude.evidence)
    assert (case.kind, case.basis, case.accused, case.round) == (Kind.MOMENTUM, Basis.SIGNATURES, 2, 1)
    assert case.what == "left its momentum out in round 1"


def test_carrying_momentum_in_the_first_round_or_after_an_absence_is_proof() -> None:
    first = Audits(rounds=0)
    first.certify(odd=(1,))
    assert set(first.docket.proven) == {1}
    absent = Audits()
    absent.certify(inside=(0, 1, 2))
    absent.certify(odd=(3,))
    assert set(absent.docket.proven) == {3}
    assert "carried momentum where there was none" in absent.did(Exclude)[0].reason


def test_nobody_is_wrong_about_its_momentum_after_an_absence() -> None:
    audits = Audits()
    audits.certify(inside=(0, 1, 2))
    audits.certify()
    audits.certify()
    assert not audits.did(Exclude)
