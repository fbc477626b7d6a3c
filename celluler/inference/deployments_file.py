"""Deployments as one JSON document, written by this node and read by it alone, and as strictly as a stranger's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from celluler.documents import read_json
from celluler.errors import InvalidSpec
from celluler.inference.deployments import Arm, Deployment, Scale

FORMAT = "celluler/deployments/1"
MAX_DEPLOYMENTS = 64
MAX_FILE_BYTES = 1 << 20

R = TypeVar("R", Arm, Scale, Deployment)


def write_deployments(deployments: Iterable[Deployment]) -> bytes:
    told = [asdict(deployment) for deployment in sorted(deployments, key=lambda one: one.name)]
    return json.dumps({"format": FORMAT, "deployments": told}, indent=1).encode()


def read_deployments(data: bytes) -> dict[str, Deployment]:
    """By name. Raises InvalidSpec for anything that `write_deployments` does not write."""
    document = read_json(data, limit=MAX_FILE_BYTES)
    if not isinstance(document, dict) or set(document) != {"format", "deployments"} or document["format"] != FORMAT:
        raise InvalidSpec("", f"is no document of {FORMAT}")
    listed = document["deployments"]
    if not isinstance(listed, list) or len(listed) > MAX_DEPLOYMENTS:
        raise InvalidSpec("deployments", f"is not a list of at most {MAX_DEPLOYMENTS}")
    found: dict[str, Deployment] = {}
    for place, one in enumerate(listed):
        deployment = _read_deployment(one, f"deployments[{place}]")
        if deployment.name in found:
            raise InvalidSpec(f"deployments[{place}].name", "is there twice")
        found[deployment.name] = deployment
    return found


def _read_deployment(value: Any, path: str) -> Deployment:
    given = _object(Deployment, value, path)
    given["scale"] = _record(Scale, given["scale"], f"{path}.scale")
    given["arms"] = tuple(_record(Arm, one, f"{path}.arms[{n}]") for n, one in enumerate(_list(given, "arms", path)))
    given["regions"] = tuple(_text(one, f"{path}.regions[{n}]") for n, one in enumerate(_list(given, "regions", path)))
    for key in ("incoming", "previous"):
        given[key] = None if given[key] is None else _record(Arm, given[key], f"{path}.{key}")
    for key in ("compare", "number", "created_s", "changed_s"):
        _whole(given[key], f"{path}.{key}")
    _text(given["name"], f"{path}.name")
    return _made(Deployment, given, path)


def _record(cls: type[R], value: Any, path: str) -> R:
    """A record of whole numbers and texts alone."""
    given = _object(cls, value, path)
    for item in fields(cls):
        (_text if item.type == "str" else _whole)(given[item.name], f"{path}.{item.name}")
    return _made(cls, given, path)


def _made(cls: type[R], given: Mapping[str, Any], path: str) -> R:
    try:
        return cls(**given)
    except InvalidSpec as error:
        raise InvalidSpec(f"{path}.{error.path}".rstrip("."), error.problem) from None


def _object(cls: type[R], value: Any, path: str) -> dict[str, Any]:
    names = {item.name for item in fields(cls)}
    if not isinstance(value, dict) or set(value) != names:
        raise InvalidSpec(path, f"is no object of {', '.join(sorted(names))}")
    return dict(value)


def _list(given: Mapping[str, Any], key: str, path: str) -> list[Any]:
    if not isinstance(given[key], list):
        raise InvalidSpec(f"{path}.{key}", "is no list")
    return list(given[key])


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidSpec(path, "is no text")
    return value


def _whole(value: Any, path: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise InvalidSpec(path, "is no whole number from 0")
    return value
