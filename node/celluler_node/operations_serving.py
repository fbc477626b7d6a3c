"""What a person may ask of the models at work in a node: a part of `Operations`."""

from __future__ import annotations

from typing import Protocol

from celluler.views import LoadedModel, Serving


class ServingOperations(Protocol):
    """Raises as `Operations` says."""

    async def serving(self) -> Serving:
        """What is loaded, or on its way. Cheap: asked every second by whoever watches. Nothing, of a peer that runs no
        models."""
        ...

    async def load_model(self, ref: str) -> LoadedModel:
        """Have it ready in a worker here, as the first prediction would. Returns when it is.

        Raises InvalidSpec, NotFound, Denied, NotSupported where no models run, Busy and Unavailable where there is no
        room for it, WorkerFailed, TimedOut.
        """
        ...

    async def unload_model(self, ref: str) -> Serving:
        """Have it end what it was asked, and then its worker. Returns what is left.

        Raises InvalidSpec, NotFound for one that is not loaded, NotSupported, TimedOut.
        """
        ...
