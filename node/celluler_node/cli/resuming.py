"""From a training that has ended to the document of one that goes on with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celluler.client import AsyncClient
from celluler.errors import LocalError
from celluler_node.cli.checkpoints import newest_checkpoint
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
