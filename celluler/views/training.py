"""A training, round by round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from celluler.views.swarm import PeerTraffic


@dataclass(frozen=True, slots=True)
class Suspected:
    """A peer against whom the teller holds something without proof."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class RoundAudits:
    """Replays of a round's work. done: carried out; accused, guilty: peers whom they found."""

    done: int = 0
    accused: tuple[str, ...] = ()
    guilty: tuple[str, ...] = ()


SHARES = ("accuracy", "matched")
GROWING = (*SHARES, "elbo")
"""Of what objectives are judged by: shares of a whole; what is better when it is more."""


@dataclass(frozen=True, slots=True)
class TrainingRound:
    """One certified round. Certified, and so told alike by every member: round (1 for the first) to credits.

    views: 1 when all went well; 0 where nobody certifies rounds, as among neighbours, and all is the teller's own.
    contributed: whose updates are in it; empty when that was not told. no_weight: contributed, and the rule counted
    none of it. credits: of each peer after this round.
    As the teller knows it, and empty or None when it does not: the rest. seconds: since the round before. norms: L2
    norm of a peer's update. traffic: of this round, averaging included. loss: mean over its own steps. metric,
    value: what the model's objective is judged by (`accuracy`, `perplexity`, …) and how much it is, of the state that
    the round began from, on a few samples of the data.
    """

    round: int
    views: int
    contributed: tuple[str, ...] = ()
    no_weight: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    expelled: tuple[str, ...] = ()
    suspended: tuple[str, ...] = ()
    credits: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    suspected: tuple[Suspected, ...] = ()
    norms: Mapping[str, float] = field(default_factory=dict)
    traffic: tuple[PeerTraffic, ...] = ()
    audits: RoundAudits = field(default_factory=RoundAudits)
    loss: float | None = None
    metric: str = ""
    value: float | None = None
