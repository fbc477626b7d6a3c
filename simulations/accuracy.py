"""Accuracy under attack, by the shipped code: every attack on every rule, on two data sets, IID and not.

`python -m simulations.accuracy --quick` takes less than a minute. The whole plan is thousands of runs: results are
kept as they come (`--results`), a run that is there is not run again, and `--within-s` begins none after that time.
The plan starts with what matters most: rule NK, the largest share of liars, the first seed. stdout has the tables in
Markdown, or with `--json` a list of runs; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from celluler.aggregation.rules import RULES
from simulations.attacks.catalogue import ADAPTING, EVERY, parse_attack
from simulations.federation import HONEST, PEERS, ROUNDS, Outcome, Setting

DATA = ("digits", "mnist-5k")
PARTITIONS = ("iid", "dirichlet")
LIARS = (0, 3, 5, 7)
SEEDS = 3
RESULTS = Path("bench-out/accuracy.jsonl")

QUICK_RULES = ("nk", "median", "multi-krum", "mean")
QUICK_ATTACKS = ("scale:-1000", "ipm:0.6", "alie")
QUICK_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: every combination."""

    data: Sequence[str] = DATA
    partitions: Sequence[str] = PARTITIONS
    liars: Sequence[int] = LIARS
    attacks: Sequence[str] = EVERY
    rules: Sequence[str] = tuple(RULES)
    seeds: int = SEEDS
    rounds: int = ROUNDS

    def settings(self) -> list[Setting]:
        """In the order in which they are worth having."""
        return sorted(self._all(), key=_urgency)

    def _all(self) -> Iterator[Setting]:
        for data in self.data:
            for partition in self.partitions:
                for liars in self.liars:
                    for attack in self.attacks if liars else (HONEST,):
                        for rule in self.rules:
                            for seed in range(self.seeds):
                                yield Setting(data, partition, liars, _against(attack, rule), rule, seed, self.rounds)


QUICK = Plan(("digits",), ("iid",), (0, 7), QUICK_ATTACKS, QUICK_RULES, 1, QUICK_ROUNDS)


def _against(attack: str, rule: str) -> str:
    """An attack that adapts does so to the rule it meets."""
    return f"{attack}:{rule}" if attack in ADAPTING else attack


def _urgency(setting: Setting) -> tuple[Any, ...]:
    aimed = {("iid", 7): 0, ("dirichlet", 3): 0, ("iid", 0): 1, ("dirichlet", 0): 1, ("dirichlet", 5): 2}
    return (
        setting.rule != "nk",
        setting.seed,
        setting.data != "digits",
        aimed.get((setting.partition, setting.liars), 3),
        setting.rule == "krum",
    )


# --- running --------------------------------------------------------------------------------------------------------


class Results:
    """What was measured so far, in a file of one JSON object a line."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.outcomes: dict[Setting, Outcome] = {}
        if path is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                document = json.loads(line)
                self.outcomes[Setting(**document["setting"])] = Outcome(**document["outcome"])

    def add(self, setting: Setting, outcome: Outcome) -> None:
        self.outcomes[setting] = outcome
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"setting": asdict(setting), "outcome": asdict(outcome)}) + "\n")


def measure(settings: Iterable[Setting], results: Results, *, processes: int, within_s: float) -> None:
    """Run what is not there yet, side by side; begins nothing more after `within_s`."""
    missing = [setting for setting in settings if setting not in results.outcomes]
    if not missing:
        return
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # read by the processes started below
    began, total = time.monotonic(), len(missing)
    left, running = iter(missing), dict[Future[Outcome], Setting]()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        while True:
            while len(running) < processes and time.monotonic() - began < within_s and (one := next(left, None)):
                running[pool.submit(_run, one)] = one
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                setting = running.pop(done)
                outcome = done.result()
                results.add(setting, outcome)
                total -= 1
                _tell(setting, outcome, total, time.monotonic() - began)


def _run(setting: Setting) -> Outcome:
    import torch  # noqa: PLC0415 - in the process that trains

    from simulations.federation import run  # noqa: PLC0415

    torch.set_num_threads(1)
    return run(setting)


def _tell(setting: Setting, outcome: Outcome, left: int, spent_s: float) -> None:
    where = f"{setting.data} {setting.partition} {setting.liars}/{PEERS} {setting.attack} {setting.rule}"
    told = f"{where} seed {setting.seed}: {100 * outcome.accuracy:.1f} % in {outcome.wall_s:.1f} s"
    print(f"{told}; {left} left after {spent_s:.0f} s", file=sys.stderr, flush=True)


# --- showing --------------------------------------------------------------------------------------------------------


def tables(outcomes: dict[Setting, Outcome]) -> str:
    """Markdown: a table for each data set, partition and number of liars; per cent, mean over the seeds there are."""
    groups: dict[tuple[str, str, int], dict[Setting, Outcome]] = defaultdict(dict)
    for setting, outcome in outcomes.items():
        groups[setting.data, setting.partition, setting.liars][setting] = outcome
    order = sorted(groups, key=lambda key: (DATA.index(key[0]), PARTITIONS.index(key[1]), key[2]))
    return "\n".join(_table(*key, groups[key]) for key in order)


def _table(data: str, partition: str, liars: int, outcomes: dict[Setting, Outcome]) -> str:
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for setting, outcome in outcomes.items():
        cells[_shown(setting.attack), setting.rule].append(100 * outcome.accuracy)
    rules = [rule for rule in RULES if any(cell[1] == rule for cell in cells)]
    attacks = [attack for attack in (HONEST, *EVERY) if any(cell[0] == attack for cell in cells)]
    seeds = sorted({len(values) for values in cells.values()})
    lines = [
        f"**{data}, {_spoken(partition)}, {liars} of {PEERS} lie** "
        f"({'–'.join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))} seed{'s' * (seeds[-1] > 1)})",
        "",
        f"| attack | {' | '.join(rules)} |",
        f"|---|{'---|' * len(rules)}",
        *(_row(attack, [cells.get((attack, rule)) for rule in rules]) for attack in attacks),
    ]
    if len(attacks) > 1:
        lines.append(_worst(attacks, rules, cells))
    return "\n".join([*lines, ""])


def _shown(attack: str) -> str:
    name = attack.partition(":")[0]
    return name if name in ADAPTING else attack


def _row(name: str, cells: Iterable[list[float] | None]) -> str:
    return f"| {name} | {' | '.join('' if values is None else f'{fmean(values):.0f}' for values in cells)} |"


def _worst(attacks: Sequence[str], rules: Sequence[str], cells: dict[tuple[str, str], list[float]]) -> str:
    """Only of rules that met every attack of this table."""
    row = []
    for rule in rules:
        met = [fmean(cells[attack, rule]) for attack in attacks if (attack, rule) in cells]
        row.append(f"**{min(met):.0f}**" if len(met) == len(attacks) else "")
    return f"| **worst** | {' | '.join(row)} |"


def _spoken(partition: str) -> str:
    return {"iid": "IID", "dirichlet": "Dirichlet 0.3"}[partition]


def _documents(outcomes: dict[Setting, Outcome]) -> list[dict[str, Any]]:
    return [{**asdict(setting), "f": setting.f, **asdict(outcome)} for setting, outcome in outcomes.items()]


# --- the command line -----------------------------------------------------------------------------------------------


def main() -> int:
    given = _arguments()
    plan = QUICK if given.quick else _plan_of(given)
    results = Results(None if given.quick else given.results)
    settings = plan.settings()
    if not given.show:
        measure(settings, results, processes=given.processes, within_s=given.within_s)
    wanted = set(settings)
    outcomes = {setting: outcome for setting, outcome in results.outcomes.items() if setting in wanted}
    print(json.dumps(_documents(outcomes), indent=1) if given.json else tables(outcomes))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="simulations.accuracy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small plan, nothing kept")
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--partitions", nargs="+", choices=PARTITIONS, default=PARTITIONS)
    parser.add_argument("--liars", nargs="+", type=int, choices=range(PEERS), metavar="N", default=LIARS)
    parser.add_argument("--attacks", nargs="+", metavar="ATTACK", type=_attack, default=EVERY)
    parser.add_argument("--rules", nargs="+", choices=tuple(RULES), default=tuple(RULES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--within-s", type=float, default=float("inf"), help="begin no run after so many seconds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where runs are kept and looked up")
    parser.add_argument("--show", action="store_true", help="run nothing, show what is there")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _attack(text: str) -> str:
    parse_attack(text)
    return text


def _plan_of(given: argparse.Namespace) -> Plan:
    return Plan(given.data, given.partitions, given.liars, given.attacks, given.rules, given.seeds, given.rounds)


if __name__ == "__main__":
    sys.exit(main())
