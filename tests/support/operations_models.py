"""The part of the node in memory about models and datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from celluler.content.digest import cid_of, digest_of
from celluler.errors import Denied, InvalidSpec, LocalError, NotFound
from celluler.models.names import ModelName, parse_reference
from celluler.models.search import Query
from celluler.tensors import Tensor, tensor_of
from celluler.views import (
    Check,
    Collected,
    Column,
    Dataset,
    Ensemble,
    EnsembleMember,
    FieldChange,
    Lineage,
    LineageNode,
    LogLine,
    Model,
    ModelDiff,
    ModelLog,
    ModelPorts,
    ModelQuery,
    NewDataset,
    NewModel,
    Port,
    Prediction,
    TensorChange,
    Verification,
    Version,
    Versions,
)
from tests.support.jobs import ALICE, BOB, NOW_S


class MemoryModels:
    """`known`: by `author/name:version`, oldest first. `searched`: the last query. `pulled`: layers last asked for."""

    def __init__(self) -> None:
        self.known: dict[str, Model] = {}
        self.cards: dict[str, str] = {}
        self.sets: dict[str, Dataset] = {}
        self.actions: list[tuple[str, str, str]] = []
        self.current: dict[str, str] = {}
        self.searched: ModelQuery | None = None
        self.pulled: str | None = None

    async def add_model(self, model: NewModel) -> Model:
        name = _own(model.name)
        if str(name) in self.known:
            raise LocalError(f"{name} is published already", hint="publish it as a higher version")
        if model.card:
            self.cards[str(name)] = model.card
        self.known[str(name)] = Model(
            name=name.name,
            version=str(name.version),
            cid=cid_of(digest_of(str(name).encode())),
            author=ALICE.peer_id,
            nickname="alice",
            task="classification",
            parameters=10,
            weights=model.weights or cid_of(digest_of(b"initial")),
            weights_bytes=40,
            local=True,
            created_s=float(NOW_S),
            labels=model.labels,
            metrics=model.metrics,
            parents=model.parents,
            preprocess=model.preprocess,
            postprocess=model.postprocess,
            spec=model.spec,
            category=model.category,
            framework="celluler",
            format="safetensors",
            dtype="float32",
            licence=model.licence,
            tags=model.tags,
            description=model.description,
            card=cid_of(digest_of(model.card.encode())) if model.card else None,
            copies=model.copies,
            regions=model.regions,
            encrypted=bool(model.readers),
            readers=model.readers,
            have_bytes=40,
            files=model.files,
        )
        self.actions.append(("published", str(name), ""))
        for alias in model.aliases:
            await self.alias_model(str(name), alias)
        return self.known[str(name)]

    async def list_models(self, query: ModelQuery | None = None) -> tuple[Model, ...]:
        self.searched = query or ModelQuery()
        Query(sort=self.searched.sort)
        return tuple(
            replace(model, spec=None)
            for model in self.known.values()
            if self.searched.text in model.description and self.searched.tag in ("", *model.tags)
        )

    async def search_models(self, query: ModelQuery) -> tuple[Model, ...]:
        return await self.list_models(query)

    async def show_model(self, ref: str) -> Model:
        wanted = parse_reference(ref)
        if isinstance(wanted, ModelName) and wanted.alias:
            named = [model for model in self.known.values() if wanted.alias in model.aliases]
        else:
            named = [model for name, model in self.known.items() if ref in (name, name.partition(":")[0], model.cid)]
        if not named:
            raise NotFound(f"model {ref}", hint="celluler model ls")
        return named[-1]

    async def pull_model(self, ref: str, *, layers: str | None = None) -> Model:
        self.pulled = layers
        return await self.show_model(ref)

    async def model_ports(self, ref: str) -> ModelPorts:
        model = await self.show_model(ref)
        takes, gives = Port("input", "float32", (2,)), (Port("raw", "float32", (2,)),)
        return ModelPorts(model.reference, model.version, model.cid, takes, gives)

    async def model_card(self, ref: str) -> str:
        model = await self.show_model(ref)
        if model.reference not in self.cards:
            raise NotFound(f"a card of {ref}")
        return self.cards[model.reference]

    async def verify_model(self, ref: str) -> Verification:
        model = await self.show_model(ref)
        checks = (Check("signature", True, "by alice"), Check("weights", not model.retracted, "40 bytes"))
        return Verification(model.reference, model.cid, checks, all(check.ok for check in checks))

    async def remove_model(self, ref: str) -> Collected:
        model = await self.show_model(ref)
        if model.aliases:
            raise LocalError(f"{ref} is in use")
        del self.known[model.reference]
        return Collected(40, ())

    async def diff_models(self, old: str, new: str) -> ModelDiff:
        a, b = await self.show_model(old), await self.show_model(new)
        tensors = (
            TensorChange("0.weight", (2, 3), (2, 3), 0.5, 0.25),
            TensorChange("1.weight", None, (4,)),
            TensorChange("2.bias", (7,), None),
        )
        architecture = (FieldChange("layers[2].width", "3", "4"),)
        metadata = (FieldChange("licence", f'"{a.licence}"', f'"{b.licence}"'),)
        return ModelDiff(a.reference, b.reference, tensors, 5, 1, architecture, metadata, 2048, "minor")

    async def versions(self, ref: str) -> Versions:
        one = await self.show_model(ref)
        listed = [model for model in self.known.values() if model.name == one.name][::-1]
        current = self.current.get(one.name) or next((m.version for m in listed if not m.retracted), "")
        found = tuple(
            Version(m.version, m.cid, m.aliases, m.version == current, m.retracted, m.created_s) for m in listed
        )
        return Versions(one.name, one.author, one.nickname, len(self.actions), found)

    async def alias_model(self, ref: str, alias: str) -> Versions:
        chosen = await self.show_model(ref)
        for name, model in self.known.items():
            kept = tuple(one for one in model.aliases if one != alias or model.name != chosen.name)
            self.known[name] = replace(model, aliases=(*kept, alias) if model.cid == chosen.cid else kept)
        self.actions.append(("aliased", chosen.reference, alias))
        return await self.versions(ref)

    async def drop_alias(self, ref: str) -> Versions:
        model = await self.show_model(ref)
        self.known[model.reference] = replace(model, aliases=())
        self.actions.append(("unaliased", model.reference, ref.partition("@")[2]))
        return await self.versions(model.reference)

    async def rollback_model(self, ref: str) -> Versions:
        model = await self.show_model(ref)
        self.current[model.name] = model.version
        self.actions.append(("rolled-back", model.reference, ""))
        return await self.versions(ref)

    async def retract_model(self, ref: str, reason: str) -> Versions:
        model = await self.show_model(ref)
        self.known[model.reference] = replace(model, retracted=reason)
        self.actions.append(("retracted", model.reference, reason))
        return await self.versions(ref)

    async def model_log(self, ref: str) -> ModelLog:
        model = await self.show_model(ref)
        entries = [
            LogLine(number, float(NOW_S), action, name.partition(":")[2], self.known[name].cid, note)
            for number, (action, name, note) in enumerate(self.actions, 1)
        ]
        return ModelLog(model.name, model.author, model.nickname, tuple(entries[::-1]))

    async def lineage(self, ref: str) -> Lineage:
        model, data = await self.show_model(ref), cid_of(digest_of(b"data"))
        nodes = (LineageNode(model.cid, "model", model.reference, (data,)), LineageNode(data, "dataset"))
        return Lineage(model.cid, nodes)

    async def predict(self, ref: str, inputs: Tensor, output: str = "", *, peer: str = "") -> Prediction:
        model = await self.show_model(ref)
        if output == "echo":
            return Prediction(inputs, model.reference, model.cid, BOB.peer_id, 0.01, output=output, text=True)
        outputs = tensor_of(inputs.numpy() * (3 if output == "sample" else 2))
        return Prediction(outputs, model.reference, model.cid, BOB.peer_id, 0.01, ("zero", "one"), output or "raw")

    async def ensemble(
        self, refs: Sequence[str], inputs: Tensor, output: str = "", *, members: int = 1, aggregate: str = "vote"
    ) -> Prediction:
        """Of the first model; of others it is said that they disagree about one sample."""
        told = await self.predict(refs[0], inputs, output)
        asked = [refs[0]] * members if len(refs) == 1 else list(refs)
        members_told = tuple(EnsembleMember(BOB.peer_id, ref, int(n > 0), 0.01) for n, ref in enumerate(asked))
        ensemble = Ensemble(aggregate, len(asked), len(asked), (0.5,) * inputs.shape[0], members_told)
        return replace(told, ensemble=ensemble)

    async def add_dataset(self, dataset: NewDataset) -> Dataset:
        name = _own(dataset.name)
        self.sets[str(name)] = Dataset(
            name=name.name,
            version=str(name.version),
            cid=cid_of(digest_of(str(name).encode())),
            author=ALICE.peer_id,
            nickname="alice",
            format=dataset.format or "parquet",
            content=dataset.content,
            content_bytes=70,
            rows=3,
            local=True,
            created_s=float(NOW_S),
            columns=(Column("x", "float32", (8, 8), 0, 0.0, 16.0, 4.5), Column("digit", "int64", (), 1, 0, 9, 4.4, 10)),
            label=dataset.label,
            balance={"0": 2, "9": 1},
            licence=dataset.licence,
            tags=dataset.tags,
            aliases=dataset.aliases,
        )
        return self.sets[str(name)]

    async def list_datasets(self) -> tuple[Dataset, ...]:
        return tuple(replace(one, columns=(), balance={}) for one in self.sets.values())

    async def show_dataset(self, ref: str) -> Dataset:
        parse_reference(ref)
        for name, dataset in self.sets.items():
            if ref in (name, name.partition(":")[0], dataset.cid):
                return dataset
        raise NotFound(f"dataset {ref}", hint="celluler data ls")

    async def pull_dataset(self, ref: str) -> Dataset:
        return await self.show_dataset(ref)


def _own(text: str) -> ModelName:
    name = parse_reference(text)
    if isinstance(name, bytes) or name.version is None:
        raise InvalidSpec("name", "needs a version: author/name:1.0.0")
    if name.author != "alice":
        raise Denied(f"{name.author} is somebody else")
    return name
