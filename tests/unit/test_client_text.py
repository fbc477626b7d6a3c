"""The clients of a model that writes: what they send, what they give back, whole and piece by piece."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from starlette.testclient import TestClient

from celluler.client import AsyncClient, Client
from celluler.client.asynchronous_text import AsyncPieces
from celluler.client.calls_text import Reading
from celluler.client.synchronous_text import Pieces
from celluler.errors import Busy, InvalidSpec, LocalError, NotFound, ProtocolViolation, Unavailable, WorkerFailed
from celluler_node.gateway.app import gateway_app
from tests.support.gateways import open_client
from tests.support.jobs import ALICE, BOB
from tests.support.serving_node import ServingNode
from tests.support.writing import TALE

HELLO = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello"}]


@pytest.fixture
async def client(node: ServingNode) -> AsyncIterator[AsyncClient]:
    async with open_client(node) as client:
        yield client


async def test_a_model_writes_on_behind_a_text_a_conversation_and_tokens(client: AsyncClient) -> None:
    told = await client.generate("alice/tales", "Once", temperature=0)
    assert (told.text, told.answers[0].reason) == (TALE, "stop")
    assert (told.model, told.peer, told.prompt_tokens) == ("alice/tales:1.1.0", BOB.peer_id, 4)
    assert told.generated_tokens == len(TALE.encode())
    assert told.elapsed_s > 0
    chat = await client.generate("alice/tales", HELLO, temperature=0, max_tokens=6, stop=["z"], n=2)
    assert [answer.text for answer in chat.answers] == [TALE[:5]] * 2
    assert (await client.generate("alice/tales", [79, 110], max_tokens=2)).prompt_tokens == 2
    twice = [await client.generate("alice/tales", "Once", temperature=1.9, seed=3) for _ in range(2)]
    assert twice[0].text == twice[1].text
    assert twice[0].seed == 3
    assert (await client.generate("alice/tales", "Once", peer="alice")).peer == ALICE.peer_id
    assert (await client.predict("alice/texts", ["ab"], output="embedding", peer="alice")).peer == ALICE.peer_id
    with pytest.raises(InvalidSpec, match="ensemble"):
        await client.predict("alice/texts", ["ab"], output="embedding", peer="alice", ensemble=2)


@pytest.mark.parametrize("prompt", ["Once", HELLO])
async def test_pieces_come_to_the_whole(client: AsyncClient, prompt: Any) -> None:
    whole = await client.generate("alice/tales", prompt, temperature=0, n=2, logprobs=2, max_tokens=9, seed=1)
    stream = await client.generate(
        "alice/tales", prompt, temperature=0, n=2, logprobs=2, max_tokens=9, seed=1, stream=True
    )
    pieces = [piece async for piece in stream]
    assert "".join(piece.text for piece in pieces if piece.choice == 1) == whole.answers[1].text == TALE[:8]
    told = stream.generation
    assert told.answers == whole.answers
    assert (told.generated_tokens, told.seed, told.cid) == (18, 1, whole.cid)
    assert 0 < (told.first_s or 0) <= told.elapsed_s
    token = whole.answers[0].tokens[2]
    assert token.text == "b"
    assert token.likeliest["b"] == token.logprob > token.likeliest["\0"]


async def test_leaving_a_stream_ends_the_answer(node: ServingNode, client: AsyncClient) -> None:
    node.writer.pause_after = 5
    with trio.fail_after(5):
        async with await client.generate("alice/tales", "Once", stream=True) as stream:
            assert (await anext(stream)).text
            assert stream.generation.peer == BOB.peer_id
        await trio.testing.wait_all_tasks_blocked()
    assert node.writer.left == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_raises_what_the_node_raised(node: ServingNode, client: AsyncClient, stream: bool) -> None:
    for model, said, error in (
        ("alice/none", {}, NotFound),
        ("alice/digits", {}, InvalidSpec),
        ("alice/tales", {"temperature": 3}, InvalidSpec),
    ):
        with pytest.raises(error):
            await client.generate(model, "Once", stream=stream, **said)  # type: ignore[call-overload]
    with pytest.raises(LocalError, match="a prompt is"):
        await client.generate("alice/tales", [1, {"role": "user"}], stream=stream)  # type: ignore[call-overload]
    node.busy = True
    with pytest.raises(Busy):
        await client.generate("alice/tales", "Once", stream=stream)  # type: ignore[call-overload]


async def test_a_failure_in_the_middle_is_raised_there(node: ServingNode, client: AsyncClient) -> None:
    node.writer.failure = (6, WorkerFailed("it ended", limit="memory"))
    stream = await client.generate("alice/tales", "Once", temperature=0, stream=True)
    told = [(await anext(stream)).text for _ in range(5)]
    with pytest.raises(WorkerFailed, match="it ended") as failed:
        await anext(stream)
    assert ("".join(told), failed.value.limit) == (TALE[:5], "memory")


@pytest.fixture
def blocking() -> Iterator[Client]:
    node = ServingNode()
    trio.run(node.publish)
    with TestClient(gateway_app(node, "t"), base_url="http://localhost", backend="trio") as http:

        def handle(request: httpx.Request) -> httpx.Response:
            answer = http.request(request.method, str(request.url), content=request.content, headers=request.headers)
            return httpx.Response(answer.status_code, content=answer.content)

        with Client("http://localhost", "t", transport=httpx.MockTransport(handle)) as client:
            yield client
    node.close()


def test_the_client_without_await_does_the_same(blocking: Client) -> None:
    told = blocking.generate("alice/tales", "Once", temperature=0)
    with blocking.generate("alice/tales", "Once", temperature=0, stream=True) as stream:
        assert "".join(piece.text for piece in stream) == told.text == TALE
        assert stream.generation.answers == told.answers
    with pytest.raises(NotFound):
        blocking.generate("alice/none", "Once", stream=True)


def test_both_streams_have_one_shape() -> None:
    twins = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__"}
    for method, function in inspect.getmembers(AsyncPieces, inspect.isfunction):
        twin = getattr(Pieces, {**twins, "__anext__": "__next__"}.get(method, method))
        assert list(inspect.signature(twin).parameters) == list(inspect.signature(function).parameters), method


NOT_ALIKE = {"tokens": [1], "token_logprobs": [], "top_logprobs": []}


def event(**said: Any) -> bytes:
    told = {"model": "m", "celluler": {"cid": "c", "peer": "p", "seed": 1}, "choices": []} | said
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def test_a_stream_is_read_however_it_is_cut() -> None:
    choice = {"index": 0, "text": "ü\u2028a", "finish_reason": None}
    whole = (
        event(choices=[choice])
        + b": still here\n\n"
        + event(choices=[choice | {"finish_reason": "stop"}])
        + b"data: [DONE]\n\n"
    )
    for size in (1, 7, len(whole)):
        reading = Reading(1.0)
        texts = [
            piece.text
            for start in range(0, len(whole), size)
            for piece in reading.feed(whole[start : start + size], 3.0)
        ]
        reading.end()
        assert texts == ["ü\u2028a"] * 2
        told = reading.generation(5.0)
        assert (told.text, told.answers[0].reason) == ("ü\u2028a" * 2, "stop")
        assert (told.first_s, told.elapsed_s) == (2.0, 4.0)


@pytest.mark.parametrize(
    "given",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: {}\n\n",
        event(choices=[3]),
        event(choices=[{"index": "a", "text": "a"}]),
        event(choices=[{"index": 0, "text": 3}]),
        event(
            choices=[{"index": 0, "text": "a", "logprobs": {"tokens": [1], "token_logprobs": [], "top_logprobs": []}}]
        ),
        b"data: " + b"a" * (17 << 20),
    ],
)
def test_what_is_no_stream_of_a_node_is_refused(given: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        Reading(0.0).feed(given, 1.0)


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    reading = Reading(0.0)
    reading.feed(event(choices=[{"index": 0, "text": "a"}]), 1.0)
    with pytest.raises(Unavailable):
        reading.end()
