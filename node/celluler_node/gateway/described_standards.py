"""What the routes of the standard surfaces take and give, in the words of OpenAI and of KServe."""

from __future__ import annotations

from celluler_node.gateway.described import JSON, OCTETS, Says
from celluler_node.gateway.described_text import TEXTS
from celluler_node.gateway.kserve import BYTES, DATATYPES
from celluler_node.gateway.openai import MAX_INPUTS
from celluler_node.gateway.schemas import (
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

_SOME_TEXT: Schema = {"type": "string", "minLength": 1}
_TOKENS = list_of(COUNT, least=1)
_MODEL = answered(id=TEXT, object={"const": "model"}, created=WHOLE, owned_by=TEXT)
_EMBEDDING = answered(object={"const": "embedding"}, index=COUNT, embedding=either(list_of(NUMBER), TEXT))
_INPUT = either(_SOME_TEXT, list_of(_SOME_TEXT, least=1), _TOKENS, list_of(_TOKENS, least=1))

OPENAI: dict[tuple[str, str], Says] = {
    ("GET", "/v1/models"): Says("Models known here", answered(object={"const": "list"}, data=list_of(_MODEL))),
    ("GET", "/v1/models/{ref}"): Says("One model", _MODEL),
    ("POST", "/v1/embeddings"): Says(
        "Vectors of texts or tokens",
        answered(
            object={"const": "list"},
            data=list_of(_EMBEDDING),
            model=TEXT,
            usage=answered(prompt_tokens=COUNT, total_tokens=COUNT),
        ),
        given(
            model=TEXT,
            input=_INPUT | {"description": f"At most {MAX_INPUTS}."},
            encoding_format_={"type": "string", "enum": ["float", "base64"]},
            dimensions_={"type": "integer", "minimum": 1},
            user_=TEXT,
        ),
    ),
}

_DATATYPE: Schema = {"type": "string", "enum": [*DATATYPES, BYTES]}
_SHAPE = list_of({"type": "integer", "minimum": 1}, least=1)
_PORT = answered(name=TEXT, datatype=_DATATYPE, shape=list_of(WHOLE))
_REQUEST = given(
    id_=TEXT,
    parameters_=OBJECT,
    inputs=list_of(
        given(name=TEXT, shape=_SHAPE, datatype=_DATATYPE, parameters_=OBJECT, data_={"type": "array"}), least=1
    )
    | {"maxItems": 1},
    outputs_=list_of(given(name=TEXT, parameters_=OBJECT)),
)
_ANSWER = answered(
    model_name=TEXT,
    model_version=TEXT,
    id_=TEXT,
    parameters=answered(cid=TEXT, peer=TEXT),
    outputs=list_of(
        answered(name=TEXT, datatype=_DATATYPE, shape=list_of(COUNT), data_={"type": "array"}, parameters_=OBJECT)
    ),
)
_METADATA = Says(
    "What it takes and gives",
    answered(name=TEXT, versions=list_of(TEXT), platform=TEXT, inputs=list_of(_PORT), outputs=list_of(_PORT)),
)
_READY = Says("Whether it can be asked", answered(name=TEXT, ready=SWITCH))
_INFER = Says("Run it", _ANSWER, _REQUEST, media=(JSON, OCTETS), body_media=(JSON, OCTETS))

KSERVE: dict[tuple[str, str], Says] = {
    ("GET", "/v2"): Says("The server", answered(name=TEXT, version=TEXT, extensions=list_of(TEXT))),
    ("GET", "/v2/health/live"): Says("Whether the process serves", answered(live=SWITCH)),
    ("GET", "/v2/health/ready"): Says("Whether it has joined", answered(ready=SWITCH)),
    **{("GET", f"/v2/models/{{ref}}{version}"): _METADATA for version in ("", "/versions/{version}")},
    **{("GET", f"/v2/models/{{ref}}{version}/ready"): _READY for version in ("", "/versions/{version}")},
    **{("POST", f"/v2/models/{{ref}}{version}/infer"): _INFER for version in ("", "/versions/{version}")},
}
STANDARD: dict[tuple[str, str], Says] = OPENAI | TEXTS | KSERVE
