"""Predictions of one worker, computed together: what comes of each is what it would be alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from celluler.errors import Busy, CellulerError, WorkerFailed
from celluler.inference.together import group_of, needs_trial
from celluler.models.interface import Interface, read_interface
from celluler.models.spec import parse_spec
from celluler.models.templates import TEMPLATES, fill
from celluler_node.processes.words import Reply
from celluler_node.processes.worker_words import Predict, Predicted
from celluler_node.serving.batching import Batching, Told, open_batching

MLP = read_interface(parse_spec(fill("mlp")))
WIDTH = MLP.body.input.shape[0]
SLOW_S = 0.01


class Doubling:
    """A worker that gives back twice what it is given, after a while; a sample that begins with NaN it refuses, one
    that begins with infinity ends it."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.ended = False

    async def call(self, request: Predict, data: bytes) -> Reply:
        x = np.frombuffer(data, np.float32).reshape(request.shape)
        self.batches.append(len(x))
        await trio.sleep(SLOW_S)
        if np.isinf(x).any():
            self.ended = True
            raise WorkerFailed("worker: was killed")
        for place, row in enumerate(x):
            if np.isnan(row).any():
                raise WorkerFailed(f"worker: InvalidSpec: input[{place}]: holds values that are not finite")
        return Reply(Predicted("float32", request.shape), (bytearray((2 * x).tobytes()),))


def given(value: float, samples: int = 1) -> tuple[Predict, bytes]:
    x = np.full((samples, WIDTH), value, np.float32)
    return Predict("float32", x.shape, "raw"), x.tobytes()


async def ask(batching: Batching, value: float, samples: int, client: str, into: dict[Any, Any], key: Any) -> None:
    try:
        told = await batching.ask(*given(value, samples), client)
        into[key] = told, np.frombuffer(told.data, np.float32)
    except CellulerError as error:
        into[key] = error


def opened(worker: Doubling, interface: Interface = MLP, **how: Any) -> Any:
    return open_batching(worker.call, interface, apart=True, ended=lambda: worker.ended, **how)


async def test_each_gets_its_own_part(autojump_clock: Any) -> None:
    worker, got = Doubling(), dict[Any, Any]()
    sizes: list[int] = []
    async with opened(worker, on_batch=sizes.append) as batching, trio.open_nursery() as nursery:
        for place in range(40):
            nursery.start_soon(ask, batching, float(place), 1 + place % 3, "abc"[place % 3], got, place)
    for place in range(40):
        told, values = got[place]
        assert told.shape == (1 + place % 3, WIDTH)
        assert np.array_equal(values, np.full((1 + place % 3) * WIDTH, 2.0 * place, np.float32))
    assert len(worker.batches) < 8
    assert max(worker.batches) <= 32
    assert sum(sizes) == sum(worker.batches) == sum(1 + place % 3 for place in range(40))


async def test_who_asks_again_and_again_alone_is_never_made_to_wait(autojump_clock: Any) -> None:
    worker = Doubling()
    async with opened(worker) as batching:
        began = trio.current_time()
        for _ in range(10):
            assert isinstance(await batching.ask(*given(1.0), ""), Told)
        assert trio.current_time() - began == pytest.approx(10 * SLOW_S)


async def test_of_a_batch_only_the_wrong_sample_is_refused(autojump_clock: Any) -> None:
    worker, got = Doubling(), dict[Any, Any]()
    async with opened(worker) as batching, trio.open_nursery() as nursery:
        for place, value in enumerate((0.0, 1.0, float("nan"), 3.0)):
            nursery.start_soon(ask, batching, value, 1, "", got, place)
    assert [np.all(got[place][1] == 2.0 * place) for place in (0, 1, 3)] == [True] * 3
    assert isinstance(got[2], WorkerFailed)
    assert "input[0]" in got[2].reason


async def test_a_worker_that_ends_fails_all_that_was_asked_of_it(autojump_clock: Any) -> None:
    worker, got = Doubling(), dict[Any, Any]()
    async with opened(worker) as batching:
        async with trio.open_nursery() as nursery:
            for place, value in enumerate((float("inf"), 1.0, 2.0)):
                nursery.start_soon(ask, batching, value, 1, "", got, place)
                await trio.testing.wait_all_tasks_blocked()
        assert [type(one) for one in got.values()] == [WorkerFailed] * 3
        with pytest.raises(WorkerFailed, match="was killed"):
            await batching.ask(*given(1.0), "")


async def test_who_leaves_does_not_take_others_along(autojump_clock: Any) -> None:
    worker, got = Doubling(), dict[Any, Any]()
    async with opened(worker) as batching:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, batching, 5.0, 1, "", got, "stays")
            with trio.move_on_after(SLOW_S / 2):
                await batching.ask(*given(1.0), "")
        assert np.all(got["stays"][1] == 10.0)
        with trio.move_on_after(SLOW_S / 2):
            await batching.ask(*given(1.0), "")
        assert np.all(np.frombuffer((await batching.ask(*given(4.0), "")).data, np.float32) == 8.0)
        assert (batching.waiting, batching.running) == (0, 0)


async def test_what_is_unloaded_tells_those_who_wait(autojump_clock: Any) -> None:
    worker, got = Doubling(), dict[Any, Any]()
    async with trio.open_nursery() as nursery, opened(worker) as batching:
        for place in range(3):
            nursery.start_soon(ask, batching, 1.0, 1, "", got, place)
        await trio.sleep(SLOW_S / 2)
    assert {str(one) for one in got.values()} == {"the model was unloaded"}


async def test_a_full_queue_is_busy(autojump_clock: Any) -> None:
    worker, got = Doubling(), dict[Any, Any]()
    async with opened(worker, samples=1, queue=4) as batching, trio.open_nursery() as nursery:
        for place in range(8):
            nursery.start_soon(ask, batching, 1.0, 1, str(place), got, place)
    assert sum(isinstance(one, Busy) for one in got.values()) == 3
    assert worker.batches == [1] * 5


def test_only_what_has_nothing_to_do_with_each_other_goes_together() -> None:
    def group(interface: Interface, output: str, shape: tuple[int, ...], client: str = "", apart: bool = True) -> Any:
        return group_of(interface, interface.body.input.dtype, shape, output, client, apart=apart)

    assert group(MLP, "raw", (1, WIDTH)) == group(MLP, "raw", (5, WIDTH), client="another")
    assert group(MLP, "raw", (1, WIDTH)) != group(MLP, "labels", (1, WIDTH))
    drawn = read_interface(parse_spec(TEMPLATES["diffusion"].document))
    assert group(drawn, "sample", (1,)) is None
    assert not needs_trial(MLP)
