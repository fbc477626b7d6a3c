"""What is asked of a deployment becomes a question to one version, and is counted; what is asked of a model passes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from celluler.content.digest import Codec, cid_of, digest_of
from celluler.errors import Busy, InvalidSpec, LocalError, NotFound, NotSupported, WorkerFailed
from celluler.identity import PeerId
from celluler.inference.questions import Begun, Finished, Over, Question, Said
from celluler.inference.sampling import GREEDY, Chosen
from celluler.inference.scaling import Candidate
from celluler.tensors import Tensor, tensor_of
from celluler.views import DeploymentChange, ModelPorts, NewArm, NewDeployment, Port, Prediction
from celluler_node.answers import deployments
from celluler_node.answers.deployments import DeploymentAnswers
from celluler_node.answers.generation import GenerationAnswers
from celluler_node.answers.inference import InferenceAnswers
from celluler_node.answers.models import ModelAnswers
from celluler_node.callers import Caller, called_by, caller
from celluler_node.deployments.book import Deployments
from celluler_node.serving.kept_answers import KeptAnswers

NAMES = [f"alice/digits:{version}.0.0" for version in (1, 2, 3)]
CIDS = {name: cid_of(digest_of(name.encode()), Codec.MANIFEST) for name in NAMES}
NAME_OF = {cid: name for name, cid in CIDS.items()}
TAKES_S = 0.002
IMAGE = tensor_of([[0.1, 0.9]])


class World:
    """Models that answer with themselves. asked: (version, preferred peers). odd: versions of another input."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.sixth = trio.Event()
        self.failure: Exception | None = None
        self.odd: set[str] = set()
        self.answers: dict[str, Tensor] = {}
        self.events: list[Any] = [Said(0, "hi", (Chosen(7),)), Over(0, "stop", 1), Finished(3, 1, 0)]

    def ports(self, ref: str) -> ModelPorts:
        name = NAME_OF.get(ref, ref)
        takes = Port("input", "int64" if name in self.odd else "float32", (2,))
        return ModelPorts(name, "1.0.0", CIDS[name], takes, (Port("raw", "float32", (2,)),))

    def resolved(self, ref: str) -> Any:
        name = NAME_OF.get(ref, ref)
        if name not in CIDS:
            raise NotFound(name)
        record = SimpleNamespace(encrypted=False)
        return SimpleNamespace(
            digest=digest_of(name.encode()), name=name, record=record, interface=SimpleNamespace(usual="raw")
        )

    def predicted(self, ref: str, output: str) -> Prediction:
        self.asked.append((NAME_OF.get(ref, ref), caller().preferred))
        if len(self.asked) == 6:
            self.sixth.set()
        if self.failure is not None:
            raise self.failure
        outputs = self.answers.get(NAME_OF.get(ref, ref), IMAGE)
        return Prediction(outputs, NAME_OF.get(ref, ref), ref, "bob", 0.1, output=output or "raw")


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()

    async def at_once(work: Any, *given: Any) -> Any:
        return work(*given)

    async def predict(_self: Any, ref: str, inputs: Tensor, output: str = "", *, peer: str = "") -> Prediction:
        await trio.sleep(TAKES_S)
        return world.predicted(ref, output)

    @asynccontextmanager
    async def generate(_self: Any, ref: str, question: Question, *, peer: str = "") -> AsyncIterator[Any]:
        prediction = world.predicted(ref, "")

        class Saying:
            model, cid, peer, begun = prediction.model, ref, "bob", Begun(digest_of(b""), (1, 2, 3))

            async def __aiter__(self) -> AsyncIterator[Any]:
                for event in world.events:
                    if isinstance(event, Exception):
                        raise event
                    yield event

            def stop(self, choice: int) -> None: ...

        yield Saying()

    async def resolved(_self: Any, ref: str) -> Any:
        return world.resolved(ref)

    async def model_ports(_self: Any, ref: str) -> ModelPorts:
        return world.ports(ref)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    monkeypatch.setattr(ModelAnswers, "predict", predict)
    monkeypatch.setattr(ModelAnswers, "model_ports", model_ports)
    monkeypatch.setattr(GenerationAnswers, "generate", generate)
    monkeypatch.setattr(InferenceAnswers, "_resolved", resolved)
    monkeypatch.setattr(deployments, "ports_view", world.ports)
    return world


@pytest.fixture
def node(world: World, tmp_path: Path, nursery: trio.Nursery) -> DeploymentAnswers:
    node = object.__new__(DeploymentAnswers)
    desk = Deployments(tmp_path / "deployments.json")
    node._core = cast(Any, SimpleNamespace(nursery=nursery, repository=_Repository()))
    node._of = cast(Any, SimpleNamespace(deployments=desk, kept_answers=None))
    return node


class _Repository:
    """A name is a `str` that has itself as its name."""

    def held(self, opened: Any) -> Any:
        class Name(str):
            name = opened.name

        return Name(opened.name)


async def made(node: DeploymentAnswers, share: str = "", **said: Any) -> None:
    arms = (NewArm("b", NAMES[1], share),) if share else ()
    await node.create_deployment(NewDeployment("digits", NAMES[0], arms, **said))
    for state in [node._desk().state("digits", CIDS[name]) for name in NAMES]:
        state.hopeless = True  # no controller runs: nobody is asked for a replica


async def ask(node: DeploymentAnswers, session: str = "") -> Prediction:
    with called_by(Caller(session=session)):
        return await node.predict("deploy:digits", IMAGE)


async def test_a_session_stays_with_its_version_and_every_version_has_some(node: DeploymentAnswers) -> None:
    await made(node, "50%")
    first = [(await ask(node, f"user-{n}")).arm for n in range(20)]
    assert first == [(await ask(node, f"user-{n}")).arm for n in range(20)]
    assert set(first) == {"stable", "b"}
    told = await node.deployment("digits")
    assert sum(arm.report.requests for arm in told.arms) == 40
    assert told.arms[0].report.p50_ms is not None
    assert told.arms[0].report.p50_ms >= 1000 * TAKES_S
    ports = await node.model_ports("deploy:digits")
    assert ports.reference == "deploy:digits"
    assert (await node.model_ports(NAMES[2])).reference == CIDS[NAMES[2]]


async def test_a_model_is_asked_as_ever(node: DeploymentAnswers, world: World) -> None:
    assert (await node.predict(NAMES[2], IMAGE)).arm == ""
    assert world.asked == [(NAMES[2], ())]
    with pytest.raises(NotFound):
        await node.predict("deploy:other", IMAGE)


async def test_replicas_are_preferred(node: DeploymentAnswers, world: World) -> None:
    await made(node)
    state = node._desk().state("digits", CIDS[NAMES[0]])
    state.replicas.plan(1, [Candidate(PeerId("bob"))], trio.current_time())
    state.replicas.kept(PeerId("bob"), trio.current_time(), ready=True, for_s=60)
    await ask(node)
    assert world.asked[-1] == (NAMES[0], ("bob",))
    async with node.generate("deploy:digits", Question("hi")):
        pass
    assert world.asked[-1] == (NAMES[0], ("bob",))
    assert state.replicas.ready


async def test_replicas_that_did_not_answer_are_to_say_anew_that_they_are_there(
    node: DeploymentAnswers, world: World
) -> None:
    await made(node)
    state, carol = node._desk().state("digits", CIDS[NAMES[0]]), PeerId("carol")
    for asked in (False, True):
        state.replicas.plan(1, [Candidate(carol)], trio.current_time())
        state.replicas.kept(carol, trio.current_time(), ready=True, for_s=60)
        if asked:
            await ask(node)
        else:
            async with node.generate("deploy:digits", Question("hi")):
                pass
        assert not state.replicas.ready


@pytest.mark.parametrize(("failure", "kind"), [(Busy("full"), "Busy"), (WorkerFailed("died"), "WorkerFailed")])
async def test_what_fails_is_counted_by_its_kind(
    node: DeploymentAnswers, world: World, failure: Exception, kind: str
) -> None:
    await made(node)
    world.failure = failure
    with pytest.raises(type(failure)):
        await ask(node)
    with pytest.raises(type(failure)):
        async with node.generate("deploy:digits", Question("hi")):
            pass
    (arm,) = (await node.deployment("digits")).arms
    assert (arm.report.errors, arm.report.requests, arm.report.under_way) == ({kind: 2}, 2, 0)


async def test_some_predictions_are_asked_of_two_arms(node: DeploymentAnswers, world: World) -> None:
    await made(node, "50%", compare="50%")
    world.answers = {NAMES[1]: tensor_of([[0.9, 0.1]])}
    for n in range(4):
        await ask(node, f"user-{n}")
    with trio.fail_after(10):
        await world.sixth.wait()
    await trio.testing.wait_all_tasks_blocked()
    told = await node.deployment("digits")
    assert [(arm.report.compared, arm.report.agreed) for arm in told.arms] == [(2, 0), (2, 0)]
    assert len(world.asked) == 6


async def test_texts_are_counted_by_their_tokens(node: DeploymentAnswers, world: World) -> None:
    await made(node)
    one = Caller()
    with called_by(one):
        async with node.generate("deploy:digits", Question("hi")) as generated:
            assert [event async for event in generated] == world.events
            assert generated.model == NAMES[0]
    assert one.told == {"arm": "stable", "model": NAMES[0]}
    world.events.insert(1, Busy("later"))
    async with node.generate("deploy:digits", Question("hi")) as generated:
        assert await anext(aiter(generated)) == world.events[0]
        with pytest.raises(Busy):
            await anext(aiter(generated))
    (arm,) = (await node.deployment("digits")).arms
    assert (arm.report.prompt_tokens, arm.report.generated_tokens, arm.report.errors) == (3, 1, {"Busy": 1})


async def test_answers_are_given_again_by_version(node: DeploymentAnswers, world: World) -> None:
    node._of.kept_answers = KeptAnswers(1 << 20, private=False)  # type: ignore[misc]
    await made(node)
    assert not (await ask(node)).cached
    assert (await ask(node)).cached
    assert (await node.predict(NAMES[0], IMAGE)).cached  # it is the same version
    await node.update_deployment("digits", DeploymentChange(NAMES[1]))
    node._desk().state("digits", CIDS[NAMES[1]]).hopeless = True
    assert not (await ask(node)).cached
    greedy = Question("hi", sampling=GREEDY)
    for _ in range(2):
        async with node.generate("deploy:digits", greedy) as generated:
            assert [event async for event in generated] == world.events
    assert len(world.asked) == 3
    told = await node.deployment("digits")
    assert told.arms[0].report.cached == 1
    assert (await node.answer_cache()).hits == 3


async def test_a_deployment_is_changed_step_by_step(node: DeploymentAnswers, world: World) -> None:
    await made(node)
    tried = await node.update_deployment("digits", DeploymentChange(NAMES[1], "10%"))
    assert [(arm.name, arm.share) for arm in tried.arms] == [("stable", 0.9), ("canary", 0.1)]
    more = await node.update_deployment("digits", DeploymentChange(share="20%", compare="1%"))
    assert (more.arms[1].share, more.compare) == (0.2, 0.01)
    assert (await node.promote_deployment("digits")).arms[0].model == NAMES[1]
    assert (await node.rollback_deployment("digits")).arms[0].model == NAMES[0]
    coming = await node.update_deployment("digits", DeploymentChange(NAMES[2], blue_green=True))
    assert coming.incoming is not None
    assert (coming.incoming.model, coming.incoming.share) == (NAMES[2], 0.0)
    with pytest.raises(LocalError):
        await node.promote_deployment("digits")
    assert (await node.rollback_deployment("digits")).incoming is None
    await node.remove_deployment("digits")
    assert await node.deployments() == ()


@pytest.mark.parametrize(
    "change",
    [
        DeploymentChange(),
        DeploymentChange(NAMES[1], "10%", blue_green=True),
        DeploymentChange(blue_green=True),
        DeploymentChange(share="10%", arm="stable"),
        DeploymentChange(NAMES[1], "100%"),
        DeploymentChange(max_replicas=0),
    ],
)
async def test_a_change_that_says_nothing_or_two_things_is_refused(
    node: DeploymentAnswers, change: DeploymentChange
) -> None:
    await made(node)
    with pytest.raises(InvalidSpec):
        await node.update_deployment("digits", change)
    assert (await node.deployment("digits")).number == 1


async def test_a_version_that_takes_something_else_is_refused(node: DeploymentAnswers, world: World) -> None:
    await made(node)
    world.odd = {NAMES[1]}
    with pytest.raises(InvalidSpec):
        await node.update_deployment("digits", DeploymentChange(NAMES[1], "10%"))
    with pytest.raises(NotFound):
        await node.update_deployment("digits", DeploymentChange("alice/none:1.0.0"))


async def test_a_light_peer_has_none(node: DeploymentAnswers) -> None:
    node._of.deployments = None  # type: ignore[misc]
    assert await node.deployments() == ()
    with pytest.raises(NotSupported):
        await node.predict("deploy:digits", IMAGE)
