"""Calls about models and datasets. As `calls`: shared by both clients, does no I/O but reading small files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypedDict, cast
from urllib.parse import quote

from celluler import views
from celluler.client.calls import LONG_S, MOVE_S, Call, read_spec_text, read_text, record, records
from celluler.errors import InvalidSpec
from celluler.models.folder import beside_in, files_of, kind_of
from celluler.tensors import tensor_of, tensor_to_json

MAX_CARD_BYTES = 256 << 10
LOOKUP_S = 60.0
"""Calls that may have to ask others for small records."""


class DatasetFields(TypedDict, total=False):
    """What may be said of a dataset when it is published; see `views.NewDataset`. card: Markdown, or its file."""

    format: str
    label: str
    licence: str
    tags: Sequence[str]
    description: str
    card: str | os.PathLike[str]
    copies: int
    regions: Sequence[str]
    parents: Sequence[str]
    aliases: Sequence[str]


class ModelFields(TypedDict, total=False):
    """What may be said of a model when it is published; see `views.NewModel`. card: Markdown, or its file. files:
    CIDs, or Paths of files."""

    seed: int
    labels: Sequence[str]
    metrics: Mapping[str, float]
    parents: Sequence[str]
    dataset: str | None
    category: str
    licence: str
    tags: Sequence[str]
    description: str
    card: str | os.PathLike[str]
    copies: int
    regions: Sequence[str]
    readers: Sequence[str]
    aliases: Sequence[str]
    public: bool
    preprocess: Mapping[str, Any] | None
    postprocess: Mapping[str, Any] | None
    files: Mapping[str, str | os.PathLike[str]]


# --- models ------------------------------------------------------------------------------------------------------


def add_model(
    name: str, spec: Mapping[str, Any] | str | os.PathLike[str], weights: str | None, said: ModelFields
) -> Call[views.Model]:
    document = _read_spec(spec)
    body = {"name": name, "body": kind_of(document), "spec": document, "weights": weights, **_plain(dict(said))}
    return Call("POST", "/api/v1/models", record(views.Model), json=body, timeout_s=MOVE_S)


def model_files(
    spec: Mapping[str, Any] | str | os.PathLike[str], weights: str | os.PathLike[str] | None
) -> tuple[Mapping[str, Any] | str | os.PathLike[str], str | os.PathLike[str] | None]:
    """The same, with a folder taken apart into its document and, where none are given, its weights."""
    if isinstance(spec, Mapping) or "\n" in os.fspath(spec) or not os.path.isdir(spec):
        return spec, weights
    document, found = files_of(Path(spec))
    return document, found if weights is None else weights


def beside(
    spec: Mapping[str, Any] | str | os.PathLike[str], said: ModelFields
) -> tuple[ModelFields, dict[str, str | os.PathLike[str]]]:
    """What is said, with what else a folder holds of the model; and its files beside the weights, CIDs or paths."""
    files: dict[str, str | os.PathLike[str]] = dict(said.get("files") or {})
    if isinstance(spec, Mapping) or "\n" in os.fspath(spec) or not os.path.isdir(spec):
        return said, files
    documents, there = beside_in(Path(spec))
    found: dict[str, Any] = {key: _read_spec(path) for key, path in documents.items()}
    given = {key: value for key, value in said.items() if key not in found or value is not None}
    return cast(ModelFields, found | given), there | files


def list_models(query: views.ModelQuery | str | None) -> Call[tuple[views.Model, ...]]:
    return Call("GET", "/api/v1/models", records(views.Model, "models"), params=_params(query))


def search_models(query: views.ModelQuery | str) -> Call[tuple[views.Model, ...]]:
    path, params = "/api/v1/models/search", _params(query)
    return Call("GET", path, records(views.Model, "models"), params=params, timeout_s=LONG_S)


def show_model(ref: str) -> Call[views.Model]:
    return Call("GET", _model_path(ref), record(views.Model), timeout_s=LOOKUP_S)


def pull_model(ref: str, layers: str | None) -> Call[views.Model]:
    body = {"model": ref, "layers": layers}
    return Call("POST", "/api/v1/models/pull", record(views.Model), json=body, timeout_s=MOVE_S)


def model_card(ref: str) -> Call[str]:
    return Call("GET", f"{_model_path(ref)}/card", lambda document: str(document.get("card", "")), timeout_s=LOOKUP_S)


def verify_model(ref: str) -> Call[views.Verification]:
    body = {"model": ref}
    return Call("POST", "/api/v1/models/verify", record(views.Verification), json=body, timeout_s=MOVE_S)


def remove_model(ref: str) -> Call[views.Collected]:
    return Call("DELETE", _model_path(ref), record(views.Collected), timeout_s=LOOKUP_S)


def predict(
    ref: str,
    inputs: Any,
    dtype: str | None,
    output: str,
    *,
    ensemble: int | Sequence[str] = 1,
    aggregate: str = "",
    peer: str = "",
) -> Call[views.Prediction]:
    dtype = dtype or ("int64" if output == "sample" else None)  # seeds are whole numbers
    body: dict[str, Any] = {"model": ref, "inputs": tensor_to_json(tensor_of(inputs, dtype)), "output": output}
    if isinstance(ensemble, int):
        body |= {"ensemble": ensemble} if ensemble != 1 else {}
    else:
        body |= {"models": list(ensemble)}
    body |= {"aggregate": aggregate} if aggregate else {}
    body |= {"peer": peer} if peer else {}
    return Call("POST", "/api/v1/predict", record(views.Prediction), json=body, timeout_s=LONG_S)


# --- versions ----------------------------------------------------------------------------------------------------


def versions(ref: str) -> Call[views.Versions]:
    return Call("GET", f"{_model_path(ref)}/versions", record(views.Versions), timeout_s=LOOKUP_S)


def diff_models(old: str, new: str) -> Call[views.ModelDiff]:
    params = {"old": old, "new": new}
    return Call("GET", "/api/v1/models/diff", record(views.ModelDiff), params=params, timeout_s=LONG_S)


def alias_model(ref: str, alias: str) -> Call[views.Versions]:
    return _change("alias", {"model": ref, "alias": alias})


def drop_alias(ref: str) -> Call[views.Versions]:
    return _change("drop-alias", {"model": ref})


def rollback_model(ref: str) -> Call[views.Versions]:
    return _change("rollback", {"model": ref})


def retract_model(ref: str, reason: str) -> Call[views.Versions]:
    return _change("retract", {"model": ref, "reason": reason})


def model_log(ref: str) -> Call[views.ModelLog]:
    return Call("GET", f"{_model_path(ref)}/log", record(views.ModelLog), timeout_s=LOOKUP_S)


def lineage(ref: str) -> Call[views.Lineage]:
    return Call("GET", f"{_model_path(ref)}/lineage", record(views.Lineage), timeout_s=LOOKUP_S)


# --- datasets ----------------------------------------------------------------------------------------------------


def add_dataset(name: str, content: str, said: DatasetFields) -> Call[views.Dataset]:
    body = {"name": name, "content": content, **_plain(dict(said))}
    return Call("POST", "/api/v1/datasets", record(views.Dataset), json=body, timeout_s=MOVE_S)


def list_datasets() -> Call[tuple[views.Dataset, ...]]:
    return Call("GET", "/api/v1/datasets", records(views.Dataset, "datasets"))


def show_dataset(ref: str) -> Call[views.Dataset]:
    return Call("GET", f"/api/v1/datasets/{_quoted(ref)}", record(views.Dataset), timeout_s=LOOKUP_S)


def pull_dataset(ref: str) -> Call[views.Dataset]:
    return Call("POST", "/api/v1/datasets/pull", record(views.Dataset), json={"dataset": ref}, timeout_s=MOVE_S)


# --- parts of them -----------------------------------------------------------------------------------------------


def _change(verb: str, body: Mapping[str, str]) -> Call[views.Versions]:
    """The author's node signs a new list and tells the swarm."""
    return Call("POST", f"/api/v1/models/{verb}", record(views.Versions), json=body, timeout_s=LOOKUP_S)


def _model_path(ref: str) -> str:
    return f"/api/v1/models/{_quoted(ref)}"


def _quoted(ref: str) -> str:
    """A reference as part of a path. One that would be another path is no reference."""
    if any(not part.strip(".") for part in ref.split("/")):
        raise InvalidSpec("model", f"{ref[:80]!r} is no name and no CID", hint="author/name:1.0.0")
    return quote(ref, safe="/:@")


def _params(query: views.ModelQuery | str | None) -> dict[str, str]:
    """What is not asked for is left out. A text alone is looked for in everything."""
    asked = views.ModelQuery(text=query) if isinstance(query, str) else query or views.ModelQuery()
    plain = views.ModelQuery()
    said = {item.name: getattr(asked, item.name) for item in fields(asked)}
    return {
        name: "true" if value is True else str(value) for name, value in said.items() if value != getattr(plain, name)
    }


def _plain(said: dict[str, Any]) -> dict[str, Any]:
    """As JSON wants it, with the card read."""
    if isinstance(said.get("card"), os.PathLike):
        said["card"] = read_text(Path(said["card"]), MAX_CARD_BYTES)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in said.items()}


def _read_spec(spec: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
    if isinstance(spec, Mapping):
        return dict(spec)
    try:
        value = json.loads(read_spec_text(spec))
    except ValueError as error:
        raise InvalidSpec("spec", f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidSpec("spec", "not a JSON object")
    return value
