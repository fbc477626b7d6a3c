"""The root of the command tree: which commands there are, where each lives, and how an error leaves the program."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Annotated, Any

import typer
import typer.core
import typer.main

import celluler
from celluler.errors import CellulerError
from celluler.failures import describe_error
from celluler.views import SCHEMA
from celluler_node.cli.output import say

_PACKAGE = "celluler_node.cli"
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("node_commands", "Make this machine's identity and configuration."),
    "up": ("node_commands", "Run a node."),
    "down": ("node_commands", "Stop the node."),
    "status": ("node_commands", "The node in one page."),
    "doctor": ("node_commands", "Look for what is wrong."),
    "id": ("id_commands", "The key that is this peer: show, export, import."),
    "key": ("key_commands", "API keys for the HTTP endpoint: create, ls, rm."),
    "peer": ("peer_commands", "Members of the swarm: ls, show, ping."),
    "model": ("model_commands", "Models: add, ls, search, show, pull, versions, diff, verify …"),
    "data": ("data_commands", "Datasets: add, ls, show, pull."),
    "blob": ("blob_commands", "Contents by CID: add, get, stat, gc."),
    "run": ("run_command", "Run a model on a prompt or an input."),
    "chat": ("chat_command", "Talk with a model that writes."),
    "bench": ("bench_command", "How fast a model answers."),
    "ps": ("serving_commands", "Models that are loaded."),
    "load": ("serving_commands", "Have a model ready before anybody asks."),
    "unload": ("serving_commands", "Free what a model takes."),
    "embed": ("embed_command", "Turn texts into vectors."),
    "deploy": ("deploy_commands", "Versions behind one name: create, update --canary, promote, rollback …"),
    "verify": ("verify_commands", "Verify how a model was trained, or what is held against a member."),
    "train": ("train_commands", "Train together: start, status, stop, resume, calibrate …"),
    "job": ("job_commands", "Jobs: submit, validate, ls, show, logs, wait, cancel."),
}
"""Name → (module, one line of help). A module holds one Typer app for each of its commands, in `APPS`."""


class LazyGroup(typer.core.TyperGroup):
    """Lists the commands without importing them, and imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return typer.core.TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return (name, load(name), rest) if command is not None and name is not None else (name, command, rest)


def load(name: str) -> Any:
    """The real command of this name."""
    module = importlib.import_module(f"{_PACKAGE}.{COMMANDS[name][0]}")
    command = typer.main.get_command(module.APPS[name])
    command.name = name
    command.help = command.help or COMMANDS[name][1]
    return command


app = typer.Typer(cls=LazyGroup, add_completion=False, invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def root(
    context: typer.Context,
    home: Annotated[str, typer.Option(help="Folder of key, state and content; instead of CELLULER_HOME.")] = "",
    config: Annotated[str, typer.Option(help="Configuration file; instead of CELLULER_CONFIG.")] = "",
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Train, store and serve AI models among peers, with no server in the middle."""
    if version:
        print(f"celluler {celluler.__version__}")
        raise typer.Exit
    # A flag goes before the environment by taking its place in it: children of ours inherit the choice.
    if home:
        os.environ["CELLULER_HOME"] = os.path.abspath(home)
    if config:
        os.environ["CELLULER_CONFIG"] = os.path.abspath(config)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def run(arguments: list[str]) -> int:
    """Do what the arguments say; returns the exit code."""
    command = typer.main.get_command(app)
    try:
        command.main(arguments, prog_name="celluler")
    except CellulerError as error:
        report(error, as_json="--json" in arguments)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read us has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    return 0


def report(error: CellulerError, *, as_json: bool) -> None:
    """Say on stderr what happened and what to try next."""
    if as_json:
        print(json.dumps({"schema": SCHEMA, "error": describe_error(error)}), file=sys.stderr)
        return
    say(f"celluler: {error}")
    if error.hint:
        say(f"  next: {error.hint}")
