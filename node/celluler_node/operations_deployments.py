"""What a person may ask of a node about its deployments: a part of `Operations`, under the same rules.

A deployment belongs to the node that it was made at, and is asked there, as `deploy:NAME` wherever a model is named. A
light peer has none: NotSupported.
"""

from __future__ import annotations

from typing import Protocol

from celluler.views import AnswerCacheUsage, Deployment, DeploymentChange, NewDeployment


class DeploymentOperations(Protocol):
    async def deployments(self) -> tuple[Deployment, ...]:
        """By name. Cheap, and empty where there can be none."""
        ...

    async def deployment(self, name: str) -> Deployment:
        """Raises NotFound."""
        ...

    async def create_deployment(self, deployment: NewDeployment) -> Deployment:
        """Raises InvalidSpec, NotFound for a model that nobody knows, LocalError for a name that is taken."""
        ...

    async def update_deployment(self, name: str, change: DeploymentChange) -> Deployment:
        """Raises as `create_deployment`, and LocalError while a version is being brought in."""
        ...

    async def promote_deployment(self, name: str, arm: str = "") -> Deployment:
        """Let every session have this arm; empty for the only one that is tried out. Raises NotFound, LocalError."""
        ...

    async def rollback_deployment(self, name: str) -> Deployment:
        """Take back what is tried out or brought in, else the last switch. Raises NotFound, LocalError."""
        ...

    async def remove_deployment(self, name: str) -> None:
        """Nobody is answered by this name any more; its replicas are let go. Raises NotFound."""
        ...

    async def answer_cache(self) -> AnswerCacheUsage: ...
