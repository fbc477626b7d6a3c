"""`celluler init, up, down, status, doctor`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import celluler
from celluler.client import AsyncClient
from celluler.errors import IntegrityError, LocalError, TimedOut
from celluler.home import NodeFile, places, read_node_file
from celluler.identity import load_or_create_identity
from celluler.quantities import format_bytes, format_duration
from celluler.views import StoreCheck, to_json
from celluler_node.cli.detach import start_detached
from celluler_node.cli.output import Output, ending, say
from celluler_node.cli.session import NOBODY, Join, Json, log_to, open_session, run
from celluler_node.config import load_config
from celluler_node.settings import SETTINGS

DOWN_S = 30.0


def init(
    nickname: Annotated[str, typer.Option(help="How others see this peer: a-z, 0-9 and -.")] = "",
    json: Json = False,
) -> None:
    """Make this machine's identity and configuration. What is there already stays."""
    config = load_config(os.environ, {"nickname": nickname or None})
    where = places(os.environ)
    where.config_file.parent.mkdir(parents=True, exist_ok=True)
    config.home.mkdir(parents=True, exist_ok=True)
    if not where.config_file.exists():
        where.config_file.write_text(_template(nickname), "utf-8")
    elif nickname:
        say(f"{where.config_file} is there already and stays as it is; the nickname belongs into it")
    identity = load_or_create_identity(config.key_file)
    document = {"peer_id": identity.peer_id, "home": str(config.home), "config_file": str(where.config_file)}
    Output(as_json=json).facts(
        document, {"peer id": identity.peer_id, "home": config.home, "configuration": where.config_file}
    )


def up(
    join: Annotated[list[str], typer.Option(metavar="ADDR", help="Join by this peer. May be repeated.")] = [],  # noqa: B006
    listen: Annotated[list[str], typer.Option(metavar="ADDR", help="Listen here. May be repeated.")] = [],  # noqa: B006
    nickname: Annotated[str, typer.Option(help="How others see this peer.")] = "",
    api_host: Annotated[str, typer.Option(help="Where the HTTP endpoint listens.")] = "",
    api_port: Annotated[int, typer.Option(help="Its port; 0 for any free one.", show_default=False)] = -1,
    quota: Annotated[str, typer.Option(help="The most that content may take, such as 10GiB.")] = "",
    log_format: Annotated[str, typer.Option(help="`text` or `json`.")] = "",
    log_level: Annotated[str, typer.Option(help="`debug`, `info`, `warning` or `error`.")] = "",
    log_file: Annotated[str, typer.Option(help="Log there instead of to stderr.")] = "",
    detach: Annotated[bool, typer.Option("--detach", help="In the background, once it is ready.")] = False,
    json: Json = False,
) -> None:
    """Run a node. Prints its addresses when it is ready; ends on Ctrl-C, SIGTERM or `celluler down`."""
    flags: dict[str, Any] = {
        "network.join": join or None,
        "network.listen": listen or None,
        "nickname": nickname or None,
        "api.host": api_host or None,
        "api.port": api_port if api_port != -1 else None,
        "store.quota": quota or None,
        "log.format": log_format or None,
        "log.level": log_level or None,
        "log.file": log_file or None,
    }
    config = load_config(os.environ, flags)
    config.home.mkdir(parents=True, exist_ok=True)
    announce = partial(_announce, Output(as_json=json))
    if detach:
        announce(start_detached(config, flags))
        return
    from celluler_node.running import run_node  # noqa: PLC0415  # libp2p: only a node pays for it

    log_to(config.log_file, config.log_format, config.log_level)
    run(partial(run_node, config, on_ready=announce))


def down(json: Json = False) -> None:
    """Stop the node of this machine, and wait until it is gone."""
    home = places(os.environ).home
    node = read_node_file(home)

    async def main() -> None:
        async with AsyncClient(home=home) as client:
            await client.shutdown()

    run(main)
    deadline = time.monotonic() + DOWN_S
    while not _ended(node.pid):
        if time.monotonic() > deadline:
            raise TimedOut(f"process {node.pid} has not ended in {DOWN_S:.0f} s", hint=f"kill {node.pid}")
        time.sleep(0.05)
    if json:
        Output(as_json=True).document({"peer_id": node.peer_id, "ended": True})
    else:
        say("the node has ended")


def status(join: Join = NOBODY, json: Json = False) -> None:
    """The node in one page."""

    async def main() -> None:
        async with open_session(join) as client:
            told = await client.status()
        sent = sum(one.sent_bytes for one in told.traffic)
        received = sum(one.received_bytes for one in told.traffic)
        lines = {
            "peer id": told.peer_id,
            "nickname": told.nickname,
            "version": told.version,
            "addresses": told.addresses,
            "up for": format_duration(told.uptime_s),
            "region": told.region,
            "members": told.members,
            "hardware": f"{told.hardware.device}, {told.hardware.cores} cores, {told.hardware.memory_mb} MB",
            "isolation": told.isolation,
            "models": told.models,
            "engine": told.engine,
            "loaded": told.engine
            and f"{told.loaded}, {format_bytes(told.loaded_bytes)} of {format_bytes(told.loaded_limit_bytes)}",
            "jobs": [f"{count} {state}" for state, count in told.jobs.items() if count],
            "store": f"{format_bytes(told.store.used_bytes)} of {format_bytes(told.store.quota_bytes)}",
            "traffic": f"{format_bytes(sent)} sent, {format_bytes(received)} received",
            "violations": told.violations,
        }
        Output(as_json=json).facts(told, lines)

    run(main)


def doctor(
    store: Annotated[bool, typer.Option("--store", help="Hash again all that the store claims to hold.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --store: forget what is damaged, and fetch it anew.")
    ] = False,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Look for what is wrong. Exit code 1 when something is, 7 when content is damaged."""
    if store:
        _check_store(join, json, repair)
        return
    if repair:
        raise LocalError("--repair goes with --store", hint="celluler doctor --store --repair")

    async def main() -> bool:
        async with open_session(join) as client:
            checks = await client.doctor()
        rows = [("ok" if check.ok else "WRONG", check.name, check.detail, check.hint) for check in checks]
        Output(as_json=json).listing("checks", checks, ("", "check", "found", "do"), rows)
        return all(check.ok for check in checks)

    if not run(main):
        raise typer.Exit(1)


def _check_store(join: list[str], json: bool, repair: bool) -> None:
    async def main() -> StoreCheck:
        async with open_session(join) as client:
            if not json:
                say("hashing everything the store holds")
            return await client.check_store(repair=repair)

    found = run(main)
    if json:
        Output(as_json=True).document(found)
    else:
        rows = (
            (d.cid, d.kind, d.pieces, format_bytes(d.damaged_bytes), "fetched anew" if d.restored else "DAMAGED")
            for d in found.damaged
        )
        Output(as_json=False).table(("content", "kind", "pieces", "size", ""), rows)
        blocks = f", {found.damaged_blocks} damaged records" if found.damaged_blocks else ""
        say(f"{format_bytes(found.checked_bytes)} checked, {len(found.damaged)} contents damaged{blocks}")
        if not found.ok and not repair:
            say("  next: celluler doctor --store --repair")
    if not found.ok:
        raise typer.Exit(IntegrityError.exit_code)


def _announce(output: Output, node: NodeFile) -> None:
    """The line that says the node is ready: addresses others join by."""
    document = to_json(node)
    del document["token"]
    if output.as_json:
        output.document({"ready": True, **document})
        return
    print(f"ready: {ending(node.peer_id)} at {node.api}", flush=True)
    for address in node.addresses:
        print(f"  celluler up --join {address}", flush=True)


def _ended(pid: int) -> bool:
    """Gone, or waiting to be buried by its parent: a zombie holds no port and no file."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except (OSError, IndexError):  # no /proc here, or somebody else's process
        return False


def _template(nickname: str) -> str:
    """A configuration file that says everything and sets next to nothing."""
    lines = [f"# celluler {celluler.__version__}. Every setting with its default; see docs/reference/configuration.md"]
    section = ""
    for setting in SETTINGS:
        table, _, key = setting.path.rpartition(".")
        if table != section:
            lines += ["", f"[{table}]"]
            section = table
        chosen = setting.path == "nickname" and nickname
        value = nickname if chosen else setting.default
        lines.append(f"# {setting.about}")
        lines.append(f"{'' if chosen else '# '}{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return str(value) if isinstance(value, int) else f'"{value or ""}"'


def _single(command: Callable[..., None]) -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name=command.__name__)(command)
    return app


APPS = {command.__name__: _single(command) for command in (init, up, down, status, doctor)}
