"""The endpoint over a worker's own slots: what OpenAI's clients are told is what the model draws."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from celluler.content.digest import Digest
from celluler.inference.questions import Generated, Question
from celluler.models.body import parse_body
from celluler.models.interface import read_interface
from celluler_node.answers.staged import Stopping
from celluler_node.gateway.app import gateway_app
from celluler_node.serving.writing import Writing, open_writing
from tests.support.generating import Worked, reciting
from tests.support.jobs import ALICE
from tests.support.serving_node import ServingNode

TEXT = "Wie schön,du!"
TEMPLATE = "{% for one in messages %}{{ one.content }}{% endfor %}"
ASKED = {"model": "alice/tales", "temperature": 0}


class WorkedNode(ServingNode):
    """Its tales are those of a worker in this process."""

    writing: Writing

    @asynccontextmanager
    async def generate(self, ref: str, question: Question, *, peer: str = "") -> AsyncIterator[Generated]:
        model = await self.show_model(ref)
        async with self.writing.ask(question, "alice", trio.current_time() + question.timeout_s) as answering:
            yield Stopping(answering, question.stop, model.reference, model.cid, ALICE.peer_id)


@pytest.fixture
async def worked_http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    model, node = reciting(TEXT.encode(), tmp_path), WorkedNode()
    await node.publish()
    template = tmp_path / "template"
    template.write_text(TEMPLATE)
    interface = read_interface(parse_body(model.body, model.spec), model.preprocess)
    call, digest = Worked(tmp_path, model).call, Digest(b"m" * 32)
    transport = httpx.ASGITransport(app=gateway_app(node, "t"), raise_app_exceptions=False)
    async with (
        open_writing(call, interface, digest, None, template=str(template), on_failure=lambda: None) as writing,
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787") as http,
    ):
        assert writing is not None
        node.writing = writing
        yield http
    node.close()


async def ask(http: httpx.AsyncClient, path: str, **said: Any) -> Any:
    answer = await http.post(f"/v1/{path}", json=ASKED | said)
    assert answer.status_code == 200, answer.text
    if not said.get("stream"):
        return answer.json()
    *events, done, _ = answer.text.split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_what_a_worker_draws_is_told_whole_and_as_it_comes(worked_http: httpx.AsyncClient) -> None:
    told = await ask(worked_http, "completions", prompt="Wi", max_tokens=8, n=2)
    assert [(one["text"], one["finish_reason"]) for one in told["choices"]] == [("e schön", "length")] * 2
    assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (2, 16)
    streamed = await ask(worked_http, "completions", prompt=["Wi", "s"], max_tokens=8, stream=True)
    texts = ["", ""]
    for piece in streamed:
        texts[piece["choices"][0]["index"]] += piece["choices"][0]["text"]
    assert texts == ["e schön", "chön,du"]
    messages = [{"role": "user", "content": "W"}]
    stopped = await ask(worked_http, "chat/completions", messages=messages, stop=["schön", "ön"])
    assert stopped["choices"][0]["message"]["content"] == "ie "
    assert stopped["choices"][0]["finish_reason"] == "stop"


async def test_a_seed_draws_again_and_a_beginning_is_read_once(worked_http: httpx.AsyncClient) -> None:
    prompt = "Wie schön,du" * 3
    first = await ask(worked_http, "completions", prompt=prompt, temperature=2, max_tokens=9, n=3)
    again = await ask(
        worked_http, "completions", prompt=prompt, temperature=2, max_tokens=9, n=3, seed=first["celluler"]["seed"]
    )
    assert again["choices"] == first["choices"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert 0 < again["usage"]["prompt_tokens_details"]["cached_tokens"] < again["usage"]["prompt_tokens"]


async def test_likely_tokens_have_texts_and_a_prompt_that_does_not_fit_is_refused(
    worked_http: httpx.AsyncClient,
) -> None:
    told = await ask(
        worked_http,
        "chat/completions",
        messages=[{"role": "user", "content": "Wi"}],
        logprobs=True,
        top_logprobs=2,
        max_tokens=3,
    )
    content = told["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in content] == ["e", " ", "s"]
    assert [one["top_logprobs"][0]["token"] for one in content] == ["e", " ", "s"]
    refused = await worked_http.post("/v1/completions", json=ASKED | {"prompt": "W" * 65})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
