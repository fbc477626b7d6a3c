"""Answers about models: publishing, finding, fetching, predicting."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import trio
from blake3 import blake3

from celluler.content.digest import Codec, Digest, cid_of, parse_cid
from celluler.errors import InvalidSpec, NotFound, Unavailable
from celluler.identity import PeerId, Signed
from celluler.models.access import encrypt_file, new_key, seal_key
from celluler.models.beside import LIMITS, TOKENIZER, FileBeside, key_of
from celluler.models.body import Body, format_body, read_body
from celluler.models.interface import read_interface
from celluler.models.manifest import Metric, OpenedManifest, describe_model
from celluler.models.names import ModelName, parse_reference
from celluler.models.search import Entry, Query, entry_of, find
from celluler.models.transforms.base import TEXT
from celluler.models.transforms.document import canonical
from celluler.models.weights import initial_weights
from celluler.tensors import Tensor
from celluler.views import Model, ModelPorts, ModelQuery, NewModel, Prediction
from celluler_node.answers.inference import InferenceAnswers, cid_text
from celluler_node.model_views import announced_view, model_view, ports_view
from celluler_node.repository import Held, small_enough
from celluler_node.repository.resolver import MODEL
from celluler_protocols.gossip import ModelAnnouncement
from celluler_protocols.inference import Predict, Predicted

SWEEP_S = 10.0


class _Weights(NamedTuple):
    """root: of the content to publish. plain: as in a manifest; of an encrypted one."""

    root: Digest
    plain: bytes | None = None


class ModelAnswers(InferenceAnswers):
    """The part of `Operations` about models."""

    # --- publishing --------------------------------------------------------------------------------------------

    async def add_model(self, model: NewModel) -> Model:
        name = self._new_name(model.name)
        architecture = read_body(model.body, dict(model.spec))
        before, after = _document(model.preprocess), _document(model.postprocess)
        interface = read_interface(architecture, before, after)  # before the weights are encrypted or stored
        interface.check_tokenizer(given=TOKENIZER in model.files)
        readers = self._readers(model.readers)
        self._check_files(model)
        key = new_key() if readers else None
        weights = await self._weights_of(model, architecture, key)
        files = [await self._file_of(model, one, key) for one in model.files]
        described = describe_model(
            name.name,
            str(name.version),
            format_body(architecture),
            weights.root,
            created_s=int(time.time()),
            body=architecture.kind,
            nickname=self._core.nickname,
            labels=model.labels,
            metrics=tuple(Metric(metric, value) for metric, value in model.metrics.items()),
            parents=tuple(parse_cid(parent) for parent in model.parents),
            dataset=None if model.dataset is None else parse_cid(model.dataset),
            category=model.category,
            licence=model.licence,
            tags=model.tags,
            description=model.description,
            card=await self._card(model.card),
            copies=model.copies,
            regions=model.regions,
            sealed=() if key is None else seal_key(key, readers),
            plain=weights.plain,
            preprocess=before,
            postprocess=after,
            files=files,
        )
        if self._of.membership is None:
            return await self._model_view(await self._core.repository.keep(described))
        held = await self._core.repository.publish(described, aliases=model.aliases, public=model.public)
        if self._of.server is not None:
            self._of.server.following.look_soon()
        return await self._model_view(held)

    def _readers(self, named: Iterable[str]) -> tuple[PeerId, ...]:
        """Peer ids, and the author's when there are any. Raises NotFound for a nickname that no one member bears."""
        found = tuple(self._member(reader) for reader in named)
        return (*found, self._core.identity.peer_id) if found else ()

    async def _weights_of(self, model: NewModel, architecture: Body, key: bytes | None) -> _Weights:
        """The content to publish, pinned: what was named, or initial weights; encrypted when there is a key."""
        store, given = self._core.store, None if model.weights is None else parse_cid(model.weights)
        try:
            async with self._core.scratch("weights") as folder:
                path = folder / "initial.safetensors"
                if given is not None:
                    path = await self._core.fetcher.content(given, name=model.name)
                else:
                    seed = blake3(f"celluler initial weights {model.seed}".encode()).digest()
                    await trio.to_thread.run_sync(initial_weights, architecture, seed, path)
                if key is not None:
                    return await self._encrypted(path, folder / "encrypted", key, MODEL)
                if given is None:
                    return _Weights(await trio.to_thread.run_sync(store.add, path, MODEL))
                await trio.to_thread.run_sync(store.pin, given)
                return _Weights(given)
        finally:
            if key is not None and given is not None:
                with trio.CancelScope(shield=True):
                    await self._hide(given)

    def _check_files(self, model: NewModel) -> None:
        """Before anything is fetched. Raises InvalidSpec for a file there is not."""
        for name in model.files:
            if name not in LIMITS:
                raise InvalidSpec(f"files.{name[:32]}", f"is none of {', '.join(LIMITS)}")

    async def _file_of(self, model: NewModel, name: str, key: bytes | None) -> FileBeside:
        """The content of a file beside the weights, pinned; encrypted when there is a key, its own one."""
        store, given = self._core.store, parse_cid(model.files[name])
        try:
            path = await self._core.fetcher.content(given, select=partial(small_enough, name), name=model.name)
            if key is None:
                await trio.to_thread.run_sync(store.pin, given)
                return FileBeside(name, given, None)
            async with self._core.scratch("files") as folder:
                sealed = await self._encrypted(path, folder / "encrypted", key_of(key, name), "blob")
                return FileBeside(name, sealed.root, sealed.plain)
        finally:
            if key is not None:
                with trio.CancelScope(shield=True):
                    await self._hide(given)

    async def _encrypted(self, path: Path, ciphertext: Path, key: bytes, kind: str) -> _Weights:
        plain = await trio.to_thread.run_sync(encrypt_file, path, ciphertext, key)
        return _Weights(await trio.to_thread.run_sync(self._core.store.add, ciphertext, kind), plain)

    async def _hide(self, plaintext: Digest) -> None:
        """Keep no copy that others could fetch of what was encrypted, unless something else here needs it."""
        self._core.fetcher.withdraw(plaintext)
        if not await trio.to_thread.run_sync(self._core.repository.uses, plaintext):
            await trio.to_thread.run_sync(self._core.store.remove, plaintext)

    # --- finding -----------------------------------------------------------------------------------------------

    async def list_models(self, query: ModelQuery | None = None) -> tuple[Model, ...]:
        return await trio.to_thread.run_sync(self._found, query or ModelQuery())

    async def search_models(self, query: ModelQuery) -> tuple[Model, ...]:
        with trio.move_on_after(SWEEP_S):
            await self._core.repository.catalogue.sweep()
        return await self.list_models(query)

    async def show_model(self, ref: str) -> Model:
        return await self._model_view(self._core.repository.held(await self._looked_up(ref)))

    async def model_ports(self, ref: str) -> ModelPorts:
        return ports_view(self._core.repository.held(await self._resolved(ref)))

    async def model_card(self, ref: str) -> str:
        opened = await self._looked_up(ref)
        if opened.record.card is None:
            raise NotFound(f"{ref} has no card")
        keepers = await self._core.fetcher.providers(Digest(opened.record.weights))
        announcers = self._core.repository.resolver.announcers(opened.digest)
        hints = (*self._hints(), *announcers, opened.signed.signer, *keepers)
        return (await self._core.fetcher.block(Digest(opened.record.card), hints=hints)).decode("utf-8", "replace")

    async def _looked_up(self, ref: str) -> OpenedManifest:
        """What to show for a name. Where nobody can be asked, what the swarm's catalogue says of it here."""
        repository = self._core.repository
        try:
            return await repository.resolve(ref, hints=self._hints(), retracted=True)
        except Unavailable as error:
            known = self._known(parse_reference(ref), error)
            if known is None:
                raise
            return known

    def _known(self, name: ModelName | Digest, error: Unavailable) -> OpenedManifest | None:
        """None also when an index was seen and says that there is no such thing."""
        resolver = self._core.repository.resolver
        if not isinstance(name, ModelName):
            return None
        if isinstance(error, NotFound) and resolver.seen(resolver.author(name), name.name) is not None:
            return None
        return resolver.known(name)

    def _found(self, query: ModelQuery) -> tuple[Model, ...]:
        """What is known here, kept and announced, that matches. Runs in a thread."""
        repository = self._core.repository
        wanted = Query(
            text=query.text,
            task=query.task,
            category=query.category,
            tag=query.tag,
            author=query.author,
            licence=query.licence,
            local=query.local,
            sort=query.sort,
        )
        held = {one.opened.digest: one for one in repository.local()}
        views = {digest: self._listed(one) for digest, one in held.items()}
        entries = [entry_of(one.opened, local=one.local) for one in held.values()]
        for signed in repository.announced():
            told = signed.record
            digest = Digest(told.manifest)
            if digest in held or told.kind != MODEL:
                continue
            body = repository.catalogue.body(told)
            if isinstance(body, OpenedManifest):
                views[digest] = self._listed(repository.held(body))
                entries.append(entry_of(body, local=views[digest].local))
            else:
                views[digest] = announced_view(signed)
                entries.append(_told(signed))
        return tuple(views[Digest(entry.manifest)] for entry in find(wanted, entries))

    def _listed(self, held: Held) -> Model:
        """With what is said of the version in the index, if one was seen; nobody is asked."""
        index = self._core.repository.resolver.seen(held.opened.signed.signer, held.opened.record.name)
        return model_view(held, index=index)

    # --- fetching ----------------------------------------------------------------------------------------------

    async def pull_model(self, ref: str, *, layers: str | None = None) -> Model:
        repository = self._core.repository
        if layers is None:
            held, _ = await repository.pull(ref, hints=self._hints())
        else:
            held, _ = await repository.pull_layers(ref, layers, hints=self._hints())
        return await self._model_view(held)

    # --- predicting --------------------------------------------------------------------------------------------

    async def predict(self, ref: str, inputs: Tensor, output: str = "", *, peer: str = "") -> Prediction:
        began = trio.current_time()
        opened = await self._resolved(ref)
        output = output or opened.interface.usual
        opened.interface.check(inputs.dtype, inputs.shape, output)
        request = Predict(cid_text(opened), output, inputs.dtype, inputs.shape, inputs.data)
        answering, answer = await self._first_prediction(opened, request, self._named(peer))
        return self._prediction(opened, output, answering, answer, trio.current_time() - began)

    def _prediction(
        self, opened: OpenedManifest, output: str, peer: PeerId, answer: Predicted, elapsed_s: float
    ) -> Prediction:
        return Prediction(
            outputs=Tensor(answer.shape, answer.dtype, answer.data),
            model=self._core.repository.held(opened).name,
            cid=cid_of(opened.digest, Codec.MANIFEST),
            peer=peer,
            elapsed_s=elapsed_s,
            labels=opened.record.labels,
            output=output,
            text=opened.interface.outputs[output].dtype == TEXT,
        )

    async def _model_view(self, held: Held) -> Model:
        """With spec, aliases and providers, as far as somebody can be asked."""
        providers, index = await self._told_of(held)
        equivocation = self._core.repository.equivocation(held.opened.signed.signer, held.opened.record.name)
        return model_view(held, providers=providers, with_spec=True, index=index, equivocation=equivocation)


def _document(given: Mapping[str, Any] | None) -> bytes:
    return b"" if given is None else canonical(dict(given))


def _told(signed: Signed[ModelAnnouncement]) -> Entry:
    """What is known of a model of which nobody has given us more than the announcement."""
    told = signed.record
    return Entry(
        manifest=told.manifest,
        author=signed.signer,
        name=told.name,
        version=told.version,
        nickname=told.nickname,
        total_bytes=told.total_bytes,
        created_s=told.issued_s,
    )
