"""A prediction comes from whoever gives it first, names are remembered for moments, and streams are used again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair

from celluler.content.digest import digest_of
from celluler.errors import (
    Busy,
    CellulerError,
    Denied,
    InvalidSpec,
    NotFound,
    ProtocolViolation,
    Retracted,
    TimedOut,
    Unavailable,
)
from celluler.identity import PeerId
from celluler.inference.hedging import HedgeConfig, Hedging
from celluler_node.placement.chooser import gravest
from celluler_node.placement.names import Names
from celluler_node.placement.race import Race
from celluler_node.placement.streams import Streams
from celluler_protocols.inference import Predict, Predicted, PredictReply, serve_inference
from celluler_protocols.nursery import own_nursery

MODEL = digest_of(b"a manifest")
GONE = Unavailable("the stream broke")


class Peers:
    """Answer with their name after so many seconds, or fail. asked, left: who was asked, and who was cancelled."""

    def __init__(self, **behaviour: float | CellulerError) -> None:
        self._behaviour = behaviour
        self.asked: list[str] = []
        self.left: list[str] = []

    async def ask(self, peer: PeerId) -> str:
        self.asked.append(peer)
        does = self._behaviour[peer]
        await trio.lowlevel.checkpoint()
        if isinstance(does, CellulerError):
            raise does
        try:
            await trio.sleep(does)
        except trio.Cancelled:
            self.left.append(peer)
            raise
        return f"of {peer}"

    async def race(self, hedging: Hedging[bytes] | None = None) -> tuple[str, str]:
        order = [PeerId(name) for name in self._behaviour]
        return await Race(MODEL, order, self.ask, hedging or Hedging()).run()


async def test_the_best_peer_answers_and_nobody_else_is_asked(autojump_clock: Any) -> None:
    peers = Peers(a=0.1, b=0.1)
    assert await peers.race() == ("a", "of a")
    assert peers.asked == ["a"]


@pytest.mark.parametrize("failure", [GONE, Busy("full"), NotFound("it"), Denied("no"), ProtocolViolation("lies")])
async def test_whoever_fails_is_followed_by_the_next_at_once(autojump_clock: Any, failure: CellulerError) -> None:
    peers = Peers(a=failure, b=0.1)
    assert await peers.race() == ("b", "of b")
    assert trio.current_time() < 1.0


async def test_whoever_is_late_is_overtaken_and_cancelled(autojump_clock: Any) -> None:
    hedging: Hedging[bytes] = Hedging(HedgeConfig(enough=10))
    for _ in range(10):
        hedging.answered(MODEL, 0.2)
    peers = Peers(a=50.0, b=0.1, c=0.1)
    assert await peers.race(hedging) == ("b", "of b")
    assert (peers.asked, peers.left) == (["a", "b"], ["a"])
    assert trio.current_time() == pytest.approx(0.3, abs=0.05)


async def test_a_late_peer_that_is_first_after_all_wins(autojump_clock: Any) -> None:
    peers = Peers(a=16.0, b=50.0)
    assert await peers.race() == ("a", "of a")
    assert peers.left == ["b"]


async def test_when_the_budget_of_hedges_is_spent_the_late_peer_is_waited_for(autojump_clock: Any) -> None:
    hedging: Hedging[bytes] = Hedging(HedgeConfig(spare=0.0))
    peers = Peers(a=50.0, b=0.1)
    assert await peers.race(hedging) == ("a", "of a")
    assert peers.asked == ["a"]


async def test_what_is_wrong_with_the_request_is_told_at_once(autojump_clock: Any) -> None:
    peers = Peers(a=InvalidSpec("input", "has another shape"), b=0.1)
    with pytest.raises(InvalidSpec):
        await peers.race()
    assert peers.asked == ["a"]


async def test_no_prediction_waits_for_ever(autojump_clock: Any) -> None:
    with pytest.raises(TimedOut):
        await Peers(a=1e6, b=1e6).race()
    assert trio.current_time() < 121


def test_what_passes_is_told_before_what_does_not() -> None:
    assert isinstance(gravest([Busy("full"), GONE, NotFound("it")]), Busy)
    assert gravest([GONE, NotFound("it")]) is GONE
    assert isinstance(gravest([NotFound("it")]), NotFound)
    assert isinstance(gravest([]), CellulerError)


# --- names -----------------------------------------------------------------------------------------------------------

OWN, OTHER = PeerId("own"), PeerId("other")


def manifest(signer: PeerId = OTHER) -> Any:
    return SimpleNamespace(signed=SimpleNamespace(signer=signer))


class Swarm:
    """What a name means there. asked: how often."""

    def __init__(self, meant: Any) -> None:
        self.meant, self.asked = meant, 0

    async def resolve(self, _: str) -> Any:
        self.asked += 1
        await trio.sleep(0.5)
        if isinstance(self.meant, CellulerError):
            raise self.meant
        return self.meant


async def with_names(swarm: Swarm, use: Callable[[Names], Awaitable[None]]) -> None:
    async with own_nursery() as nursery:
        await use(Names(swarm.resolve, OWN, nursery))


async def test_a_name_is_looked_up_once_for_moments_and_then_beside_a_request(autojump_clock: Any) -> None:
    swarm = Swarm(old := manifest())

    async def use(names: Names) -> None:
        assert await names.resolve("a/b") is old
        assert await names.resolve("a/b") is old
        assert swarm.asked == 1
        await trio.sleep(6)
        swarm.meant = new = manifest()
        asked_at = trio.current_time()
        assert await names.resolve("a/b") is old
        assert trio.current_time() == asked_at
        await trio.sleep(1)
        assert await names.resolve("a/b") is new

    await with_names(swarm, use)


async def test_what_was_known_holds_while_nobody_can_be_asked_and_not_when_it_was_taken_back(
    autojump_clock: Any,
) -> None:
    swarm = Swarm(old := manifest())

    async def use(names: Names) -> None:
        await names.resolve("a/b")
        for meant in (GONE, Retracted("a/b", "wrong labels")):
            swarm.meant = meant
            await trio.sleep(6)
            assert await names.resolve("a/b") is old
            await trio.sleep(1)
        with pytest.raises(Retracted):
            await names.resolve("a/b")

    await with_names(swarm, use)


async def test_our_own_names_are_looked_up_each_time(autojump_clock: Any) -> None:
    swarm = Swarm(manifest(OWN))

    async def use(names: Names) -> None:
        await names.resolve("a/b")
        await names.resolve("a/b")
        assert swarm.asked == 2

    await with_names(swarm, use)


# --- streams ---------------------------------------------------------------------------------------------------------

REQUEST = Predict("alice/digits", "raw", "float32", (1, 1), bytes(4))
ANSWER = Predicted("float32", (1, 1), bytes(4), MODEL, 1)


class Host:
    """Reaches one server. opened: its ends of the streams."""

    def __init__(self, nursery: trio.Nursery, answers: Callable[[Predict], Awaitable[PredictReply]]) -> None:
        self._nursery, self._answers = nursery, answers
        self.opened: list[trio.abc.Stream] = []

    async def open_stream(self, peer: PeerId, protocol: str) -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        self.opened.append(theirs)
        self._nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.abc.Stream) -> None:
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            await serve_inference(stream, self._answers)


async def answers(_: Predict) -> PredictReply:
    return ANSWER


async def test_streams_are_used_again_replaced_when_they_are_gone_and_closed_when_idle(autojump_clock: Any) -> None:
    async with own_nursery() as nursery:
        host: Any = Host(nursery, answers)
        streams = Streams(host)
        nursery.start_soon(streams.run)
        for _ in range(3):
            assert await streams.predict(OTHER, REQUEST) == ANSWER
        assert len(host.opened) == 1
        await host.opened[0].aclose()
        assert await streams.predict(OTHER, REQUEST) == ANSWER
        assert len(host.opened) == 2
        await trio.sleep(4)
        assert not streams._kept
        assert await streams.predict(OTHER, REQUEST) == ANSWER
        assert len(host.opened) == 3


async def test_a_stream_is_kept_after_a_refusal_and_not_after_a_lie_or_a_cancelled_request(
    autojump_clock: Any,
) -> None:
    does: list[Any] = []

    async def misbehaves(_: Predict) -> PredictReply:
        what = does.pop(0)
        if isinstance(what, CellulerError):
            raise what
        await trio.sleep(what)
        return Predicted("float32", (2, 1), bytes(8), MODEL, 1)

    async with own_nursery() as nursery:
        host: Any = Host(nursery, misbehaves)
        streams = Streams(host)
        does += [Busy("full"), 0, 100.0]
        with pytest.raises(Busy):
            await streams.predict(OTHER, REQUEST)
        assert len(streams._kept) == 1
        with pytest.raises(ProtocolViolation):
            await streams.predict(OTHER, REQUEST)
        assert not streams._kept
        with trio.move_on_after(1):
            await streams.predict(OTHER, REQUEST)
        assert not streams._kept
        assert len(host.opened) == 2
