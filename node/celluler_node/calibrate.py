"""How far an honest replay is from what was sent on this machine, made to compute as others do; and how far a lazy one.

A worker as the node runs it trains some rounds, and once more lazily in several ways. Workers of other kinds replay
all of it: another process, other threads, older instructions. A tolerance must lie between the largest honest and the
smallest lazy deviation. Where it cannot, machines of these two classes must not judge each other, and this says so.

Judges the deviations that workers report; trains nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from celluler.errors import LocalError
from celluler.models.spec import parse_spec
from celluler_node.calibrate_task import Task
from celluler_node.calibration import Standing
from celluler_node.processes import worker_words as words
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits, Program
from celluler_node.training.worker_trainer import OUTER_LEARNING_RATE, OUTER_MOMENTUM

PARTS = 4
MEMBERS = 4
RUN = b"celluler-calibrate".ljust(32, b"\0")
READY_S = 120.0
"""A machine is measured while it is busy with other things, and nobody waits for the answer."""
LEAST_LAZINESS = 1e-9
"""A deviation below this is none that anybody could be judged by."""
LEAST_RATIO = 4.0
"""Between laziness and noise: less is no separation."""
_PATIENT = (("OMP_WAIT_POLICY", "passive"),)  # on a busy machine threads that spin keep each other waiting
_SILENT = 1e-4  # of laziness: noise below it counts as so much, so that no tolerance is put at zero

ONE_LESS, HALF_BATCH, REUSED = "one step less", "half the batch", "the update before"

Wire = tuple[tuple[int, ...], bytes]


@dataclass(frozen=True, slots=True)
class Variation:
    """A way in which this machine can compute. environment: for its libraries."""

    name: str
    threads: int
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """How every task is trained."""

    rounds: int
    precision: str = "fp32"
    wire: str = "q16"


@dataclass(frozen=True, slots=True)
class Measured:
    """One task, trained as this node does and replayed by one variation.

    same: every bit, in every round. median, worst: deviations of honest replays, over rounds and parts. lazy: the
    smallest deviation over rounds, of a round's worst part, by kind of laziness.
    """

    task: str
    variation: str
    audit_class: str
    same: bool
    median: float
    worst: float
    lazy: Mapping[str, float]

    @property
    def laziness(self) -> float:
        return min(self.lazy.values(), default=math.inf)

    @property
    def separates(self) -> bool:
        return tolerance_between(self.worst, self.laziness) is not None


@dataclass(frozen=True, slots=True)
class Report:
    """measured: every task under every variation. own: how another process of this class does; others: each other
    class, over all tasks."""

    precision: str
    wire: str
    rounds: int
    torch: str
    own: Standing
    others: tuple[Standing, ...]
    measured: tuple[Measured, ...]


def variations(threads: int, cores: int, flags: Sequence[str], architecture: str) -> tuple[Variation, ...]:
    """As this node computes, first; then again, with other threads, and with the instructions of older processors."""
    found = [Variation("as this node", threads, _PATIENT), Variation("another process", threads, _PATIENT)]
    counts = {1, 2, cores, *(1 << power for power in range(cores.bit_length()))}
    wanted = sorted(count for count in counts if count <= cores and count != threads)
    found += [Variation(f"{count} thread{'s' * (count > 1)}", count, _PATIENT) for count in wanted]
    if architecture == "x86_64":
        if "avx512f" in flags:
            found.append(Variation("AVX2", threads, _instructions("avx2", "AVX2", "AVX2")))
        if "avx2" in flags:
            found.append(Variation("SSE4.2", threads, _instructions("default", "SSE4_2", "SSE41")))
    return tuple(found)


def _instructions(torch: str, mkl: str, onednn: str) -> tuple[tuple[str, str], ...]:
    named = ("ATEN_CPU_CAPABILITY", torch), ("MKL_ENABLE_INSTRUCTIONS", mkl), ("ONEDNN_MAX_CPU_ISA", onednn)
    return *_PATIENT, *named


def tolerance_between(noise: float, laziness: float) -> float | None:
    """The geometric middle, to one digit, where there is room; None where noise may pass for laziness."""
    if not math.isfinite(laziness) or laziness < LEAST_RATIO * noise or laziness < LEAST_LAZINESS:
        return None
    middle = math.sqrt(max(noise, _SILENT * laziness) * laziness)
    digits = 10.0 ** math.floor(math.log10(middle))
    rounded = round(middle / digits) * digits
    return float(f"{rounded if noise < rounded < laziness else middle:.3g}")


async def measure(
    tasks: Sequence[Task],
    kinds: Sequence[Variation],
    settings: Settings,
    program: Program,
    limits: Limits,
    scratch: Path,
    *,
    on_step: Callable[[str], None] = lambda what: None,
) -> Report:
    """kinds: the first is how this node computes. scratch: an existing folder. on_step: told what begins.

    Raises WorkerFailed, LocalError.
    """
    if any(task.steps < 2 or task.batch < 2 for task in tasks) or settings.rounds < 2:
        raise LocalError("nothing can be left out of fewer than 2 rounds of 2 steps on 2 samples")
    bench = _Bench(program, limits, scratch, {path for task in tasks for path in task.files})
    on_step(kinds[0].name)
    async with bench.worker(kinds[0]) as child:
        told = (await child.call(words.Describe(settings.precision))).record
        records = [await _record(child, task, settings) for task in tasks]
    measured = []
    for kind in kinds[1:]:
        on_step(kind.name)
        async with bench.worker(kind) as child:
            audit_class = (await child.call(words.Describe(settings.precision))).record.audit_class
            for task, record in zip(tasks, records, strict=True):
                measured.append(await _replay(child, task, settings, record, kind.name, audit_class))
    own, others = standings(told.audit_class, measured)
    return Report(settings.precision, settings.wire, settings.rounds, told.version, own, others, tuple(measured))


def standings(own: str, measured: Sequence[Measured]) -> tuple[Standing, tuple[Standing, ...]]:
    """(our own class, every other one), each over all tasks."""
    classes = dict.fromkeys((own, *(each.audit_class for each in measured)))
    found = [_standing(name, [each for each in measured if each.audit_class == name]) for name in classes]
    return found[0], tuple(found[1:])


def _standing(name: str, measured: Sequence[Measured]) -> Standing:
    noise = max((each.worst for each in measured), default=0.0)
    laziness = min((each.laziness for each in measured), default=0.0)
    return Standing(name, noise, laziness, tolerance_between(noise, laziness) if measured else None)


@dataclass(frozen=True, slots=True)
class _Bench:
    program: Program
    limits: Limits
    scratch: Path
    readable: set[Path]

    def worker(self, kind: Variation) -> AbstractAsyncContextManager[Child]:
        return open_process(
            replace(self.program, environment=kind.environment, ready_s=READY_S),
            limits=replace(self.limits, threads=kind.threads),
            readable=tuple(self.readable),
            scratch=self.scratch,
        )


@dataclass(frozen=True, slots=True)
class _Record:
    """What a member sent. honest: a round each. lazy: by kind, (round, wire, wire before or None) each. roots: of the
    state after each round."""

    honest: Sequence[Wire]
    lazy: Mapping[str, Sequence[tuple[int, Wire, Wire | None]]]
    roots: Sequence[bytes]


async def _record(child: Child, task: Task, settings: Settings) -> _Record:
    honest, roots = await _train(child, _start(task, settings), settings.rounds)
    lazy = {}
    for kind, start in (
        (ONE_LESS, _start(replace(task, steps=task.steps - 1), settings)),
        (HALF_BATCH, _start(replace(task, batch=task.batch // 2), settings)),
    ):
        sent, _ = await _train(child, start, settings.rounds, applied=honest)
        lazy[kind] = [(number, wire, sent[number - 1] if number else None) for number, wire in enumerate(sent)]
    lazy[REUSED] = [(number, honest[number - 1], honest[number - 1]) for number in range(1, settings.rounds)]
    return _Record(honest, lazy, roots)


async def _train(
    child: Child, start: words.StartRun, rounds: int, applied: Sequence[Wire] | None = None
) -> tuple[list[Wire], list[bytes]]:
    """(what it sends, the state's root after each round). applied: the aggregates; what it sends itself by default."""
    await child.call(start)
    sent: list[Wire] = []
    roots = []
    for number in range(rounds):
        reply = await child.call(words.TrainRound(number, fresh=False))
        sent.append((reply.record.exponents, bytes(reply.blobs[0])))
        exponents, mantissas = (applied or sent)[number]
        roots.append((await child.call(words.ApplyRound(number, exponents), mantissas)).record.state_root)
    return sent, roots


async def _replay(
    child: Child, task: Task, settings: Settings, record: _Record, variation: str, audit_class: str
) -> Measured:
    ready = (await child.call(_start(task, settings))).record
    parts = tuple(range(_parts(task)))
    honest: list[float] = []
    lazy: dict[str, list[float]] = {kind: [] for kind in record.lazy}
    same = True

    async def again(number: int, wire: Wire, before: Wire | None) -> words.Replayed:
        blobs = (wire[1],) if before is None else (wire[1], before[1])
        request = words.Replay(number, 0, parts, wire[0], () if before is None else before[0])
        told: words.Replayed = (await child.call(request, *blobs)).record
        return told

    for number, wire in enumerate(record.honest):
        told = await again(number, wire, record.honest[number - 1] if number else None)
        honest += told.deviations
        same &= told.same
        for kind, cheats in record.lazy.items():
            for at, forged, before in cheats:
                if at == number:
                    lazy[kind].append(max((await again(at, forged, before)).deviations))
        root = (await child.call(words.ApplyRound(number, wire[0]), wire[1])).record.state_root
        if root != record.roots[number]:
            raise LocalError(f"{variation}: the public state itself differs after round {number}; it never may")
    least = {kind: min(found) for kind, found in lazy.items()}
    name = audit_class if ready.micro_batch == task.batch else ready.audit_class
    return Measured(task.name, variation, name, same, sorted(honest)[len(honest) // 2], max(honest), least)


def _parts(task: Task) -> int:
    return min(PARTS, parse_spec(task.spec).dimension)


def _start(task: Task, settings: Settings) -> words.StartRun:
    return words.StartRun(
        run=RUN,
        spec=task.spec,
        weights=str(task.weights),
        data=str(task.data),
        partition="iid",
        index=0,
        members=MEMBERS,
        parts=_parts(task),
        inner_steps=task.steps,
        batch=task.batch,
        learning_rate=task.learning_rate,
        optimizer=task.optimizer,
        outer_learning_rate=OUTER_LEARNING_RATE,
        outer_momentum=OUTER_MOMENTUM,
        precision=settings.precision,
        wire=settings.wire,
    )
