"""A conversation as the text that a model goes on from, by the chat template beside its weights.

A template is a program of a stranger in a language that can loop and compute: it is run by Jinja's sandbox, in a
confined worker alone, with the names that templates of the `transformers` library count on and nothing else. What it
takes is bounded by what the worker may take, and by the time that a call has.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from celluler.errors import InvalidSpec, LocalError
from celluler.inference.questions import MAX_PROMPT_BYTES, Message
from celluler.models.beside import CHAT_TEMPLATE, check_size

AT = "messages"


def plain(messages: Sequence[Message]) -> str:
    """A conversation without a template: a line for each turn, and the beginning of the answer's."""
    return "".join(f"{one.role}: {one.text}\n" for one in messages) + "assistant:"


class Conversation:
    """The template of one model."""

    def __init__(self, source: str, marks: Mapping[str, str]) -> None:
        """marks: texts of special tokens, `bos_token` and `eos_token`. Raises InvalidSpec for what is no template."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,  # a prompt is no HTML
            extensions=[loopcontrols, _Generation],
        )
        environment.filters["tojson"] = _json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._marks = dict(marks)
        try:
            self._template: Template = environment.from_string(source)
        except (TemplateError, RecursionError, MemoryError, ValueError, SyntaxError) as error:
            raise InvalidSpec(AT, f"the model's chat template cannot be read: {_short(error)}") from error

    def text(self, messages: Sequence[Message]) -> str:
        """Up to where the answer begins. Raises InvalidSpec for a conversation that the template refuses."""
        turns = [{"role": one.role, "content": one.text} for one in messages]
        pieces: list[str] = []
        byte_count = 0
        try:
            for piece in self._template.generate(messages=turns, add_generation_prompt=True, **self._marks):
                byte_count += len(piece.encode("utf-8", "replace"))
                if byte_count > MAX_PROMPT_BYTES:
                    raise InvalidSpec(AT, f"become a prompt of more than {MAX_PROMPT_BYTES} bytes")
                pieces.append(piece)
        except InvalidSpec:
            raise
        except Exception as error:  # whatever an expression of the template comes to
            raise InvalidSpec(AT, f"the model's chat template refuses them: {_short(error)}") from error
        return "".join(pieces)


def read_conversation(path: Path, marks: Mapping[str, str]) -> Conversation:
    """From the file beside the weights. Raises InvalidSpec, LocalError where it cannot be read."""
    try:
        check_size(CHAT_TEMPLATE, path.stat().st_size)
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LocalError(f"the chat template cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise InvalidSpec(AT, "the model's chat template is not UTF-8") from None
    return Conversation(source, marks)


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for those who train on it: it is told as it stands there."""

    tags = {"generation"}  # noqa: RUF012  as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **others: Any) -> str:
    """Jinja's own makes it fit for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **others)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now(datetime.UTC).strftime(form)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
