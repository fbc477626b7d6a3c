"""What a model writes, as OpenAI's documents: whole, or piece by piece. Pure; knows no HTTP and waits for nothing.

`celluler` beside the fields of the standard says who answered: `{cid, peer, seed}`. Source: OpenAI's API reference,
"The chat completion object", "The chat completion chunk object", "The completion object".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from celluler.errors import TimedOut, Unavailable, WorkerFailed
from celluler.inference.questions import Event, Finished, Over, Said
from celluler.inference.requests import CANCELLED, DEADLINE, ERROR
from celluler.inference.sampling import Chosen
from celluler_node.gateway.openai_text import Asked

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """What every document of one answer bears. id: without its prefix. model, cid, peer: who answers."""

    id: str
    created_s: int
    model: str
    cid: str
    peer: str


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    tokens: list[Chosen] = field(default_factory=list)
    offset: int = 0
    reason: str | None = None


class Telling:
    """One request's answers as they grow. Documents of pieces come of `begin`, `told` and `end`."""

    def __init__(self, asked: Asked, head: Head) -> None:
        self._asked, self._head = asked, head
        self.peer = head.peer
        """Who answers now: another one, where the first was lost."""
        self._choices = [_Choice() for _ in range(asked.choices)]
        self._finished: list[Finished] = []
        n = asked.questions[0].n
        for place, prompt in enumerate(asked.echo):
            for choice in self._choices[place * n : place * n + n]:
                choice.text, choice.offset = [prompt], len(prompt)

    def begin(self) -> Iterator[Document]:
        """Before the first word: whose turn it is, and prompts that are wanted back."""
        for index, choice in enumerate(self._choices):
            if self._asked.chat:
                yield self._piece(index, {"role": "assistant", "content": "", "refusal": None}, None, None)
            elif choice.text:
                yield self._piece(index, choice.text[0], None, None)

    def told(self, place: int, event: Event) -> Iterator[Document]:
        """place: of the question. Raises TimedOut, WorkerFailed, Unavailable for an answer that did not come to an
        end of its own."""
        if isinstance(event, Finished):
            self._finished.append(event)
            return
        index = place * self._asked.questions[0].n + event.choice
        choice = self._choices[index]
        if isinstance(event, Over):
            choice.reason = _reason(event)
            yield self._piece(index, {} if self._asked.chat else "", None, choice.reason)
        else:
            yield from self._said(index, choice, event)

    def _said(self, index: int, choice: _Choice, event: Said) -> Iterator[Document]:
        if self._asked.stream:
            if event.text or (self._asked.logprobs and event.tokens):
                told: Any = {"content": event.text} if self._asked.chat else event.text
                yield self._piece(index, told, self._logprobs(event.tokens, choice.offset), None)
        else:
            choice.text.append(event.text)
            choice.tokens += event.tokens if self._asked.logprobs else ()
        choice.offset += sum(len(token.text) for token in event.tokens)

    def end(self) -> Iterator[Document]:
        """After the last word."""
        if self._asked.usage:
            yield self._document([], ".chunk", self.usage())

    def whole(self) -> Document:
        choices = []
        for index, choice in enumerate(self._choices):
            text = "".join(choice.text)
            told: Document = {"message": _message(text)} if self._asked.chat else {"text": text}
            told |= {"index": index, "finish_reason": choice.reason}
            choices.append(told | {"logprobs": self._logprobs(tuple(choice.tokens), 0)})
        return self._document(choices, "", self.usage())

    def usage(self) -> Document:
        """What answers of one request read in common is `cached` only where an earlier request had read it."""
        prompt = sum(one.prompt for one in self._finished)
        generated = sum(one.generated for one in self._finished)
        again = self._asked.questions[0].n - 1
        cached = sum(max(0, min(one.prompt, one.shared - again * one.prompt)) for one in self._finished)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _piece(self, index: int, told: Any, logprobs: Document | None, reason: str | None) -> Document:
        choice = {"index": index, "delta" if self._asked.chat else "text": told}
        document = self._document([choice | {"logprobs": logprobs, "finish_reason": reason}], ".chunk", None)
        if not self._asked.usage:
            del document["usage"]
        return document

    def _document(self, choices: list[Document], piece: str, usage: Document | None) -> Document:
        """piece: what the name of a chat's pieces ends in, where it is one."""
        chat, head = self._asked.chat, self._head
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{head.id}",
            "object": f"chat.completion{piece}" if chat else "text_completion",
            "created": head.created_s,
            "model": head.model,
            "system_fingerprint": head.cid,
            "choices": choices,
            "usage": usage,
            "celluler": {"cid": head.cid, "peer": self.peer, "seed": self._asked.seed},
        }

    def _logprobs(self, tokens: tuple[Chosen, ...], offset: int) -> Document | None:
        """offset: characters before the first of them."""
        if not self._asked.logprobs:
            return None
        if self._asked.chat:
            return {"content": [_token(token) for token in tokens], "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_likeliest(token) for token in tokens],
            "text_offset": offsets,
        }


def _message(text: str) -> Document:
    return {"role": "assistant", "content": text, "refusal": None}


def _reason(over: Over) -> str:
    """As the standard has it."""
    if over.reason == DEADLINE:
        raise TimedOut(f"the answer was not done in time, after {over.generated} tokens")
    if over.reason == ERROR:
        raise WorkerFailed("the model failed in its answer")
    if over.reason == CANCELLED:
        raise Unavailable("the answer was broken off: the model was taken away")
    return over.reason


def _token(token: Chosen) -> Document:
    top = [{"token": name, "logprob": logprob, "bytes": _bytes(text)} for name, text, logprob in _top(token)]
    return {"token": token.text, "logprob": token.logprob, "bytes": _bytes(token.text), "top_logprobs": top}


def _likeliest(token: Chosen) -> Document:
    """By name; the one that was drawn among them."""
    return {name: logprob for name, _, logprob in _top(token)} | {token.text: token.logprob}


def _top(token: Chosen) -> Iterator[tuple[str, str | None, float]]:
    """(name, text, logarithm of probability). One that cannot be read alone has its number for a name."""
    texts = token.top_texts or ("",) * len(token.top)
    for (number, logprob), text in zip(token.top, texts, strict=True):
        if number == token.token:
            yield token.text, token.text, logprob
        else:
            yield text or f"token_id:{number}", text or None, logprob


def _bytes(text: str | None) -> list[int] | None:
    return None if text is None else list(text.encode())
