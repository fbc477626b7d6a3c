"""A training while it goes on, redrawn in place: when there is news and once in a while, with no thread of its own.

The node is asked for events and answers when there are some; the page is computed from all that it told.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import trio
from rich.console import Console
from rich.live import Live

from celluler.client import AsyncClient, AsyncJob
from celluler.errors import CellulerError
from celluler_node.cli.checkpoints import look_for_checkpoint
from celluler_node.cli.job_output import print_line
from celluler_node.cli.output import Output
from celluler_node.cli.training import OnTold, Training
from celluler_node.cli.training_page import page
from celluler_protocols.nursery import own_nursery

REDRAW_S = 0.5
PLAIN_WIDTH = 110
CHECKPOINTS_S = 10.0
"""How often to look for a newer checkpoint."""


async def look_at(client: AsyncClient, job: AsyncJob) -> Training:
    """All that is told of it now. Members bear the names they have in the swarm, if anybody knows them."""
    spec, names = await job.spec(), await _names(client)
    events = [line async for line in job.logs()]
    return Training(job.info, spec, tuple(events), names, await look_for_checkpoint(client, job.info, spec))


async def told(client: AsyncClient, job: AsyncJob) -> AsyncIterator[Training]:
    """Each time there is news, until the job has ended. The first is what was told before."""
    training = await look_at(client, job)
    yield training
    since, looked_s = training.events[-1].cursor if training.events else 0, trio.current_time()
    async for line in job.logs(follow=True, since=since):
        training = replace(training, job=job.info, events=(*training.events, line))
        if training.spec["train"].get("checkpoint_every") and trio.current_time() >= looked_s + CHECKPOINTS_S:
            training, looked_s = await _with_checkpoint(client, training), trio.current_time()
        yield training
    yield await _with_checkpoint(client, replace(training, job=await job.refresh()))


async def watch(
    client: AsyncClient, job: AsyncJob, console: Console, on_told: OnTold, *, redraw_s: float = REDRAW_S
) -> Training:
    """Draw until the job has ended, or we are interrupted; the last page stays."""
    training: Training | None = None
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:

            def draw() -> None:
                if training is not None:
                    live.update(page(training, time.time()), refresh=True)

            async def tick() -> None:
                while True:
                    draw()
                    await trio.sleep(redraw_s)

            async with own_nursery() as nursery:
                nursery.start_soon(tick)
                async for training in told(client, job):  # tick draws it too
                    draw()
                    await on_told(training)
    finally:
        if training is not None:
            console.print(page(training, time.time()))  # whole, also where the terminal is too low for it
    assert training is not None
    return training


async def print_lines(client: AsyncClient, job: AsyncJob, output: Output, on_told: OnTold) -> Training:
    """One line an event, until the job has ended."""
    printed = 0
    async for training in told(client, job):
        for line in training.events[printed:]:
            print_line(output, line)
        printed = len(training.events)
        await on_told(training)
    return training


def console_for(file_is_terminal: bool) -> Console:
    """Of stdout. Into a pipe no escape codes, whatever the environment says, and a width that does not depend on it."""
    if file_is_terminal:
        return Console()
    return Console(force_terminal=False, color_system=None, no_color=True, width=PLAIN_WIDTH, highlight=False)


async def _with_checkpoint(client: AsyncClient, training: Training) -> Training:
    found = await look_for_checkpoint(client, training.job, training.spec)
    return training if found is None else replace(training, checkpoint=found)


async def _names(client: AsyncClient) -> Mapping[str, str]:
    try:
        return {peer.peer_id: peer.nickname for peer in await client.peers.ls()}
    except CellulerError:  # names are a help, no more
        return {}
