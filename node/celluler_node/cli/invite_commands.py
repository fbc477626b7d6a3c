"""`celluler train invite` and `join`: into a run that has begun, by the word of whoever submitted or coordinates it."""

from __future__ import annotations

from typing import Annotated

import typer

from celluler.models.names import PEER_ID_START
from celluler_node.cli.job_output import clock, show_job
from celluler_node.cli.output import Output, ending, say
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run


def invite(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id, or its last 6 characters or more.")],
    peer: Annotated[str, typer.Argument(metavar="PEER", help="Peer id, its last 8 characters, or a nickname.")],
    good_for: Annotated[str, typer.Option("--for", metavar="TIME", help="How long it may be shown.")] = "1h",
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Sign that PEER may come late into a training of yours, also one that lists others. Prints the invite.

    PEER hands it to its own node: celluler train join INVITE.
    """
    from celluler_node.cli.train_spec import seconds  # noqa: PLC0415

    for_s = seconds(good_for, "for")

    async def main() -> None:
        async with open_session(join) as client:
            found = await client.jobs.get(job)
            known = peer if peer.startswith(PEER_ID_START) else (await client.peers.show(peer)).peer_id
            told = await found.invite(known, for_s=for_s)
        if json:
            Output(as_json=True).document(told)
            return
        print(told.invite)
        say(f"for {ending(told.peer)}, until {clock(told.expires_s)}; there: celluler train join INVITE")

    run(main)


def join(
    invite: Annotated[str, typer.Argument(metavar="INVITE", help="As `train invite` prints it.")],
    json: Json = False,
) -> None:
    """Have this node take part in a training to which it is invited, whether or not it has begun."""

    async def main() -> None:
        async with open_session(NOBODY) as client:
            show_job(Output(as_json=json), (await client.jobs.join(invite)).info)

    run(main)
