"""What OpenAI's clients ask of a model that writes, as questions to it. Pure; knows no HTTP and asks no model.

A parameter that would change the answer and is not known here is refused by its name: nobody gets another answer than
the one asked for without being told. Source: OpenAI's API reference, "Chat" and "Completions"; `top_k`, `timeout_s`,
`peer` and `stages` are extensions, as is `max_tokens: null` for as many as the model can look at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec
from celluler.inference.questions import Message, Prompt, Question
from celluler.inference.sampling import MAX_TOP_LOGPROBS, Sampling
from celluler.inference.stops import MAX_STOPS
from celluler_node.gateway.documents import check_keys

MAX_PROMPTS = 16
"""Of one request for completions, each a question of its own."""
USUAL_TOKENS = 16
"""Of a completion, where nothing is said: as OpenAI has it."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_NUMBER = (int, float)
_SHARED: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "max_tokens": int,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": int,
    "n": int,
    "stop": (str, list),
    "seed": int,
    "stream": bool,
    "stream_options": dict,
    "response_format": dict,
    "timeout_s": _NUMBER,
    "peer": str,
    "stages": int,
    "user": str,
}
_CHAT: dict[str, type | tuple[type, ...]] = {
    **_SHARED,
    "messages": list,
    "max_completion_tokens": int,
    "logprobs": bool,
    "top_logprobs": int,
}
_COMPLETION: dict[str, type | tuple[type, ...]] = {**_SHARED, "prompt": (str, list), "logprobs": int, "echo": bool}
WITHOUT_EFFECT = frozenset(
    {"metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"}
)
"""Said for OpenAI's own accounts and caches, or of tools, of which there are none: they change no answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "ignore_eos": (False,),
}
"""What may be said because it changes nothing; null always may."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request asks. questions: one a prompt. seed: of the first of them, each next one has one more.

    stream: pieces as they come; usage: at the end of them, too. logprobs: of each token. echo: prompts that stand
    before their answers. peer: who alone is to answer, empty for whoever does it best.
    """

    model: str
    questions: tuple[Question, ...]
    seed: int
    chat: bool
    stream: bool = False
    usage: bool = False
    logprobs: bool = False
    echo: tuple[str, ...] = ()
    peer: str = ""

    @property
    def choices(self) -> int:
        return sum(one.n for one in self.questions)


def read_chat(body: Mapping[str, Any], seed: int) -> Asked:
    """seed: where none is given. Raises InvalidSpec with the parameter."""
    body = _without_neutral(body)
    check_keys(body, _CHAT, "model", "messages")
    top, logprobs = body.get("top_logprobs"), bool(body.get("logprobs"))
    if top is not None and not logprobs:
        raise InvalidSpec("top_logprobs", "needs logprobs: true")
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise InvalidSpec("max_tokens", "says the same as max_completion_tokens: give one")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    seed = _seed(body, seed)
    question = _question(
        body, _messages(body["messages"]), limit, body.get(limit), seed, (top or 0) if logprobs else None
    )
    return Asked(body["model"], (question,), seed, True, *_streams(body), logprobs, peer=body.get("peer") or "")


def read_completion(body: Mapping[str, Any], seed: int) -> Asked:
    """seed: where none is given. Raises InvalidSpec with the parameter."""
    body = _without_neutral(body)
    check_keys(body, _COMPLETION, "model", "prompt")
    prompts, logprobs, seed = _prompts(body["prompt"]), body.get("logprobs"), _seed(body, seed)
    limit = body.get("max_tokens", USUAL_TOKENS)  # null is another thing than nothing
    echo = tuple(_printable(prompt) for prompt in prompts if isinstance(prompt, str)) if body.get("echo") else ()
    if body.get("echo") and (len(echo) < len(prompts) or logprobs is not None):
        raise InvalidSpec("echo", "goes with prompts that are texts, and without logprobs")
    questions = tuple(
        _question(body, prompt, "max_tokens", limit, (seed + place) % (1 << 64), logprobs)
        for place, prompt in enumerate(prompts)
    )
    peer = body.get("peer") or ""
    return Asked(body["model"], questions, seed, False, *_streams(body), logprobs is not None, echo, peer)


def _without_neutral(body: Mapping[str, Any]) -> dict[str, Any]:
    """Raises InvalidSpec for what would have to change the answer, and does not."""
    told = {name: value for name, value in body.items() if name not in NEUTRAL and name not in WITHOUT_EFFECT}
    for name, neutral in NEUTRAL.items():
        value = body.get(name)
        if value is None or (value in neutral and isinstance(value, bool) == isinstance(neutral[0], bool)):
            continue
        if name == "best_of" and value == body.get("n"):
            continue
        raise InvalidSpec(name, "is not supported", hint=f"leave out {name}")
    return told


def _question(
    body: Mapping[str, Any], prompt: Prompt, limit: str, max_tokens: int | None, seed: int, logprobs: int | None
) -> Question:
    if max_tokens is not None and max_tokens < 1:
        raise InvalidSpec(limit, "must be at least 1")
    if logprobs is not None and not 0 <= logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidSpec("top_logprobs" if "messages" in body else "logprobs", f"must be 0…{MAX_TOP_LOGPROBS}")
    sampling = Sampling(
        temperature=_number(body, "temperature", 1.0),
        top_p=_number(body, "top_p", 1.0),
        top_k=max(0, _given(body, "top_k", 0)),  # -1 for all of them, as some write it
        seed=seed,
        logprobs=logprobs,
    )
    timeout_s = _number(body, "timeout_s", 300.0)
    stop, schema = _stops(body.get("stop")), _schema(body.get("response_format"))
    n, stages = _given(body, "n", 1), _given(body, "stages", 0)
    return Question(prompt, max_tokens, sampling, n, stop, timeout_s, schema=schema, stages=stages)


def _given(body: Mapping[str, Any], name: str, usual: Any) -> Any:
    value = body.get(name)
    return usual if value is None else value


def _number(body: Mapping[str, Any], name: str, usual: float) -> float:
    try:
        return float(_given(body, name, usual))
    except OverflowError:
        raise InvalidSpec(name, "is no number that can be reckoned with") from None


def _printable(text: str) -> str:
    """Half of a character that is written as two has no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _seed(body: Mapping[str, Any], drawn: int) -> int:
    seed: int = _given(body, "seed", drawn)
    if not -(1 << 63) <= seed < 1 << 64:
        raise InvalidSpec("seed", "must be a whole number of 64 bits")
    return seed % (1 << 64)


def _streams(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """(stream, usage)."""
    stream, options = bool(body.get("stream")), body.get("stream_options") or {}
    if options and not stream:
        raise InvalidSpec("stream_options", "needs stream: true")
    for name, value in options.items():
        if name not in ("include_usage", "include_obfuscation") or not isinstance(value, bool | None):
            raise InvalidSpec(f"stream_options.{name}", "is not known, or not true or false")
    if options.get("include_obfuscation"):
        raise InvalidSpec("stream_options.include_obfuscation", "is not supported", hint="leave it out")
    return stream, bool(options.get("include_usage"))


def _stops(given: str | list[Any] | None) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    if not all(isinstance(stop, str) for stop in stops):
        raise InvalidSpec("stop", f"is neither a text nor up to {MAX_STOPS} of them")
    return tuple(stops)


def _schema(given: Mapping[str, Any] | None) -> bytes:
    """JSON Schema that the answer must follow; empty for none."""
    kind = "text" if given is None else given.get("type")
    if given is None or kind == "text":
        return b""
    if kind == "json_object":
        return b'{"type":"object"}'
    if kind != "json_schema":
        raise InvalidSpec("response_format.type", f"is {str(kind)[:32]!r}, none of text, json_object, json_schema")
    told = given.get("json_schema")
    schema = told.get("schema") if isinstance(told, dict) else None
    if not isinstance(schema, dict):
        raise InvalidSpec("response_format.json_schema.schema", "is no JSON Schema")
    try:
        return json.dumps(schema, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    except RecursionError:
        raise InvalidSpec("response_format.json_schema.schema", "is nested too deeply") from None


def _prompts(given: str | list[Any]) -> tuple[Prompt, ...]:
    """A text, texts, tokens, or lists of tokens."""
    if isinstance(given, list) and given and all(type(item) is int for item in given):
        given = [given]
    prompts = [given] if isinstance(given, str) else given
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise InvalidSpec("prompt", f"has {len(prompts)} entries, must have 1 to {MAX_PROMPTS}")
    if not all(isinstance(one, str) for one in prompts) and not all(_is_tokens(one) for one in prompts):
        raise InvalidSpec("prompt", "is neither a text, nor texts, nor tokens, nor lists of tokens")
    return tuple(one if isinstance(one, str) else tuple(one) for one in prompts)


def _is_tokens(row: Any) -> bool:
    return isinstance(row, list) and all(type(token) is int and 0 <= token < 1 << 31 for token in row)


def _messages(given: list[Any]) -> tuple[Message, ...]:
    if not given:
        raise InvalidSpec("messages", "is empty")
    return tuple(_message(one, f"messages[{place}]") for place, one in enumerate(given))


def _message(given: Any, path: str) -> Message:
    if not isinstance(given, dict):
        raise InvalidSpec(path, "is no object")
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidSpec(f"{path}.role", f"is {str(role)[:32]!r}, none of {', '.join(ROLES)}")
    allowed = {"role", "content", *(("tool_call_id",) if role == "tool" else ())}
    for name, value in given.items():
        if name not in allowed and value not in (None, []):  # what an answer bears may be given back as it came
            raise InvalidSpec(f"{path}.{name}", "is not supported")
    return Message(ROLES[role], _content(given.get("content"), f"{path}.content", empty=role == "assistant"))


def _content(given: Any, path: str, *, empty: bool) -> str:
    """A text, or parts of it. empty: null is one, too."""
    if isinstance(given, str) or (given is None and empty):
        return given or ""
    if not isinstance(given, list):
        raise InvalidSpec(path, "is neither a text nor parts of one")
    for place, part in enumerate(given):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidSpec(f"{path}[{place}]", "is no part of type text")
        if set(part) != {"type", "text"}:
            raise InvalidSpec(f"{path}[{place}]", "bears more than type and text")
    return "".join(part["text"] for part in given)
