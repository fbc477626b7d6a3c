"""What is told of one round of a training, besides the round's number: bounded, so that it may travel with events.

Members are named by their place in the job's list of members, which only grows. What every member holds alike, because
it stands in certified bodies, and what only the teller measured stand side by side; the docstring says which is which.
Knows neither how a round is agreed on nor who is shown these figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from celluler.jobs.limits import MAX_ROUNDS
from celluler.wire import U16, U64, Length, Range

MAX_MEMBERS = 64
MAX_SUSPECTED = 16
MAX_SUSPICION_BYTES = 128
MAX_ROUND_BYTES = 6400
"""No RoundFigures packs to more."""

Member = Annotated[int, Range(0, MAX_MEMBERS - 1)]
Members = Annotated[tuple[Member, ...], Length(0, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something held against a member without proof: a link that failed, an update that was told twice."""

    member: Member
    reason: Annotated[str, Length(1, MAX_SUSPICION_BYTES)]


@dataclass(frozen=True, slots=True)
class Amount:
    """A figure of one member."""

    member: Member
    value: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one member sent and received in this round, averaging included."""

    member: Member
    sent_bytes: U64
    received_bytes: U64


@dataclass(frozen=True, slots=True)
class Audits:
    """Replays of this round's work. done: how many were carried out; accused, guilty: whom they found."""

    done: U16 = 0
    accused: Members = ()
    guilty: Members = ()


Suspicions = Annotated[tuple[Suspicion, ...], Length(0, MAX_SUSPECTED)]
Amounts = Annotated[tuple[Amount, ...], Length(0, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """One round, told once it is certified.

    By the certified body, the same at every member: round (1 for the first), views (1 when all went well; 0 where
    nobody certifies rounds, so that all of it is the teller's own), contributed, no_weight (contributed, and the rule
    counted none of it), absent, expelled and suspended (by this round, so from the next one on), credits (units of each
    member after this round, vested or not).
    By the teller alone, and empty or None where it knows nothing: suspected, norms (L2 norm of a member's update, in
    the units of the weights), traffic, audits, seconds (since the round before was certified), loss (mean training loss
    of its own steps), metric and value (what the model's objective is judged by, and how much it is, of the state that
    the round began from, on a few samples of the data).
    """

    round: Annotated[int, Range(1, MAX_ROUNDS)]
    views: U16
    seconds: float
    contributed: Members
    no_weight: Members = ()
    absent: Members = ()
    expelled: Members = ()
    suspended: Members = ()
    suspected: Suspicions = ()
    norms: Amounts = ()
    traffic: Annotated[tuple[Traffic, ...], Length(0, MAX_MEMBERS)] = ()
    credits: Amounts = ()
    audits: Audits = Audits()
    loss: float | None = None
    metric: Annotated[str, Length(0, 32)] = ""
    value: float | None = None


def suspicions(found: Iterable[tuple[int, str]]) -> tuple[Suspicion, ...]:
    """The first MAX_SUSPECTED, each reason cut to what may travel."""
    cut = ((member, _cut(reason)) for member, reason in found)
    return tuple(Suspicion(member, reason) for member, reason in cut)[:MAX_SUSPECTED]


def amounts(values: Mapping[int, float]) -> tuple[Amount, ...]:
    """By place, ascending."""
    return tuple(Amount(member, float(values[member])) for member in sorted(values))


def _cut(reason: str) -> str:
    return reason.encode("utf-8", "replace")[:MAX_SUSPICION_BYTES].decode("utf-8", "ignore") or "?"
