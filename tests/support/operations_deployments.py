"""The part of the node in memory about deployments: the product's own decisions, without replicas and models."""

from __future__ import annotations

from celluler.content.digest import cid_of, digest_of
from celluler.errors import LocalError, NotFound
from celluler.inference.deployments import STABLE, Arm, Deployment, promote, read_share, roll_back, switch, try_out
from celluler.views import AnswerCacheUsage, DeploymentChange, NewDeployment
from celluler.views import Deployment as View
from celluler_node.deployments.book import ArmState
from celluler_node.deployments.views import changed_scale, deployment_view, new_deployment
from tests.support.jobs import NOW_S


class MemoryDeployments:
    """`deployed`: by name."""

    def __init__(self) -> None:
        self.deployed: dict[str, Deployment] = {}
        self.usage = AnswerCacheUsage()

    def state(self, _name: str, _cid: str) -> ArmState:
        return ArmState()

    def _view(self, one: Deployment) -> View:
        self.deployed[one.name] = one
        return deployment_view(one, self)

    def _get(self, name: str) -> Deployment:
        if name not in self.deployed:
            raise NotFound(f"deployment {name}")
        return self.deployed[name]

    async def deployments(self) -> tuple[View, ...]:
        return tuple(deployment_view(one, self) for one in self.deployed.values())

    async def deployment(self, name: str) -> View:
        return self._view(self._get(name))

    async def create_deployment(self, deployment: NewDeployment) -> View:
        if deployment.name in self.deployed:
            raise LocalError("is there already")
        arms = (Arm(one.name, one.model, _cid(one.model), read_share(one.share)) for one in deployment.arms)
        stable = Arm(STABLE, deployment.model, _cid(deployment.model))
        return self._view(new_deployment(deployment, stable, tuple(arms), NOW_S))

    async def update_deployment(self, name: str, change: DeploymentChange) -> View:
        one = self._get(name)
        if change.model is not None and change.share is not None:
            one = try_out(one, Arm(change.arm, change.model, _cid(change.model), read_share(change.share)), NOW_S)
        elif change.model is not None:
            one = switch(one, change.model, _cid(change.model), NOW_S)
        return self._view(changed_scale(one, change, NOW_S))

    async def promote_deployment(self, name: str, arm: str = "") -> View:
        return self._view(promote(self._get(name), arm, NOW_S))

    async def rollback_deployment(self, name: str) -> View:
        return self._view(roll_back(self._get(name), NOW_S))

    async def remove_deployment(self, name: str) -> None:
        self._get(name)
        del self.deployed[name]

    async def answer_cache(self) -> AnswerCacheUsage:
        return self.usage


def _cid(model: str) -> str:
    return cid_of(digest_of(model.encode()))
