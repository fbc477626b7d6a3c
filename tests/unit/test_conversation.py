"""Conversations become prompts by a template beside the weights, which is a program of anybody's."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from celluler.engines.generation.conversation import Conversation, plain, read_conversation
from celluler.errors import InvalidSpec
from celluler.inference.questions import MAX_PROMPT_BYTES, Message

ASKED = (Message("system", "Be <brief>."), Message("user", "Hi\n"), Message("assistant", "Yes"), Message("user", "Ü?"))
TURNS = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set rest = messages[1:] %}
[{{ messages[0].content }}]
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{% for one in rest %}
    {% if one.role == 'assistant' %}
        {% generation %}
{{ one['content'] | trim }}{{ eos_token }}
        {% endgeneration %}
    {% else %}
{{ bos_token if loop.first else '' }}<{{ one.role }}>{{ one['content'] | trim }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<assistant>
{%- endif %}"""


def test_a_template_is_told_turns_and_marks_and_its_blocks_leave_no_lines() -> None:
    made = Conversation(TURNS, {"bos_token": "<s>", "eos_token": "</s>"})
    assert made.text(ASKED) == "[Be <brief>.]<s><user>Hi\nYes</s>\n<user>Ü?\n<assistant>"
    assert made.text(ASKED[1:2]) == "<s><user>Hi\n<assistant>"


def test_marks_that_a_model_has_not_got_are_nothing() -> None:
    assert Conversation("{{ bos_token }}{{ messages[0].content }}", {}).text(ASKED) == "Be <brief>."


def test_what_templates_of_the_field_count_on_is_there() -> None:
    source = """\
{%- set ns = namespace(found=false) -%}
{%- for one in messages -%}
    {%- if one.role == 'system' -%}{%- continue -%}{%- endif -%}
    {%- if ns.found -%}{%- break -%}{%- endif -%}
    {%- set ns.found = true -%}
    {{ one | tojson }}{{ [1] | tojson(indent=1) }}
{%- endfor -%}
{{ strftime_now('%Y') }}{% if tools is defined and tools %}tools{% endif %}"""
    year = datetime.datetime.now(datetime.UTC).year
    assert Conversation(source, {}).text(ASKED) == f'{{"role": "user", "content": "Hi\\n"}}[\n 1\n]{year}'


def test_a_template_that_refuses_says_what_to_mend() -> None:
    made = Conversation("{{ raise_exception('only user/assistant turns') }}", {})
    with pytest.raises(InvalidSpec, match=r"messages: .* refuses them: only user/assistant turns"):
        made.text(ASKED)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include 'passwd' %}",
        "{% import 'passwd' as p %}{{ p }}",
        "{{ '%s' % nothing.here }}",
        "{{ 1 / 0 }}",
        "{% for one in range(1000001) %}{% endfor %}",
        "{% for one in range(100000) %}0123456789{% endfor %}",
        "{{ 'a' * 600000 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_nothing_of_the_machine_and_no_more_than_a_prompt_is_had_by_a_template(source: str) -> None:
    with pytest.raises(InvalidSpec, match="messages"):
        Conversation(source, {}).text(ASKED)


@pytest.mark.parametrize("source", ["raise_exception.__globals__", "''|attr('__class__')", "lipsum.__globals__"])
def test_what_python_hides_behind_names_is_not_there(source: str) -> None:
    assert Conversation(f"{{{{ {source} }}}}", {}).text(ASKED) == ""


@pytest.mark.parametrize("source", ["{% if %}", "{{", "{% evil %}", "{% for one in messages %}", "{{ x|nofilter }}"])
def test_what_is_no_template_is_refused(source: str) -> None:
    with pytest.raises(InvalidSpec, match="chat template cannot be read"):
        Conversation(source, {})


def test_files_that_are_no_texts_or_too_large_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "template"
    path.write_text("{{ messages[1].content }}", encoding="utf-8")
    assert read_conversation(path, {}).text(ASKED) == "Hi\n"
    for raw in (b"\xff", b" " * (65 << 10)):
        path.write_bytes(raw)
        with pytest.raises(InvalidSpec):
            read_conversation(path, {})


def test_without_a_template_each_turn_is_a_line() -> None:
    assert plain(ASKED[1:2] + ASKED[3:]) == "user: Hi\n\nuser: Ü?\nassistant:"
    assert len(plain((Message("user", "a" * 100),))) < MAX_PROMPT_BYTES
