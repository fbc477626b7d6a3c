"""What rule NK costs a peer in processor time: its own part and the two parts that it checks, on one thread.

`python -m simulations.bench.rounds_nk [--json]`. The hashes of the inputs are counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")

import numpy as np

from celluler.aggregation.digests import part_hash
from celluler.aggregation.q16 import encode_parts, part_slices
from celluler.aggregation.rules import rule_named
from celluler.learning.checks import CHECKS

AIM_S = 0.015
MEMBERS, VALUES = 16, 1_000_000


def figures(repeats: int = 15) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    common = random.standard_normal(VALUES)
    updates = [(common + random.standard_normal(VALUES)).astype(np.float32) for _ in range(MEMBERS)]
    wires = [encode_parts(update, MEMBERS) for update in updates]
    parts = [
        (
            np.array([exponents[part] for exponents, _ in wires], np.int16),
            np.stack([mantissas[piece] for _, mantissas in wires]),
        )
        for part, piece in enumerate(part_slices(VALUES, MEMBERS)[: 1 + CHECKS])
    ]
    names, f = bytes(32), (MEMBERS - 1) // 2
    reduce_s, own_s, hash_s = list[float](), list[float](), list[float]()
    for _ in range(repeats):
        for rule, told in (("nk", reduce_s), ("winsorised-nk", own_s)):
            began = time.thread_time()
            for exponents, mantissas in parts:
                rule_named(rule)(exponents, mantissas, f)
            told.append(time.thread_time() - began)
        began = time.thread_time()
        for _, mantissas in parts:
            for row in mantissas:
                part_hash(names, 1, names, part=0, exponent=0, mantissas=row)
        hash_s.append(time.thread_time() - began)
    shape = f"{MEMBERS} peers x {VALUES:,} values, own part and {CHECKS} checks"
    reduced, winsorised = statistics.median(reduce_s), statistics.median(own_s)
    return [
        {
            "name": f"rule NK, {shape}, one thread",
            "value": round(1e3 * reduced, 2),
            "unit": "ms",
            "against": "15 ms",
            "ratio": round(reduced / AIM_S, 3),
            "aim": 1.0,
            "met": reduced <= AIM_S,
        },
        {
            "name": f"rule winsorised NK, {shape}, one thread",
            "value": round(1e3 * winsorised, 2),
            "unit": "ms",
            "against": "rule NK",
            "ratio": round(winsorised / reduced, 2),
            "aim": None,
            "met": None,
        },
        {
            "name": f"  and the hashes of the inputs, {shape}",
            "value": round(1e3 * statistics.median(hash_s), 2),
            "unit": "ms",
            "against": None,
            "ratio": None,
            "aim": None,
            "met": None,
        },
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulations.bench.rounds_nk", description=__doc__)
    parser.add_argument("--json", action="store_true")
    found = figures()
    if parser.parse_args().json:
        print(json.dumps(found, indent=1))
    else:
        for one in found:
            print(f"{one['name']:60} {one['value']:8.2f} {one['unit']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
