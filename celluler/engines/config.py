"""How a member trains in a round, as figures: the same at all members of a run but for the member's own place."""

from __future__ import annotations

import math
from dataclasses import dataclass

from celluler.engines.optimise import INNER, OUTER_LEARNING_RATE, OUTER_MOMENTUM
from celluler.errors import LocalError

PARTITIONS = ("iid", "shard", "by-label", "by-key")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What a member does in each round; the same at all members but for `index`.

    run: 32 bytes. members: that were there at the start; shards are theirs, and who came later, at a place behind them,
    shares one. partition: `iid`, every member draws from all samples; else each from a shard of its own, dealt with
    the run as seed: `shard`, an equal part at random; `by-label`, whole classes; `by-key`, whole keys. precision: of
    the local steps' products; state, update and outer step are float32 always. micro_batch: of so many samples at
    most are the activations held at once, their gradients summed: never other samples, but other roundings. 0: of all.
    """

    run: bytes
    index: int
    members: int
    inner_steps: int
    batch: int
    learning_rate: float
    optimizer: str = "adam"
    partition: str = "iid"
    outer_learning_rate: float = OUTER_LEARNING_RATE
    outer_momentum: float = OUTER_MOMENTUM
    precision: str = "fp32"
    micro_batch: int = 0

    def __post_init__(self) -> None:
        if len(self.run) != 32:
            raise LocalError("a run has an id of 32 bytes")
        if self.index < 0 or self.members < 1:
            raise LocalError(f"member {self.index} of {self.members}")
        if self.inner_steps < 1 or self.batch < 1:
            raise LocalError("a round takes at least one step on at least one sample")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise LocalError("the learning rate must be positive")
        if not (0 < self.outer_learning_rate <= 10 and 0 <= self.outer_momentum < 1):
            raise LocalError("outer learning rate must be in (0, 10], momentum in [0, 1)")
        if self.optimizer not in INNER:
            raise LocalError(f"no optimizer is called {self.optimizer!r}; there are {', '.join(INNER)}")
        if self.partition not in PARTITIONS:
            raise LocalError(f"no partition is called {self.partition!r}; there are {', '.join(PARTITIONS)}")
        if self.precision not in PRECISIONS:
            raise LocalError(f"no precision is called {self.precision!r}; there are {', '.join(PRECISIONS)}")
        if self.micro_batch < 0:
            raise LocalError("a micro-batch has at least one sample")

    @property
    def micro(self) -> int:
        """Samples whose activations are held at once."""
        return min(self.micro_batch or self.batch, self.batch)
