"""A real language model answers a real question, through a node and a standard client's request."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from celluler.engines.generation.conversation import Conversation
from celluler.formats.gguf_files import open_gguf
from celluler.home import read_node_file
from celluler.inference.questions import Message
from simulations.swarm import open_swarm
from tests.support.smollm2 import smollm2

pytestmark = pytest.mark.large
MODEL = "alice/smollm2:1.0.0"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """The endpoint of a node that has the model, made of a GGUF file."""
    with open_swarm() as swarm:
        node = swarm.start("alice")
        node.call("model", "add", MODEL, str(smollm2()), "--context", "512", timeout_s=300)
        running = read_node_file(node.home)
        headers = {"Authorization": f"Bearer {running.token}"}
        with httpx.Client(base_url=running.api, headers=headers, timeout=120.0) as client:
            yield client


def test_the_capital_of_france_is_paris_and_the_answer_ends_by_itself(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=ASKED | {"max_tokens": 64})
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert "Paris" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert "<|" not in choice["message"]["content"]
    usage = answer.json()["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] > 20  # the template's own system turn among them


def test_what_comes_piece_by_piece_is_the_same_and_likely_tokens_are_texts(http: httpx.Client) -> None:
    whole = http.post("/v1/chat/completions", json=ASKED | {"max_tokens": 24, "logprobs": True, "top_logprobs": 3})
    (choice,) = whole.json()["choices"]
    told = ""
    with http.stream("POST", "/v1/chat/completions", json=ASKED | {"max_tokens": 24, "stream": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                told += "".join(one["delta"].get("content") or "" for one in json.loads(line[6:])["choices"])
    assert told == choice["message"]["content"]
    tokens = choice["logprobs"]["content"]
    assert "".join(one["token"] for one in tokens) == told
    assert all(one["top_logprobs"][0]["logprob"] >= one["top_logprobs"][1]["logprob"] for one in tokens)
    assert any(one["top_logprobs"][1]["token"].strip().isalpha() for one in tokens)


def test_an_answer_bound_to_a_schema_is_what_the_schema_says(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"enum": ["Rome", "Paris", "Oslo"]}, "letters": {"type": "integer", "maximum": 99}},
        "required": ["capital", "letters"],
        "additionalProperties": False,
    }
    bound = {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}
    answer = http.post("/v1/chat/completions", json=ASKED | bound | {"max_tokens": 64})
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    told = json.loads(choice["message"]["content"])
    assert told["capital"] == "Paris"
    assert told["letters"] <= 99
    assert choice["finish_reason"] == "stop"
    bad = {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "none"}}}}
    assert http.post("/v1/chat/completions", json=ASKED | bad).status_code == 400


TEMPLATES = {
    "turns by name, the system's first": """\
{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
        {{- '<|im_start|>system\nBe of help<|im_end|>\n' }}
    {% endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{% endif %}""",
    "instructions in brackets": """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = '<<SYS>>\n' + messages[0]['content'] | trim + '\n<</SYS>>\n\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system, rest = '', messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Roles must alternate user/assistant') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + message['content'] | trim + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}""",
    "what has been said, as JSON": """\
{{ bos_token }}
{%- set ns = namespace(turns=0) %}
{% for message in messages if message.role == 'user' %}
  {% set ns.turns = ns.turns + 1 %}
  {% if ns.turns > 2 %}{% break %}{% endif %}
  {% generation %}{{ message | tojson }}{% endgeneration %}

  {{ [message.content, ns.turns] | tojson(indent=2) }}
{% endfor %}
{{ tools is none or tools is not defined }} {{ strftime_now('%%') }}
""",
}
"""In the manner of those that models come with."""
SAID = (
    Message("system", "Ü <b>&amp;</b> "),
    Message("user", " one\n"),
    Message("assistant", "two"),
    Message("user", "'three'\n\n"),
)


@pytest.mark.parametrize("name", ["smollm2", *TEMPLATES])
def test_conversations_become_the_prompts_that_transformers_makes_of_them(name: str) -> None:
    render = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    source = TEMPLATES.get(name) or open_gguf(smollm2()).metadata["tokenizer.chat_template"]
    assert isinstance(source, str)
    marks = {"bos_token": "<s>", "eos_token": "</s>"}
    for said in (SAID, SAID[1:], SAID[1:2]):
        turns = [{"role": one.role, "content": one.text} for one in said]
        theirs = render([turns], chat_template=source, add_generation_prompt=True, **marks)
        assert Conversation(source, marks).text(said) == theirs[0][0]
