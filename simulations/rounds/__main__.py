"""`python -m simulations.rounds`"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

import simulations.rounds
from simulations.rounds.theatre import play


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(simulations.rounds.__doc__ or "").splitlines()[0])
    parser.add_argument("--schedules", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="seed of the first schedule")
    parser.add_argument("--seed", type=int, help="play only this one, and tell all")
    options = parser.parse_args(arguments)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.schedules)
    began, failed, views, delivered, spoiled, joined, revived = time.monotonic(), 0, 0, 0, 0, 0, 0
    expelled, suspended = Counter[str](), Counter[str]()
    for seed in seeds:
        outcome = play(seed)
        views, delivered = max(views, outcome.views), delivered + outcome.delivered
        if outcome.broken or options.seed is not None:
            print(outcome.schedule.describe)
            came = f"{outcome.joined} joined, {outcome.revived} began anew, suspended {sorted(outcome.suspended)}; "
            print(
                f"  {came}trace {outcome.trace}; finished at {outcome.finished_s:.1f} s; "
                f"excluded {sorted(outcome.excluded)}; expelled {sorted(outcome.expelled)}; "
                f"{outcome.spoiled} parts spoiled"
            )
            for line in outcome.broken:
                print(f"  BROKEN: {line}")
        failed += bool(outcome.broken)
        expelled.update(outcome.expelled)
        suspended.update(outcome.suspended)
        spoiled += outcome.spoiled
        joined, revived = joined + outcome.joined, revived + outcome.revived
    took = time.monotonic() - began
    print(f"{len(seeds)} schedules, {failed} failed, {delivered} messages, at most {views} views, {took:.1f} s")
    print(f"{joined} came late, {revived} began anew with a chain; suspended: {dict(suspended)}")
    print(f"expelled: {dict(expelled)}; wrong parts certified where few check: {spoiled}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
