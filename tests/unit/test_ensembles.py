"""Ensembles: several are asked side by side, a quorum will do, and every surface tells how it went."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import httpx
import numpy as np
import pytest
import trio
import trio.testing

from celluler.errors import Busy, CellulerError, InvalidSpec, NoPeers, Unavailable
from celluler.identity import PeerId
from celluler.models.interface import Interface
from celluler.models.manifest import OpenedManifest
from celluler.models.spec import parse_spec
from celluler.models.templates import fill
from celluler.tensors import tensor_of
from celluler.views import Prediction
from celluler_node.answers.ensembles import GRACE_S, EnsembleAnswers
from celluler_protocols.inference import Predict, Predicted
from tests.support.gateways import TOKEN, open_client
from tests.support.serving_node import ServingNode
from tests.unit.conftest import Run

HONEST = np.array([[0.1, 0.7, 0.2]], dtype=np.float32)
LIE = np.array([[0.9, 0.05, 0.05]], dtype=np.float32)
MODEL = bytes(32)
DIGITS, INPUT = "alice/digits:1.0.0", "[[[1, 5], [2, 3]]]"
BATCH = json.loads(INPUT)
Give = Callable[[], Awaitable[np.ndarray[Any, Any]]]


class Opened:
    digest = MODEL
    interface = Interface(parse_spec(fill("mlp")))

    class record:
        labels = ("a", "b", "c")


class Swarm(EnsembleAnswers):
    """Peers by name, and what each gives, in the order in which they are asked."""

    def __init__(self, peers: dict[str, Give]) -> None:
        self._peers, self.suspected = peers, list[str]()
        self.chooser: Any = self
        self.checks: Any = self
        self._core: Any = self

    identity: Any = property(lambda self: self)
    repository: Any = property(lambda self: self)
    peer_id = PeerId("ours")

    async def _resolved(self, ref: str) -> OpenedManifest:
        return cast(OpenedManifest, Opened())

    async def ranked(self, opened: OpenedManifest) -> list[PeerId]:
        return [PeerId(name) for name in self._peers]

    def held(self, opened: OpenedManifest) -> Any:
        return type("Held", (), {"name": "alice/m:1.0.0"})

    def predicted(self, peer: PeerId, request: Predict, answer: Predicted, *, suspected: bool = False) -> None:
        assert suspected
        self.suspected.append(peer)

    async def _first_prediction(
        self, opened: OpenedManifest, request: Predict, only: PeerId | None = None
    ) -> tuple[PeerId, Predicted]:
        assert only is not None
        told = await self._peers[only]()
        return only, Predicted("float32", told.shape, told.tobytes(), MODEL, 1)

    async def ask(self, members: int = 3, aggregate: str = "vote") -> Prediction:
        x = tensor_of(np.zeros((1, *Opened.interface.takes.shape), dtype=np.float32))
        return await self.ensemble(["alice/m"], x, "probabilities", members=members, aggregate=aggregate)


def gives(values: np.ndarray[Any, Any], after_s: float = 0.0) -> Give:
    async def give() -> np.ndarray[Any, Any]:
        await trio.sleep(after_s)
        return values

    return give


def fails(error: CellulerError) -> Give:
    async def give() -> np.ndarray[Any, Any]:
        raise error

    return give


async def test_a_liar_is_outvoted_named_and_suspected(autojump_clock: trio.testing.MockClock) -> None:
    swarm = Swarm({"bob": gives(HONEST), "mallory": gives(LIE), "carol": gives(HONEST)})
    told = await swarm.ask()
    assert told.ensemble is not None
    assert (told.outputs.numpy() == HONEST).all()
    assert (told.peer, told.ensemble.answered) == ("ours", 3)
    assert {one.peer: one.dissent for one in told.ensemble.members} == {"bob": 0, "mallory": 1, "carol": 0}
    assert swarm.suspected == ["mallory"]


async def test_who_fails_is_replaced_by_the_next(autojump_clock: trio.testing.MockClock) -> None:
    peers = {"bob": fails(Unavailable("gone")), "carol": gives(HONEST), "dave": gives(HONEST), "erin": gives(HONEST)}
    told = await Swarm(peers).ask()
    assert told.ensemble is not None
    assert {one.peer for one in told.ensemble.members} == {"carol", "dave", "erin"}


async def test_a_quorum_will_do_and_it_is_said_who_was_missing(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    told = await Swarm({"bob": gives(HONEST, 0.1), "carol": gives(HONEST, 0.1), "slow": gives(LIE, 600.0)}).ask()
    assert told.ensemble is not None
    assert trio.current_time() - began < GRACE_S + 1
    assert (told.ensemble.asked, told.ensemble.answered) == (3, 2)
    assert [one.failure for one in told.ensemble.members if not one.peer] == ["no answer in time"]


async def test_without_a_quorum_it_fails_as_most_do(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(Busy):
        await Swarm({"bob": gives(HONEST), "carol": fails(Busy("full")), "dave": fails(Unavailable("gone"))}).ask()
    with pytest.raises(NoPeers):
        await Swarm({"bob": gives(HONEST)}).ask()


async def test_what_nobody_answers_ends_it_at_once(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    with pytest.raises(InvalidSpec):
        await Swarm({name: fails(InvalidSpec("input", "is odd")) for name in ("bob", "carol", "dave")}).ask()
    assert trio.current_time() - began < 1


@pytest.mark.parametrize(("members", "aggregate"), [(1, "vote"), (17, "vote"), (3, "mode")])
async def test_what_is_no_ensemble_is_refused(members: int, aggregate: str) -> None:
    with pytest.raises(InvalidSpec):
        await Swarm({"bob": gives(HONEST)}).ask(members, aggregate)


# --- surfaces --------------------------------------------------------------------------------------------------------


async def test_a_client_asks_an_ensemble_and_is_told_who_disagreed(node: ServingNode) -> None:
    async with open_client(node) as client:
        told = await client.predict(DIGITS, BATCH, ensemble=3, aggregate="median")
        assert told.ensemble is not None
        assert (told.ensemble.aggregate, told.ensemble.asked) == ("median", 3)
        told = await client.predict(DIGITS, BATCH, ensemble=[DIGITS])
        assert told.ensemble is not None
        assert [one.dissent for one in told.ensemble.members] == [0, 1]
        assert (await client.predict(DIGITS, BATCH)).ensemble is None


async def test_the_endpoint_refuses_what_goes_with_an_ensemble_only(http: httpx.AsyncClient) -> None:
    for wrong in ({"aggregate": "vote"}, {"models": [1]}, {"ensemble": "3"}):
        body = {"model": "alice/tales", "inputs": [[1.0]], **wrong}
        answer = await http.post("/api/v1/predict", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 422


def test_the_command_line_shows_who_disagreed(celluler: Run) -> None:
    code, out, err = celluler("run", DIGITS, INPUT, "--ensemble", "3", "--aggregate", "mean")
    assert code == 0
    assert json.loads(out.splitlines()[0])
    assert "mean of 3 answers of 3" in err
    assert "disagrees about 1 of 1 samples" in err
    assert celluler("run", DIGITS, INPUT, "--models", DIGITS)[0] == 0
    assert celluler("run", DIGITS, INPUT, "--models", DIGITS, "--ensemble", "2")[0] == 2
    assert celluler("run", DIGITS, "once upon", "--ensemble", "2")[0] == 2
