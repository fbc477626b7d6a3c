"""Deployments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

from celluler import views
from celluler.client import calls_deployments as calls
from celluler.client.calls_deployments import DeploymentFields
from celluler.client.transport import AsyncLink


class AsyncDeployments:
    """Versions of models behind one name, which is asked as `deploy:NAME` wherever a model is named."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def ls(self) -> tuple[views.Deployment, ...]:
        return await self._link.send(calls.list_deployments())

    async def show(self, name: str) -> views.Deployment:
        """With what became of the requests of each arm since the node started."""
        return await self._link.send(calls.show_deployment(name))

    async def create(
        self,
        name: str,
        model: str,
        *,
        arms: Mapping[str, tuple[str, str]] | None = None,
        **said: Unpack[DeploymentFields],
    ) -> views.Deployment:
        """model: what gets all sessions but those of `arms`, `{"b": ("alice/digits:2.0.0", "30%")}`."""
        return await self._link.send(calls.create_deployment(name, model, arms or {}, said))

    async def update(
        self,
        name: str,
        model: str | None = None,
        *,
        canary: str | None = None,
        arm: str = "canary",
        blue_green: bool = False,
        **said: Unpack[DeploymentFields],
    ) -> views.Deployment:
        """model: from now on, or as soon as it is ready with `blue_green`; with `canary="10%"` for so many sessions, as
        the arm of that name. canary without a model: another share of the arm that there is."""
        return await self._link.send(calls.update_deployment(name, model, canary, arm, blue_green, said))

    async def promote(self, name: str, arm: str = "") -> views.Deployment:
        """Let every session have what is tried out. arm: which, if several are."""
        return await self._link.send(calls.promote_deployment(name, arm))

    async def rollback(self, name: str) -> views.Deployment:
        """Take back what is tried out or brought in, else the last switch."""
        return await self._link.send(calls.rollback_deployment(name))

    async def rm(self, name: str) -> None:
        await self._link.send(calls.remove_deployment(name))

    async def cache(self) -> views.AnswerCacheUsage:
        """Answers that the node keeps, to be given again."""
        return await self._link.send(calls.answer_cache())
