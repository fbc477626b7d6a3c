"""Checkpoints of a training, as anybody finds them: models that a member signed as coming of the job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from celluler.client import AsyncClient
from celluler.errors import CellulerError, NotFound
from celluler.jobs.checkpoints import checkpoint_name, rounds_in
from celluler.views import Job, JobCheckpoint, Model, ModelQuery

LOOK_S = 5.0


async def newest_checkpoint(client: AsyncClient, job: Job, spec: Mapping[str, Any]) -> tuple[Model, int]:
    """The one with the most rounds, and how many. Only what a member of the job signed as coming of it is believed.

    spec: the job's document, with defaults. Raises NotFound.
    """
    name = checkpoint_name(str(spec["result"]["name"] or job.name))
    authors = {*job.members, job.coordinator}
    candidates = [
        (model, rounds)
        for model in await client.models.search(ModelQuery(text=name))
        if model.name == name and model.author in authors and not model.retracted
        if (rounds := rounds_in(model.version)) is not None and rounds <= spec["train"]["rounds"]
    ]
    for model, rounds in sorted(candidates, key=lambda pair: pair[1], reverse=True):
        shown = await client.models.show(model.cid)
        if shown.job == job.id:
            return shown, rounds
    raise NotFound(
        f"a checkpoint of job {job.name}", hint="celluler train resume JOB --model author/name:1.0.0 --rounds N"
    )


async def look_for_checkpoint(client: AsyncClient, job: Job, spec: Mapping[str, Any]) -> JobCheckpoint | None:
    """The same to be shown, as far as it is found within LOOK_S."""
    with trio.move_on_after(LOOK_S):
        try:
            model, rounds = await newest_checkpoint(client, job, spec)
        except CellulerError:  # to know of it is a help, no more
            return None
        return JobCheckpoint(rounds, model.reference, model.cid, model.weights)
    return None
