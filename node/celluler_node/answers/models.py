"""Answers about models: publishing, finding, fetching, predicting."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import trio
from blake3 import blake3

from celluler.content.digest import Codec, cid_of, parse_cid
from celluler.errors import CellulerError, InvalidSpec, PeerViolation, Unavailable
from celluler.identity import PeerId
from celluler.models.manifest import Metric, OpenedManifest, describe_model
from celluler.models.names import ModelName
from celluler.models.spec import format_spec, parse_spec
from celluler.models.weights import initial_weights
from celluler.tensors import Tensor
from celluler.views import Model, NewModel, Prediction
from celluler_node.answers.services import Answers
from celluler_node.network_views import announced_view, model_view
from celluler_node.placement import ask_servers
from celluler_node.repository import Held
from celluler_protocols.inference import Predict, Predicted

MAX_SERVERS_ASKED = 8


class ModelAnswers(Answers):
    """The part of `Operations` about models."""

    async def add_model(self, model: NewModel) -> Model:
        name = self._own_name(model.name)
        architecture = parse_spec(dict(model.spec))
        if model.weights is None:
            with tempfile.TemporaryDirectory(prefix="celluler-weights-") as folder:
                path = Path(folder) / "weights.safetensors"
                seed = blake3(f"celluler initial weights {model.seed}".encode()).digest()
                await trio.to_thread.run_sync(initial_weights, architecture, seed, path)
                root = await trio.to_thread.run_sync(self._of.store.add, path, "model")
        else:
            root = parse_cid(model.weights)
            await self._of.fetcher.content(root)
        described = describe_model(
            name.name,
            str(name.version),
            format_spec(architecture),
            root,
            created_s=int(time.time()),
            nickname=self._of.nickname,
            labels=model.labels,
            metrics=tuple(Metric(metric, value) for metric, value in model.metrics.items()),
            parents=tuple(parse_cid(parent) for parent in model.parents),
            dataset=None if model.dataset is None else parse_cid(model.dataset),
        )
        if self._of.membership is None:
            return await self._model_view(await self._of.repository.keep(described))
        return await self._model_view(await self._of.repository.publish(described))

    async def list_models(self) -> tuple[Model, ...]:
        held = await trio.to_thread.run_sync(self._of.repository.local)
        known = {one.opened.digest for one in held}
        told = [signed for signed in self._of.repository.announced() if signed.record.manifest not in known]
        return (*map(model_view, held), *map(announced_view, told))

    async def show_model(self, ref: str) -> Model:
        opened = await self._of.repository.resolve(ref, hints=self._hints())
        return await self._model_view(self._of.repository.held(opened))

    async def pull_model(self, ref: str) -> Model:
        held, _ = await self._of.repository.pull(ref, hints=self._hints())
        return await self._model_view(held)

    async def predict(self, ref: str, inputs: Tensor) -> Prediction:
        began = trio.current_time()
        opened = await self._of.repository.resolve(ref, hints=self._hints())
        reference = cid_of(opened.digest, Codec.MANIFEST)
        request = Predict(reference, "raw", inputs.dtype, inputs.shape, inputs.data)
        server = self._of.server
        if server is not None and "serve" in self._of.config.roles:
            peer, answer = self._of.identity.peer_id, await server.predict(request)
        else:
            peer, answer = await ask_servers(self._of.host, await self._servers(opened), request)
        return self._prediction(opened, peer, answer, trio.current_time() - began)

    def _own_name(self, text: str) -> ModelName:
        name = ModelName.parse(text)
        if name.author not in (self._of.nickname, self._of.identity.peer_id):
            raise InvalidSpec("name", f"{name.author!r} is somebody else", hint=f"{self._of.nickname}/{name.name}")
        if name.version is None:
            raise InvalidSpec("name", "needs a version", hint=f"{text}:1.0.0")
        return name

    async def _servers(self, opened: OpenedManifest) -> tuple[PeerId, ...]:
        """Who might predict: those that hold the model, then other members that serve; of each, the nearest first."""
        serving = [member.peer for member in self._of.members() if "serve" in member.capabilities.roles]
        try:
            holding = await self._of.repository.providers(opened)
        except CellulerError:
            holding = ()
        found = dict.fromkeys([*(peer for peer in holding if peer in serving), *serving])
        others = [peer for peer in found if peer != self._of.identity.peer_id]
        others.sort(key=lambda peer: (peer not in holding, *self._distance(peer)))
        return tuple(others[:MAX_SERVERS_ASKED])

    def _prediction(self, opened: OpenedManifest, peer: PeerId, answer: Predicted, elapsed_s: float) -> Prediction:
        return Prediction(
            outputs=Tensor(answer.shape, answer.dtype, answer.data),
            model=self._of.repository.held(opened).name,
            cid=cid_of(opened.digest, Codec.MANIFEST),
            peer=peer,
            elapsed_s=elapsed_s,
            labels=opened.record.labels,
        )

    async def _model_view(self, held: Held) -> Model:
        """With spec and providers; without the latter when nobody can be asked."""
        try:
            providers = await self._of.repository.providers(held.opened)
        except (Unavailable, PeerViolation):
            providers = ()
        return model_view(held, providers=providers, with_spec=True)
