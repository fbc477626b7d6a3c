"""Answers about models at work here."""

from __future__ import annotations

from celluler.errors import NotSupported
from celluler.views import LoadedModel, Serving
from celluler_node.answers.services import Answers
from celluler_node.serving.server import ModelServer
from celluler_node.serving.views import loaded_view, nothing_served, serving_view


class ServingAnswers(Answers):
    """The part of `Operations` about what is loaded."""

    async def serving(self) -> Serving:
        server = self._of.server
        return nothing_served() if server is None else serving_view(server, self._core.repository)

    async def load_model(self, ref: str) -> LoadedModel:
        server = self._server()
        opened = await server.load(ref)
        loaded = server.models.find(opened.digest)
        if loaded is None:
            raise NotSupported(f"{ref} has gone again: there is no room for it", hint="celluler ps")
        return loaded_view(loaded, server, self._core.repository)

    async def unload_model(self, ref: str) -> Serving:
        server = self._server()
        await server.unload(ref)
        return serving_view(server, self._core.repository)

    def _server(self) -> ModelServer:
        """Raises NotSupported where no models run."""
        if self._of.server is None or "serve" not in self._core.config.roles:
            raise NotSupported("this node runs no models", hint='roles = ["serve"] in its configuration')
        return self._of.server
