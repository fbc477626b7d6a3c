"""After how many tokens a check tells another model from the one that was named, and how far honest machines differ.

`python -m simulations.checked_answers`: a small language model, trained for a moment on the licence of this repository,
answers; the same model scores. Honest answers come from other numbers of threads and other batches; substituted ones
from the same weights in fewer bits, and from models of other training.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch

from celluler.engines.generation.scoring import score
from celluler.engines.generation.slots import GeneratingSlots
from celluler.inference.checking import TOLERANCES, judge
from celluler.inference.sampling import Chosen, Sampling
from celluler.inference.scores import TOP, Claim
from tests.support.lms import LICENCE, Model, grown, narrowed

KINDS = {
    "greedy": Sampling(temperature=0.0),
    "temperature 1": Sampling(temperature=1.0),
    "temperature 0.7, top_p 0.9": Sampling(temperature=0.7, top_p=0.9),
}


@dataclass(frozen=True, slots=True)
class Told:
    """caught: after how many tokens each answer was found to be wrong, None where it was not; told: the same, had it
    come with logarithms of probability. gap, off, apart: largest, apart of the logarithms. misses: share of tokens that
    are not what is drawn here."""

    caught: tuple[int | None, ...]
    told: tuple[int | None, ...]
    apart: float
    gap: float
    off: float
    misses: float


def answered(model: Model, prompt: Sequence[int], count: int, sampling: Sampling, batch: int) -> list[Chosen]:
    """By one slot of several that are at work on the same prompt."""
    slots = GeneratingSlots(model.body, model.module, slots=batch, length=len(prompt) + count)
    for slot in range(batch):
        slots.admit(slot, prompt, sampling if slot == 0 else replace(sampling, seed=sampling.seed + 1000 + slot))
    drawn = [one for slot in range(batch) for one in slots.step(slot, len(prompt), ()).drawn if one.slot == 0]
    for _ in range(count - 1):
        drawn += [one for one in slots.step(None, 1, tuple(range(batch))).drawn if one.slot == 0]
    return [one.chosen for one in drawn if one.chosen is not None]


def prompts(count: int, length: int) -> Iterator[tuple[int, ...]]:
    text = LICENCE.read_bytes()
    draws = np.random.default_rng(0)
    for start in draws.integers(0, len(text) - length, count).tolist():
        yield tuple(byte & 127 for byte in text[start : start + length])


def checked(
    named: Model, answers: Model, sampling: Sampling, sequences: int, tokens: int, batches: Sequence[int]
) -> Told:
    tolerance = TOLERANCES[named.dtype]
    caught: list[int | None] = []
    with_logprobs: list[int | None] = []
    gap = off = apart = 0.0
    misses = total = 0
    for number, prompt in enumerate(prompts(sequences, 12)):
        drawn = replace(sampling, seed=number, logprobs=TOP)
        told = answered(answers, prompt, tokens, drawn, batches[number % len(batches)])
        claim = Claim(prompt, tuple(one.token for one in told), drawn)
        scores = score(named.body, named.module, claim, tolerance.slack)
        for verdict, found in (
            (judge(scores, drawn, tolerance), caught),
            (judge(scores, drawn, tolerance, told), with_logprobs),
        ):
            found.append(verdict.tokens if verdict.wrong else None)
        logprobs = np.array([one.logprob for one in told], dtype=np.float64)
        apart = max(apart, float(np.abs(logprobs - scores["logprob"]).max()))
        gap, off = max(gap, float(scores["gap"].max())), max(off, float(scores["off"].max()))
        misses, total = misses + int((scores["same"] == 0).sum()), total + len(scores)
    return Told(tuple(caught), tuple(with_logprobs), apart, gap, off, misses / total)


def timed(work: Callable[[], object], times: int = 5) -> float:
    took = []
    for _ in range(times):
        began = perf_counter()
        work()
        took.append(perf_counter() - began)
    return statistics.median(took)


def row(name: str, kind: str, told: Told) -> str:
    figures = (f"{told.misses:.4f}", f"{told.gap:.2g}", f"{told.off:.2g}", f"{told.apart:.2g}")
    return f"| {' | '.join((name, kind, when(told.caught), when(told.told), *figures))} |"


def when(caught: Sequence[int | None]) -> str:
    found = sorted(one for one in caught if one is not None)
    return f"{len(found)} of {len(caught)}" + (f", {statistics.median(found):.0f} / {found[-1]}" if found else "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="simulations.checked_answers", description=__doc__)
    parser.add_argument("--sequences", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=300, help="of the model's training")
    parser.add_argument("--threads", type=int, default=2, help="of whoever answers honestly in float32; we have one")
    given = parser.parse_args()
    size = given.sequences, given.tokens
    torch.set_num_threads(1)
    named = grown(given.steps)
    others = {
        "bfloat16": narrowed(named, "bfloat16"),
        "int8": narrowed(named, "int8"),
        "int4": narrowed(named, "int4"),
        "trained a tenth less": grown(given.steps * 9 // 10),
        "trained from another start": grown(given.steps, seed=2),
    }
    print("| answers | kind | caught, after tokens | with logprobs | other draws | gap | off | logprobs apart |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, sampling in KINDS.items():
        torch.set_num_threads(given.threads)
        told = checked(named, named, sampling, *size, (1, 3, 16))
        torch.set_num_threads(1)
        print(row("float32, honest", kind, told), flush=True)
        for name, other in others.items():
            print(row(f"{name}, for float32", kind, checked(named, other, sampling, *size, (1,))), flush=True)
        for name in ("bfloat16", "int8", "int4"):
            print(
                row(f"{name}, honest", kind, checked(others[name], others[name], sampling, *size, (1, 3, 16))),
                flush=True,
            )
        print(row("int4 from another start, for int4", kind, checked(
            others["int4"], narrowed(others["trained from another start"], "int4"), sampling, *size, (1,)
        )), flush=True)  # fmt: skip
    prompt = next(prompts(1, 12))
    for kind, sampling in KINDS.items():
        print(f"{kind}: scoring took {cost(named, prompt, given.tokens, sampling):.3f} of generating", flush=True)


def cost(model: Model, prompt: tuple[int, ...], tokens: int, sampling: Sampling) -> float:
    """Of scoring an answer, in parts of generating it by itself."""
    told = answered(model, prompt, tokens, sampling, 1)
    claim = Claim(prompt, tuple(one.token for one in told), sampling)

    def generate() -> None:
        answered(model, prompt, tokens, sampling, 1)

    def check() -> None:
        score(model.body, model.module, claim, TOLERANCES[model.dtype].slack)

    return timed(check) / timed(generate)


if __name__ == "__main__":
    main()
