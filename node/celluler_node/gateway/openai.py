"""OpenAI's documents: models and embeddings, in and out. Pure; knows no HTTP and asks no model.

Source: OpenAI's API reference, "Models" and "Embeddings".
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec, WorkerFailed
from celluler.models.transforms.base import TEXT
from celluler.tensors import Tensor, tensor_of
from celluler.views import Deployment, Model, ModelPorts
from celluler_node.gateway.documents import check_keys

EMBEDDING = "embedding"
MAX_INPUTS = 2048
MAX_CALL_ITEMS = 1 << 21
"""Bytes or tokens of one call to a model: texts of uneven lengths are filled up to the longest."""
_KEYS: dict[str, type | tuple[type, ...]] = {
    "input": (str, list),
    "model": str,
    "encoding_format": str,
    "dimensions": int,
    "user": str,
}

Row = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What to embed. rows: texts, or tokens of each. dimensions: 0 for as many as there are."""

    model: str
    rows: tuple[Row, ...]
    base64: bool
    dimensions: int

    @property
    def tokens(self) -> int:
        """What usage tells: token ids where these were sent. Of a text its UTF-8 bytes: what makes tokens of it is part
        of the model, and works in the worker."""
        return sum(len(row.encode("utf-8", "replace")) if isinstance(row, str) else len(row) for row in self.rows)


def read_question(body: Mapping[str, Any]) -> Question:
    """Raises InvalidSpec."""
    check_keys(body, _KEYS, "input", "model")
    encoding, dimensions = body.get("encoding_format") or "float", body.get("dimensions")
    if encoding not in ("float", "base64"):
        raise InvalidSpec("encoding_format", f"{encoding[:32]!r} is neither float nor base64")
    if dimensions is not None and dimensions < 1:
        raise InvalidSpec("dimensions", "is less than one")
    return Question(body["model"], _rows(body["input"]), encoding == "base64", dimensions or 0)


def _rows(given: str | list[Any]) -> tuple[Row, ...]:
    """A text, texts, tokens, or lists of tokens."""
    if isinstance(given, list) and given and all(type(item) is int for item in given):
        given = [given]
    rows = [given] if isinstance(given, str) else given
    if not 1 <= len(rows) <= MAX_INPUTS:
        raise InvalidSpec("input", f"has {len(rows)} entries, must have 1 to {MAX_INPUTS}")
    if not all(isinstance(row, str) for row in rows) and not all(_is_tokens(row) for row in rows):
        raise InvalidSpec("input", "is neither a text, nor texts, nor tokens, nor lists of tokens")
    for place, row in enumerate(rows):
        if not row:
            raise InvalidSpec(f"input[{place}]", "is empty")
    return tuple(row if isinstance(row, str) else tuple(row) for row in rows)


def _is_tokens(row: Any) -> bool:
    return isinstance(row, list) and all(type(token) is int and 0 <= token < 1 << 31 for token in row)


def calls_of(question: Question, ports: ModelPorts) -> list[tuple[list[int], Tensor]]:
    """What to ask the model, in as few calls as it can be: the places of the rows, and a batch of them.

    Tokens of one length go together: nothing is filled up, since not every model has a token that means nothing.
    Raises InvalidSpec for a model that gives no embedding, or takes neither texts nor tokens.
    """
    gives, takes = {port.name for port in ports.gives}, ports.takes
    if EMBEDDING not in gives:
        raise InvalidSpec("model", f"{ports.model} gives no embedding, but {', '.join(sorted(gives))}")
    texts = isinstance(question.rows[0], str)
    wanted = TEXT if texts else "int64"
    if takes is None or takes.dtype != wanted:
        told = "seeds" if takes is None else f"{takes.dtype} of shape {takes.shape}"
        raise InvalidSpec(
            "input", f"{ports.model} takes {told}, and no {'texts' if texts else 'tokens'}", hint="ask it at /v2/models"
        )
    calls: list[tuple[list[int], Tensor]] = []
    for places in _batches([_size(row) for row in question.rows], same=not texts):
        rows = [question.rows[place] for place in places]
        calls.append((places, tensor_of(rows if texts else [list(row) for row in rows], None if texts else "int64")))
    return calls


def _size(row: Row) -> int:
    return len(row.encode("utf-8", "replace")) if isinstance(row, str) else len(row)


def _batches(sizes: Sequence[int], *, same: bool) -> list[list[int]]:
    """Places, shortest first; a batch filled up to its longest has at most MAX_CALL_ITEMS. same: of one size each."""
    batches: list[list[int]] = []
    for place in sorted(range(len(sizes)), key=sizes.__getitem__):
        last = batches[-1] if batches else None
        if last and (not same or sizes[last[0]] == sizes[place]) and (len(last) + 1) * sizes[place] <= MAX_CALL_ITEMS:
            last.append(place)
        else:
            batches.append([place])
    return batches


def vectors_of(outputs: Tensor) -> list[bytes]:
    """One row-major float32 vector for each sample, little-endian. Raises WorkerFailed for another dtype."""
    if outputs.dtype != "float32" or not outputs.shape:
        raise WorkerFailed(f"the embedding is {outputs.dtype} of shape {outputs.shape}, not float32 vectors")
    width = 4 * math.prod(outputs.shape[1:])
    return [outputs.data[start : start + width] for start in range(0, outputs.shape[0] * width, width)]


def embeddings_document(question: Question, model: str, vectors: Sequence[bytes]) -> dict[str, Any]:
    """Raises InvalidSpec when another number of dimensions was asked for than there is."""
    for vector in vectors:
        if question.dimensions and len(vector) != 4 * question.dimensions:
            raise InvalidSpec("dimensions", f"of this model are {len(vector) // 4}, and it was not made to be cut")
    data = [
        {"object": "embedding", "index": place, "embedding": _coded(vector, in_base64=question.base64)}
        for place, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": question.tokens, "total_tokens": question.tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _coded(vector: bytes, *, in_base64: bool) -> Any:
    if in_base64:
        return base64.b64encode(vector).decode("ascii")
    return Tensor((len(vector) // 4,), "float32", vector).lists()


def model_document(model: Model) -> dict[str, Any]:
    return {
        "id": model.reference,
        "object": "model",
        "created": int(model.created_s),
        "owned_by": model.nickname or model.author,
    }


def deployment_document(deployment: Deployment) -> dict[str, Any]:
    """As a model: whoever asks for it gets one of its versions."""
    return {
        "id": deployment.reference,
        "object": "model",
        "created": int(deployment.created_s),
        "owned_by": deployment.arms[0].model.partition("/")[0],
    }
