"""A node in memory whose models take numbers, texts, tokens and seeds, and write: for tests of the surfaces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import trio

from celluler.content.digest import cid_of, digest_of
from celluler.errors import Busy, InvalidSpec
from celluler.inference.questions import Generated, Question
from celluler.tensors import Tensor, tensor_of
from celluler.views import Model, ModelPorts, NewModel, Port, Prediction
from tests.support.jobs import BOB
from tests.support.operations import MemoryNode
from tests.support.writing import Writer

_VECTOR = Port("embedding", "float32", (3,))
PORTS: dict[str, tuple[Port | None, tuple[Port, ...]]] = {
    "alice/digits": (
        Port("input", "float32", (2, 2)),
        (Port("probabilities", "float32", (2,)), Port("labels", "int64", ()), Port("name", "text", (8,))),
    ),
    "alice/texts": (Port("text", "text", (16,)), (_VECTOR,)),
    "alice/tokens": (Port("input", "int64", (4,)), (Port("raw", "float32", (4, 9)), _VECTOR)),
    "alice/dreams": (None, (Port("sample", "float32", (2,)),)),
    "alice/tales": (
        Port("text", "text", (64,)),
        (Port("raw", "float32", (64, 256)), Port("next_token", "float32", (256,))),
    ),
}
"""Names → what they take and give."""


class ServingNode(MemoryNode):
    """`asked`: shapes and outputs of the predictions so far. `busy`: turns them away. `gate`: they wait for it.
    `writer`: writes alice/tales."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[tuple[int, ...], str]] = []
        self.busy, self.bad = False, False
        self.gate = trio.Event()
        self.gate.set()
        self.writer = Writer()

    async def publish(self) -> None:
        for name in PORTS:
            for version in ("1.0.0", "1.1.0"):
                files = {"chat-template": cid_of(digest_of(b"template"))} if name == "alice/tales" else {}
                await self.add_model(NewModel(f"{name}:{version}", {}, files=files))

    async def show_model(self, ref: str) -> Model:
        model = await super().show_model(ref)
        takes, gives = PORTS.get(f"alice/{model.name}", (None, ()))
        return replace(model, takes=takes, gives=gives)

    async def model_ports(self, ref: str) -> ModelPorts:
        model = await self.show_model(ref)
        return ModelPorts(model.reference, model.version, model.cid, *PORTS[f"alice/{model.name}"])

    async def predict(self, ref: str, inputs: Tensor, output: str = "", *, peer: str = "") -> Prediction:
        await self.gate.wait()
        if self.busy:
            raise Busy("all are at work")
        model, ports = await self.show_model(ref), await self.model_ports(ref)
        if ports.takes is not None and ports.takes.name == "input" and inputs.shape[1:] != ports.takes.shape:
            raise InvalidSpec("input.shape", f"is {inputs.shape}")
        self.asked.append((inputs.shape, output))
        told = _answer(inputs, output, bad=self.bad)
        answered = (await self.peer(peer)).peer_id if peer else BOB.peer_id
        return Prediction(told, model.reference, model.cid, answered, 0.01, output=output, text=output == "name")

    @asynccontextmanager
    async def generate(self, ref: str, question: Question, *, peer: str = "") -> AsyncIterator[Generated]:
        if self.busy:
            raise Busy("all are at work")
        model = await self.show_model(ref)
        if model.name not in ("tales", "smollm2"):
            raise InvalidSpec("model", f"{model.reference} does not write")
        answering_peer = (await self.peer(peer)).peer_id if peer else BOB.peer_id
        async with self.writer.answer(ref, question, model.reference, model.cid, answering_peer) as answering:
            yield answering


def _answer(inputs: Tensor, output: str, *, bad: bool) -> Tensor:
    rows = inputs.numpy().reshape(inputs.shape[0], -1)
    match output:
        case "probabilities":
            return tensor_of(np.stack([rows.sum(1), rows.max(1)], 1) * (np.nan if bad else 1))
        case "labels":
            return tensor_of(rows.argmax(1).astype("int64"))
        case "name":
            return tensor_of([f"no. {int(row.sum())} ü" for row in rows])
        case "embedding":  # how much there is of it, its sum, and its first
            return tensor_of(np.stack([(rows != 0).sum(1), rows.sum(1), rows[:, 0]], 1).astype("float32") / 2)
    return tensor_of(np.stack([rows[:, 0], -rows[:, 0]], 1).astype("float32"))
