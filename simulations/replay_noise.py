"""How far an honest replay is from what was sent, on a machine that computes otherwise; and a lazy one's.

python -m simulations.replay_noise

The same training twice, in two processes: one with all instructions of this processor, one with those of an old one
(SSE), which sums in another order. The second replays the first, as `celluler verify` would, and also replays a member
that left out one step. A tolerance must lie between the two columns; where it cannot, replays must be done by machines
of one kind, which give equal bits.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.specs import CNN, MLP, as_bytes, digits

OLD = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}
PARTS, BATCH = 4, 32


@dataclass(frozen=True)
class Case:
    name: str
    spec: dict[str, Any]
    optimizer: str
    learning_rate: float
    steps: int
    rounds: int


CASES = (
    Case("MLP", MLP, "sgd", 0.2, 20, 10),
    Case("MLP", MLP, "adam", 1e-3, 20, 10),
    Case("MLP", MLP, "adam", 1e-2, 100, 5),
    Case("MLP", MLP, "adam", 1e-3, 300, 3),
    Case("CNN", CNN, "sgd", 0.1, 20, 4),
    Case("CNN", CNN, "adam", 1e-3, 20, 4),
)

Wire = tuple[tuple[int, ...], Any]


def replays(case: Case, sent: list[Wire] | None) -> tuple[list[Wire], list[float], list[float]]:
    """(wires, deviation of each round's honest wire, of one with a step less). sent: what to replay; None: our own."""
    import torch  # noqa: PLC0415  in the child alone

    from celluler.aggregation.q16 import decode_parts, encode_parts, part_slices  # noqa: PLC0415
    from celluler.engines.config import TrainConfig  # noqa: PLC0415
    from celluler.engines.data import Dataset  # noqa: PLC0415
    from celluler.engines.replay import deviation  # noqa: PLC0415
    from celluler.engines.train import Trainer  # noqa: PLC0415
    from celluler.models.spec import parse_spec  # noqa: PLC0415
    from celluler.models.weights import initial_vector  # noqa: PLC0415

    torch.set_num_threads(1)
    architecture = parse_spec(as_bytes(case.spec))
    x, y = digits()
    data = Dataset(torch.from_numpy(x).reshape(-1, *architecture.input.shape), torch.from_numpy(y))

    def trainer(steps: int) -> Trainer:
        config = TrainConfig(
            run=b"r" * 32, index=0, members=4, inner_steps=steps, batch=BATCH, learning_rate=case.learning_rate,
            optimizer=case.optimizer,
        )  # fmt: skip
        return Trainer(architecture, initial_vector(architecture, b"s" * 32), data, config)

    def worst(wire: Wire, again: Wire, work: Any) -> float:
        one, other = decode_parts(*wire), decode_parts(*again)
        return max(
            deviation(
                one[piece], other[piece], work.update[piece], work.added[piece],
                2.0 ** max(wire[0][part], again[0][part]),
            )
            for part, piece in enumerate(part_slices(architecture.dimension, PARTS))
        )  # fmt: skip

    whole, less, before = trainer(case.steps), trainer(case.steps - 1), None
    wires: list[Wire] = []
    honest, lazy = [], []
    for number in range(case.rounds):
        work = whole.work(number, 0, before)
        again = encode_parts(work.update, PARTS)
        wires.append(again if sent is None else sent[number])
        honest.append(worst(wires[-1], again, work))
        lazy.append(worst(encode_parts(less.work(number, 0, before).update, PARTS), again, work))
        before = decode_parts(*wires[-1])
        whole.apply(number, before)
        less.apply(number, before)
    return wires, honest, lazy


def child(path: Path) -> None:
    """Train and write what was sent; or, when that is there, replay it and print the table."""
    if not path.exists():
        path.write_bytes(pickle.dumps([replays(case, None)[0] for case in CASES]))
        return
    print(f"{'model':6}{'optimizer':>10}{'rate':>8}{'steps':>6}   honest, other instructions   one step less, least")
    for case, sent in zip(CASES, pickle.loads(path.read_bytes()), strict=True):
        _, honest, lazy = replays(case, sent)
        line = f"{case.name:6}{case.optimizer:>10}{case.learning_rate:8g}{case.steps:6d}"
        print(f"{line}{max(honest):29.1e}{min(lazy):23.1e}", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for variables in ({}, OLD):
            command = [sys.executable, "-m", "simulations.replay_noise", str(Path(folder, "sent"))]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | variables)


if __name__ == "__main__":
    child(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
