"""The sans-IO parts of bulk transfer against models of themselves, and against noise."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.content.bulk_frames import Client, Server, Status, encode_head
from celluler.content.digest import digest_of
from celluler.content.rate import BURST_S, MIN_BURST_BYTES, Bucket
from celluler.content.tickets import LIFE_S, MAX_TICKETS_A_PEER, Holder, Tickets
from celluler.errors import Busy, ProtocolViolation

CHUNKS = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=12)


def hear(asking: Client, data: bytes, cuts: list[int]) -> list[tuple[Status, int, bytes]]:
    """Feed it in pieces of these sizes, again and again."""
    answers, turn = [], 0
    while data:
        space = asking.space()
        size = min(len(space), cuts[turn % len(cuts)])
        part, data, turn = data[:size], data[size:], turn + 1
        space[: len(part)] = part
        if (answer := asking.filled(len(part))) is not None:
            answers.append((answer.status, answer.number, bytes(answer.data)))
    return answers


@given(chunks=CHUNKS, seed=st.randoms(use_true_random=False), cuts=st.lists(st.integers(1, 50), min_size=1))
def test_what_is_asked_is_answered_whatever_the_order_and_the_cuts(chunks, seed, cuts) -> None:
    asking, serving = Client(bytearray(64)), Server()
    wire = b"".join(asking.request(number, digest_of(data), len(data)) for number, data in enumerate(chunks))
    requests = [one for at in range(0, len(wire), cuts[0]) for one in serving.feed(wire[at : at + cuts[0]])]
    assert [one.digest for one in requests] == [digest_of(data) for data in chunks]
    seed.shuffle(requests)
    told = [(Status.OK if seed.random() < 0.8 else Status.NOT_FOUND, one.number) for one in requests]
    expected = [(status, number, chunks[number] if status is Status.OK else b"") for status, number in told]
    answers = b"".join(encode_head(status, number, len(data)) + data for status, number, data in expected)
    assert hear(asking, answers, cuts) == expected
    assert not asking.owes
    assert asking.idle


@given(chunks=CHUNKS, noise=st.binary(max_size=200), cuts=st.lists(st.integers(1, 50), min_size=1))
def test_noise_is_a_violation_or_no_more_than_was_asked(chunks, noise, cuts) -> None:
    asking = Client(bytearray(64))
    for number, data in enumerate(chunks):
        asking.request(number, digest_of(data), len(data))
    try:
        answers = hear(asking, noise, cuts)
    except ProtocolViolation:
        return
    assert len({number for _, number, _ in answers}) == len(answers) <= len(chunks)
    assert all(len(data) == len(chunks[number]) for status, number, data in answers if status is Status.OK)


@given(noise=st.binary(max_size=400))
def test_a_server_reads_noise_as_violations_or_requests_within_the_limit(noise) -> None:
    serving = Server(max_in_flight=4)
    with suppress(ProtocolViolation):
        assert len(serving.feed(noise)) <= 4


@given(
    rate=st.integers(1, 1 << 30),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 1 << 20)), min_size=1, max_size=40),
)
def test_what_passes_keeps_to_the_rate_over_any_time(rate, steps) -> None:
    """Whoever waits as told: at no moment has more passed than a burst and the rate since the beginning."""
    bucket, now, taken = Bucket(rate), 0.0, 0
    burst = max(MIN_BURST_BYTES, rate * BURST_S)
    for pause, count in steps:
        now += pause
        passes = now + bucket.take(count, now)
        taken += count
        assert taken <= (burst + rate * passes) * (1 + 1e-9) + 1


@settings(max_examples=50)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("issue"), st.sampled_from("abc")),
            st.tuples(st.just("redeem"), st.integers(0, 20)),
            st.tuples(st.just("pass"), st.floats(0, LIFE_S)),
        ),
        max_size=40,
    )
)
def test_the_book_agrees_with_a_list_of_tickets(steps) -> None:
    book, now = Tickets(), 0.0
    known: list[tuple[bytes, Holder, float]] = []
    live: set[int] = set()
    for what, value in steps:
        if what == "pass":
            now += value
            due = {holder.number for _, holder, until in known if holder.number in live and now >= until}
            assert {holder.number for holder in book.expire(now)} == due
            live -= due
        elif what == "issue":
            held = sum(holder.number in live for _, holder, _ in known if holder.peer == value)
            try:
                ticket, holder = book.issue(value, digest_of(b"root"), now)
            except Busy:
                assert held == MAX_TICKETS_A_PEER
                continue
            assert held < MAX_TICKETS_A_PEER
            known.append((ticket, holder, now + LIFE_S))
            live.add(holder.number)
        elif value < len(known):
            ticket, holder, _ = known[value]
            assert book.redeem(ticket, now) == (holder if holder.number in live else None)
            live.discard(holder.number)
    assert len(book) == len(live)
