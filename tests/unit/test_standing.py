"""Who is a member, who votes and what each has earned, as everybody reads it from the chain."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import BadSignature, LocalError, PeerViolation, ProtocolViolation
from celluler.identity import seal
from celluler.learning.admission import CLOCK_SKEW_S, Applicants, make_admission, open_admission
from celluler.learning.links import FAULTY_ROUNDS, WINDOW_ROUNDS, Links
from celluler.learning.messages import Vote, mask, places
from celluler.learning.roster import ALL_ROLES, MAX_MEMBERS, Role, tolerated
from celluler.learning.run import Run
from celluler.learning.standing import CARE, VESTING_ROUNDS, WORK, follow
from celluler.learning.transcript import Opening, Transcript, TranscriptWriter
from celluler.learning.verify import Archive
from celluler_node.verifying.arithmetic import IntegerArithmetic
from simulations.rounds import digest, identity, roster_of
from simulations.rounds.cast import entry_of
from tests.support.chains import Chain, application, invite, signer_of, vouch

SIZE, JOINER, PROBATION, SUSPENSION = 5, 50, 2, 3


def chain(size: int = SIZE, *, rounds: int = 60, **rules: Any) -> Chain:
    return Chain(roster_of(size, rounds, 1, probation=PROBATION, suspension=SUSPENSION, **rules))


def joined(**how: Any) -> Chain:
    """A chain whose first body admits somebody: it is at place SIZE."""
    found = chain()
    found.add(admitted=(application(found.roster, JOINER, **how),))
    return found


# --- who joins ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"vouchers": (1, 3)}])
def test_who_is_invited_or_vouched_for_is_a_member_and_counts_after_its_probation(how: dict[str, Any]) -> None:
    one = joined(**how)
    assert [member.peer for member in one.standing.roster.members[SIZE:]] == [identity(JOINER).peer_id]
    assert one.standing.roster.digest == one.roster.digest
    assert not one.standing.electorate.acts(SIZE)
    one.until(PROBATION)
    assert not one.standing.electorate.acts(SIZE)
    one.until(1 + PROBATION)
    assert one.standing.senders >> SIZE & 1
    assert SIZE not in one.standing.electorate


def test_a_newcomer_votes_once_an_update_of_it_was_in_a_set() -> None:
    one = joined()
    one.until(1 + PROBATION)
    before = one.standing.electorate
    one.add(members=mask(range(SIZE)))  # it is late: nothing changes
    assert (one.standing.electorate.q, len(one.standing.electorate)) == (before.q, SIZE)
    one.add()
    assert SIZE in one.standing.electorate
    assert len(one.standing.electorate) == SIZE + 1


def test_a_newcomer_that_does_not_train_votes_once_it_was_heard_to() -> None:
    one = joined(roles=Role.VALIDATOR)
    one.until(3 + PROBATION)
    assert not one.standing.senders >> SIZE & 1
    assert SIZE not in one.standing.electorate
    one.add(voted=mask((*range(SIZE), SIZE)))
    assert SIZE in one.standing.electorate


@pytest.mark.parametrize("forge", [
    lambda r: application(r, JOINER, vouchers=(1,)),  # b+1 are needed
    lambda r: application(r, 0),  # a member
    lambda r: seal(identity(JOINER), entry_of(r.run, JOINER)),  # an entry alone
    lambda r: make_admission(r, identity(JOINER), seal(identity(51), entry_of(r.run, 51)), invite=invite(r, JOINER)),
    lambda r: make_admission(r, identity(JOINER), seal(identity(JOINER), entry_of(r.run, 0)), invite=invite(r, JOINER)),
    lambda r: make_admission(
        r, identity(JOINER), seal(identity(JOINER), entry_of(r.run, JOINER)), invite=invite(r, JOINER, by=3)
    ),
    lambda r: make_admission(
        r, identity(JOINER), seal(identity(JOINER), entry_of(r.run, JOINER)), invite=invite(r, JOINER + 1)
    ),
    lambda r: make_admission(
        r, identity(JOINER), seal(identity(JOINER), entry_of(b"x" * 32, JOINER)), invite=invite(r, JOINER)
    ),
    lambda r: application(r, JOINER)[:-1] + b"\x00",
])  # fmt: skip
def test_a_forged_admission_is_refused_by_the_chain_and_by_every_member(forge: Any) -> None:
    one = chain()
    raw = forge(one.roster)
    with pytest.raises(PeerViolation):
        open_admission(one.standing, raw)
    with pytest.raises(PeerViolation):
        one.add(admitted=(raw,))
    run = Run(one.roster, signer_of(one.roster.members[0].peer), state_root=digest("root"))
    run.start(0.0)
    with pytest.raises(PeerViolation):
        run.admit(raw, 0.0)


def test_a_body_admits_a_peer_once_and_nobody_that_was_expelled() -> None:
    one = chain()
    raw = application(one.roster, JOINER)
    with pytest.raises(ProtocolViolation):
        one.add(admitted=(raw, application(one.roster, JOINER, vouchers=(0, 1))))
    one.add(admitted=(raw,))
    with pytest.raises(ProtocolViolation):
        one.add(admitted=(raw,))
    one.until(3 + PROBATION)
    one.add(expelled=1 << SIZE)
    with pytest.raises(ProtocolViolation):
        one.add(admitted=(application(one.standing.roster, JOINER),))


def test_a_run_has_at_most_64_members_those_that_left_included() -> None:
    full = chain(MAX_MEMBERS, rounds=2)
    with pytest.raises(ProtocolViolation):
        open_admission(full.standing, application(full.roster, 80))
    almost = chain(MAX_MEMBERS - 1, rounds=2)
    with pytest.raises(ProtocolViolation):
        almost.add(admitted=(application(almost.roster, 80), application(almost.roster, 81)))


def test_nobody_is_admitted_when_all_rounds_are_over() -> None:
    one = chain(rounds=1)
    one.add()
    with pytest.raises(ProtocolViolation):
        one.add(admitted=(application(one.roster, JOINER),))


def test_an_invite_expires_by_the_clock_of_whoever_looks() -> None:
    one = chain()
    raw = application(one.roster, JOINER)
    with pytest.raises(ProtocolViolation):
        open_admission(one.standing, raw, unix_s=1_001.0)
    known = Applicants()
    assert known.add(one.standing, raw, 999.0)
    assert not known.add(one.standing, raw, 999.0)
    assert known.welcome((raw,), 1_000.0 + CLOCK_SKEW_S)
    assert not known.welcome((raw,), 1_001.0 + CLOCK_SKEW_S)
    assert known.chosen(one.standing, 1_001.0) == ()
    assert known.chosen(one.standing, None) == ()  # it was dropped


def test_at_most_four_are_admitted_at_once_first_come_first_served() -> None:
    one, known = chain(), Applicants()
    raws = [application(one.roster, JOINER + number) for number in range(6)]
    assert all(known.add(one.standing, raw, None) for raw in raws)
    assert known.chosen(one.standing, None) == tuple(raws[:4])
    one.add(admitted=tuple(raws[:4]))
    assert known.chosen(one.standing, None) == tuple(raws[4:])


def test_a_vouch_of_a_stranger_or_for_another_is_no_help() -> None:
    one = chain()
    entry = seal(identity(JOINER), entry_of(one.roster.run, JOINER))
    for word in (vouch(one.roster, 0, JOINER + 1), seal(identity(70), Vote(one.roster.run, 0, 0, 1, None, 0))):
        with pytest.raises(PeerViolation):
            make_admission(one.roster, identity(JOINER), entry, vouches=[word])


# --- who is suspended ---------------------------------------------------------------------------------------------


def test_a_suspended_member_is_silent_for_some_rounds_and_comes_back_by_itself() -> None:
    one = chain()
    q, b = one.standing.electorate.q, one.standing.electorate.b
    one.add(suspended=0b100)
    for number in range(1, 1 + SUSPENSION):
        assert one.standing.round == number
        electorate = one.standing.electorate
        assert (electorate.q, electorate.b, electorate.places) == (q, b, (0, 1, 3, 4))
        assert not electorate.acts(2)
        assert 2 not in one.standing.leaders
        one.add()
    assert one.standing.electorate.places == (0, 1, 2, 3, 4)
    assert one.standing.senders >> 2 & 1


def test_a_vote_of_a_suspended_member_breaks_the_chain() -> None:
    one = chain()
    one.add(suspended=0b100)
    with pytest.raises(ProtocolViolation):
        one.add(voters=(0, 1, 2, 3))
    with pytest.raises(ProtocolViolation):
        one.add(members=0b11111)
    one.until(1 + SUSPENSION)
    one.add(voters=(0, 1, 2, 3), members=0b11111)


def test_no_more_are_suspended_at_once_than_may_be_absent() -> None:
    one = chain(7)
    for wrong in (0b111, 1 << 7):
        with pytest.raises(ProtocolViolation):
            one.add(suspended=wrong)
    one.add(suspended=0b11)
    with pytest.raises(ProtocolViolation):
        one.add(suspended=0b100)
    with pytest.raises(ProtocolViolation):
        chain(3).add(suspended=0b1)
    with pytest.raises(ProtocolViolation):
        chain(4, topology="star", roles=(ALL_ROLES, *(Role.WORKER | Role.VALIDATOR,) * 3)).add(suspended=0b1)
    none = Chain(roster_of(SIZE, 4, 1, suspension=0))
    with pytest.raises(ProtocolViolation):
        none.add(suspended=0b1)


def test_when_an_expulsion_leaves_too_few_the_suspended_are_called_back() -> None:
    one = chain(7)
    one.add(suspended=0b11)
    one.add(expelled=0b100)
    assert one.standing.electorate.places == (0, 1, 3, 4, 5, 6)
    one.add()


# --- who votes ----------------------------------------------------------------------------------------------------


def test_a_vote_of_a_newcomer_breaks_the_chain_until_it_has_one() -> None:
    one = joined()
    for number in range(1, 3 + PROBATION):
        assert one.standing.round == number
        if SIZE not in one.standing.electorate:
            with pytest.raises(ProtocolViolation):
                one.certificates.append(one.standing.accept(one.certificate(one.body(), range(SIZE + 1))))  # type: ignore[arg-type]
        one.add()
    one.add(voters=range(1, SIZE + 1))


def test_members_without_a_vote_train_and_members_that_only_vote_are_in_no_set() -> None:
    trains, votes = Role.WORKER | Role.AGGREGATOR, Role.VALIDATOR
    one = chain(6, roles=(ALL_ROLES, ALL_ROLES, trains, trains, votes, votes))
    electorate = one.standing.electorate
    assert (electorate.places, electorate.b, electorate.q) == ((0, 1, 4, 5), 1, 3)
    assert (places(one.standing.senders), one.standing.least, electorate.spared) == ((0, 1, 2, 3), 3, 1)
    with pytest.raises(ProtocolViolation):
        one.add(voters=(0, 1, 2))
    with pytest.raises(ProtocolViolation):
        one.add(members=0b010111)
    one.add(voters=(0, 4, 5), members=0b001101)


def test_at_the_end_those_who_vote_certify_the_state_whoever_trained() -> None:
    one = chain(5, rounds=1, roles=(ALL_ROLES, *(Role.WORKER | Role.AGGREGATOR,) * 2, Role.VALIDATOR, Role.VALIDATOR))
    one.add()
    assert (one.standing.closing, places(one.standing.senders), one.standing.least) == (True, (0, 3, 4), 3)
    one.add()


def test_who_only_votes_leads_too() -> None:
    one = chain(5, roles=(ALL_ROLES,) * 4 + (Role.VALIDATOR,))
    one.until(4)
    assert list(one.standing.leaders) == [0, 1, 2, 3, 4]
    for _ in range(3):
        one.add(members=0b1110, voted=0b01110)
    assert list(one.standing.leaders) == [1, 2, 3]


def test_a_body_names_as_voters_only_those_who_could_vote() -> None:
    one = chain()
    with pytest.raises(ProtocolViolation):
        one.add(voted=1)
    one.add(suspended=0b1)
    one.add(voted=0b11111)
    with pytest.raises(ProtocolViolation):
        one.add(voted=0b11111)


# --- credits ------------------------------------------------------------------------------------------------------


def test_credit_is_earned_by_weight_and_by_votes_and_vests_later() -> None:
    one = chain()
    one.add(weightless=(1,))
    one.add(voted=0b11101)
    earned = [credit.accrued for credit in one.standing.credits]
    assert earned == [2 * WORK + CARE, WORK, *(2 * WORK + CARE,) * 3]
    assert not any(credit.vested for credit in one.standing.credits)
    one.until(VESTING_ROUNDS + 1)
    assert [credit.vested for credit in one.standing.credits] == [WORK, 0, WORK, WORK, WORK]


def test_an_expulsion_costs_what_has_not_vested_and_a_suspension_makes_it_wait() -> None:
    one = chain()
    one.until(3)
    one.add(suspended=0b10)
    held = one.standing.credits[1]
    one.until(3 + SUSPENSION)
    assert one.standing.credits[1] == held
    one.until(VESTING_ROUNDS + 1)
    assert [credit.vested for credit in one.standing.credits] == [WORK, 0, WORK, WORK, WORK]
    one.until(VESTING_ROUNDS + SUSPENSION + 1)
    assert one.standing.credits[1].vested == WORK
    vested = one.standing.credits[2].vested
    one.add(expelled=0b100)
    assert (one.standing.credits[2].accrued, one.standing.credits[2].vested) == (vested, vested)


# --- whoever reads the chain --------------------------------------------------------------------------------------


def archive(one: Chain) -> Archive:
    """What a stranger has of it: certificates alone."""
    file = io.BytesIO()
    writer = TranscriptWriter(file, Opening(b"order", b"base", one.roster.raw, 4), parts=1)
    for certificate in one.certificates:
        writer.add(certificate)
    file.seek(0)
    return Archive([Transcript(file)], one.roster, IntegerArithmetic())


def test_a_stranger_reads_the_same_standing_from_a_transcript() -> None:
    one = joined()
    one.add(suspended=0b1)
    one.add(expelled=0b10, admitted=(application(one.standing.roster, JOINER + 1, vouchers=(2, 3)),))
    one.until(8)
    read = archive(one)
    last = list(read.walk())[-1]
    assert last.after == one.standing == follow(one.roster, one.certificates)
    assert len(read.roster) == SIZE + 2


def forged_admission(one: Chain) -> None:
    body = one.body(admitted=(application(one.roster, JOINER, vouchers=(0,)),))
    one.certificates.append(one.certificate(body))


def early_vote(one: Chain) -> None:
    one.add(suspended=0b100)
    one.certificates.append(one.certificate(one.body(), (0, 1, 2, 3)))


def vote_of_a_newcomer(one: Chain) -> None:
    one.add(admitted=(application(one.roster, JOINER),))
    one.certificates.append(one.certificate(one.body(), (0, 1, 2, 3, SIZE)))


@pytest.mark.parametrize("forge", [forged_admission, early_vote, vote_of_a_newcomer])
def test_a_stranger_and_a_newcomer_refuse_a_forged_chain(forge: Any) -> None:
    one = chain()
    forge(one)
    with pytest.raises(PeerViolation):
        list(archive(one).walk())
    with pytest.raises((ProtocolViolation, BadSignature)):
        Run(one.roster, signer_of(one.roster.members[0].peer), state_root=bytes(32), chain=one.certificates)


def test_a_run_begins_with_a_chain_only_as_a_member_and_with_the_state_that_it_names() -> None:
    one = joined()
    state = one.certificates[-1].body.state_root
    with pytest.raises(LocalError):
        Run(one.roster, identity(JOINER + 1), state_root=state, chain=one.certificates)
    with pytest.raises(LocalError):
        Run(one.roster, identity(JOINER), state_root=digest("other"), chain=one.certificates)
    run = Run(one.roster, identity(JOINER), state_root=state, chain=one.certificates)
    run.start(0.0)
    assert (run.me, run.round, len(run.roster)) == (SIZE, 0, SIZE + 1)


# --- whatever is certified ----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_is_certified_two_quorums_share_an_honest_member(data: st.DataObject) -> None:
    size = data.draw(st.integers(4, 10))
    one = chain(size)
    numbers = iter(range(50, 90))
    for _ in range(data.draw(st.integers(1, 10))):
        electorate, changes = one.standing.electorate, dict[str, Any]()
        for kind, may in (("expelled", electorate.may_expel), ("suspended", electorate.may_suspend)):
            chosen = mask(data.draw(st.sets(st.sampled_from(electorate.places), max_size=2)))
            if may(chosen):
                changes[kind] = chosen
        if data.draw(st.booleans()):
            changes["admitted"] = (application(one.standing.roster, next(numbers)),)
        try:
            after = one.standing.after(one.body(**changes))
            one.standing.check(one.body(**changes))
        except ProtocolViolation:
            continue  # both at once left too few
        one.standing = after
        electorate = one.standing.electorate
        counted = len(electorate) + electorate.suspended.bit_count()
        assert 2 * electorate.q - counted > electorate.b == tolerated(counted)
        assert len(electorate) >= electorate.q
        assert one.standing.senders.bit_count() >= one.standing.least
        assert one.standing.leaders
        assert all(0 <= credit.vested <= credit.accrued for credit in one.standing.credits)


# --- links --------------------------------------------------------------------------------------------------------


def test_a_link_counts_when_it_failed_in_two_rounds_and_for_both_its_ends() -> None:
    links = Links()
    for other in (1, 2, 3):
        links.note(0, 0, other)
    assert links.counterparts(0, 0) == 0
    for number in range(1, FAULTY_ROUNDS):
        links.note(number, 2, 0)
    assert (links.counterparts(0, 1), links.counterparts(2, 1), links.counterparts(1, 1)) == (1, 1, 0)
    assert links.counterparts(0, WINDOW_ROUNDS) == 0
    links.note(2, 0, 0)
    links.forget(0)
    assert (links.counterparts(0, 2), links.counterparts(2, 2)) == (0, 0)
