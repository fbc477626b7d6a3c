"""OpenAI's surface of models that write: chats and completions, whole and as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from celluler.errors import Busy, TimedOut, WorkerFailed
from celluler.inference.questions import Event, Message, Question, Said
from celluler.inference.sampling import Chosen
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.asking_text import AskingText
from celluler_node.gateway.counted import Counted
from celluler_node.gateway.in_process import open_in_process
from celluler_node.gateway.openai_said import Head, Telling
from celluler_node.gateway.openai_text import read_completion
from tests.support.jobs import ALICE, BOB
from tests.support.serving_node import ServingNode
from tests.support.writing import TALE

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
GREEDY = {"model": "alice/tales", "temperature": 0}


@pytest.fixture
async def streaming(node: ServingNode) -> AsyncIterator[httpx.AsyncClient]:
    """As `http`, and answers come piece by piece."""
    async with (
        open_in_process(gateway_app(node, "t")) as transport,
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787") as http,
    ):
        yield http


async def chat(http: httpx.AsyncClient, **said: Any) -> Any:
    answer = await http.post(CHAT, json=GREEDY | {"messages": HELLO} | said)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def complete(http: httpx.AsyncClient, **said: Any) -> Any:
    answer = await http.post(COMPLETION, json=GREEDY | {"prompt": "Hello"} | said)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def pieces(http: httpx.AsyncClient, path: str, **said: Any) -> list[Any]:
    """Documents of a stream, which must end in order."""
    asked = {"prompt": "Hello"} if path == COMPLETION else {"messages": HELLO}
    answer = await http.post(path, json=GREEDY | asked | {"stream": True} | said)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_a_chat_is_answered_whole(node: ServingNode, http: httpx.AsyncClient) -> None:
    told = await chat(http, seed=7)
    assert (told["object"], told["model"]) == ("chat.completion", "alice/tales:1.1.0")
    assert told["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TALE, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    prompt, written = len("user: Hello\n"), len(TALE.encode())
    assert told["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert told["celluler"] == {"cid": told["system_fingerprint"], "peer": BOB.peer_id, "seed": 7}
    assert node.writer.questions[0].prompt == (Message("user", "Hello"),)
    assert (await chat(http, peer="alice"))["celluler"]["peer"] == ALICE.peer_id
    assert (await http.post(CHAT, json=GREEDY | {"messages": HELLO, "peer": "nobody"})).status_code == 404
    again = await chat(http, messages=[*HELLO, told["choices"][0]["message"], {"role": "user", "content": "More"}])
    assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": prompt}


async def test_pieces_come_to_the_whole(http: httpx.AsyncClient) -> None:
    for path, key in ((CHAT, "delta"), (COMPLETION, "text")):
        told = await pieces(http, path, n=2, max_tokens=9, stream_options={"include_usage": True})
        assert len({piece["id"] for piece in told}) == 1
        assert told[-1]["choices"] == []
        assert told[-1]["usage"]["completion_tokens"] == 18
        assert all(piece["usage"] is None for piece in told[:-1])
        for index in (0, 1):
            own = [piece["choices"][0] for piece in told[:-1] if piece["choices"][0]["index"] == index]
            texts = [one[key] if key == "text" else one["delta"].get("content", "") for one in own]
            assert "".join(texts) == TALE[:8]  # the Ü is two tokens
            assert [one["finish_reason"] for one in own if one["finish_reason"]] == ["length"]
            assert own[-1]["finish_reason"] == "length"
        if path == CHAT:
            assert told[0]["choices"][0]["delta"]["role"] == "assistant"
        assert "usage" not in (await pieces(http, path))[0]


async def test_words_come_as_they_are_written(node: ServingNode, streaming: httpx.AsyncClient) -> None:
    node.writer.pause_after = 5
    asked = GREEDY | {"prompt": "Hello", "stream": True}
    with trio.fail_after(5):
        async with streaming.stream("POST", COMPLETION, json=asked) as answer:
            lines = (line async for line in answer.aiter_lines() if line)
            first = [json.loads((await anext(lines)).removeprefix("data: ")) for _ in range(4)]
            assert "".join(one["choices"][0]["text"] for one in first) == TALE[:4]
            assert node.writer.drawn == 5
            node.writer.gate.set()
            assert [line async for line in lines][-1] == "data: [DONE]"


async def test_the_same_seed_draws_the_same_and_a_seed_that_was_drawn_is_told(http: httpx.AsyncClient) -> None:
    first = await complete(http, temperature=2, max_tokens=12)
    seed = first["celluler"]["seed"]
    assert 0 <= seed < 1 << 53
    again = await complete(http, temperature=2, max_tokens=12, seed=seed)
    other = await complete(http, temperature=2, max_tokens=12, seed=seed ^ 1)
    assert again["choices"] == first["choices"] != other["choices"]
    several = await complete(http, temperature=2, max_tokens=12, n=2, prompt=["Hello", "Hello"], seed=seed)
    texts = [one["text"] for one in several["choices"]]
    assert texts[0] == first["choices"][0]["text"]
    assert len(set(texts)) == 4
    assert [one["index"] for one in several["choices"]] == [0, 1, 2, 3]
    assert several["usage"]["prompt_tokens"] == 10


async def test_texts_at_which_answers_stop_are_not_told(http: httpx.AsyncClient) -> None:
    for stop in ("Brücken", ["x", " Brücken"]):
        told = await chat(http, stop=stop)
        assert told["choices"][0]["finish_reason"] == "stop"
        assert told["choices"][0]["message"]["content"].rstrip() == "Über sieben"
    text = "".join(one["choices"][0]["text"] for one in await pieces(http, COMPLETION, stop=["quick"], max_tokens=60))
    assert text == TALE[: TALE.index("quick")]


async def test_a_completion_has_sixteen_tokens_unless_more_are_asked_for(http: httpx.AsyncClient) -> None:
    assert (await complete(http))["usage"]["completion_tokens"] == 16
    assert (await complete(http, max_tokens=None))["choices"][0]["finish_reason"] == "stop"
    assert (await complete(http, echo=True, max_tokens=3))["choices"][0]["text"] == "Hello" + TALE[:2]
    assert (await pieces(http, COMPLETION, echo=True))[0]["choices"][0]["text"] == "Hello"
    assert (await complete(http, prompt=[72, 105], max_tokens=2))["usage"]["prompt_tokens"] == 2
    assert (await complete(http, prompt=[[72], [105]], max_tokens=2))["usage"]["prompt_tokens"] == 2


async def test_logarithms_of_probabilities_are_told_in_both_forms(http: httpx.AsyncClient) -> None:
    content = (await chat(http, logprobs=True, top_logprobs=2, max_tokens=5))["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in content] == ["", "Ü", "b", "e", "r"]
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == "Über"
    assert -0.1 < content[2]["logprob"] < 0
    assert content[2]["top_logprobs"][0] == {"token": "b", "logprob": content[2]["logprob"], "bytes": [98]}
    assert content[2]["top_logprobs"][1]["token"] == "\0"
    assert (await chat(http, logprobs=True, max_tokens=1))["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    streamed = await pieces(http, CHAT, logprobs=True, top_logprobs=2, max_tokens=5)
    assert [
        one for piece in streamed for one in (piece["choices"][0]["logprobs"] or {"content": []})["content"]
    ] == content
    top = (await chat(http, logprobs=True, top_logprobs=1, max_tokens=2, temperature=0))["choices"][0]["logprobs"]
    assert top["content"][0]["top_logprobs"] == [{"token": "", "logprob": content[0]["logprob"], "bytes": []}]
    told = (await complete(http, logprobs=1, max_tokens=5))["choices"][0]["logprobs"]
    assert (told["tokens"], told["text_offset"]) == (["", "Ü", "b", "e", "r"], [0, 0, 1, 2, 3])
    assert told["top_logprobs"][2] == {"b": told["token_logprobs"][2]}
    streamed = [piece["choices"][0]["logprobs"] for piece in await pieces(http, COMPLETION, logprobs=1, max_tokens=5)]
    assert [one["text_offset"][0] for one in streamed if one] == [0, 0, 1, 2, 3]


def test_what_cannot_be_read_alone_has_its_number_for_a_name() -> None:
    asked = read_completion({"model": "m", "prompt": "a", "logprobs": 2, "stream": True}, 0)
    token = Chosen(65, -0.5, ((200, -0.1), (65, -0.5), (7, -3.0)), "A", ("", "A", "g"))
    (told,) = Telling(asked, Head("1", 2, "m", "c", "p")).told(0, Said(0, "A", (token,)))
    assert told["choices"][0]["logprobs"]["top_logprobs"] == [{"token_id:200": -0.1, "A": -0.5, "g": -3.0}]


@pytest.mark.parametrize(
    "said",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "store": False, "tools": None},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "service_tier": "auto", "user": "me"},
        {"response_format": {"type": "text"}, "modalities": ["text"], "metadata": {"a": "b"}, "top_k": -1},
        {"messages": [{"role": "developer", "content": "Be kind"}, {"role": "user", "content": [], "name": None}]},
        {"messages": [{"role": "tool", "content": "1", "tool_call_id": "a"}, {"role": "assistant", "tool_calls": []}]},
        {"max_completion_tokens": 3, "max_tokens": None, "seed": -1},
    ],
)
async def test_what_changes_nothing_may_be_said(http: httpx.AsyncClient, said: dict[str, Any]) -> None:
    await chat(http, **said)


@pytest.mark.parametrize(
    ("path", "said", "param"),
    [
        (CHAT, {"tools": [{"type": "function"}]}, "tools"),
        (CHAT, {"presence_penalty": 0.5}, "presence_penalty"),
        (CHAT, {"logit_bias": {"1": 2}}, "logit_bias"),
        (CHAT, {"store": 0}, "store"),
        (CHAT, {"frobnicate": 1}, "frobnicate"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": "a", "name": "me"}]}, "messages[0].name"),
        (CHAT, {"messages": ["Hello"]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        (CHAT, {"messages": HELLO * 600}, "messages"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"temperature": 2.5}, "temperature"),
        (CHAT, {"temperature": 10**400}, "temperature"),
        (CHAT, {"top_p": 0}, "top_p"),
        (CHAT, {"n": 17}, "n"),
        (CHAT, {"n": True}, "n"),
        (CHAT, {"seed": 1 << 64}, "seed"),
        (CHAT, {"timeout_s": 0}, "timeout_s"),
        (CHAT, {"stages": 17}, "stages"),
        (CHAT, {"stop": ["a"] * 17}, "stop"),
        (CHAT, {"stop": [1]}, "stop"),
        (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"stream": True, "stream_options": {"frobnicate": True}}, "stream_options.frobnicate"),
        (CHAT, {"response_format": {"type": "xml"}}, "response_format.type"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (CHAT, {"prompt": "a"}, "prompt"),
        (COMPLETION, {"prompt": ""}, "prompt"),
        (COMPLETION, {"prompt": []}, "prompt"),
        (COMPLETION, {"prompt": ["a"] * 17}, "prompt"),
        (COMPLETION, {"prompt": ["a", 1]}, "prompt"),
        (COMPLETION, {"prompt": [300]}, "prompt"),
        (COMPLETION, {"logprobs": 21}, "logprobs"),
        (COMPLETION, {"echo": True, "prompt": [1]}, "echo"),
        (COMPLETION, {"echo": True, "logprobs": 1}, "echo"),
        (COMPLETION, {"best_of": 2}, "best_of"),
        (COMPLETION, {"suffix": "end"}, "suffix"),
        (COMPLETION, {"model": "alice/digits"}, "model"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_its_name(
    http: httpx.AsyncClient, path: str, said: dict[str, Any], param: str
) -> None:
    asked = {"prompt": "Hello"} if path == COMPLETION else {"messages": HELLO}
    answer = await http.post(path, content=json.dumps(GREEDY | asked | said).encode())
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert error["celluler"]["type"] == "InvalidSpec"


async def test_errors_before_the_first_word_have_a_status(node: ServingNode, http: httpx.AsyncClient) -> None:
    for stream in (False, True):
        asked = GREEDY | {"messages": HELLO, "stream": stream}
        assert (await http.post(CHAT, json=asked | {"model": "alice/none"})).status_code == 404
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
        refused = await http.post(CHAT, json=asked | {"response_format": schema})
        assert (refused.status_code, refused.headers["x-should-retry"]) == (501, "false")
        node.busy = True
        busy = await http.post(CHAT, json=asked)
        assert (busy.status_code, busy.headers["Retry-After"]) == (429, "1")
        node.busy = False
    for reason, status in (("deadline", 504), ("error", 500), ("cancelled", 503)):
        node.writer.reason = reason
        assert (await http.post(CHAT, json=GREEDY | {"messages": HELLO})).status_code == status


@pytest.mark.parametrize("failure", [WorkerFailed("it ended"), TimedOut("no more")])
async def test_an_error_in_the_middle_is_the_last_event(
    node: ServingNode, http: httpx.AsyncClient, failure: WorkerFailed
) -> None:
    node.writer.failure = (4, failure)
    answer = await http.post(COMPLETION, json=GREEDY | {"prompt": ["a", "b"], "stream": True})
    *told, last, rest = answer.text.split("\n\n")
    assert (answer.status_code, rest, bool(told)) == (200, "", True)
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["message"], error["celluler"]["type"]) == (str(failure), type(failure).__name__)
    assert node.writer.left == 2


async def test_while_nothing_is_said_a_comment_tells_that_somebody_is_there(
    node: ServingNode, streaming: httpx.AsyncClient, autojump_clock: trio.testing.MockClock
) -> None:
    node.writer.pause_after = 3
    async with streaming.stream("POST", COMPLETION, json=GREEDY | {"prompt": "a", "stream": True}) as answer:
        lines = (line async for line in answer.aiter_lines() if line)
        told = [await anext(lines) for _ in range(4)]
        assert [line for line in told if line.startswith(":")] == [": still here"] * 2
        assert 30 <= trio.current_time() < 31
        node.writer.gate.set()
        assert [line async for line in lines][-1] == "data: [DONE]"


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
async def test_a_client_that_goes_away_ends_the_answer(
    node: ServingNode, streaming: httpx.AsyncClient, path: str
) -> None:
    node.writer.pause_after = 4
    asked = GREEDY | {"stream": True} | ({"messages": HELLO} if path == CHAT else {"prompt": ["a", "b"]})
    with trio.fail_after(5):
        async with streaming.stream("POST", path, json=asked) as answer:
            await anext(answer.aiter_lines())
            await trio.testing.wait_all_tasks_blocked()
            assert node.writer.left == 0
        await trio.testing.wait_all_tasks_blocked()
    assert node.writer.left == len(node.writer.questions) > 0
    assert 'celluler_generations_failed_total{kind="Cancelled"} 1.0' in (await streaming.get("/metrics")).text


async def test_a_client_that_goes_away_before_the_first_word_ends_it_too(
    node: ServingNode, streaming: httpx.AsyncClient
) -> None:
    node.writer.pause_after = 0
    for stream in (True, False):
        with trio.move_on_after(0.05):
            async with streaming.stream("POST", CHAT, json=GREEDY | {"messages": HELLO, "stream": stream}) as answer:
                await answer.aread()
        await trio.testing.wait_all_tasks_blocked()
    assert (node.writer.left, node.writer.drawn) == (2, 0)


async def test_more_answers_than_may_be_under_way_are_turned_away(node: ServingNode) -> None:
    texts = AskingText(node, Counted(), most=2)
    node.writer.pause_after = 2
    question, told = Question("a"), list[int]()

    async def begun(_opened: object) -> None:
        pass

    async def on_told(place: int, _event: Event) -> None:
        told.append(place)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(texts.generate, "alice/tales", [question, question], begun, on_told)
        await trio.testing.wait_all_tasks_blocked()
        assert (texts.under_way, texts.silent, sorted(told)) == (2, 0, [0, 0, 1, 1])
        with pytest.raises(Busy):
            await texts.generate("alice/tales", [question], begun, on_told)
        node.writer.gate.set()
    assert (texts.under_way, node.writer.left) == (0, 0)
