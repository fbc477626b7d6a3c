"""A training's document from a file, flags, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from celluler.content.digest import parse_cid
from celluler.errors import InvalidSpec, LocalError
from celluler.models.names import ModelName
from celluler.quantities import parse_duration
from celluler_node.cli.submitting import put, read_spec, settings

PATHS: Mapping[str, str] = {
    "name": "name",
    "model": "model",
    "partition": "data.partition",
    "rounds": "train.rounds",
    "inner_steps": "train.inner_steps",
    "batch": "train.batch",
    "lr": "train.learning_rate",
    "optimizer": "train.optimizer",
    "aggregator": "train.aggregator",
    "consensus": "train.consensus",
    "topology": "train.topology",
    "audits": "train.audits_per_round",
    "tolerance": "train.tolerance",
    "precision": "train.precision",
    "wire": "train.wire",
    "checkpoint_every": "train.checkpoint_every",
    "min_peers": "resources.peers.min",
    "max_peers": "resources.peers.max",
    "memory": "resources.memory",
    "accelerator": "resources.accelerator",
    "deadline": "policy.deadline",
    "priority": "policy.priority",
    "version": "result.version",
}
"""Flag → place in the document."""


def document_of(spec: str, flags: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """spec: a file, `-`, or empty. flags: by name in PATHS; None leaves what the file says. Not checked yet."""
    document = read_spec(spec) if spec else {}
    document = {"apiVersion": "celluler/v1", "kind": "TrainJob"} | document
    put(document, {path: flags[flag] for flag, path in PATHS.items()})
    put(document, settings(sets))
    if "name" not in document:
        document["name"] = _name_of(document.get("model"))
    return document


def take_data(document: dict[str, Any], data: str | None) -> Path | None:
    """What `--data` means: a file, which is returned, else a CID or a name, which goes into the document."""
    if data is None:
        return None
    part = document.setdefault("data", {})
    if not isinstance(part, dict):
        raise InvalidSpec("data", "not a mapping")
    part.pop("cid", None)
    part.pop("dataset", None)
    if Path(data).is_file():
        return Path(data)
    if data.startswith((".", "/", "~")) or data.count("/") > 1:
        raise LocalError(f"no file at {data}")
    if "/" in data:
        part["dataset"] = data
    else:
        parse_cid(data)
        part["cid"] = data
    return None


def seconds(duration: str, path: str) -> int:
    """`4h` in seconds. Raises InvalidSpec, naming the path."""
    try:
        return parse_duration(duration)
    except ValueError as error:
        raise InvalidSpec(path, str(error)) from None


def _name_of(model: Any) -> str | None:
    """The model's own name, for a job that bears none."""
    try:
        return ModelName.parse(str(model)).name
    except InvalidSpec:
        return None
