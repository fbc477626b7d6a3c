"""Calls about deployments. As `calls`: shared by both clients, does no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from celluler import views
from celluler.client.calls import Call, record, records, step
from celluler.client.calls_models import LOOKUP_S

_PATH = "/api/v1/deployments"


class DeploymentFields(TypedDict, total=False):
    """How versions are run; see `views.NewDeployment`."""

    min_replicas: int
    max_replicas: int
    in_flight: int
    latency_ms: int
    keep_warm_s: int
    regions: Sequence[str]
    compare: str


def list_deployments() -> Call[tuple[views.Deployment, ...]]:
    return Call("GET", _PATH, records(views.Deployment, "deployments"))


def show_deployment(name: str) -> Call[views.Deployment]:
    return Call("GET", _path(name), record(views.Deployment))


def create_deployment(
    name: str, model: str, arms: Mapping[str, tuple[str, str]], said: DeploymentFields
) -> Call[views.Deployment]:
    told = [{"name": arm, "model": version, "share": share} for arm, (version, share) in arms.items()]
    body = {"name": name, "model": model, "arms": told, **_plain(said)}
    return Call("POST", _PATH, record(views.Deployment), json=body, timeout_s=LOOKUP_S)


def update_deployment(
    name: str, model: str | None, share: str | None, arm: str, blue_green: bool, said: DeploymentFields
) -> Call[views.Deployment]:
    body = {"model": model, "share": share, "arm": arm, "blue_green": blue_green, **_plain(said)}
    return Call("PATCH", _path(name), record(views.Deployment), json=body, timeout_s=LOOKUP_S)


def promote_deployment(name: str, arm: str) -> Call[views.Deployment]:
    return Call("POST", f"{_path(name)}/promote", record(views.Deployment), json={"arm": arm})


def rollback_deployment(name: str) -> Call[views.Deployment]:
    return Call("POST", f"{_path(name)}/rollback", record(views.Deployment))


def remove_deployment(name: str) -> Call[None]:
    return Call("DELETE", _path(name), lambda _document: None)


def answer_cache() -> Call[views.AnswerCacheUsage]:
    return Call("GET", "/api/v1/answer-cache", record(views.AnswerCacheUsage))


def _path(name: str) -> str:
    return f"{_PATH}/{step(name.removeprefix('deploy:'))}"


def _plain(said: DeploymentFields) -> dict[str, Any]:
    return {name: list(value) if name == "regions" else value for name, value in said.items()}  # type: ignore[call-overload]
