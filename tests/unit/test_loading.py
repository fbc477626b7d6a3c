"""Models in workers: who waits for what, what makes room for whom, and how one version takes another's place."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from celluler.errors import Busy, Denied, NotFound, Retracted, Unavailable, WorkerFailed
from celluler.inference.memory import bytes_served
from celluler.models.spec import format_spec, parse_spec
from celluler.models.templates import fill
from celluler_node.serving import following, preloading
from celluler_node.serving.following import Following
from celluler_node.serving.loading import Loaded, LoadedModels, State
from celluler_node.serving.preloading import Preloading
from tests.support.loading import END_S, LOAD_S, Versions, Workers, models_of, version

ONE, TWO, THREE = version("1.0.0", "one"), version("1.0.0", "two"), version("1.0.0", "three")
OLD, NEW = version("1.0.0"), version("1.1.0")
LENGTH = "input.shape=[32768]"
WRITER = version("1.0.0", "tales", format_spec(parse_spec(fill("transformer-lm", [LENGTH]))))


@asynccontextmanager
async def opened(repository: Versions | None = None, **rules: Any) -> AsyncIterator[tuple[LoadedModels, Workers, Any]]:
    workers = Workers()
    async with trio.open_nursery() as nursery:
        yield models_of(repository or Versions(), workers, nursery, **rules), workers, nursery
        nursery.cancel_scope.cancel()


def names(models: LoadedModels) -> list[str]:
    return [one.opened.record.name for one in models]


async def hold(
    models: LoadedModels, model: Any, until: trio.Event, task_status: Any = trio.TASK_STATUS_IGNORED
) -> None:
    async with models.using(model) as loaded:
        task_status.started(loaded)
        await until.wait()


async def test_many_who_ask_for_a_model_wait_for_one_worker(autojump_clock: Any) -> None:
    async with opened() as (models, workers, _):
        states: list[tuple[float, State]] = []
        async with trio.open_nursery() as askers:
            done = trio.Event()
            done.set()
            for _ in range(5):
                askers.start_soon(hold, models, ONE, done)
            await trio.testing.wait_all_tasks_blocked()
            (loaded,) = models
            for moment in (0.0, LOAD_S, LOAD_S):
                await trio.sleep(moment)
                await trio.testing.wait_all_tasks_blocked()
                states.append((trio.current_time(), loaded.state))
        assert [state for _, state in states] == [State.BUILDING, State.WARMING, State.READY]
        assert len(workers.children) == 1
        assert loaded.loading_s == pytest.approx(2 * LOAD_S)


async def test_the_model_that_nobody_asked_for_longest_makes_room_and_is_gone_before_the_next_begins(
    autojump_clock: Any,
) -> None:
    async with opened() as (models, workers, _):
        for model in (ONE, TWO, ONE, THREE):
            async with models.using(model):
                pass
        assert sorted(names(models)) == ["one", "three"]
        await trio.sleep(END_S)
        assert workers.most == 2
        assert models.used_bytes <= models.limit_bytes


async def test_models_at_work_or_kept_make_no_room(autojump_clock: Any) -> None:
    async with opened() as (models, _, nursery):
        finished = trio.Event()
        await nursery.start(hold, models, ONE, finished)
        async with models.using(TWO):
            models.keep(TWO.digest, trio.current_time() + 60, "lease")
        with pytest.raises(Busy):
            async with models.using(THREE):
                pass
        await trio.sleep(61)
        async with models.using(THREE):
            assert sorted(names(models)) == ["one", "three"]
        finished.set()


async def test_a_model_larger_than_the_budget_is_told_so(autojump_clock: Any) -> None:
    async with opened(models=1, memory_bytes=1 << 20) as (models, _, __):
        with pytest.raises(Unavailable, match="all models may take"):
            async with models.using(ONE):
                pass


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), Denied("not for you")])
async def test_what_goes_wrong_on_the_way_is_told_and_the_next_request_begins_anew(
    failure: Exception, autojump_clock: Any
) -> None:
    repository = Versions()
    async with opened(repository) as (models, workers, _):
        repository.failure = failure
        with pytest.raises((Unavailable, Denied), match=r"No space left|not for you"):
            async with models.using(ONE):
                pass
        assert (models.used_bytes, names(models)) == (0, [])
        repository.failure, workers.failure = None, WorkerFailed("cannot be started")
        with pytest.raises(WorkerFailed, match="cannot be started"):
            async with models.using(ONE):
                pass
        workers.failure = None
        async with models.using(ONE) as loaded:
            assert loaded.serves


async def test_a_worker_that_has_ended_serves_nobody(autojump_clock: Any) -> None:
    async with opened() as (models, workers, _):
        async with models.using(ONE):
            workers.children[0].ended.set()
        async with models.using(ONE) as loaded:
            assert loaded.serves
        assert len(workers.children) == 2


async def test_what_is_unloaded_ends_what_it_has(autojump_clock: Any) -> None:
    async with opened() as (models, workers, nursery):
        finished = trio.Event()
        loaded: Loaded = await nursery.start(hold, models, ONE, finished)
        gone = models.unload(ONE.digest)
        assert gone is not None
        assert models.unload(ONE.digest) is None
        await trio.sleep(30)
        assert loaded.child is not None
        assert workers.running == 1
        finished.set()
        await gone.wait()
        assert (workers.running, models.used_bytes) == (0, 0)


async def test_a_model_that_nobody_asks_for_is_unloaded(autojump_clock: Any) -> None:
    async with opened(idle_s=10.0) as (models, _, nursery):
        nursery.start_soon(models.unload_idle)
        async with models.using(ONE):
            pass
        async with models.using(TWO):
            models.keep(TWO.digest, math.inf, "preload")
        await trio.sleep(20)
        assert names(models) == ["two"]


def followed(repository: Versions, models: LoadedModels, nursery: trio.Nursery) -> Following:
    return Following(repository, models, nursery, lambda _: None)


@pytest.mark.parametrize("here", [True, False])
async def test_a_new_version_takes_the_place_of_the_old_one_when_it_is_ready(here: bool, autojump_clock: Any) -> None:
    repository = Versions(digits=OLD)
    async with opened(repository) as (models, workers, nursery):
        names_of = followed(repository, models, nursery)
        nursery.start_soon(names_of.watch)
        finished = trio.Event()
        await nursery.start(hold, models, OLD, finished)
        names_of.follow("alice/digits", OLD)
        assert names_of.current("alice/digits") is OLD
        repository.means["alice/digits"], repository.told = NEW, NEW.digest
        if here:
            names_of.look_soon()
        await trio.sleep((0.0 if here else following.LOOK_S) + LOAD_S)
        assert names_of.current("alice/digits") is OLD, "nobody waits for the new one"
        await trio.sleep(2 * LOAD_S)
        assert names_of.current("alice/digits") is NEW
        assert workers.running == 2, "the old one ends what it has"
        finished.set()
        await trio.sleep(following.GRACE_S + 2 * END_S)
        assert workers.running == 1
        assert names_of.names_of(NEW.digest) == ("alice/digits",)


async def test_what_stays_goes_on_staying_as_another_version(autojump_clock: Any) -> None:
    repository = Versions(digits=OLD)
    async with opened(repository) as (models, _, nursery):
        names_of = followed(repository, models, nursery)
        async with models.using(OLD):
            names_of.follow("alice/digits", OLD, stays=True)
        models.keep(OLD.digest, math.inf, "lease")
        repository.means["alice/digits"] = NEW
        await names_of.look("alice/digits")
        await trio.sleep(3 * LOAD_S)
        new, old = models.find(NEW.digest), models.find(OLD.digest)
        assert new is not None
        assert models.kept_until(new) == math.inf
        assert old is not None, "somebody else keeps the old version, by itself"
        models.let_go(OLD.digest, "lease")
        assert models.kept_until(old) is None


async def test_a_version_that_cannot_be_loaded_changes_nothing(autojump_clock: Any) -> None:
    repository = Versions(digits=OLD)
    async with opened(repository) as (models, _, nursery):
        names_of = followed(repository, models, nursery)
        async with models.using(OLD):
            names_of.follow("alice/digits", OLD)
        repository.means["alice/digits"], repository.failure = NEW, OSError(5, "Input/output error")
        await names_of.look("alice/digits")
        await trio.sleep(10 * LOAD_S)
        assert names_of.current("alice/digits") is OLD
        repository.means["alice/digits"] = NotFound("nobody answers")
        await names_of.look("alice/digits")
        assert names_of.current("alice/digits") is OLD
        repository.means["alice/digits"] = Retracted("alice/digits:1.0.0", "wrong labels")
        await names_of.look("alice/digits")
        assert names_of.current("alice/digits") is None


async def test_a_name_is_followed_as_long_as_it_is_loaded(autojump_clock: Any) -> None:
    repository = Versions(digits=OLD)
    async with opened(repository) as (models, _, nursery):
        names_of = followed(repository, models, nursery)
        async with models.using(OLD):
            names_of.follow("alice/digits", OLD)
        models.unload(OLD.digest)
        assert names_of.current("alice/digits") is None
        assert names_of.names_of(OLD.digest) == ()


async def test_the_sequences_of_one_model_take_a_quarter_of_the_budget_at_most(autojump_clock: Any) -> None:
    budget = 900 << 20
    async with opened(memory_bytes=budget) as (models, _, __), models.using(WRITER) as loaded:
        cache = loaded.byte_count - bytes_served(WRITER.interface.body)
        assert budget // 5 < cache <= budget // 4
        assert models.used_bytes == loaded.byte_count


async def test_what_stays_is_loaded_again_when_its_worker_ends_and_not_when_it_is_unloaded(autojump_clock: Any) -> None:
    repository = Versions()
    async with opened(repository) as (models, workers, nursery):
        staying = Preloading(models, followed(repository, models, nursery), repository.resolve)
        nursery.start_soon(staying.stay, "alice/digits")
        await trio.sleep(2 * preloading.AGAIN_S)
        assert names(models) == [], "nobody has published it yet"
        repository.means["alice/digits"] = OLD
        await trio.sleep(2 * preloading.AGAIN_S)
        (loaded,) = models
        assert models.kept_until(loaded) == math.inf
        workers.children[0].ended.set()
        await trio.sleep(2 * preloading.AGAIN_S)
        assert [one.serves for one in models] == [True]
        assert len(workers.children) == 2
        staying.dismissed.add(OLD.digest)
        models.unload(OLD.digest)
        await trio.sleep(2 * preloading.AGAIN_S)
        assert names(models) == []


async def test_what_is_announced_is_looked_up_once(autojump_clock: Any) -> None:
    repository = Versions(digits=OLD)
    async with opened(repository) as (models, _, nursery):
        names_of = followed(repository, models, nursery)
        nursery.start_soon(names_of.watch)
        async with models.using(OLD):
            names_of.follow("alice/digits", OLD)
        repository.told = NEW.digest  # its author has rolled back since
        await trio.sleep(following.RESOLVE_S - following.LOOK_S)
        assert repository.resolved == 1
        await trio.sleep(10 * following.RESOLVE_S)
        assert 8 <= repository.resolved <= 12
