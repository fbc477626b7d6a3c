"""Who takes part in a run, and what a coordinator cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celluler.errors import BadSignature, LocalError, PeerViolation, ProtocolViolation
from celluler.identity import Identity, open_envelope, seal
from celluler.learning.roster import (
    ALL_ROLES,
    MAX_MEMBERS,
    Role,
    Roster,
    RosterEntry,
    RoundRules,
    bad_updates,
    open_roster,
    quorum,
    rules_for,
    seal_roster,
    tolerated,
)
from simulations.rounds import identity, roster_of

RUN, JOB = b"r" * 32, b"j" * 32
COORDINATOR = identity(999)


def entry(number: int, *, run: bytes = RUN, averager: str | None = None) -> bytes:
    name = averager if averager is not None else identity(1000 + number).peer_id
    return seal(identity(number), RosterEntry(run, name, ("/ip4/127.0.0.1/tcp/1",), f"peer-{number}"))


def sealed(entries: list[bytes], rules: RoundRules, coordinator: Identity = COORDINATOR) -> bytes:
    """What a coordinator that checks nothing would sign."""
    return seal(coordinator, Roster(RUN, JOB, tuple(entries), rules))


def in_order(*numbers: int) -> list[bytes]:
    return [entry(number) for number in sorted(numbers, key=lambda number: identity(number).public_key)]


def test_a_roster_names_its_members_in_the_order_of_their_keys() -> None:
    raw = seal_roster(
        COORDINATOR, run=RUN, job=JOB, entries=(entry(2), entry(0), entry(1)), rules=rules_for(3, rounds=1)
    )
    view = open_roster(raw, COORDINATOR.peer_id)
    assert [member.peer for member in view.members] == [
        identity(n).peer_id for n in sorted(range(3), key=lambda n: identity(n).public_key)
    ]
    assert all(view.index_of(member.peer) == member.index for member in view.members)
    assert view.index_of(COORDINATOR.peer_id) is None
    assert view.members[0].averager in {identity(1000 + n).peer_id for n in range(3)}


@pytest.mark.parametrize(("members", "b", "q", "f", "f_own_data"), [
    (1, 0, 1, 0, 0), (2, 0, 2, 0, 0), (3, 0, 3, 1, 0), (4, 1, 3, 1, 0), (5, 1, 4, 2, 1), (7, 2, 5, 3, 1),
    (16, 5, 11, 7, 3), (64, 21, 43, 31, 12),
])  # fmt: skip
def test_the_tolerances_follow_from_the_size(members: int, b: int, q: int, f: int, f_own_data: int) -> None:
    assert (tolerated(members), quorum(members)) == (b, q)
    assert (bad_updates(members, iid=True), bad_updates(members, iid=False)) == (f, f_own_data)


@pytest.mark.parametrize("members", range(1, MAX_MEMBERS + 1))
def test_two_quorums_always_share_an_honest_member(members: int) -> None:
    assert 2 * quorum(members) - members > tolerated(members)
    assert quorum(members) <= members - tolerated(members)


def test_a_roster_has_at_most_64_members() -> None:
    with pytest.raises(LocalError):
        rules_for(65, rounds=1)


def test_a_full_roster_fits_its_limit() -> None:
    assert len(roster_of(64, 1, 64)) == 64


def test_a_forged_entry_is_refused_and_its_signer_named() -> None:
    raw = bytearray(in_order(0, 1)[1])
    victim = open_envelope(RosterEntry, bytes(raw)).signer
    raw[-1] ^= 1
    with pytest.raises(BadSignature) as caught:
        open_roster(sealed([in_order(0, 1)[0], bytes(raw)], rules_for(2, rounds=1)), COORDINATOR.peer_id)
    assert caught.value.peer == victim


def test_an_entry_that_is_twice_there_or_out_of_order_is_refused_and_named() -> None:
    first, second = in_order(0, 1)
    for entries in ([first, first], [second, first]):
        with pytest.raises(ProtocolViolation) as caught:
            open_roster(sealed(entries, rules_for(2, rounds=1)), COORDINATOR.peer_id)
        assert caught.value.peer == open_envelope(RosterEntry, entries[1]).signer


def test_an_entry_for_another_run_or_without_a_real_averager_is_refused_and_named() -> None:
    for wrong in (entry(0, run=b"x" * 32), entry(0, averager="1" * 46)):
        with pytest.raises(ProtocolViolation) as caught:
            open_roster(sealed([wrong], rules_for(1, rounds=1)), COORDINATOR.peer_id)
        assert caught.value.peer == identity(0).peer_id


def test_two_members_cannot_share_an_averager() -> None:
    entries = [entry(n, averager=identity(1000).peer_id) for n in sorted((0, 1), key=lambda n: identity(n).public_key)]
    with pytest.raises(ProtocolViolation):
        open_roster(sealed(entries, rules_for(2, rounds=1)), COORDINATOR.peer_id)


def test_a_roster_signed_by_somebody_else_is_refused() -> None:
    raw = sealed(in_order(0, 1), rules_for(2, rounds=1), coordinator=identity(0))
    with pytest.raises(BadSignature):
        open_roster(raw, COORDINATOR.peer_id)


def test_a_coordinator_cannot_choose_the_quorum() -> None:
    rules = rules_for(4, rounds=1)
    for wrong in (replace(rules, q=2), replace(rules, b=0), replace(rules, topology="ring")):
        with pytest.raises(ProtocolViolation) as caught:
            open_roster(sealed(in_order(0, 1, 2, 3), wrong), COORDINATOR.peer_id)
        assert caught.value.peer == COORDINATOR.peer_id


def test_b_and_q_follow_from_those_who_vote() -> None:
    entries = [
        seal(identity(n), RosterEntry(RUN, identity(1000 + n).peer_id, (), "", roles))
        for n, roles in enumerate((ALL_ROLES, Role.VALIDATOR, Role.WORKER, Role.WORKER | Role.AGGREGATOR))
    ]
    raw = seal_roster(COORDINATOR, run=RUN, job=JOB, entries=tuple(entries), rules=rules_for(4, rounds=1, voters=2))
    view = open_roster(raw, COORDINATOR.peer_id)
    assert sorted(member.roles for member in view.members) == [1, 3, 4, 7]
    with pytest.raises(ProtocolViolation):
        seal_roster(COORDINATOR, run=RUN, job=JOB, entries=tuple(entries), rules=rules_for(4, rounds=1))


def test_members_stand_where_they_say_themselves() -> None:
    entries = [
        seal(identity(n), RosterEntry(RUN, identity(1000 + n).peer_id, (), "", region=region))
        for n, region in enumerate(("eu-west", "", "us-east"))
    ]
    view = open_roster(
        seal_roster(COORDINATOR, run=RUN, job=JOB, entries=tuple(entries), rules=rules_for(3, rounds=1)),
        COORDINATOR.peer_id,
    )
    told = {member.peer: member.region for member in view.members}
    assert [told[identity(n).peer_id] for n in range(3)] == ["eu-west", "", "us-east"]
    with pytest.raises(ProtocolViolation, match="region"):
        seal(identity(0), RosterEntry(RUN, identity(1000).peer_id, (), "", region="r" * 33))


@pytest.mark.parametrize("roles", [0, 8, 255, Role.AGGREGATOR])
def test_an_entry_of_a_role_that_nobody_has_is_refused(roles: int) -> None:
    raw = seal(identity(0), RosterEntry(RUN, identity(1000).peer_id, (), "", roles))
    with pytest.raises(ProtocolViolation) as caught:
        open_roster(sealed([raw], rules_for(1, rounds=1)), COORDINATOR.peer_id)
    assert caught.value.peer == identity(0).peer_id


@pytest.mark.parametrize("roles", [(Role.WORKER, Role.WORKER), (Role.VALIDATOR, Role.WORKER | Role.VALIDATOR)])
def test_somebody_must_vote_and_somebody_train_and_reduce(roles: tuple[Role, ...]) -> None:
    entries = tuple(
        seal(identity(n), RosterEntry(RUN, identity(1000 + n).peer_id, (), "", one)) for n, one in enumerate(roles)
    )
    voters = max(1, sum(Role.VALIDATOR in one for one in roles))
    with pytest.raises(ProtocolViolation):
        seal_roster(COORDINATOR, run=RUN, job=JOB, entries=entries, rules=rules_for(2, rounds=1, voters=voters))


def test_noise_is_a_violation() -> None:
    for noise in (b"", b"\x00", b"x" * 100, sealed(in_order(0), rules_for(1, rounds=1))[:-1]):
        with pytest.raises(PeerViolation):
            open_roster(noise, COORDINATOR.peer_id)


def test_an_honest_coordinator_does_not_sign_what_others_would_refuse() -> None:
    with pytest.raises(ProtocolViolation):
        seal_roster(COORDINATOR, run=RUN, job=JOB, entries=(entry(0), entry(0)), rules=rules_for(2, rounds=1))
