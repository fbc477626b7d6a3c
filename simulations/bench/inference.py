"""What a batch brings while text is generated: sequences beside each other, and one after the other.

`python -m simulations.bench.inference [--repeats 3] [--tokens 24] [--json]`

One model of the shape of a Llama, fp32, one thread, in one process; the same slots, the same prompts, drawn greedily.
The ways take turns, so that a busy machine hits them all; the best of the repeats is compared. A prompt is not part of
what is timed, but for the last figure but one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from celluler.engines.generation.recomputed import RecomputedDecoder
from celluler.engines.generation.slots import GeneratingSlots
from celluler.engines.modules import module_of
from celluler.inference.sampling import GREEDY
from celluler.models.spec import Architecture, parse_spec
from celluler.models.weights import initial_vector
from simulations.bench.models import figure

WIDTH, LAYERS, VOCABULARY, LENGTH = 512, 8, 8192, 256
PROMPT, CHUNK, SLOTS = 32, 64, 16
BATCHES = (1, 4, 16)
AIM_BATCH = 6.0
"""16 sequences against one, in tokens a second."""


def body() -> Architecture:
    attention = {"kind": "attention", "heads": 8, "kv_heads": 2, "causal": True, "rope_base": 10000.0}
    norm = {"kind": "rms_norm"}
    layers = [
        {"kind": "residual", "layers": [norm, attention]},
        {"kind": "residual", "layers": [norm, {"kind": "swiglu", "hidden": 1376}]},
    ]
    return parse_spec(
        {
            "spec": 1,
            "input": {"dtype": "int64", "shape": [LENGTH]},
            "layers": [
                {"kind": "embedding", "vocabulary": VOCABULARY, "width": WIDTH},
                {"kind": "repeat", "times": LAYERS, "layers": layers},
                norm,
                {"kind": "dense", "width": VOCABULARY, "bias": False},
            ],
            "objective": {"kind": "next_token", "vocabulary": VOCABULARY},
        }
    )


def prompt(sequence: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(sequence).integers(0, VOCABULARY, PROMPT).tolist()
    return drawn


def writer(slots: int) -> tuple[torch.nn.Module, GeneratingSlots]:
    """That model, with weights that are drawn, and slots on it."""
    architecture = body()
    module = module_of(architecture, torch.from_numpy(initial_vector(architecture, bytes(32)))).eval()
    return module, GeneratingSlots(architecture, module, slots=slots)


def generate(slots: GeneratingSlots, sequences: range, tokens: int) -> tuple[float, dict[int, list[int]]]:
    """Seconds from the first tokens of some sequences, beside each other, to so many more of each; and the tokens."""
    told: dict[int, list[int]] = {}
    for slot, sequence in enumerate(sequences):
        slots.admit(slot, prompt(sequence), GREEDY)
        (first,) = slots.step(slot, PROMPT, ()).drawn
        assert first.chosen is not None
        told[slot] = [first.chosen.token]
    decode = tuple(told)
    start = time.perf_counter()
    for _ in range(tokens):
        for one in slots.step(None, 1, decode).drawn:
            assert one.chosen is not None
            told[one.slot].append(one.chosen.token)
    took = time.perf_counter() - start
    for slot in decode:
        slots.release(slot)
    return took, {sequence: told[slot] for slot, sequence in enumerate(sequences)}


def batches(slots: GeneratingSlots, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Tokens a second of several sequences in one batch, against four of them one after the other."""
    alone: list[float] = []
    beside: dict[int, list[float]] = {count: [] for count in BATCHES}
    for _ in range(repeats):
        runs = [generate(slots, range(one, one + 1), tokens) for one in range(4)]
        alone.append(4 * tokens / sum(took for took, _ in runs))
        for count in BATCHES:
            took, told = generate(slots, range(count), tokens)
            beside[count].append(count * tokens / took)
            for one, (_, by_itself) in zip(range(min(4, count)), runs, strict=False):
                assert told[one] == by_itself[one], "a batch has changed what was drawn"
    base = max(alone)
    figures = [figure("generating, one sequence after the other", base, "tokens/s")]
    for count in BATCHES:
        best = max(beside[count])
        ratio, aimed = best / base, count == BATCHES[-1]
        figures.append(
            figure(
                f"generating, {count} in one batch", best, "tokens/s", against=f"one after the other {base:.0f}",
                ratio=ratio, aim=f"≥ {AIM_BATCH:g} ×" if aimed else "", met=ratio >= AIM_BATCH if aimed else None,
            )
        )  # fmt: skip
    return figures


def best_of(repeats: int, work: Callable[[], float]) -> float:
    return min(work() for _ in range(repeats))


def cache(slots: GeneratingSlots, module: torch.nn.Module, repeats: int) -> list[dict[str, Any]]:
    """Reading a prompt by chunks, and a token with a cache against one by a whole pass behind 128 others."""
    before = [int(one) for one in np.random.default_rng(9).integers(0, VOCABULARY, 128)]

    def cached() -> float:
        slots.admit(0, before, GREEDY)
        while slots.step(0, CHUNK, ()).left:
            pass
        start = time.perf_counter()
        for _ in range(4):
            slots.step(None, 1, (0,))
        took = (time.perf_counter() - start) / 4
        slots.release(0)
        return took

    def reading() -> float:
        slots.admit(0, before, GREEDY)
        start = time.perf_counter()
        while slots.step(0, CHUNK, ()).left:
            pass
        took = time.perf_counter() - start
        slots.release(0)
        return took

    def whole() -> float:
        decoder = RecomputedDecoder(body(), module, 1)
        decoder.prefill(0, before, last=False)
        start = time.perf_counter()
        decoder.decode((0,), (1,))
        return time.perf_counter() - start

    read, kept, passed = (best_of(repeats, one) for one in (reading, cached, whole))
    return [
        figure(f"reading a prompt of {len(before)} tokens by chunks of {CHUNK}", len(before) / read, "tokens/s"),
        figure(
            f"a token behind {len(before)} others, with a cache", 1000 * kept, "ms",
            against=f"a whole pass {1000 * passed:.0f} ms", ratio=kept / passed,
        ),
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulations.bench.inference", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    module, slots = writer(SLOTS)
    figures = batches(slots, options.tokens, options.repeats) + cache(slots, module, options.repeats)
    if options.json:
        print(json.dumps(figures, indent=1))
        return 0
    from simulations.bench.__main__ import show  # noqa: PLC0415

    show(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
