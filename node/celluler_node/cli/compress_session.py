"""What `celluler model quantize`, `prune`, `distill` and `optimize` share: models and data brought here, the worker
asked, the smaller model published with its parents, or written into a folder, and its card."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from celluler.client import AsyncClient
from celluler.client.calls_models import ModelFields
from celluler.errors import InvalidSpec, LocalError, NotFound
from celluler.models.body import MAX_BODY_BYTES, Body, format_body, parse_body, read_body
from celluler.models.folder import DOCUMENT, WEIGHTS, files_of, kind_of
from celluler.models.names import ModelName
from celluler.models.version import parse_version
from celluler.quantities import format_bytes
from celluler.views import Model
from celluler_node.cli.session import log_to, open_session

if TYPE_CHECKING:
    from celluler_node.config import NodeConfig
    from celluler_node.processes.worker_compress_words import Compressed, Distil, Given, Judged, Prune, Quantise

MAX_CARD_BYTES = 256 << 10
CARD = "card.md"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """A model that is here. published: under which name, or None for a folder of ours. weights: None for a document
    alone, whose weights are initial ones."""

    title: str
    body: Body
    weights: Path | None
    published: Model | None = None

    def given(self) -> Given:
        from celluler_node.processes.worker_compress_words import Given  # noqa: PLC0415  `--help` needs none of it

        if self.weights is None:
            raise LocalError(f"{self.title} has no weights", hint=f"they lie beside it, as {WEIGHTS}")
        return Given(format_body(self.body), str(self.weights), self.body.kind)


@dataclass(frozen=True, slots=True)
class Wish:
    """Where the result goes. name: `author/name:version`, or empty for the next version of the model itself. output: a
    folder, in place of publishing it. reshaped: it computes something else than the model, not the same with less.
    """

    name: str
    output: Path | None
    aliases: Sequence[str]
    verb: str
    reshaped: bool = False


class Workshop:
    """One command. A node is asked only when there is need of one."""

    def __init__(self, stack: AsyncExitStack, folder: Path, join: Sequence[str]) -> None:
        """folder: for what is fetched; the caller removes it."""
        self._stack, self._folder, self._join = stack, folder, join
        self._client: AsyncClient | None = None

    async def client(self) -> AsyncClient:
        if self._client is None:
            self._client = await self._stack.enter_async_context(open_session(self._join))
        return self._client

    async def model(self, text: str) -> Source:
        """A folder of ours, a document alone, or a published model, fetched."""
        if (local := _local_model(text)) is not None:
            return local
        client = await self.client()
        shown = await client.models.show(text)
        if shown.encrypted:
            raise InvalidSpec(
                "model", f"{text} is encrypted", hint="its author makes it smaller from the folder it was published of"
            )
        if shown.spec is None:
            raise NotFound(f"{text}: nobody could be asked what it computes")
        weights = self._folder / f"{shown.cid}.safetensors"
        if not weights.exists():
            await client.blobs.get(shown.weights, weights)
        return Source(shown.reference, read_body(shown.body or "spec", dict(shown.spec)), weights, shown)

    async def data(self, text: str) -> str:
        """The path of a file, or of a published dataset, fetched; empty for nothing."""
        if not text or _is_file(text):
            return text
        client = await self.client()
        shown = await client.datasets.show(text)
        path = self._folder / f"{shown.content}.data"
        if not path.exists():
            await client.blobs.get(shown.content, path)
        return str(path)

    async def make(
        self, wanted: Quantise | Prune | Distil, parents: Sequence[Source], like: Source, wish: Wish
    ) -> tuple[Compressed, Model | None]:
        """The smaller model, and what it was published as. like: whose name, labels and words it takes over."""
        from celluler_node.compressing import compressed  # noqa: PLC0415
        from celluler_node.config import load_config  # noqa: PLC0415

        log_to(None, "text", "warning")
        config = load_config(os.environ)
        await self._check_walls(config, parents)
        name = "" if wish.output is not None else await self._name(like, wish)
        async with compressed(config, wanted) as (weights, done):
            card = card_of(wish.verb, parents, done)
            if wish.output is not None:
                write(wish.output, weights, done, card)
                return done, None
            return done, await self._publish(name, weights, done, card, parents, like, wish)

    async def _check_walls(self, config: NodeConfig, parents: Sequence[Source]) -> None:
        """Raises Denied for a stranger's model that needs more of them than there are here."""
        from celluler_node.processes.confinement import FULL, confinement  # noqa: PLC0415

        here = confinement(sandbox=config.sandbox, foreign=config.run_foreign)
        strangers = [one for one in parents if one.published is not None]
        if here.level == FULL or not strangers:
            return
        own = (await (await self.client()).status()).peer_id
        for one in strangers:
            assert one.published is not None
            here.require(one.body.kind, own=one.published.author == own)

    async def _name(self, like: Source, wish: Wish) -> str:
        """Under which it is published; told before the work begins."""
        if wish.name:
            return wish.name
        shown = like.published
        if shown is None:
            raise LocalError(
                f"{like.title} has no name to be a version of", hint="say --as author/name:1.0.0, or --output FOLDER"
            )
        client = await self.client()
        if (await client.status()).peer_id != shown.author:
            raise LocalError(
                f"{like.title} is another's: this node signs no versions of it", hint="say --as you/name:1.0.0"
            )
        known = await client.models.versions(shown.cid)
        newest = max(parse_version(one.version) for one in known.versions)
        after = newest.bump_major() if newest.major and wish.reshaped else newest.bump_minor()
        return str(ModelName(shown.nickname or shown.author, shown.name, version=after))

    async def _publish(
        self,
        name: str,
        weights: Path,
        done: Compressed,
        card: str,
        parents: Sequence[Source],
        like: Source,
        wish: Wish,
    ) -> Model:
        client = await self.client()
        shown = next((one.published for one in (like, *parents) if one.published is not None), None)
        said: ModelFields = {} if shown is None else await _said(client, shown)
        figures = {done.after.metric: done.after.value, "accuracy": done.after.accuracy}
        text = f"{card}\n{said.get('card', '')}"
        said["metrics"] = {metric: value for metric, value in figures.items() if metric and value is not None}
        said["parents"] = [one.published.cid for one in parents if one.published is not None]
        said["card"] = text if len(text.encode()) <= MAX_CARD_BYTES else card
        said["aliases"] = list(wish.aliases)
        return await client.models.add(name, done.spec.decode("utf-8"), weights=weights, **said)


async def _said(client: AsyncClient, shown: Model) -> ModelFields:
    """What the author said of a model, for one that is made from it."""
    return {
        "labels": shown.labels,
        "dataset": shown.dataset,
        "category": shown.category,
        "licence": shown.licence,
        "tags": shown.tags,
        "description": shown.description,
        "card": await client.models.card(shown.cid) if shown.card else "",
        "preprocess": shown.preprocess,
        "postprocess": shown.postprocess,
        "files": {} if shown.encrypted else shown.files,
    }


@asynccontextmanager
async def open_workshop(folder: Path, join: Sequence[str]) -> AsyncIterator[Workshop]:
    async with AsyncExitStack() as stack:
        yield Workshop(stack, folder, join)


def write(folder: Path, weights: Path, done: Compressed, card: str) -> None:
    """As `model add` takes it, with its card; whole, or not there."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir()
        shutil.copyfile(weights, temporary / WEIGHTS)
        (temporary / DOCUMENT).write_bytes(done.spec)
        (temporary / CARD).write_text(card, encoding="utf-8")
        temporary.rename(folder)
    except OSError as error:
        raise LocalError(f"{folder} cannot be written: {error.strerror}", hint="name a folder that is not there") from (
            error
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def card_of(verb: str, parents: Sequence[Source], done: Compressed) -> str:
    """Before and after, in Markdown."""
    names = " and ".join(one.title for one in parents)
    rows = "".join(f"| {name} | {before} | {after} |\n" for name, before, after in rows_of(done))
    return f"## {verb.capitalize()} from {names}\n\n| | before | after |\n|---|---|---|\n{rows}"


def rows_of(done: Compressed) -> list[tuple[str, str, str]]:
    """(what, before, after), of what was measured."""
    both = (done.before, done.after)

    def row(name: str, tell: Callable[[T], str], get: Callable[[Judged], T | None]) -> tuple[str, str, str] | None:
        before, after = (get(one) for one in both)
        return None if before is None or after is None else (name, tell(before), tell(after))

    rows = [
        row("dtype", str, lambda one: one.dtype),
        row("parameters", str, lambda one: one.parameters),
        row("weights file", format_bytes, lambda one: one.file_bytes),
        row("zero weights", "{:.0%}".format, lambda one: one.zeros) if any(one.zeros > 0.01 for one in both) else None,
        row(done.after.metric, "{:.4g}".format, lambda one: one.value) if done.after.metric else None,
        row("accuracy", "{:.4g}".format, lambda one: one.accuracy) if done.after.metric != "accuracy" else None,
        row("one sample, ms", "{:.3g}".format, lambda one: one.one_ms),
        row("64 samples, ms", "{:.3g}".format, lambda one: one.many_ms),
    ]
    return [one for one in rows if one is not None]


def _local_model(text: str) -> Source | None:
    path = Path(text)
    if path.is_dir():
        document, weights = files_of(path)
        return Source(text, _read(document), weights)
    return Source(text, _read(path), None) if path.is_file() else None


def _is_file(text: str) -> bool:
    return Path(text).is_file()


def _read(path: Path) -> Body:
    from celluler.documents import read_json  # noqa: PLC0415

    try:
        document = path.read_bytes()
    except OSError as error:
        raise LocalError(f"{path} cannot be read: {error.strerror}") from error
    parsed = read_json(document, limit=MAX_BODY_BYTES)
    if not isinstance(parsed, dict):
        raise InvalidSpec("", f"{path.name} is no JSON object")
    return parse_body(kind_of(parsed), document)
