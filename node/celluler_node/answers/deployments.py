"""Answers about deployments, and those given through them: an arm for the session, a replica for the arm.

Stands before the answers about models and writing: what is asked of `deploy:NAME` becomes a question to one version, by
its CID, and what is asked of a model passes. Answers that were given before are given again here, too, where the node
keeps any.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog
import trio

from celluler.errors import CellulerError, InvalidSpec, NotSupported
from celluler.inference import deployments as pure
from celluler.inference.deployments import STABLE, Arm, Deployment, deployment_named
from celluler.inference.deployments_counts import agreement
from celluler.inference.questions import Generated, Question
from celluler.tensors import Tensor
from celluler.views import AnswerCacheUsage, DeploymentChange, Model, ModelPorts, NewDeployment, Prediction
from celluler.views import Deployment as DeploymentView
from celluler_node.answers.generation import GenerationAnswers
from celluler_node.answers.inference import cid_text
from celluler_node.answers.models import ModelAnswers
from celluler_node.bounded import bounded
from celluler_node.callers import called_by, caller
from celluler_node.deployments.book import MAX_COMPARING, Asked, Deployments
from celluler_node.deployments.views import changed_scale, deployment_view, new_deployment
from celluler_node.model_views import ports_view
from celluler_node.serving.kept_answers import Counted, is_kept

COMPARE_S = 60.0

log = structlog.get_logger()

Ask = Callable[[str, Tensor, str], Awaitable[Prediction]]


class DeploymentAnswers(ModelAnswers, GenerationAnswers):
    """The part of `Operations` about deployments."""

    # --- what they are -----------------------------------------------------------------------------------------

    async def deployments(self) -> tuple[DeploymentView, ...]:
        desk = self._of.deployments
        return () if desk is None else tuple(deployment_view(one, desk) for one in desk.all)

    async def deployment(self, name: str) -> DeploymentView:
        return deployment_view(self._desk().get(name), self._desk())

    async def create_deployment(self, deployment: NewDeployment) -> DeploymentView:
        desk = self._desk()
        stable = await self._version(deployment.model)
        arms = []
        for one in deployment.arms:
            model, cid = await self._version(one.model, like=stable[1])
            arms.append(Arm(one.name, model, cid, pure.read_share(one.share, f"arms.{one.name[:32]}")))
        made = new_deployment(deployment, Arm(STABLE, *stable), tuple(arms), time.time())
        return deployment_view(await desk.add(made), desk)

    async def update_deployment(self, name: str, change: DeploymentChange) -> DeploymentView:
        desk = self._desk()
        if change == DeploymentChange(arm=change.arm):
            raise InvalidSpec("", "nothing to change: a model, a share, replicas …")
        old = desk.get(name)
        meant = None if change.model is None else await self._version(change.model, like=old.stable.cid)
        step = _step(change, meant)

        def apply(now: Deployment) -> Deployment:
            return changed_scale(step(now), change, time.time())

        return deployment_view(await desk.change(name, apply), desk)

    async def promote_deployment(self, name: str, arm: str = "") -> DeploymentView:
        desk = self._desk()
        return deployment_view(await desk.change(name, lambda old: pure.promote(old, arm, time.time())), desk)

    async def rollback_deployment(self, name: str) -> DeploymentView:
        desk = self._desk()
        return deployment_view(await desk.change(name, lambda old: pure.roll_back(old, time.time())), desk)

    async def remove_deployment(self, name: str) -> None:
        await self._desk().remove(name)

    async def answer_cache(self) -> AnswerCacheUsage:
        return self._of.kept_answers.usage if self._of.kept_answers is not None else AnswerCacheUsage()

    def _desk(self) -> Deployments:
        if self._of.deployments is None:
            raise NotSupported("a light peer has no deployments", hint="celluler up, and ask the node")
        return self._of.deployments

    async def _version(self, ref: str, like: str | None = None) -> tuple[str, str]:
        """`author/name:version` and CID. like: a version that takes and gives the same. Raises InvalidSpec."""
        repository = self._core.repository
        opened = await self._resolved(ref)
        if like is not None:
            other = ports_view(repository.held(await self._resolved(like)))
            own = ports_view(repository.held(opened))
            if own.takes != other.takes or own.gives[0].name != other.gives[0].name:
                told = f"{own.model} takes or gives something else than {other.model}: nobody could ask either alike"
                raise InvalidSpec("model", told)
        return repository.held(opened).name, cid_text(opened)

    # --- models ------------------------------------------------------------------------------------------------

    async def model_ports(self, ref: str) -> ModelPorts:
        name = deployment_named(ref)
        if name is None:
            return await super().model_ports(ref)
        arm = pure.arm_of(self._desk().get(name), caller().session)
        return replace(await super().model_ports(arm.cid), deployment=ref)

    async def show_model(self, ref: str) -> Model:
        name = deployment_named(ref)
        return await super().show_model(ref if name is None else self._desk().get(name).stable.cid)

    # --- predictions -------------------------------------------------------------------------------------------

    async def predict(self, ref: str, inputs: Tensor, output: str = "", *, peer: str = "") -> Prediction:
        name = deployment_named(ref)
        if name is None:
            return await self._given_before(ref, inputs, output, partial(super().predict, peer=peer), peer)
        desk, one = self._desk(), caller()
        with called_by(one), desk.asked(name, one.session) as asked:
            one.told |= {"arm": asked.arm.name, "model": asked.arm.model}
            began = trio.current_time()
            try:
                at_a_replica = partial(self._at_a_replica, asked, peer)
                prediction = await self._given_before(asked.arm.cid, inputs, output, at_a_replica, peer)
            except CellulerError as error:
                asked.failed(error)
                raise
            asked.answered(began, samples=inputs.shape[0] if inputs.shape else 1)
            asked.state.counts.cached += prediction.cached
        if not prediction.cached:
            self._compare(asked, inputs, prediction)
        return replace(prediction, arm=asked.arm.name)

    async def _given_before(self, ref: str, inputs: Tensor, output: str, ask: Ask, peer: str) -> Prediction:
        """Kept from before, or asked. Who names a peer wants its own answer."""
        kept = self._of.kept_answers
        if kept is None or peer:
            return await ask(ref, inputs, output)
        opened = await self._resolved(ref)
        output = output or opened.interface.usual
        return await kept.prediction(opened, inputs, output, lambda: ask(cid_text(opened), inputs, output))

    async def _at_a_replica(self, asked: Asked, peer: str, cid: str, inputs: Tensor, output: str) -> Prediction:
        """At a replica, or at whoever else answers where none does."""
        if peer:
            return await super().predict(cid, inputs, output, peer=peer)
        await self._desk().warm(asked)
        with self._desk().preferring(asked):
            prediction = await super().predict(cid, inputs, output)
        self._desk().answered_by(asked, prediction.peer)
        return prediction

    def _compare(self, asked: Asked, inputs: Tensor, prediction: Prediction) -> None:
        """Ask another arm the same in the background, if it is this request's turn."""
        desk = self._desk()
        other = desk.due_for_comparison(asked.deployment, asked.arm)
        if other is not None and desk.comparing.borrowed_tokens < MAX_COMPARING:
            self._core.nursery.start_soon(self._compared, asked, other, inputs, prediction)

    async def _compared(self, asked: Asked, other: Arm, inputs: Tensor, prediction: Prediction) -> None:
        desk = self._desk()
        try:
            async with desk.comparing:
                with bounded(COMPARE_S, "comparing arms"):
                    second = await super().predict(other.cid, inputs, prediction.output)
        except CellulerError as error:
            log.info("arm_not_compared", arm=other.name, reason=str(error))
            return
        compared, agreed = agreement(prediction.outputs, second.outputs, prediction.output)
        for state in (asked.state, desk.state(asked.deployment.name, other.cid)):
            state.counts.compared += compared
            state.counts.agreed += agreed

    # --- texts -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def generate(self, ref: str, question: Question, *, peer: str = "") -> AsyncIterator[Generated]:
        name = deployment_named(ref)
        if name is None:
            async with self._written(ref, question, peer) as generated:
                yield generated
            return
        desk, one = self._desk(), caller()
        with desk.asked(name, one.session) as asked:
            one.told |= {"arm": asked.arm.name, "model": asked.arm.model}
            began = trio.current_time()
            async with AsyncExitStack() as stack:
                try:
                    with called_by(one):
                        writing = self._written(asked.arm.cid, question, peer, asked)
                        generated = await stack.enter_async_context(writing)
                except CellulerError as error:
                    asked.failed(error)
                    raise
                asked.state.counts.cached += is_kept(generated)
                yield Counted(generated, asked, began)
                if not (peer or is_kept(generated)):
                    desk.answered_by(asked, generated.peer)

    @asynccontextmanager
    async def _written(
        self, ref: str, question: Question, peer: str, asked: Asked | None = None
    ) -> AsyncIterator[Generated]:
        """Kept from before, or asked: of a deployment, at a replica. Who names a peer wants its own answer."""
        kept, opened = None if peer else self._of.kept_answers, None
        if kept is not None:
            opened = await self._resolved(ref)
            ref, found = cid_text(opened), kept.text(opened, question)
            if found is not None:
                yield found
                return
        with ExitStack() as stack:
            if asked is not None and not peer:
                await self._desk().warm(asked)
                stack.enter_context(self._desk().preferring(asked))
            async with super().generate(ref, question, peer=peer) as generated:
                yield generated if kept is None or opened is None else kept.recording(opened, question, generated)


def _step(change: DeploymentChange, meant: tuple[str, str] | None) -> Callable[[Deployment], Deployment]:
    """What a change does to the versions. Raises InvalidSpec for one that says two things."""
    now, share = time.time(), None if change.share is None else pure.read_share(change.share)
    if change.blue_green and (meant is None or share is not None):
        raise InvalidSpec("blue_green", "needs a model, and gives it everything: no share")
    if meant is not None and share is not None:
        return lambda old: pure.try_out(old, Arm(change.arm, *meant, share), now)
    if meant is not None:
        bring = pure.bring_in if change.blue_green else pure.switch
        return lambda old: bring(old, *meant, now)
    if share is not None:
        return lambda old: pure.share_out(old, {change.arm: share}, now)
    return lambda old: old
