"""A node's deployments at work: the file, the requests, the replicas that peers keep for it, and those it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from celluler.content.digest import Codec, Digest, cid_of, digest_of
from celluler.errors import Busy, CellulerError, Denied, LocalError, NotFound, PeerViolation, Unavailable
from celluler.identity import PeerId
from celluler.inference.deployments import (
    CANARY,
    STABLE,
    Arm,
    Deployment,
    Scale,
    bring_in,
    promote,
    roll_back,
    try_out,
    with_trials,
)
from celluler.inference.questions import Begun, Finished, Over, Question, Said
from celluler.inference.sampling import GREEDY, Chosen
from celluler.inference.scaling import Candidate
from celluler.models.manifest import OpenedManifest
from celluler.tensors import tensor_of
from celluler.views import Prediction
from celluler_node.callers import Caller, called_by
from celluler_node.deployments.book import COLD_START_S, Deployments
from celluler_node.deployments.control import Controller
from celluler_node.deployments.leases import Lessor
from celluler_node.serving.kept_answers import KeptAnswers
from celluler_protocols.leases import Kept

ONE, TWO = (digest_of(bytes([place])) for place in range(2))
ALICE, BOB, CAROL = (PeerId(name) for name in ("alice", "bob", "carol"))


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps does not wait for them."""

    async def at_once(work: Callable[..., Any], *given: Any) -> Any:
        return work(*given)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)


def cid(digest: Digest) -> str:
    return cid_of(digest, Codec.MANIFEST)


def deployment(least: int = 1, most: int = 1, keep_warm_s: int = 300) -> Deployment:
    stable = Arm(STABLE, "alice/digits:1.0.0", cid(ONE))
    return Deployment("digits", with_trials(stable, ()), Scale(least, most, 1, keep_warm_s=keep_warm_s))


def canary(old: Deployment) -> Deployment:
    return try_out(old, Arm(CANARY, "alice/digits:2.0.0", cid(TWO), 1000), 1.0)


# --- the file --------------------------------------------------------------------------------------------------------


async def test_what_is_deployed_is_there_again_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "deployments.json"
    desk = Deployments(file)
    await desk.add(deployment())
    await desk.change("digits", canary)
    assert Deployments(file).all == desk.all
    with pytest.raises(LocalError):
        await desk.add(deployment())
    await desk.remove("digits")
    assert Deployments(file).all == ()
    with pytest.raises(NotFound):
        desk.get("digits")


async def test_what_cannot_be_written_down_is_not_done(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    desk = Deployments(folder / "deployments.json")
    with pytest.raises(LocalError):
        await desk.add(deployment())
    assert desk.all == ()


def test_a_damaged_file_is_laid_aside(tmp_path: Path) -> None:
    file = tmp_path / "deployments.json"
    file.write_text('{"format": "celluler/deployments/1", "deployments": [7]}')
    assert Deployments(file).all == ()
    assert file.with_suffix(".damaged").exists()


# --- replicas --------------------------------------------------------------------------------------------------------


class Swarm:
    """Peers that keep what they are asked to keep, or fail as they are told. kept: by peer."""

    def __init__(self, *peers: PeerId) -> None:
        self.peers = list(peers)
        self.failing: dict[PeerId, CellulerError] = {}
        self.slow_s: dict[PeerId, float] = {}
        self.kept: dict[PeerId, set[Digest]] = {peer: set() for peer in peers}
        self.penalised: list[PeerId] = []
        self.asked = 0

    async def keep(self, peer: PeerId, model: Digest, for_s: int) -> Kept:
        self.asked += 1
        await trio.sleep(self.slow_s.get(peer, 0.01))
        if peer in self.failing:
            raise self.failing[peer]
        self.kept[peer].add(model)
        return Kept(for_s, ready=True)

    async def let_go(self, peer: PeerId, model: Digest) -> None:
        await trio.sleep(0.01)
        self.kept[peer].discard(model)

    async def holders(self, _cid: str) -> frozenset[PeerId]:
        return frozenset()

    def holding(self, model: Digest) -> set[PeerId]:
        return {peer for peer, models in self.kept.items() if model in models and peer in self.peers}

    def control(self, desk: Deployments, nursery: trio.Nursery) -> None:
        controller = Controller(
            desk,
            self,
            lambda: [Candidate(peer) for peer in self.peers],
            self.holders,
            lambda peer, _: self.penalised.append(peer),
            nursery,
            wall_s=lambda: 5.0,
        )
        nursery.start_soon(controller.run)


async def running(tmp_path: Path, swarm: Swarm, test: Callable[[Deployments], Any], *, what: Deployment) -> None:
    desk = Deployments(tmp_path / "deployments.json")
    await desk.add(what)
    async with trio.open_nursery() as nursery:
        swarm.control(desk, nursery)
        await trio.sleep(1)
        await test(desk)
        nursery.cancel_scope.cancel()


async def test_replicas_are_got_replaced_and_let_go(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    swarm = Swarm(ALICE, BOB, CAROL)

    async def test(desk: Deployments) -> None:
        first = swarm.holding(ONE)
        assert len(first) == 2
        (gone, *_) = first
        swarm.peers.remove(gone)
        await trio.sleep(2)
        assert swarm.holding(ONE) == {*swarm.peers}
        await desk.remove("digits")
        await trio.sleep(2)
        assert swarm.holding(ONE) == set()
        assert desk.states == ()

    await running(tmp_path, swarm, test, what=deployment(2, 2))


async def test_a_peer_that_fails_is_passed_over_and_a_liar_penalised(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    swarm = Swarm(ALICE, BOB, CAROL)
    swarm.failing = {ALICE: Denied("no"), BOB: PeerViolation("odd")}

    async def test(desk: Deployments) -> None:
        await trio.sleep(8)
        assert swarm.holding(ONE) == {CAROL}
        assert BOB in swarm.penalised
        asked = swarm.asked
        await trio.sleep(5)
        assert swarm.asked - asked < 4  # they rest

    await running(tmp_path, swarm, test, what=deployment())


async def test_a_replica_comes_with_the_first_request_and_goes_when_nobody_asks(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    swarm = Swarm(BOB)
    swarm.slow_s = {BOB: 7.0}

    async def test(desk: Deployments) -> None:
        assert swarm.holding(ONE) == set()
        began = trio.current_time()
        with desk.asked("digits", "somebody") as asked:
            await desk.warm(asked)
            assert asked.state.replicas.ready == (BOB,)
        assert 6.9 < trio.current_time() - began < 8
        await trio.sleep(20)
        assert swarm.holding(ONE) == {BOB}
        await trio.sleep(20)
        assert swarm.holding(ONE) == set()

    await running(tmp_path, swarm, test, what=deployment(0, 1, keep_warm_s=30))


async def test_nobody_waits_for_a_replica_that_nobody_gives_nor_for_ever(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    swarm = Swarm(BOB)
    swarm.failing = {BOB: Denied("no")}

    async def refused(desk: Deployments) -> None:
        with desk.asked("digits", "somebody") as asked, trio.fail_after(1):
            await desk.warm(asked)

    await running(tmp_path, swarm, refused, what=deployment(0, 1))
    swarm.failing, swarm.slow_s = {}, {BOB: 1e6}

    async def slow(desk: Deployments) -> None:
        with desk.asked("digits", "somebody") as asked, trio.fail_after(COLD_START_S + 1):
            await desk.warm(asked)

    other = tmp_path / "slow"
    other.mkdir()
    await running(other, swarm, slow, what=deployment(0, 1))


async def test_more_is_asked_than_one_replica_is_to_have(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    swarm = Swarm(ALICE, BOB, CAROL)

    async def test(desk: Deployments) -> None:
        with desk.asked("digits", "a"), desk.asked("digits", "b"), desk.asked("digits", "c"):
            await trio.sleep(2)
            assert len(swarm.holding(ONE)) == 3

    await running(tmp_path, swarm, test, what=deployment(1, 3))


async def test_a_version_that_is_brought_in_is_switched_to_once_it_is_ready(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    swarm = Swarm(ALICE, BOB)

    async def test(desk: Deployments) -> None:
        swarm.slow_s = {ALICE: 5.0, BOB: 5.0}
        await desk.change("digits", lambda old: bring_in(old, "alice/digits:2.0.0", cid(TWO), 1.0))
        await trio.sleep(4)
        assert desk.get("digits").stable.cid == cid(ONE)
        with desk.asked("digits", "somebody") as asked:
            await trio.sleep(3)
            assert desk.get("digits").stable.cid == cid(TWO)
            assert asked.arm.cid == cid(ONE)
            assert swarm.holding(ONE)  # as long as somebody waits for it
        await trio.sleep(2)
        assert swarm.holding(ONE) == set()
        assert swarm.holding(TWO)

    await running(tmp_path, swarm, test, what=deployment())


async def test_promoting_and_going_back_leave_every_request_its_version(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    swarm = Swarm(ALICE, BOB)

    async def test(desk: Deployments) -> None:
        await desk.change("digits", canary)
        await trio.sleep(1)
        assert swarm.holding(TWO)
        await desk.change("digits", lambda old: promote(old, "", 1.0))
        await trio.sleep(1)
        assert not swarm.holding(ONE)
        assert swarm.holding(TWO)
        await desk.change("digits", lambda old: roll_back(old, 1.0))
        await trio.sleep(1)
        assert swarm.holding(ONE)

    await running(tmp_path, swarm, test, what=deployment())


async def test_what_fails_at_a_replica_makes_it_say_anew_that_it_is_there(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    swarm = Swarm(BOB)

    async def test(desk: Deployments) -> None:
        one = Caller()
        with called_by(one), desk.asked("digits", "somebody") as asked:
            with desk.preferring(asked):
                assert one.preferred == (BOB,)
            with pytest.raises(Unavailable), desk.preferring(asked):
                raise Unavailable("it is gone")
            assert not one.preferred
            assert not asked.state.replicas.ready
            await trio.sleep(1)
            assert asked.state.replicas.ready == (BOB,)
            with pytest.raises(Busy), desk.preferring(asked):
                raise Busy("later")
            desk.answered_by(asked, BOB)
            assert asked.state.replicas.ready == (BOB,)
            desk.answered_by(asked, CAROL)
            assert not asked.state.replicas.ready

    await running(tmp_path, swarm, test, what=deployment())


# --- what is kept for others -----------------------------------------------------------------------------------------


class Shelf:
    """Loads after a second, if it is let."""

    def __init__(self) -> None:
        self.kept: dict[str, float] = {}
        self.failure: CellulerError | None = None
        self.askers: list[PeerId | None] = []

    async def keep(self, model: str, until_s: float, *, asker: PeerId | None, hints: tuple[PeerId, ...]) -> None:
        if model not in self.kept:
            await trio.sleep(1)
        self.askers.append(asker)
        if self.failure is not None:
            raise self.failure
        self.kept[model] = until_s

    def let_go(self, model: Digest) -> None:
        self.kept.pop(cid(model), None)


async def test_a_lease_is_ready_when_the_model_is(autojump_clock: trio.testing.MockClock) -> None:
    shelf = Shelf()
    async with trio.open_nursery() as nursery:
        lessor = Lessor(shelf, ALICE, ("members",), lambda: (BOB,), nursery)
        assert await lessor.keep(BOB, ONE, 60, 0.5) == Kept(60, ready=False)
        assert await lessor.keep(BOB, ONE, 60, 5.0) == Kept(60, ready=True)
        assert await lessor.keep(ALICE, ONE, 90, 5.0) == Kept(90, ready=True)
        assert shelf.askers[-1] is None
        lessor.release(ALICE, ONE)
        assert cid(ONE) in shelf.kept  # for Bob
        lessor.release(BOB, ONE)
        assert not shelf.kept


async def test_nothing_is_kept_for_who_may_not_ask(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        for granted, asker in (("members",), CAROL), (("none",), BOB), ((BOB,), CAROL), ((), BOB):
            with pytest.raises(Denied):
                await Lessor(Shelf(), ALICE, granted, lambda: (BOB,), nursery).keep(asker, ONE, 60, 5.0)
        for granted in (("members",), (BOB,)):
            assert await Lessor(Shelf(), ALICE, granted, lambda: (BOB,), nursery).keep(BOB, ONE, 60, 5.0)
        assert await Lessor(Shelf(), ALICE, ("none",), lambda: (), nursery).keep(ALICE, ONE, 60, 5.0)


async def test_a_model_that_cannot_be_loaded_is_no_lease(autojump_clock: trio.testing.MockClock) -> None:
    shelf = Shelf()
    shelf.failure = Busy("no room")
    async with trio.open_nursery() as nursery:
        lessor = Lessor(shelf, ALICE, ("members",), lambda: (BOB,), nursery)
        for _ in range(20):  # nor does it count as one
            with pytest.raises(Busy):
                await lessor.keep(BOB, ONE, 60, 5.0)
        shelf.failure = None
        assert (await lessor.keep(BOB, ONE, 60, 5.0)).ready


# --- answers that are given again ------------------------------------------------------------------------------------


class Opened:
    """As much of a model as a kept answer needs."""

    def __init__(self, digest: Digest = ONE, *, encrypted: bool = False) -> None:
        self.digest = digest
        self.record = cast(Any, type("Record", (), {"encrypted": encrypted}))


def opened(*, encrypted: bool = False) -> OpenedManifest:
    return cast(OpenedManifest, Opened(encrypted=encrypted))


class Asking:
    def __init__(self) -> None:
        self.times = 0

    async def __call__(self) -> Prediction:
        self.times += 1
        return Prediction(tensor_of([float(self.times)]), "alice/digits:1.0.0", cid(ONE), BOB, 1.0)


async def predicted(kept: KeptAnswers, ask: Asking, one: Caller, model: OpenedManifest) -> Prediction:
    with called_by(one):
        return await kept.prediction(model, tensor_of([1.0]), "raw", ask)


async def test_the_same_client_gets_the_same_answer_and_no_other_does() -> None:
    kept, ask = KeptAnswers(1 << 20, private=False), Asking()
    first = await predicted(kept, ask, one := Caller(), opened())
    again = await predicted(kept, ask, second := Caller(), opened())
    assert (first.cached, again.cached, again.outputs) == (False, True, first.outputs)
    assert (one.told["cache"], second.told["cache"]) == ("miss", "hit")
    assert not (await predicted(kept, ask, Caller(client="key:abc"), opened())).cached
    assert not (await predicted(kept, ask, Caller(fresh=True), opened())).cached
    assert (kept.usage.hits, kept.usage.misses, ask.times) == (1, 2, 3)


async def test_nothing_of_an_encrypted_model_is_kept_unless_it_is_said() -> None:
    for private in (False, True):
        kept, ask = KeptAnswers(1 << 20, private=private), Asking()
        for _ in range(2):
            await predicted(kept, ask, Caller(), opened(encrypted=True))
        assert ask.times == (1 if private else 2)


class Saying:
    """`Generated` of what it is given."""

    model, cid, peer = "alice/words:1.0.0", cid(ONE), BOB
    begun = Begun(ONE, (1, 2))

    def __init__(self, *events: Any) -> None:
        self._events = iter(events)
        self.stopped: list[int] = []

    def __aiter__(self) -> Saying:
        return self

    async def __anext__(self) -> Any:
        for event in self._events:
            return event
        raise StopAsyncIteration

    def stop(self, choice: int) -> None:
        self.stopped.append(choice)


HELLO = Said(0, "hello", (Chosen(7),))
END = Finished(2, 1, 0, b"receipt")


async def said(kept: KeptAnswers, *events: Any) -> None:
    async for _ in kept.recording(opened(), Question("hi", sampling=GREEDY), Saying(*events)):
        pass


async def test_a_whole_text_is_said_again_without_its_receipt() -> None:
    kept, question = KeptAnswers(1 << 20, private=False), Question("hi", sampling=GREEDY)
    assert kept.text(opened(), question) is None
    await said(kept, HELLO, Over(0, "stop", 1), END)
    again = kept.text(opened(), question)
    assert again is not None
    assert [event async for event in again] == [HELLO, Over(0, "stop", 1), replace(END, receipt=b"")]
    assert (again.model, again.peer, again.begun) == ("alice/words:1.0.0", BOB, Begun(ONE, (1, 2)))
    cut = kept.text(opened(), question)
    assert cut is not None
    cut.stop(0)
    assert [event async for event in cut] == [Over(0, "stop", 1), replace(END, receipt=b"")]


async def test_a_text_that_was_cut_short_is_not_kept() -> None:
    kept, question = KeptAnswers(1 << 20, private=False), Question("hi", sampling=GREEDY)
    await said(kept, HELLO, Over(0, "deadline", 1), END)
    await said(kept, HELLO, Over(0, "stop", 1))
    recording = kept.recording(opened(), question, saying := Saying(HELLO, Over(0, "stop", 1), END))
    recording.stop(0)
    assert [event async for event in recording]
    assert saying.stopped == [0]
    assert kept.text(opened(), question) is None
