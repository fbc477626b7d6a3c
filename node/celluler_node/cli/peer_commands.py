"""`celluler peer`: members of the swarm."""

from __future__ import annotations

from typing import Annotated

import typer

from celluler import views
from celluler.quantities import format_bytes
from celluler_node.cli.output import Output, ending
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
APPS = {"peer": app}
Peer = Annotated[str, typer.Argument(help="Peer id, its last 8 characters, or a nickname.")]


@app.command()
def ls(join: Join = NOBODY, json: Json = False) -> None:
    """All live members."""

    async def main() -> None:
        async with open_session(join) as client:
            peers = await client.peers.ls()
        headings = ("peer", "nickname", "status", "round trip", "device", "roles")
        Output(as_json=json).listing("peers", peers, headings, [_row(peer) for peer in peers])

    run(main)


@app.command()
def show(peer: Peer, join: Join = NOBODY, json: Json = False) -> None:
    """One member."""

    async def main() -> None:
        async with open_session(join) as client:
            p = await client.peers.show(peer)
        lines = {
            "peer id": p.peer_id,
            "nickname": p.nickname,
            "status": p.status,
            "addresses": p.addresses,
            "connected": "yes" if p.connected else "no",
            "round trip": _trip(p.round_trip_s),
            "hardware": p.hardware and f"{p.hardware.device}, {p.hardware.cores} cores, {p.hardware.memory_mb} MB",
            "roles": p.roles,
            "region": p.region,
            "isolation": p.isolation,
            "doubted by": p.doubts
            and f"{p.doubts} peer{'' if p.doubts == 1 else 's'}: they say it gave out false bytes",
            "wrong answer": p.wrong_answer,
            "evidence": p.evidence,
            "sent": format_bytes(p.sent_bytes),
            "received": format_bytes(p.received_bytes),
        }
        Output(as_json=json).facts(p, lines)

    run(main)


@app.command()
def ping(peer: Peer, join: Join = NOBODY, json: Json = False) -> None:
    """One round trip."""

    async def main() -> None:
        async with open_session(join) as client:
            pong = await client.peers.ping(peer)
        Output(as_json=json).facts(pong, {"peer": ending(pong.peer_id), "round trip": _trip(pong.round_trip_s)})

    run(main)


def _row(peer: views.Peer) -> tuple[object, ...]:
    device = peer.hardware.device if peer.hardware else ""
    return ending(peer.peer_id), peer.nickname, peer.status, _trip(peer.round_trip_s), device, peer.roles


def _trip(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f} ms"
