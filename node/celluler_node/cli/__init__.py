"""The `celluler` command: arguments in, output and exit codes out. Reference: docs/reference/cli.md

Everything it does, it asks of a node through the client. The modules of the commands are imported when one of them is
called, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the installed command."""
    if sys.argv[1:] == ["--version"]:
        import celluler  # noqa: PLC0415

        print(f"celluler {celluler.__version__}")
        return
    from celluler_node.cli.root import run  # noqa: PLC0415

    sys.exit(run(sys.argv[1:]))
