"""Models that are loaded at the start and stay so: whoever ends but our user is loaded again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import CellulerError
from celluler.models.manifest import OpenedManifest
from celluler_node.serving.following import Following
from celluler_node.serving.loading import LoadedModels

AGAIN_S = 30.0
"""After one that could not be loaded, and at least between two workers of one model."""

log = structlog.get_logger()


class Preloading:
    """dismissed: what our user has unloaded since; it is not loaded again by itself."""

    def __init__(
        self, models: LoadedModels, following: Following, allowed: Callable[[str], Awaitable[OpenedManifest]]
    ) -> None:
        """allowed: what a name means, if that may run here."""
        self._models, self._following, self._allowed = models, following, allowed
        self.dismissed: set[Digest] = set()

    async def stay(self, model: str) -> None:
        """As long as the node, or until our user unloads it. Its name is followed."""
        while True:
            began = trio.current_time()
            try:
                opened = await self._allowed(model)
                if opened.digest in self.dismissed:
                    return
                async with self._models.using(opened) as loaded:
                    self._following.follow(model, opened, stays=True)
                log.info("model_preloaded", model=model, version=opened.record.version)
                await loaded.gone.wait()
            except CellulerError as error:
                log.warning("model_not_preloaded", model=model, error=str(error))
            await trio.sleep_until(max(trio.current_time(), began + AGAIN_S))
