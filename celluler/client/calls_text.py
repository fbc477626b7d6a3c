"""Asking a model to write: what to send, and what the answer means, whole or event by event. Does no I/O.

Goes by the routes that OpenAI's clients use; what is told beside OpenAI's fields says who answered, and which error it
is. Time is an argument.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from celluler import views
from celluler.client.calls import Call
from celluler.errors import LocalError, ProtocolViolation, Unavailable
from celluler.failures import rebuild_error

USUAL_S = 300.0
"""An answer's time where nothing is said, as the node has it."""
SLACK_S = 30.0
MAX_EVENT_BYTES = 16 << 20

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""A text or its tokens, to go on from; or a conversation, `[{"role": "user", "content": "Hello"}]`."""


class SamplingFields(TypedDict, total=False):
    """How to write. max_tokens: of each answer, None for as many as the model can look at. temperature, top_p, top_k,
    seed: how tokens are drawn; temperature 0 takes the likeliest, and the seed is drawn unless given. n: answers. stop:
    texts at which an answer ends. logprobs: of each token, and of so many likeliest, up to 20. schema: JSON Schema that
    the answer must follow. timeout_s: until the last token. stages: over how many peers the model is split, 0 for
    whatever is best. peer: who alone is to answer, by id or nickname; empty for whoever does it best."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    n: int
    stop: str | Sequence[str]
    logprobs: int | None
    schema: Mapping[str, Any] | None
    timeout_s: float
    peer: str
    stages: int


def generate(model: str, prompt: Prompt, said: SamplingFields, *, stream: bool) -> Call[None]:
    """The call; `Reading` makes of its answer what it means. Raises LocalError for a prompt of another kind."""
    chat = is_chat(prompt)
    body: dict[str, Any] = {"model": model, "max_tokens": None, **said}
    logprobs, schema = body.pop("logprobs", None), body.pop("schema", None)
    body["messages" if chat else "prompt"] = _plain(prompt)
    if not isinstance(body.get("stop"), str | None):
        body["stop"] = list(body["stop"])
    if logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": logprobs} if chat else {"logprobs": logprobs}
    if schema is not None:
        named = {"name": "answer", "schema": dict(schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    timeout_s = float(said.get("timeout_s") or USUAL_S) + SLACK_S
    return Call("POST", path, lambda _document: None, json=body, timeout_s=timeout_s)


def is_chat(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and any(isinstance(one, Mapping) for one in prompt)


def _plain(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return prompt
    kinds = {Mapping if isinstance(one, Mapping) else type(one) for one in prompt}
    if kinds not in ({Mapping}, {int}):
        raise LocalError("a prompt is a text, tokens, or messages of role and content")
    return [dict(one) if isinstance(one, Mapping) else one for one in prompt]


def read_error(status: int, body: bytes) -> Exception:
    """What the node raised, of an answer with such a status."""
    try:
        document = json.loads(body)["error"]
        return rebuild_error(document.get("celluler", document))
    except (ValueError, TypeError, LookupError, AttributeError):
        return ProtocolViolation(f"HTTP {status} without a document of an error")


@dataclass(slots=True)
class _Growing:
    text: list[str] = field(default_factory=list)
    tokens: list[views.Token] = field(default_factory=list)
    reason: str = ""


class Reading:
    """An answer as it comes. began_s: when it was asked for, by any clock."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._first_s: float | None = None
        self._left = b""
        self._head: Mapping[str, Any] = {"model": "", "cid": "", "peer": "", "seed": 0}
        self._usage: Mapping[str, Any] = {}
        self._answers: dict[int, _Growing] = {}
        self.done = False

    def feed(self, chunk: bytes, now_s: float) -> list[views.Piece]:
        """Pieces that are complete. Raises what the node raised in the middle, ProtocolViolation for what is no such
        stream."""
        *events, self._left = (self._left + chunk).split(b"\n\n")
        if len(self._left) > MAX_EVENT_BYTES:
            raise ProtocolViolation(f"an event of more than {MAX_EVENT_BYTES} bytes")
        pieces: list[views.Piece] = []
        for event in events:
            if event == b"data: [DONE]":
                self.done = True
            elif not self.done and not event.startswith(b":"):  # a comment
                pieces += self._read(event)
        pieces = [piece for piece in pieces if piece.text or piece.tokens or piece.reason]
        if self._first_s is None and any(piece.text or piece.tokens for piece in pieces):
            self._first_s = now_s - self._began_s
        return pieces

    def _read(self, event: bytes) -> list[views.Piece]:
        try:
            document = json.loads(event.removeprefix(b"data: "))
        except ValueError:
            raise ProtocolViolation("an event that is no JSON") from None
        if isinstance(document, dict) and "error" in document:
            raise read_error(200, event.removeprefix(b"data: "))
        return self.read_document(document)

    def read_document(self, document: Any) -> list[views.Piece]:
        """A whole answer, or a piece of one."""
        try:
            self._head = {"model": document["model"], **document["celluler"]}
            self._usage = document.get("usage") or self._usage
            pieces = [_piece(choice) for choice in document["choices"]]
        except (TypeError, LookupError, AttributeError, ValueError) as error:
            raise ProtocolViolation(f"no answer of a model that writes: {error!r}") from None
        for piece in pieces:
            answer = self._answers.setdefault(piece.choice, _Growing())
            answer.text.append(piece.text)
            answer.tokens += piece.tokens
            answer.reason = piece.reason
        return pieces

    def end(self) -> None:
        """Nothing more comes. Raises Unavailable for an answer that is not whole."""
        if not self.done:
            raise Unavailable("the node broke off in its answer", hint="celluler status")

    def generation(self, now_s: float) -> views.Generation:
        """What has come so far."""
        usage, details = self._usage, self._usage.get("prompt_tokens_details") or {}
        answers = [self._answers[choice] for choice in sorted(self._answers)]
        return views.from_json(
            views.Generation,
            {
                "answers": [
                    views.to_json(views.Answer("".join(one.text), one.reason, tuple(one.tokens))) for one in answers
                ],
                **{name: self._head.get(name) for name in ("model", "cid", "peer", "seed")},
                "prompt_tokens": usage.get("prompt_tokens", 0),
                "generated_tokens": usage.get("completion_tokens", 0),
                "cached_tokens": details.get("cached_tokens", 0),
                "elapsed_s": now_s - self._began_s,
                "first_s": self._first_s,
            },
        )


def _piece(choice: Any) -> views.Piece:
    """Of a chat or of a completion, whole or not."""
    message = choice.get("message") or choice.get("delta")
    text = choice.get("text", "") if message is None else message.get("content") or ""
    index, reason = choice["index"], choice.get("finish_reason") or ""
    if not isinstance(text, str) or type(index) is not int or not isinstance(reason, str):
        raise TypeError("of another type than expected")
    logprobs = choice.get("logprobs")
    return views.Piece(text, index, reason, tuple(_tokens(logprobs)) if logprobs else ())


def _tokens(told: Mapping[str, Any]) -> list[views.Token]:
    """Of either form."""
    if "content" in told:
        return [
            _token(one["token"], one["logprob"], {top["token"]: top["logprob"] for top in one["top_logprobs"]})
            for one in told["content"]
        ]
    if "tokens" not in told:
        return []
    rows = zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
    return [_token(text, logprob, likeliest) for text, logprob, likeliest in rows]


def _token(text: Any, logprob: Any, likeliest: Any) -> views.Token:
    return views.from_json(views.Token, {"text": text, "logprob": logprob, "likeliest": likeliest})
