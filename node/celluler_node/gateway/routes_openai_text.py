"""What OpenAI's clients ask of models that write: chats and completions, whole or as they come."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celluler.inference.questions import Event, Generated
from celluler_node.gateway.asking import while_wanted
from celluler_node.gateway.asking_text import AskingText
from celluler_node.gateway.callers import note_body
from celluler_node.gateway.documents import exact_json, read_json
from celluler_node.gateway.failures import openai_error
from celluler_node.gateway.openai_said import Document, Head, Telling
from celluler_node.gateway.openai_text import Asked, read_chat, read_completion
from celluler_node.gateway.sse import EventStream, Tell

MAX_QUESTION_BYTES = 4 << 20
SEED_BITS = 53
"""Of a seed that is drawn here: as many as every reader of JSON keeps."""
READ_S = 60.0
"""For whoever reads, beyond what the answer may take to be written."""


def openai_text_routes(texts: AskingText) -> list[Route]:
    async def chat(request: Request) -> Response:
        return await answer(request, read_chat)

    async def completion(request: Request) -> Response:
        return await answer(request, read_completion)

    async def answer(request: Request, read: Callable[[Mapping[str, Any], int], Asked]) -> Response:
        body = await read_json(request, limit=MAX_QUESTION_BYTES)
        note_body(body)
        asked = read(body, secrets.randbits(SEED_BITS))
        if not asked.stream:
            return exact_json(await while_wanted(request, lambda: _whole(texts, asked)))
        limit_s = asked.questions[0].timeout_s + READ_S
        return EventStream(request, lambda tell: _told(texts, asked, tell), failed=openai_error, limit_s=limit_s)

    return [
        Route("/v1/completions", completion, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]


async def _whole(texts: AskingText, asked: Asked) -> Document:
    async def ignore(_documents: object) -> None:
        pass

    return (await _told(texts, asked, ignore)).whole()


async def _told(texts: AskingText, asked: Asked, tell: Tell) -> Telling:
    """Every document as it comes; and what they have told of, at the end."""
    telling: Telling | None = None
    one: Generated | None = None

    async def begun(opened: Sequence[Generated]) -> None:
        nonlocal telling, one
        one = opened[0]
        telling = Telling(asked, Head(secrets.token_hex(12), int(time.time()), one.model, one.cid, one.peer))
        await tell(telling.begin())

    async def told(place: int, event: Event) -> None:
        assert telling is not None
        assert one is not None
        telling.peer = one.peer
        if documents := tuple(telling.told(place, event)):
            await tell(documents)

    await texts.generate(asked.model, asked.questions, begun, told, peer=asked.peer)
    assert telling is not None
    await tell(telling.end())
    return telling
