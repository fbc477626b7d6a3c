"""`celluler id`: the key file, without a running node."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from celluler.errors import LocalError
from celluler.home import places
from celluler.identity import format_identity, load_identity, parse_identity
from celluler_node.cli.output import Output, say
from celluler_node.cli.session import Json

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
APPS = {"id": app}


def key_file() -> Path:
    return places(os.environ).home / "identity.key"


@app.command()
def show(json: Json = False) -> None:
    """The peer id of this machine's key."""
    identity = load_identity(key_file())
    document = {"peer_id": identity.peer_id, "public_key": identity.public_key.hex(), "key_file": str(key_file())}
    Output(as_json=json).facts(document, {"peer id": identity.peer_id, "key file": key_file()})


@app.command()
def export(path: Annotated[str, typer.Argument(help="File to write, mode 0600; - for stdout.")]) -> None:
    """Write out the secret key: whoever has it is this peer."""
    text = format_identity(load_identity(key_file()))
    if path == "-":
        sys.stdout.write(text)
        return
    _write_secret(Path(path), text)
    say(f"wrote the secret key to {path}: keep it as you keep a password")


@app.command(name="import")
def import_key(path: Annotated[str, typer.Argument(help="File written by `id export`; - for stdin.")]) -> None:
    """Become the peer of an exported key. A key that is here already is not replaced."""
    try:
        text = sys.stdin.read(4096) if path == "-" else Path(path).read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(f"cannot read {path}: {error}") from None
    identity = parse_identity(text)
    key_file().parent.mkdir(parents=True, exist_ok=True)
    _write_secret(key_file(), format_identity(identity))
    say(f"this machine is now {identity.peer_id}")


def _write_secret(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise LocalError(f"{path} is there already", hint=f"move it away first: mv {path} {path}.old") from None
    except OSError as error:
        raise LocalError(f"cannot write {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
