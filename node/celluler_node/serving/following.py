"""Names of models that are loaded: what they mean is asked anew now and then, not with every request.

When a name comes to mean another version, that one is loaded beside the old one, which answers until the new one is
ready and then ends what it has: no request is dropped, and none waits for the new one. A version that its author took
back is not followed any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import CellulerError, Retracted
from celluler.models.manifest import OpenedManifest
from celluler.models.names import ModelName, parse_reference
from celluler_node.bounded import bounded
from celluler_node.serving.loading import LoadedModels

LOOK_S = 2.0
"""Between two looks at what the swarm has announced."""
RESOLVE_S = 15.0
"""After which a name is asked for anew, announced or not."""
AGAIN_S = 60.0
"""After a new version that could not be loaded."""
ASK_S = 10.0
GRACE_S = 2.0
"""From when a name means a new version until the old one leaves: who has looked the name up is on the way to it."""
MAX_NAMES = 1024
STAYS = "preload"

parsed = lru_cache(maxsize=1024)(parse_reference)
"""`parse_reference`, which takes a CID apart and together again: a good part of what it costs to ask a small model."""

log = structlog.get_logger()


class Names(Protocol):
    """What is needed of the repository."""

    async def resolve(self, reference: str) -> OpenedManifest: ...

    def announced_as(self, opened: OpenedManifest) -> Digest | None:
        """The newest manifest that its author told of under its name; None when nothing was told."""


@dataclass(slots=True, eq=False)
class _Followed:
    """stays: whatever it means is never unloaded. told: what was announced when it was last asked for."""

    opened: OpenedManifest
    looked_s: float
    moving: bool = False
    stays: bool = False
    told: Digest | None = None


class Following:
    """`nursery` carries what is loaded in the background."""

    def __init__(
        self,
        names: Names,
        models: LoadedModels,
        nursery: trio.Nursery,
        allowed: Callable[[OpenedManifest], None],
    ) -> None:
        """allowed: raises Denied for a model that may not run here."""
        self._resolver, self._models, self._nursery, self._allowed = names, models, nursery, allowed
        self._names: dict[str, _Followed] = {}
        self._hurried = trio.Event()

    def current(self, reference: str) -> OpenedManifest | None:
        """What a name means by what is loaded here; None for one that is not followed."""
        followed = self._names.get(reference)
        if followed is None:
            return None
        if self._models.find(followed.opened.digest) is None:
            if not followed.moving:
                del self._names[reference]
            return None
        return followed.opened

    def names_of(self, digest: Digest) -> tuple[str, ...]:
        return tuple(name for name, one in self._names.items() if one.opened.digest == digest)

    def follow(self, reference: str, opened: OpenedManifest, *, stays: bool = False) -> None:
        """From now on, as long as it is loaded. A CID means what it does for ever, and is not followed."""
        if stays:
            self._models.keep(opened.digest, math.inf, STAYS)
        if reference in self._names:
            self._names[reference].stays |= stays
        elif isinstance(parsed(reference), ModelName):
            if len(self._names) >= MAX_NAMES:
                self._names.pop(next(iter(self._names)))
            self._names[reference] = _Followed(opened, trio.current_time(), stays=stays)

    async def watch(self) -> None:
        """Runs as long as the node."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._hurried.wait()
                self._hurried = trio.Event()
            for name, followed in tuple(self._names.items()):
                if not followed.moving and self.current(name) is not None and self._due(followed):
                    followed.looked_s = trio.current_time()
                    await self.look(name)

    def look_soon(self) -> None:
        """What names mean has just been changed here."""
        for followed in self._names.values():
            followed.looked_s = -math.inf
        self._hurried.set()

    async def look(self, name: str) -> None:
        """Ask what a name that is followed means, and go over to it if that is another version."""
        followed = self._names[name]
        followed.told = self._resolver.announced_as(followed.opened)
        try:
            with bounded(ASK_S, f"asking what {name} means"):
                opened = await self._resolver.resolve(name)
            if opened.digest != followed.opened.digest:
                self._allowed(opened)
                followed.moving = True
                self._nursery.start_soon(self._move, name, followed, opened)
        except Retracted:
            self._names.pop(name, None)
        except CellulerError as error:  # nobody can be asked: it goes on meaning what it did
            log.debug("name_not_looked_up", name=name, error=str(error))

    def _due(self, followed: _Followed) -> bool:
        if trio.current_time() - followed.looked_s >= RESOLVE_S:
            return True
        told = self._resolver.announced_as(followed.opened)
        new = told not in (None, followed.told, followed.opened.digest)
        return new and trio.current_time() >= followed.looked_s

    async def _move(self, name: str, followed: _Followed, opened: OpenedManifest) -> None:
        old = followed.opened
        try:
            async with self._models.using(opened):
                followed.opened = opened
                if followed.stays:
                    self._models.keep(opened.digest, math.inf, STAYS)
        except CellulerError as error:
            log.warning("new_version_not_loaded", name=name, version=opened.record.version, error=str(error))
            followed.looked_s = trio.current_time() + AGAIN_S
            return
        finally:
            followed.moving = False
        log.info("model_updated", name=name, before=old.record.version, now=opened.record.version)
        if not any(one.stays and one.opened.digest == old.digest for one in self._names.values()):
            self._models.let_go(old.digest, STAYS)
        await trio.sleep(GRACE_S)
        loaded = self._models.find(old.digest)
        if loaded is not None and not self.names_of(old.digest) and self._models.kept_until(loaded) is None:
            self._models.unload(old.digest)
