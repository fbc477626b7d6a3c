"""What the routes of models that write take and give, in OpenAI's words."""

from __future__ import annotations

from celluler.inference.questions import MAX_MESSAGES
from celluler_node.gateway.described import JSON, Says
from celluler_node.gateway.openai_text import MAX_PROMPTS, NEUTRAL, ROLES, WITHOUT_EFFECT
from celluler_node.gateway.schemas import (
    ANYTHING,
    COUNT,
    NUMBER,
    OBJECT,
    SWITCH,
    TEXT,
    WHOLE,
    Schema,
    answered,
    either,
    given,
    list_of,
)

EVENTS = "text/event-stream"
_ABOVE_NONE: Schema = {"type": "integer", "minimum": 1}
_SOME_TEXT: Schema = {"type": "string", "minLength": 1}
_NULL: Schema = {"type": "null"}
_REASON: Schema = {"type": "string", "enum": ["stop", "length"]}
_USAGE = answered(
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    prompt_tokens_details=answered(cached_tokens=COUNT),
)
_WHO = answered(cid=TEXT, peer=TEXT, seed=COUNT)
_SAMPLING: dict[str, Schema] = {
    "max_tokens_": _ABOVE_NONE,
    "temperature_": NUMBER | {"minimum": 0},
    "top_p_": NUMBER,
    "top_k_": WHOLE,
    "n_": _ABOVE_NONE,
    "stop_": either(_SOME_TEXT, list_of(_SOME_TEXT)),
    "seed_": WHOLE,
    "stream_": SWITCH,
    "stream_options_": given(include_usage_=SWITCH),
    "response_format_": answered(type={"type": "string", "enum": ["text", "json_object", "json_schema"]}),
    "timeout_s_": NUMBER,
    "peer_": TEXT,
    "stages_": WHOLE,
    "user_": TEXT,
    **{f"{name}_": {"enum": list(neutral)} for name, neutral in NEUTRAL.items()},
    **{f"{name}_": ANYTHING for name in sorted(WITHOUT_EFFECT)},
}
_PART = given(type={"const": "text"}, text=TEXT)
_MESSAGE: Schema = {
    "type": "object",
    "properties": {"role": {"type": "string", "enum": list(ROLES)}, "content": either(TEXT, list_of(_PART))},
    "required": ["role", "content"],
}
_PROMPT = either(_SOME_TEXT, list_of(_SOME_TEXT, least=1), list_of(COUNT, least=1), list_of(list_of(COUNT, least=1)))
_TOKEN = answered(
    token=TEXT,
    logprob=NUMBER,
    bytes=either(list_of(COUNT), _NULL),
    top_logprobs=list_of(answered(token=TEXT, logprob=NUMBER, bytes=either(list_of(COUNT), _NULL))),
)


def _answer(kind: str, **choice: Schema) -> Schema:
    return answered(
        id=TEXT,
        object={"const": kind},
        created=WHOLE,
        model=TEXT,
        system_fingerprint=TEXT,
        choices=list_of(answered(index=COUNT, finish_reason=_REASON, **choice)),
        usage=_USAGE,
        celluler=_WHO,
    )


TEXTS: dict[tuple[str, str], Says] = {
    ("POST", "/v1/chat/completions"): Says(
        "Go on with a conversation; with `stream` as events, the last of which is [DONE]",
        _answer(
            "chat.completion",
            message=answered(role={"const": "assistant"}, content=TEXT),
            logprobs=either(answered(content=list_of(_TOKEN)), _NULL),
        ),
        given(
            model=TEXT,
            messages=list_of(_MESSAGE, least=1) | {"maxItems": MAX_MESSAGES},
            max_completion_tokens_=_ABOVE_NONE,
            logprobs_=SWITCH,
            top_logprobs_=COUNT,
            **_SAMPLING,
        ),
        media=(JSON, EVENTS),
    ),
    ("POST", "/v1/completions"): Says(
        "Go on with a text; with `stream` as events, the last of which is [DONE]",
        _answer("text_completion", text=TEXT, logprobs=either(OBJECT, _NULL)),
        given(
            model=TEXT,
            prompt=_PROMPT | {"description": f"At most {MAX_PROMPTS}."},
            logprobs_=COUNT,
            echo_=SWITCH,
            **_SAMPLING,
        ),
        media=(JSON, EVENTS),
    ),
}
