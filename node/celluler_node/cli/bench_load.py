"""Requests to a model, so many at once, each timed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from celluler.client import AsyncClient
from celluler.errors import CellulerError, InvalidSpec
from celluler.failures import describe_error
from celluler.views import Model, Port
from celluler_node.cli.bench_figures import Load, Sample

SENTENCE = "The river rises behind the mill, and nobody has ever seen where it ends. "
PROMPT = "Tell the story of a river, from its spring to the sea."

Ask = Callable[[int], Awaitable[Sample]]
"""One request; its number makes it unlike the others."""


def asking(client: AsyncClient, ref: str, model: Model, load: Load, given: Any, prompt: str) -> Ask:
    """ref: by which it is asked. given: a batch to ask with, None for one that is made up."""

    async def text(number: int) -> Sample:
        began = time.monotonic()
        asked = f"No. {number}. {prompt}"  # no two begin alike: what is read once is not read again
        async with await client.generate(
            ref, asked, stream=True, temperature=0.0, max_tokens=load.max_tokens
        ) as pieces:
            async for _ in pieces:
                pass
            told = pieces.generation
        return Sample(time.monotonic() - began, told.peer, told.first_s, told.generated_tokens)

    async def predict(_number: int) -> Sample:
        began = time.monotonic()
        told = await client.predict(ref, batch, dtype=dtype, output=load.output)
        return Sample(time.monotonic() - began, told.peer)

    if load.kind == "text":
        return text
    dtype = None if given is not None or load.output == "sample" or model.takes is None else _dtype(model.takes)
    batch = made_up(model.takes, load.batch, load.output) if given is None else given
    return predict


def _dtype(port: Port) -> str | None:
    return None if port.dtype == "text" else port.dtype


def made_up(port: Port | None, samples: int, output: str) -> Any:
    """A batch for such a port, the same each time. Raises InvalidSpec for one of which nothing is known."""
    import numpy as np  # noqa: PLC0415

    if output == "sample":
        return list(range(samples))
    if port is None:
        raise InvalidSpec("--input", "is needed: what the model takes is not known")
    if port.dtype == "text":
        return [(SENTENCE * (1 + port.shape[0] // len(SENTENCE)))[: min(port.shape[0], 200)]] * samples
    draws = np.random.default_rng(0)
    if port.dtype.startswith("float"):
        return draws.random((samples, *port.shape), dtype=np.float32)
    return draws.integers(0, 2, (samples, *port.shape)).astype(port.dtype)  # known to every vocabulary


async def run_load(ask: Ask, load: Load, *, limit_s: float) -> tuple[list[Sample], float]:
    """(samples, seconds of all). No request is begun after limit_s."""
    samples: list[Sample] = []
    numbers = iter(range(1, load.requests + 1))
    began = time.monotonic()

    async def one_after_the_other() -> None:
        for number in numbers:
            if time.monotonic() - began > limit_s:
                return
            samples.append(await _timed(ask, number))

    async with trio.open_nursery() as nursery:
        for _ in range(min(load.concurrency, load.requests)):
            nursery.start_soon(one_after_the_other)
    return samples, time.monotonic() - began


async def _timed(ask: Ask, number: int) -> Sample:
    began = time.monotonic()
    try:
        return await ask(number)
    except CellulerError as error:
        return Sample(time.monotonic() - began, failure=str(describe_error(error)["type"]))
