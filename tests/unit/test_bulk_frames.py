"""The two halves of a bulk connection: what a hostile other end may try, and what an honest one gets."""

from __future__ import annotations

import struct

import pytest

from celluler.content.bulk_frames import MAX_IN_FLIGHT, REQUEST_BYTES, Answer, Client, FalseLength, Server, Status
from celluler.content.bulk_frames import encode_head as head
from celluler.content.digest import digest_of
from celluler.errors import LocalError, ProtocolViolation

DIGEST = digest_of(b"chunk")


def client(*lengths: int) -> Client:
    """One that has asked for chunks of these lengths, numbered from 0."""
    asking = Client(bytearray(64))
    for number, length in enumerate(lengths):
        asking.request(number, DIGEST, length)
    return asking


def hear(asking: Client, data: bytes) -> list[tuple[Status, int, bytes]]:
    answers = []
    while data:
        space = asking.space()
        part, data = data[: len(space)], data[len(space) :]
        space[: len(part)] = part
        answer = asking.filled(len(part))
        if isinstance(answer, Answer):
            answers.append((answer.status, answer.number, bytes(answer.data)))
    return answers


def test_answers_come_in_any_order() -> None:
    asking = client(5, 3, 1)
    wire = head(Status.OK, 1, 3) + b"abc" + head(Status.NOT_FOUND, 2) + head(Status.OK, 0, 5) + b"defgh"
    assert hear(asking, wire) == [(Status.OK, 1, b"abc"), (Status.NOT_FOUND, 2, b""), (Status.OK, 0, b"defgh")]
    assert asking.idle
    assert not asking.owes


def test_the_rest_of_an_answer_is_owed_until_it_came() -> None:
    asking = client(5)
    for part, owes in ((head(Status.OK, 0, 5), True), (b"de", True), (b"fgh", False)):
        hear(asking, part)
        assert (asking.owes, asking.idle) == (owes, not owes)


@pytest.mark.parametrize(
    "wire",
    [
        head(Status.OK, 7, 5),
        head(Status.NOT_FOUND, 7),
        struct.pack(">BII", 3, 0, 0),
        struct.pack(">BII", 1, 0, 5),
        struct.pack(">BII", 2, 0, 5),
    ],
    ids=["not asked", "not asked, absent", "no such status", "absent with bytes", "busy with bytes"],
)
def test_an_answer_outside_the_protocol_is_refused_at_its_head(wire: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        hear(client(5), wire)


@pytest.mark.parametrize("length", [0, 4, 6, 0xFFFFFFFF])
def test_another_length_than_the_asked_one_is_refused_before_anything_is_kept(length: int) -> None:
    with pytest.raises(FalseLength) as caught:
        hear(client(5), head(Status.OK, 0, length))
    assert caught.value.number == 0


def test_the_same_answer_twice_is_refused() -> None:
    with pytest.raises(ProtocolViolation):
        hear(client(1, 1), 2 * (head(Status.OK, 0, 1) + b"a"))


def test_a_client_asks_for_no_more_than_it_may() -> None:
    asking = client(*[1] * MAX_IN_FLIGHT)
    assert asking.room == 0
    with pytest.raises(LocalError):
        asking.request(1000, DIGEST, 1)
    with pytest.raises(LocalError):
        client(1).request(0, DIGEST, 1)
    with pytest.raises(LocalError):
        client().request(0, DIGEST, 65)


def test_a_server_reads_requests_however_they_are_cut() -> None:
    wire = b"".join(client().request(number, digest_of(bytes([number])), 1) for number in range(5))
    for size in (1, 7, REQUEST_BYTES, 100, len(wire)):
        serving = Server()
        requests = [one for at in range(0, len(wire), size) for one in serving.feed(wire[at : at + size])]
        assert [(one.number, one.digest) for one in requests] == [(n, digest_of(bytes([n]))) for n in range(5)]
        assert serving.idle


def test_a_server_refuses_another_type_a_number_in_use_and_one_request_too_many() -> None:
    one = client().request(1, DIGEST, 1)
    with pytest.raises(ProtocolViolation):
        Server().feed(b"\x02" + one[1:])
    with pytest.raises(ProtocolViolation):
        Server().feed(one + one)
    serving = Server(max_in_flight=2)
    serving.feed(one + client().request(2, DIGEST, 1))
    with pytest.raises(ProtocolViolation):
        serving.feed(client().request(3, DIGEST, 1))


def test_an_answered_number_may_be_used_again() -> None:
    serving, one = Server(max_in_flight=1), client().request(1, DIGEST, 1)
    for _ in range(3):
        assert len(serving.feed(one)) == 1
        serving.answered(1)
