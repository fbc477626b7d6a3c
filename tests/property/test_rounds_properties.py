"""Properties of the rounds over many inputs: seeded schedules, hostile bytes, reducers."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import PeerViolation
from celluler.identity import seal
from celluler.learning.checks import checks_for, draw
from celluler.learning.effects import Apply, Check, Exclude, Fault, Send, Stalled, Train
from celluler.learning.inputs import assign_reducers
from celluler.learning.messages import (
    Commit,
    Entry,
    Equivocation,
    Fraud,
    SetProposal,
    Status,
    Vote,
    mask,
    open_message,
    places,
)
from celluler.learning.roster import TOPOLOGIES, Electorate, tolerated
from celluler.learning.run import Run
from celluler_protocols.rounds_messages import frames
from simulations.rounds import GENESIS, play, roster_of, signers_of

pytestmark = pytest.mark.thorough

ROSTER = roster_of(4, 2, 2)
BITS = st.integers(0, 2**64 - 1)
HASHES = st.sampled_from((ROSTER.digest, GENESIS, b"z" * 32))


@pytest.mark.parametrize("seed", range(16))
def test_a_schedule_keeps_every_promise(seed: int) -> None:
    outcome = play(seed)
    assert not outcome.broken, f"{outcome.schedule.describe}\n{outcome.broken}"


def fresh_run() -> Run:
    run = Run(ROSTER, signers_of(4)[ROSTER.members[0].peer], state_root=GENESIS, checks=checks_for(4, 2))
    run.start(0.0)
    return run


def records() -> st.SearchStrategy[object]:
    """Well-formed messages of this run that make no sense."""
    rounds, views = st.integers(0, 3), st.integers(0, 2**16 - 1)
    commits = st.builds(
        Commit, st.just(ROSTER.run), rounds, HASHES, HASHES, st.lists(HASHES, max_size=3).map(tuple),
        st.lists(st.integers(-5, 5), max_size=3).map(tuple), st.booleans(),
    )  # fmt: skip
    votes = st.builds(
        Vote, st.just(ROSTER.run), rounds, views, st.integers(1, 2), st.none() | HASHES, st.integers(0, 3)
    )
    sets = st.builds(
        SetProposal, st.just(ROSTER.run), rounds, views,
        st.lists(st.integers(0, 63), min_size=1, max_size=5).map(_entries), BITS,
    )  # fmt: skip
    statuses = st.builds(
        Status, st.just(ROSTER.run), rounds, views, BITS, st.integers(0, 9), st.booleans(), BITS, st.booleans(),
        st.booleans(), BITS, BITS, BITS, BITS, st.lists(st.integers(0, 63), max_size=3).map(_entries),
        st.booleans(), BITS,
    )  # fmt: skip
    envelopes = st.sampled_from([seal(signers_of(4)[ROSTER.members[2].peer], _vote(phase)) for phase in (1, 2)])
    frauds = st.builds(
        Fraud, st.just(ROSTER.run), rounds, envelopes | st.binary(min_size=1, max_size=60),
        st.lists(st.integers(0, 63), min_size=1, max_size=5).map(_entries),
    )  # fmt: skip
    contradictions = st.builds(Equivocation, st.just(ROSTER.run), rounds, envelopes, envelopes)
    return st.one_of(commits, votes, sets, statuses, frauds, contradictions)


def _vote(phase: int) -> Vote:
    return Vote(ROSTER.run, 0, 0, phase, None, 0)


def _entries(members: list[int]) -> tuple[Entry, ...]:
    return tuple(Entry(member, GENESIS) for member in members)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), records()), max_size=12))
def test_nonsense_from_members_is_named_and_never_moves_a_run(said: list[tuple[int, object]]) -> None:
    run, now = fresh_run(), 0.0
    for place, record in said:
        now += 0.01
        peer = ROSTER.members[place].peer
        for effect in run.receive(peer, seal(signers_of(4)[peer], record), now):
            assert not isinstance(effect, Apply | Train | Stalled | Exclude | Check)
            assert not isinstance(effect, Fault) or effect.peer == peer
            assert not isinstance(effect, Send) or len(effect.data) < 1 << 16
    assert not run.certificates


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_blamed_on_who_brought_them(data: bytes) -> None:
    bringer = ROSTER.members[1].peer
    assert [effect.peer for effect in fresh_run().receive(bringer, data, 0.1) if isinstance(effect, Fault)] == [bringer]


@lru_cache(maxsize=1)
def honest_words() -> tuple[bytes, ...]:
    run = fresh_run()
    effects = run.trained(0, (GENESIS,) * 2, (0, 0), GENESIS, 0.1)
    return tuple(effect.data for effect in (*effects, *run.tick(5.0)) if isinstance(effect, Send))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_changed_byte_anywhere_is_a_violation(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from(honest_words())))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PeerViolation):
        open_message(bytes(raw))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 7))
def test_the_stream_reads_the_same_however_it_is_cut(noise: bytes, step: int) -> None:
    def read(chunks: list[bytes]) -> list[object] | None:
        reader, words = frames(), []
        try:
            for chunk in chunks:
                words += reader.feed(chunk)
        except PeerViolation:
            return None
        return words

    whole = read([noise])
    pieces = read([noise[at : at + step] for at in range(0, len(noise), step)])
    assert whole == pieces


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_part_has_one_reducer_in_the_set_and_none_that_is_barred(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 64))
    members = tuple(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
    topology = data.draw(st.sampled_from(TOPOLOGIES))
    barred = mask(data.draw(st.sets(st.sampled_from(members), max_size=len(members) - 1)))
    view, parts = data.draw(st.integers(0, 200)), data.draw(st.integers(0, 64))
    reducers = assign_reducers(
        size, places(mask(members) & ~barred), topology=topology, round_number=3, view=view, parts=parts
    )
    assert len(reducers) == parts
    assert set(reducers) <= set(members) - set(places(barred))


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=64, max_size=64), st.sets(st.integers(0, 63)), st.integers(0, 64))
def test_a_draw_is_of_the_candidates_and_as_large_as_can_be(secret: bytes, candidates: set[int], count: int) -> None:
    drawn = draw(secret, candidates, count)
    assert set(drawn) <= candidates
    assert len(drawn) == len(set(drawn)) == min(count, len(candidates))
    assert drawn == draw(secret, sorted(candidates, reverse=True), count)


def test_every_part_is_drawn_equally_often() -> None:
    counts = [0] * 12
    for number in range(3000):
        for part in draw(number.to_bytes(64, "big"), range(12), checks_for(12, 12)):
            counts[part] += 1
    assert all(abs(count - 500) < 100 for count in counts)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_after_expulsions_the_liars_that_are_left_are_still_tolerated(data: st.DataObject) -> None:
    size = data.draw(st.integers(4, 10))
    roster = roster_of(size, 2, 2)
    liars = data.draw(st.sets(st.integers(0, size - 1), max_size=tolerated(size)))
    out = data.draw(st.sets(st.sampled_from(sorted(liars)))) if liars else set()
    electorate = Electorate(roster)
    assert electorate.may_expel(mask(out))
    left = Electorate(roster, mask(out))
    assert len(liars - out) <= left.b
    assert 2 * left.q - len(left) > left.b  # two quorums share an honest member
    assert set(left.places) == set(range(size)) - out
    assert not left.may_expel(mask(out)) or not out
