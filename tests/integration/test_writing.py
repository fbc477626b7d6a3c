"""A node's model server goes on with texts in a confined worker: conversations by a stranger's template among them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from celluler.errors import Busy, Denied, InvalidSpec, WorkerFailed
from celluler.identity import Identity
from celluler.inference.questions import Event, Message, Over, Question, Said
from celluler.inference.sampling import GREEDY
from celluler.models.beside import CHAT_TEMPLATE
from celluler.models.manifest import OpenedManifest, describe_model, open_manifest, seal_manifest
from celluler_node.processes.confinement import FULL, OFF, Confinement, Walls
from celluler_node.processes.words import Limits
from celluler_node.processes.worker_words import WORKER
from celluler_node.scratch import open_scratch
from celluler_node.serving import server as serving
from celluler_node.serving.server import ModelServer
from tests.support.generating import reciting

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
MODEL = "alice/reciter:1.0.0"
TEXT = "Wie schön,du!"
TEMPLATE = """\
{% for one in messages %}
{% if one.content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}
{% if one.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}
{{ one.content }}
{%- endfor %}"""
DU = Question((Message("user", "Wi"),), 4, GREEDY)


class OneModel:
    """A repository of one model and its chat template, which lie in files."""

    def __init__(self, root: Path) -> None:
        load = reciting(TEXT.encode(), root)
        manifest = describe_model("reciter", "1.0.0", load.spec, b"w" * 32, created_s=1, preprocess=load.preprocess)
        self._opened, self._weights = open_manifest(seal_manifest(ALICE, manifest)), Path(load.weights)
        self._template = root / "template"
        self._template.write_text(TEMPLATE, encoding="utf-8")

    async def resolve(self, _: str, **__: Any) -> OpenedManifest:
        return self._opened

    async def sound(self, _: OpenedManifest, **__: Any) -> Path:
        return self._weights

    async def file(self, _: OpenedManifest, name: str, **___: Any) -> Path | None:
        return self._template if name == CHAT_TEMPLATE else None

    def hold(self, _: OpenedManifest) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@asynccontextmanager
async def a_server(root: Path, here: Confinement) -> AsyncIterator[ModelServer]:
    with trio.fail_after(60):
        async with open_scratch(root / "scratch") as scratch, trio.open_nursery() as nursery:
            repository: Any = OneModel(root)
            yield ModelServer(
                repository, WORKER, Limits(memory_bytes=4 << 30, disk_bytes=1 << 20), scratch, nursery,
                own=BOB.peer_id, confinement=here, spares=0, on_start=Walls(here).note,
            )  # fmt: skip
            nursery.cancel_scope.cancel()


async def heard(server: ModelServer, question: Question) -> list[Event]:
    async with server.generate(MODEL, question) as answering:
        return [event async for event in answering]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Said))


async def test_texts_and_conversations_are_gone_on_with_and_a_template_that_loops_costs_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CALL_S", 5)
    async with a_server(tmp_path, Confinement(FULL)) as server:
        assert text_of(await heard(server, Question("Wi", 4, GREEDY))) == "e sc"
        assert text_of(await heard(server, DU)) == "e sc"
        with pytest.raises(InvalidSpec, match=r"messages: .* no system turns"):
            await heard(server, Question((Message("system", "Be brief"),), 1))

        # Bound to a schema, by a package that reads it inside the sandbox.
        bound = json.dumps({"enum": ["sc", "nö"]}).encode()
        assert text_of(await heard(server, Question("Wi", 40, GREEDY, schema=bound))) in ('"sc"', '"nö"')
        with pytest.raises(InvalidSpec, match="schema: is no JSON"):
            await heard(server, Question("Wi", 1, schema=b"{"))

        # Many at once, more than there are slots; who leaves frees its slot for the others.
        told: list[str] = []
        async with trio.open_nursery() as nursery:

            async def ask(number: int) -> None:
                async with server.generate(MODEL, Question("Wi", 8, GREEDY, n=2)) as answering:
                    if number % 3:
                        told.append(text_of([event async for event in answering]))

            for number in range(15):
                nursery.start_soon(ask, number)
        assert [sorted(text) for text in told] == [sorted("e schön" * 2)] * 10
        (load,) = server.busyness().values()
        assert (load.running, load.waiting) == (0, 0)

        with pytest.raises(WorkerFailed, match="time limit of 5 s") as caught:
            await heard(server, Question((Message("user", "loop"),), 1))
        assert caught.value.limit == "time"
        events = await heard(server, Question("Wi", 2, GREEDY, timeout_s=30))
        assert [event.reason for event in events if isinstance(event, Over)] == ["length"]


async def test_a_strangers_template_needs_the_sandbox_and_its_texts_do_not(tmp_path: Path) -> None:
    async with a_server(tmp_path, Confinement(OFF)) as server:
        with pytest.raises(Denied, match="full sandbox"):
            await heard(server, DU)
        assert text_of(await heard(server, Question("Wi", 1, GREEDY))) == "e"
        with pytest.raises((Busy, InvalidSpec)):
            await heard(server, Question("W" * 65, 1))
