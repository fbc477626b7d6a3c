"""What the node asks of a worker in a run without certificates, and what it answers. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celluler.wire import I16, U8, U64, Bytes32, Length, Name
from celluler_node.processes.words import Answer

MAX_ROWS = 63
_Exponents = Annotated[tuple[I16, ...], Length(1, 64)]
_Figures = Annotated[tuple[float, ...], Length(0, MAX_ROWS)]


@dataclass(frozen=True, slots=True)
class StepOwn:
    """The local steps of a round from our own model, or none. → Stepped"""

    round: U64
    train: bool


@dataclass(frozen=True, slots=True)
class Stepped:
    """With our model as a difference to what the run began with, all parts in order, as one blob: (dimension,) int16.

    exponents: one a part. loss: mean over the steps; 0 without any.
    """

    loss: float
    exponents: _Exponents


@dataclass(frozen=True, slots=True)
class MixRow:
    """A neighbour's model. exponents: one a part."""

    weight: float
    exponents: _Exponents


@dataclass(frozen=True, slots=True)
class MixOwn:
    """Move our model towards these, whose mantissas come as one blob each. → MixedOwn

    trusted, clip: see `celluler.engines.mixing`; clip false is the plain mean.
    """

    round: U64
    rows: Annotated[tuple[MixRow, ...], Length(0, MAX_ROWS)]
    trusted: U8 | None
    clip: bool


@dataclass(frozen=True, slots=True)
class MixedOwn:
    """deviations, pulls: one a row. state_root: of our own model as it is now."""

    deviations: _Figures
    pulls: _Figures
    state_root: Bytes32


@dataclass(frozen=True, slots=True)
class CompareOwn:
    """How far a weights file in the scratch folder lies from our model. → Compared"""

    name: Name


@dataclass(frozen=True, slots=True)
class Compared:
    """deviation: relative to how far our model has come from what the run began with."""

    deviation: float


MIX_REQUESTS = (StepOwn, MixOwn, CompareOwn)
MIX_REPLIES = (Stepped, MixedOwn, Compared)
MIX_ANSWERS = {
    StepOwn: Answer((Stepped,), blobs=1),
    MixOwn: Answer((MixedOwn,)),
    CompareOwn: Answer((Compared,)),
}
