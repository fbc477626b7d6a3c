"""The node's side against a process that this test plays itself, on the other end of a socketpair."""

import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from celluler.errors import LocalError, ProtocolViolation, WorkerFailed
from celluler_node.processes.channel import Channel, printable
from celluler_node.processes.frames import Frame, FrameReader, encode
from celluler_node.processes.words import (
    MAX_CALLS_IN_FLIGHT,
    MAX_EVENTS,
    Failure,
    Isolation,
    Kind,
    Program,
    Ready,
    Reply,
)
from tests.support.process_children import EVENTS, REPLIES, REQUESTS, Echo, Note, Said

PROGRAM = Program("echo", "-", REQUESTS, REPLIES, EVENTS, max_blob_bytes=1 << 20)
ISOLATION = Isolation(True, True, True, 7, True, ())


class Peer:
    """The other end, by hand."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)
        self.reader = FrameReader(1 << 20)
        self.frames: list[Frame] = []

    async def next(self) -> Frame:
        while not self.frames:
            count = await self.sock.recv_into(self.reader.space())
            self.frames += self.reader.filled(count)
        return self.frames.pop(0)

    async def send(self, kind: Kind, record, *blobs: bytes, call: int = 0, tag: int = 0) -> None:
        await self.raw(b"".join(encode(kind, record, blobs, call=call, tag=tag)))

    async def raw(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            sent += await self.sock.send(data[sent:])

    async def reply(self, frame: Frame, text: str) -> None:
        await self.send(Kind.REPLY, Said(text), *frame.blobs, call=frame.call)


async def _give_up_after(seconds: float) -> None:
    await trio.sleep(seconds)
    raise TimeoutError("the test hangs")


@pytest.fixture
async def ends(nursery):
    ours, theirs = socket.socketpair()
    channel, peer = Channel(ours, PROGRAM), Peer(theirs)
    nursery.start_soon(channel.send)
    nursery.start_soon(_give_up_after, 10)
    yield channel, peer
    nursery.cancel_scope.cancel()
    peer.sock.close()
    channel.close()


@pytest.fixture
async def talking(ends, nursery):
    channel, peer = ends
    nursery.start_soon(channel.receive)
    await peer.send(Kind.READY, Ready(ISOLATION))
    await channel.ready()
    return channel, peer


async def test_a_process_says_which_walls_stand_around_it(talking):
    channel, _ = talking
    assert channel.isolation == ISOLATION
    assert ISOLATION.full


async def test_answers_find_their_calls_in_any_order(talking):
    channel, peer = talking
    answers: dict[str, Reply] = {}

    async def ask(text):
        answers[text] = await channel.call(Echo(text), text.encode())

    async with trio.open_nursery() as asking:
        for text in ("a", "b", "c"):
            asking.start_soon(ask, text)
        frames = [await peer.next() for _ in range(3)]
        for frame in reversed(frames):
            await peer.reply(frame, frame.blobs[0].decode().upper())
    assert {text: (reply.record.text, bytes(reply.blobs[0])) for text, reply in answers.items()} == {
        "a": ("A", b"a"),
        "b": ("B", b"b"),
        "c": ("C", b"c"),
    }


async def test_a_request_larger_than_the_socket_takes_at_once_arrives_whole(talking, nursery):
    channel, peer = talking
    blob = bytes(range(256)) * 4096
    nursery.start_soon(channel.call, Echo("big"), blob)
    await wait_all_tasks_blocked()
    frame = await peer.next()
    assert frame.blobs == (blob,)
    await peer.reply(frame, "done")


async def test_an_error_over_there_is_the_callers_and_only_his(talking, nursery):
    channel, peer = talking

    async def answer():
        frame = await peer.next()
        await peer.send(Kind.FAILURE, Failure("ValueError", "no\x1b[31m such"), call=frame.call)
        await peer.reply(await peer.next(), "well")

    nursery.start_soon(answer)
    with pytest.raises(WorkerFailed, match=r"echo: ValueError: no\?\[31m such"):
        await channel.call(Echo("x"))
    assert (await channel.call(Echo("y"))).record == Said("well")


async def test_a_cancelled_call_is_cancelled_over_there_and_its_late_answer_dropped(talking, nursery):
    channel, peer = talking
    with trio.move_on_after(0):
        await channel.call(Echo("x"))
    request, cancel = await peer.next(), await peer.next()
    assert (request.kind, cancel.kind, cancel.call) == (Kind.REQUEST, Kind.CANCEL, request.call)
    await peer.reply(request, "late")

    async def answer():
        await peer.reply(await peer.next(), "in time")

    nursery.start_soon(answer)
    assert (await channel.call(Echo("y"))).record == Said("in time")


async def test_calls_given_up_still_count_until_they_are_answered(talking, nursery):
    channel, peer = talking
    for _ in range(MAX_CALLS_IN_FLIGHT):
        with trio.move_on_after(0):
            await channel.call(Echo("x"))
    answers = []

    async def ask():
        answers.append(await channel.call(Echo("one more")))

    nursery.start_soon(ask)
    await wait_all_tasks_blocked()
    first = await peer.next()
    await peer.reply(first, "late")
    while (frame := await peer.next()).kind != Kind.REQUEST or frame.call <= MAX_CALLS_IN_FLIGHT:
        pass
    await peer.reply(frame, "now")
    await wait_all_tasks_blocked()
    assert [answer.record for answer in answers] == [Said("now")]


async def test_the_end_of_a_process_fails_the_calls_in_flight_and_all_later_ones(talking):
    channel, peer = talking
    reasons = []

    async def ask():
        with pytest.raises(WorkerFailed) as caught:
            await channel.call(Echo("x"))
        reasons.append(caught.value.reason)

    async with trio.open_nursery() as asking:
        asking.start_soon(ask)
        asking.start_soon(ask)
        await peer.next()
        channel.fail("killed by SIGKILL")
    with pytest.raises(WorkerFailed, match="SIGKILL"):
        await channel.call(Echo("x"))
    assert reasons == ["killed by SIGKILL"] * 2
    with pytest.raises(trio.EndOfChannel):
        await channel.events.receive()


async def test_events_are_kept_in_order_up_to_a_bound_and_counted_beyond_it(talking):
    channel, peer = talking
    for number in range(MAX_EVENTS + 10):
        await peer.send(Kind.EVENT, Note(str(number)))
    await wait_all_tasks_blocked()
    assert [channel.events.receive_nowait().text for _ in range(MAX_EVENTS)] == [str(n) for n in range(MAX_EVENTS)]
    assert channel.events_dropped == 10


def frame(kind: Kind, record, *blobs: bytes, call: int = 0, tag: int = 0) -> bytes:
    return b"".join(encode(kind, record, blobs, call=call, tag=tag))


READY = frame(Kind.READY, Ready(ISOLATION))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 64,
        frame(Kind.EVENT, Note("before it is ready")),
        READY + READY,
        READY + frame(Kind.REPLY, Said("to nobody"), call=99),
        READY + frame(Kind.FAILURE, Failure("to", "nobody"), call=99),
        READY + frame(Kind.EVENT, Note("x"), tag=1),
        READY + frame(Kind.EVENT, Ready(ISOLATION)),
        READY + frame(Kind.REQUEST, Echo("the wrong way round")),
        READY + frame(Kind.BOOT, None),
        frame(Kind.READY, Note("x")),
        READY[:-1] + b"\xc1",
    ],
)
async def test_whatever_a_process_may_not_send_is_a_violation(ends, data):
    channel, peer = ends
    await peer.raw(data)
    with pytest.raises(ProtocolViolation):
        await channel.receive()


async def test_an_answer_over_the_limit_is_a_violation_before_it_has_come(talking, nursery):
    ours, theirs = socket.socketpair()
    channel, peer = Channel(ours, Program("small", "-", REQUESTS, REPLIES, max_blob_bytes=10)), Peer(theirs)
    await peer.send(Kind.READY, Ready(ISOLATION))
    await peer.raw(frame(Kind.REPLY, Said("x"), bytes(11), call=1)[:-11])
    with pytest.raises(ProtocolViolation, match="limit 10"):
        await channel.receive()
    with pytest.raises(LocalError, match="limit 10"):
        await channel.call(Echo("x"), bytes(11))
    channel.close()
    peer.sock.close()


async def test_a_word_of_another_program_is_refused_here(talking):
    channel, _ = talking
    with pytest.raises(LocalError, match="not a word"):
        await channel.call(Said("x"))


def test_what_a_process_says_is_made_fit_for_a_terminal():
    assert printable("ok\x1b[2J\u202e\n" + "x" * 400) == "ok?[2J??" + "x" * 292
