"""Answers of several put together: distinct peers with one model, or several models, asked side by side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import trio

from celluler.errors import CellulerError, InvalidSpec, NoPeers, TimedOut
from celluler.identity import PeerId
from celluler.inference.ensemble import MAX_MEMBERS, Aggregate, aggregated, check_rule, quorum_of
from celluler.models.manifest import OpenedManifest
from celluler.tensors import Tensor
from celluler.views import Ensemble, EnsembleMember, Prediction
from celluler_node.answers.inference import cid_text
from celluler_node.answers.models import ModelAnswers
from celluler_node.placement.chooser import final, gravest
from celluler_protocols.inference import Predict, Predicted
from celluler_protocols.nursery import own_nursery

ENSEMBLE_S = 90.0
GRACE_S, GRACE_TIMES = 2.0, 3.0
"""Once a quorum has answered, the rest has so long, or so many times as long as the quorum took."""


@dataclass(slots=True)
class _Member:
    """One answer that is wanted. ask: whoever gives it, and it."""

    opened: OpenedManifest
    ask: Callable[[], Awaitable[tuple[PeerId, Predicted]]]
    peer: str = ""
    answer: Predicted | None = None
    failure: CellulerError | None = None
    elapsed_s: float = 0.0


@dataclass(slots=True)
class _Turns:
    """Peers that may answer in one ensemble, each once. reserve: whom nobody has asked yet."""

    reserve: list[PeerId]
    failures: list[CellulerError] = field(default_factory=list)

    def next(self) -> PeerId:
        """Raises what the last one failed with when nobody is left."""
        if not self.reserve:
            raise gravest(self.failures)
        return self.reserve.pop(0)


class EnsembleAnswers(ModelAnswers):
    """The part of `Operations` about ensembles."""

    async def ensemble(
        self, refs: Sequence[str], inputs: Tensor, output: str = "", *, members: int = 1, aggregate: str = "vote"
    ) -> Prediction:
        began = trio.current_time()
        if not 2 <= len(refs) * members <= MAX_MEMBERS or (len(refs) > 1 and members > 1):
            raise InvalidSpec("ensemble", f"must be 2…{MAX_MEMBERS} peers with one model, or as many models")
        opened = [await self._resolved(ref) for ref in refs]
        output = output or opened[0].interface.usual
        _check_alike(opened, inputs, output, aggregate)
        request = Predict(cid_text(opened[0]), output, inputs.dtype, inputs.shape, inputs.data)
        if len(opened) == 1:
            wanted = await self._of_peers(opened[0], request, members)
        else:
            wanted = [_Member(one, self._of_model(one, replace(request, model=cid_text(one)))) for one in opened]
        await _ask_all(wanted, began)
        prediction = self._put_together(wanted, output, aggregate, trio.current_time() - began)
        if len(opened) == 1:
            self._suspect(wanted, prediction, request)
        return prediction

    async def _of_peers(self, opened: OpenedManifest, request: Predict, members: int) -> list[_Member]:
        """Distinct peers, whom to ask first first; who fails is replaced by the next one, as long as there is one."""
        order = await self.chooser.ranked(opened)
        if len(order) < quorum_of(members):
            raise NoPeers(f"{len(order)} peers serve models, {members} are wanted", hint="celluler peer ls")
        turns = _Turns(order)

        async def ask() -> tuple[PeerId, Predicted]:
            while True:
                peer = turns.next()
                try:
                    return await self._first_prediction(opened, request, peer)
                except CellulerError as error:
                    if final(error):
                        raise
                    turns.failures.append(error)

        return [_Member(opened, ask) for _ in range(members)]

    def _of_model(self, opened: OpenedManifest, request: Predict) -> Callable[[], Awaitable[tuple[PeerId, Predicted]]]:
        async def ask() -> tuple[PeerId, Predicted]:
            return await self._first_prediction(opened, request)

        return ask

    def _put_together(self, wanted: Sequence[_Member], output: str, rule: str, elapsed_s: float) -> Prediction:
        """Raises the gravest failure where no quorum came, InvalidSpec for answers that do not go together."""
        came = [one for one in wanted if one.answer is not None]
        if len(came) < quorum_of(len(wanted)):
            failures = [one.failure or TimedOut("no answer in time") for one in wanted if one.answer is None]
            raise gravest(failures)
        found = aggregated(rule, [_array(one.answer) for one in came if one.answer is not None])
        told = Tensor(found.values.shape, found.values.dtype.name, np.ascontiguousarray(found.values).tobytes())
        first = came[0]
        assert first.answer is not None
        prediction = self._prediction(first.opened, output, self._core.identity.peer_id, first.answer, elapsed_s)
        members = tuple(self._member_view(one, _dissent(one, came, found)) for one in wanted)
        apart = tuple(float(one) for one in found.disagreement)
        return replace(prediction, outputs=told, ensemble=Ensemble(rule, len(wanted), len(came), apart, members))

    def _member_view(self, one: _Member, dissent: int) -> EnsembleMember:
        failure = "" if one.answer is not None else str(one.failure or "no answer in time")
        model = self._core.repository.held(one.opened).name
        return EnsembleMember(one.peer, model, dissent, one.elapsed_s, failure[:300])

    def _suspect(self, wanted: Sequence[_Member], prediction: Prediction, request: Predict) -> None:
        """Who disagrees with the others about one model is checked, whatever was drawn."""
        assert prediction.ensemble is not None
        for one, told in zip(wanted, prediction.ensemble.members, strict=True):
            if told.dissent and one.answer is not None and one.peer != self._core.identity.peer_id:
                self.checks.predicted(PeerId(one.peer), request, one.answer, suspected=True)


async def _ask_all(wanted: Sequence[_Member], began: float) -> None:
    """Until all have answered, or a quorum has and the others had their time. Raises what nobody answers otherwise."""
    done, left = trio.Event(), len(wanted)
    refused: CellulerError | None = None
    async with own_nursery() as nursery:

        async def run(one: _Member) -> None:
            nonlocal left, refused
            try:
                one.peer, one.answer = await one.ask()
            except CellulerError as error:
                one.failure = error
                if final(error):
                    refused = error
            one.elapsed_s = trio.current_time() - began
            left -= 1
            came = sum(other.answer is not None for other in wanted)
            if not left or refused is not None:
                done.set()
            elif came == quorum_of(len(wanted)):
                taken = trio.current_time() - began
                nursery.cancel_scope.deadline = min(
                    nursery.cancel_scope.deadline, trio.current_time() + max(GRACE_S, GRACE_TIMES * taken)
                )

        nursery.cancel_scope.deadline = began + ENSEMBLE_S
        for one in wanted:
            nursery.start_soon(run, one)
        await done.wait()
        nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused


def _check_alike(opened: Sequence[OpenedManifest], inputs: Tensor, output: str, rule: str) -> None:
    """All models take this batch, and give the same with the same labels. Raises InvalidSpec."""
    first = opened[0]
    for one in opened:
        one.interface.check(inputs.dtype, inputs.shape, output)
        if one.interface.outputs[output].dtype != first.interface.outputs[output].dtype:
            raise InvalidSpec("models", f"give {output} in different dtypes")
        if one.record.labels != first.record.labels:
            raise InvalidSpec("models", "have different labels, or in another order")
    check_rule(rule, first.interface.answer(inputs.shape[0], output)[0])


def _dissent(one: _Member, came: Sequence[_Member], found: Aggregate) -> int:
    return next((count for other, count in zip(came, found.dissent, strict=True) if other is one), 0)


def _array(answer: Predicted | None) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    assert answer is not None
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = Tensor(answer.shape, answer.dtype, answer.data).numpy()
    return array
