"""The reference pages of the command line and of the configuration, from what the code declares.

python -m celluler_node.cli.reference cli > docs/reference/cli.md
python -m celluler_node.cli.reference configuration > docs/reference/configuration.md
"""

from __future__ import annotations

import sys
from typing import Any

from celluler_node.cli.root import COMMANDS, load
from celluler_node.settings import SETTINGS, Setting

_CLI_HEAD = """\
# Command line

<!-- Rendered from the code: python -m celluler_node.cli.reference cli > docs/reference/cli.md -->

`celluler [--home DIR] [--config FILE] COMMAND …`. Most commands speak with the node that runs on this machine. With
`--join ADDR` they need none: a light peer joins the swarm by that address, does the work and leaves. It keeps its key
and what it adds in the same home, which a running node must not hold at the time.

- Results go to stdout: tables on a terminal, lines with tabs into a pipe, and with `--json` one JSON document (one a
  line for `job logs` and `--follow`) with `"schema": "celluler/v1"`. Everything else goes to stderr, errors too; with
  `--json` an error is the document `{"schema", "error": {type, message, hint, exit_code}}`.
- Peers and jobs may be named by the end of their id: eight characters of a peer's, six or more of a job's.
- `celluler --help` and `celluler --version` import nothing heavy and answer at once.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed; also a job that failed, and a `doctor` that found something |
| 2 | wrong use: an argument, a spec, a configuration |
| 3 | no node runs here |
| 4 | not found |
| 5 | denied |
| 6 | timed out, or no peer could do it |
| 7 | integrity or verification failed |
| 8 | a quota is full |
| 130 | interrupted |
"""

_CONFIGURATION_HEAD = """\
# Configuration

<!-- Rendered from the code: python -m celluler_node.cli.reference configuration > docs/reference/configuration.md -->

A flag goes before a variable, a variable before the file, the file before the default. The file is TOML; `celluler
init` writes one that says everything and sets nothing. Unknown keys and values out of range are errors that name the
key (exit code 2). An empty variable counts as none.

| | with `CELLULER_HOME` | without |
|---|---|---|
| key, state, `node.json`, log | `$CELLULER_HOME` | `$XDG_STATE_HOME/celluler` |
| content | `$CELLULER_HOME/store` | `$XDG_DATA_HOME/celluler/store` |
| configuration | `$CELLULER_HOME/config.toml` | `$XDG_CONFIG_HOME/celluler/config.toml` |

Where the XDG variables are not set, they stand for `~/.local/state`, `~/.local/share` and `~/.config`. `--home` and
`--config` (or `CELLULER_CONFIG`) choose the folder and the file. Sizes are written `512MiB`, `10GiB`, `1 GB`; lists in
variables are separated by commas.

| setting | variable | default | |
|---|---|---|---|
"""

_CONFIGURATION_TAIL = """
```toml
nickname = "alice"

[network]
listen = ["/ip4/0.0.0.0/tcp/4040"]
join = ["/ip4/192.0.2.7/tcp/4040/p2p/12D3KooW…"]

[store]
quota = "50GiB"
```

## node.json

A running node leaves `node.json` in its home, mode 0600: `pid`, `api` (address of the HTTP endpoint), `token` (a secret
that opens it, new at every start), `peer_id`, `addresses` and `started_s`. Clients find the node by it.
"""


def render_cli() -> str:
    return _CLI_HEAD + "".join(_command(name, load(name)) for name in COMMANDS)


def render_configuration() -> str:
    rows = "".join(
        f"| `{setting.path}` | {_variable(setting)} | {_default(setting.default)} | {setting.about} |\n"
        for setting in SETTINGS
    )
    return _CONFIGURATION_HEAD + rows + _CONFIGURATION_TAIL


def _variable(setting: Setting) -> str:
    return "none: in the file alone" if setting.file_only else f"`{setting.variable}`"


def _command(path: str, command: Any) -> str:
    """One section; of a group, one for each of its commands."""
    if hasattr(command, "commands"):
        return "".join(_command(f"{path} {name}", inner) for name, inner in command.commands.items())
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = " ".join([f"celluler {path}", *(_metavar(one) for one in arguments)])
    rows = [f"| `{_metavar(one)}` | {one.help or ''} |\n" for one in arguments]
    rows += [f"| {_names(one)} | {one.help or ''} |\n" for one in options]
    table = "\n| | |\n|---|---|\n" + "".join(rows) if rows else ""
    return f"\n## `{usage}`\n\n{command.help}\n{table}"


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return ", ".join(f"`{name}{value}`" for name in option.opts)


def _default(value: Any) -> str:
    if value in (None, "", ()):
        return "none" if value == () else "–"
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return f"`{text}`"


if __name__ == "__main__":
    sys.stdout.write({"cli": render_cli, "configuration": render_configuration}[sys.argv[1]]())
