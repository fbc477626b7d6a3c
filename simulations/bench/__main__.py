"""All benchmarks, one after the other: `make bench`. With `--json` one list of figures on stdout.

A figure is {name, value, unit, against, ratio, aim, met}: what was measured, beside what in the same run, how they
compare, what was aimed at, and whether that was met (null where nothing was aimed at). A value is null where this
machine has not got what was to be measured; the name says what it lacks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

BENCHMARKS = ("node", "channel", "models", "inference", "serving", "surfaces", "stages", "content", "rounds")


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulations.bench", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("only", nargs="*", choices=[*BENCHMARKS, []], help="by default all")
    options = parser.parse_args()
    figures: list[dict[str, Any]] = []
    for name in options.only or BENCHMARKS:
        print(f"— {name}", file=sys.stderr)
        command = [sys.executable, "-m", f"simulations.bench.{name}", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        figures += json.loads(done.stdout)
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        show(figures)
    return 0


def show(figures: list[dict[str, Any]]) -> None:
    """A table on the terminal."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table()
    for column in ("figure", "value", "against", "ratio", "aim", "met"):
        table.add_column(column)
    for one in figures:
        ratio = "" if one.get("ratio") is None else f"{one['ratio']:.2f}"
        met = {True: "yes", False: "NO", None: ""}[one.get("met")]
        value = "" if one["value"] is None else f"{one['value']:.4g} {one['unit']}"
        table.add_row(one["name"], value, str(one.get("against") or ""), ratio, str(one.get("aim") or ""), met)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
