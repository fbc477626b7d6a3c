"""How fast a content comes in: ours beside the limit and beside what else there is, in one run.

`python -m simulations.bench.content [--mebibytes 256] [--repeats 5] [--seed N] [--folder F] [--json]`

The same random bytes go from provider processes to a client process on loopback, and are on disk (fdatasync) when the
clock stops. Every repeat goes through all ways in an order shuffled by the seed, with the disk idle at each start;
medians are reported, after one repeat that warms up. The ways:

    raw          TLS 1.3, BLAKE3, pwrite and nothing else (content_raw.py): the limit
    curl         nginx over TLS 1.3 and curl; nothing is verified (content_http.py)
    torrent      libtorrent over plain TCP, one seed and three (content_torrent.py)
    hub          huggingface_hub from a plain local server; nothing is verified (content_http.py)
    bitswap      py-libp2p's, with 16 MiB (content_bitswap.py)
    ours         fetch() through the bulk process, one provider and three (content_ours.py, content_peer.py)
    ours libp2p  fetch() over a libp2p stream, which is what is left where no bulk port can be reached
    throttled    fetch() from providers that keep to limits, with a slow one, a liar and one that is killed

A way that this machine has not got is named in its row, and the rest is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from simulations.bench import content_bitswap, content_http, content_ours, content_raw, content_torrent
from simulations.bench.content_ways import MIB, Content, Missing, Way

AIM_LIMIT, AIM_CURL, AIM_TORRENT, AIM_LIBP2P = 0.8, 0.8, 1.5, 0.8
AIM_THROTTLED, AIM_EXCESS = 0.95, 1.1
THROTTLED_RUNS = 3

NAMES = {
    "raw": "raw TLS, BLAKE3 and write",
    "curl": "nginx TLS + curl, nothing verified",
    "torrent 1": "libtorrent, 1 seed",
    "torrent 3": "libtorrent, 3 seeds",
    "hub": "huggingface_hub, local HTTP",
    "bitswap": f"py-libp2p bitswap ({content_bitswap.MEBIBYTES} MiB)",
    "libp2p stream": "libp2p stream alone",
    "ours 1": "fetch, 1 source",
    "ours 3": "fetch, 3 sources",
    "ours libp2p": "fetch over a libp2p stream",
}
COMPARED: tuple[tuple[str, str | None, float | None], ...] = (
    ("raw", None, None),
    ("curl", "raw", None),
    ("torrent 1", "raw", None),
    ("torrent 3", "raw", None),
    ("hub", "raw", None),
    ("bitswap", "raw", None),
    ("libp2p stream", "raw", None),
    ("ours 1", "raw", AIM_LIMIT),
    ("ours 1", "curl", AIM_CURL),
    ("ours 1", "torrent 1", AIM_TORRENT),
    ("ours 3", "raw", AIM_LIMIT),
    ("ours 3", "curl", AIM_CURL),
    ("ours 3", "torrent 3", AIM_TORRENT),
    ("ours libp2p", "libp2p stream", AIM_LIBP2P),
)

Opener = Callable[[Content], AbstractContextManager[Mapping[str, Way]]]
PEERS: tuple[tuple[Opener, tuple[str, ...]], ...] = (
    (content_http.open_curl, ("curl",)),
    (content_torrent.open_ways, ("torrent 1", "torrent 3")),
    (content_http.open_hub, ("hub",)),
    (content_bitswap.open_ways, ("bitswap",)),
)


# --- measuring -----------------------------------------------------------------------------------------------------


class Run:
    """The ways that there are, what they took, and why others are missing."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self.ways: dict[str, Way] = {}
        self.seconds: dict[str, list[float]] = {}
        self.missing: dict[str, str] = {}

    def open(self, stack: ExitStack, store: Path) -> None:
        self.ways.update(stack.enter_context(content_raw.open_ways(self._content)))
        self.ways.update(stack.enter_context(content_ours.open_ways(self._content, store)))
        for opener, names in PEERS:
            try:
                self.ways.update(stack.enter_context(opener(self._content)))
            except Missing as error:
                self.missing.update(dict.fromkeys(names, str(error)))

    def repeat(self, repeats: int, order: random.Random) -> None:
        for repeat in range(repeats + 1):
            names = sorted(self.ways)
            order.shuffle(names)
            for name in names:
                self._once(name, counts=repeat > 0)  # the first warms up caches, connections and processes

    def _once(self, name: str, *, counts: bool) -> None:
        folder = self._content.scratch / "brought"
        folder.mkdir()
        os.sync()
        try:
            took = self.ways[name](folder)
        except Missing as error:
            self.missing[name] = str(error)
            del self.ways[name]
            self.seconds.pop(name, None)
        else:
            if counts:
                self.seconds.setdefault(name, []).append(took)
        finally:
            shutil.rmtree(folder)

    def rates(self) -> dict[str, float]:
        """MB/s, medians."""
        sizes = dict.fromkeys(self.seconds, self._content.size) | {"bitswap": content_bitswap.MEBIBYTES * MIB}
        return {name: sizes[name] / 1e6 / statistics.median(times) for name, times in self.seconds.items()}


def measure(mebibytes: int, repeats: int, seed: int, folder: Path | None) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="celluler-bench-", dir=folder) as scratch:
        original = Path(scratch) / "original"
        original.mkdir()
        content = Content(original / "content.bin", Path(scratch))
        with content.path.open("wb") as file:
            for _ in range(mebibytes):
                file.write(os.urandom(MIB))
        store = content_ours.make_store(content)
        run = Run(content)
        with ExitStack() as stack:
            run.open(stack, store)
            run.repeat(repeats, random.Random(seed))
        with content_ours.open_throttled(content, store) as throttled:
            runs = [throttled() for _ in range(THROTTLED_RUNS + 1)][1:]  # the first starts the bulk processes
        return [*report(run.rates(), run.missing), *report_throttled(runs)]


# --- reporting -----------------------------------------------------------------------------------------------------


def report(rates: Mapping[str, float], missing: Mapping[str, str]) -> list[dict[str, Any]]:
    return [_row(rates, missing, name, against, aim) for name, against, aim in COMPARED]


def _row(
    rates: Mapping[str, float], missing: Mapping[str, str], name: str, against: str | None, aim: float | None
) -> dict[str, Any]:
    text = f"{NAMES[name]}: {missing[name]}" if name in missing else NAMES[name]
    value, other = rates.get(name), rates.get(against or "")
    ratio = value / other if value and other else None
    return {
        "name": text,
        "value": value and round(value, 1),
        "unit": "MB/s",
        "against": against and NAMES[against],
        "ratio": ratio and round(ratio, 3),
        "aim": aim,
        "met": None if aim is None or ratio is None else ratio >= aim,
    }


def report_throttled(runs: list[content_ours.Throttled]) -> list[dict[str, Any]]:
    rate, used, excess = (
        statistics.median(getattr(one, field) for one in runs) for field in ("survivors_bytes_s", "used", "excess")
    )
    limit = (sum(content_ours.STEADY) + content_ours.SLOW) / 1e6
    return [
        {
            "name": "fetch, throttled: 1 slow, 1 lying, 1 killed",
            "value": round(rate / 1e6, 1),
            "unit": "MB/s",
            "against": f"the survivors' limits, {limit:g} MB/s in all",
            "ratio": round(used, 3),
            "aim": AIM_THROTTLED,
            "met": used >= AIM_THROTTLED,
        },
        {
            "name": "most that a provider gave",
            "value": round(excess, 3),
            "unit": "of its limit",
            "against": None,
            "ratio": None,
            "aim": AIM_EXCESS,
            "met": excess <= AIM_EXCESS,
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr)
    rows = measure(options.mebibytes, options.repeats, seed, options.folder)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        value = "     ---" if row["value"] is None else f"{row['value']:8.1f}"
        against = "" if row["ratio"] is None else f"{row['ratio']:.2f} of {row['against']}"
        aim = "" if row["met"] is None else f"aim {row['aim']}: {'met' if row['met'] else 'missed'}"
        print(f"{row['name']:44} {value} {row['unit']:12} {against:46} {aim}")


if __name__ == "__main__":
    main()
