"""What a member of a run without certificates asks of the world, beside `Send` and `Fault`. See `neighbours.py`."""

from __future__ import annotations

from dataclasses import dataclass

from celluler.learning.effects import Fault, Send
from celluler.learning.neighbours_messages import Model
from celluler.learning.report import RoundReport


@dataclass(frozen=True, slots=True)
class Step:
    """Take this round's local steps from our own model, or none at all, and answer `stepped`."""

    round: int
    train: bool


@dataclass(frozen=True, slots=True)
class Gather:
    """Get a neighbour's model, every part of which must have the hash it announced; answer `gathered` in any case.

    place: in the roster. within_s: how long it may take.
    """

    place: int
    model: Model
    within_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """A neighbour's model that was gathered, and its weight."""

    place: int
    model: Model
    weight: float


@dataclass(frozen=True, slots=True)
class Mix:
    """Move our own model towards these and answer `mixed`; what else was gathered for this round is of no more use.

    rows: ascending by place. trusted: how many of them the rule may take for honest, namely the nearest; None where
    there are too few for a rule, and none may pull farther than our own steps went.
    """

    round: int
    rows: tuple[Row, ...]
    trusted: int | None


@dataclass(frozen=True, slots=True)
class Mixed:
    """A round is over. distance: as in `Done`."""

    report: RoundReport
    distance: float


@dataclass(frozen=True, slots=True)
class Done:
    """All rounds are over. Keep answering for a while: others may lag.

    deviations: (place, how far its last model lay from ours, relative to how far ours has come). distance: the
    largest of them, 0 when we met nobody in the last round.
    """

    deviations: tuple[tuple[int, float], ...]
    distance: float


Effect = Send | Fault | Step | Gather | Mix | Mixed | Done
