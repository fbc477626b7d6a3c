"""From a training that has ended to the document of one that goes on with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celluler.client import AsyncClient
from celluler.errors import LocalError, NotFound
from celluler.jobs.checkpoints import checkpoint_name, rounds_in
from celluler.views import Job, Model, ModelQuery
from celluler_node.cli.output import say
from celluler_node.cli.submitting import put, settings
from celluler_node.cli.training import ENDED


async def prepare(
    client: AsyncClient, job: str, *, rounds: int | None, model: str | None, sets: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """(document, attachments). Raises LocalError while the job goes on, NotFound when it left no checkpoint."""
    found = await client.jobs.get(job)
    if found.info.state not in ENDED:
        raise LocalError(f"job {found.info.name} is {found.info.state}", hint=f"celluler train stop {job}")
    if found.info.result is not None and model is None:
        hint = f"celluler train start --model {found.info.result.model}"
        raise LocalError(f"job {found.info.name} has done all its rounds", hint=hint)
    spec, attachments = await found.spec(), list[str]()
    if model is None:
        base, done = await newest_checkpoint(client, found.info, spec)
        model, rounds = base.cid, spec["train"]["rounds"] - done if rounds is None else rounds
        attachments = [base.cid, base.weights] if base.local else []
        say(f"from {base.reference}, {rounds} rounds more")
    assert rounds is not None, "the caller said so, or the checkpoint does"
    if rounds < 1:
        raise LocalError(f"job {found.info.name} has no rounds left", hint="--rounds N, for more than it asked for")
    document = {**spec, "model": model, "train": {**spec["train"], "rounds": rounds}}
    put(document, settings(sets))
    return document, attachments


async def newest_checkpoint(client: AsyncClient, job: Job, spec: Mapping[str, Any]) -> tuple[Model, int]:
    """The one with the most rounds, and how many. Only what a member of the job signed as coming of it is believed.

    Raises NotFound.
    """
    name = checkpoint_name(str(spec["result"]["name"] or job.name))
    authors = {*job.members, job.coordinator}
    candidates = [
        (model, rounds)
        for model in await client.models.search(ModelQuery(text=name))
        if model.name == name and model.author in authors and not model.retracted
        if (rounds := rounds_in(model.version)) is not None
    ]
    for model, rounds in sorted(candidates, key=lambda pair: pair[1], reverse=True):
        shown = await client.models.show(model.cid)
        if shown.job == job.id:
            return shown, rounds
    raise NotFound(
        f"a checkpoint of job {job.name}", hint="celluler train resume JOB --model author/name:1.0.0 --rounds N"
    )
