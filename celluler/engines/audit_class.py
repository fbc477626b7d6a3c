"""How this process computes, as a short name: two that bear the same one get the same bits out of the same work.

    x86_64-avx512-t1-2.13.0+cpu-fp32-cpu-5d0c2b91

Architecture, instruction set in use, threads, build of torch, precision, device; then what a small training by all
kinds of layers came to, bit for bit. The words say why two differ. The digits also tell apart what no word does: the
same instruction set on a processor of another maker, for which a library takes another path. That equal digits mean
equal bits for every model is likely and not proved; `celluler train calibrate` measures it.
"""

from __future__ import annotations

import functools
import platform

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from celluler.engines.config import TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.steps import LocalSteps
from celluler.models.spec import parse_spec
from celluler.models.weights import initial_vector

MAX_BYTES = 64
_PROBE_BYTES = 4
_SAMPLES, _STEPS = 48, 2
_FUNCTIONS = ("relu", "gelu", "silu", "tanh", "sigmoid")
_PROBE = {
    "spec": 1,
    "input": {"dtype": "float32", "shape": [3, 16, 16]},
    "layers": [
        {"kind": "conv2d", "channels": 16, "kernel": 3, "padding": 1},
        {"kind": "batch_norm"},
        *({"kind": "activation", "function": function} for function in _FUNCTIONS),
        {"kind": "conv2d", "channels": 8, "kernel": 3, "stride": 2},
        {"kind": "flatten"},
        {"kind": "dense", "width": 256},
        {"kind": "layer_norm"},
        {"kind": "dropout", "rate": 0.1},
        {"kind": "dense", "width": 10},
    ],
    "objective": {"kind": "classification", "classes": 10},
}


def audit_class(precision: str = "fp32", micro_batch: int = 0) -> str:
    """At most 64 characters. micro_batch: samples held at once, when a batch is cut; 0 when it is not."""
    words = [
        platform.machine() or "unknown",
        torch.backends.cpu.get_cpu_capability().lower().replace(" ", ""),
        f"t{torch.get_num_threads()}",
        torch.__version__,
        precision,
        "cpu",
        _probe(precision, torch.get_num_threads()),
    ]
    words += [f"m{micro_batch}"] if micro_batch else []
    name = "-".join(words)
    if len(name) > MAX_BYTES:
        words[3] = blake3(torch.__version__.encode()).hexdigest(length=_PROBE_BYTES)
        name = "-".join(words)[:MAX_BYTES]
    return name


@functools.cache
def _probe(precision: str, threads: int) -> str:
    """What a small training came to: hex of a digest over the bits of its weights. threads: that are set."""
    architecture = parse_spec(_PROBE)
    config = TrainConfig(
        run=bytes(32),
        index=0,
        members=1,
        inner_steps=_STEPS,
        batch=_SAMPLES,
        learning_rate=0.01,
        precision=precision,
    )
    steps = LocalSteps(architecture, config, Dataset(*_samples(architecture.input.shape)))
    steps.begin(initial_vector(architecture, bytes(32)), 0, 0, None)
    steps.take()
    return blake3(steps.vector.astype("<f4").tobytes()).hexdigest(length=_PROBE_BYTES)


def _samples(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The same everywhere: 8-bit integers from a hash."""
    count = int(np.prod(shape))
    drawn = np.frombuffer(blake3(b"celluler-class-1").digest(length=_SAMPLES * (count + 1)), dtype=np.uint8)
    x, y = drawn[: _SAMPLES * count], drawn[_SAMPLES * count :]
    values = (x.astype(np.float32) / 256).reshape(_SAMPLES, *shape)
    return torch.from_numpy(values), torch.from_numpy(y.astype(np.int64) % 10)
