"""Who really trained: which updates can be replayed, which to draw, how to judge a replay, what a sample is worth.

A replay itself is done by a worker (`celluler.engines.replay`). Whoever audits draws by a seed that nobody could know
while the run was made: a forger who knows it forges the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from blake3 import blake3

from celluler.identity import PeerId
from celluler.learning.messages import mask
from celluler.learning.verify import Archive, Link

TOLERANCE = 1e-3
"""Deviation above which a member did not do its steps, for machines that compute alike. Other instructions and Adam can
carry an honest member beyond it: see docs/reference/protocols/transcript.md for what was measured."""
SEED_BYTES = 16
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5)
"""Of the training that may be forged, for which the odds are told."""


@dataclass(frozen=True, slots=True)
class Replayable:
    """A member's update that can be replayed, in these parts. carries: momentum of the round before is in it."""

    round: int
    member: int
    parts: tuple[int, ...]
    carries: bool


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave. same: every bit, in every part. deviation: the largest of any part, 0 when nothing differs
    beyond rounding. guilty: that is above the tolerance, so it did not do the work that it signed for."""

    round: int
    peer: PeerId
    nickname: str
    same: bool
    deviation: float
    guilty: bool


@dataclass(frozen=True, slots=True)
class Odds:
    """How likely a forger of this share of all replayable updates would have been caught, at least."""

    share: float
    caught: float


class Outcome(StrEnum):
    OK = "ok"
    WRONG = "wrong"
    OPEN = "not checked"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a verification. checked of `of` things were looked at and, unless the outcome is wrong, hold."""

    check: str
    outcome: Outcome
    checked: int
    of: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a stranger found out about a run. ok: nothing is wrong; what could not be checked stands in `findings`.

    job, weights: CIDs, empty when it did not come so far. updates: that were counted in; replayable: of these; replays:
    those drawn, by `seed` (hex), and judged by `tolerance`.
    """

    job: str
    weights: str
    findings: tuple[Finding, ...]
    replays: tuple[Replayed, ...]
    updates: int
    replayable: int
    odds: tuple[Odds, ...]
    seed: str
    tolerance: float
    ok: bool


class Population:
    """Every update of a run, counted as its chain is walked."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._previous: Link | None = None
        self._follows = True  # every aggregate so far is here, so that the state is known
        self.updates = 0
        """Those that certified sets name."""
        self.replayable: list[Replayable] = []
        self.sound = 0
        """Those that carried momentum exactly when they had some."""
        self.odd: list[str] = []
        """Updates that carried momentum where there was none, or left out what there was."""

    def add(self, link: Link) -> None:
        """The next height."""
        if link.body.parts:
            self.updates += len(link.members)
            for member in link.members:
                self._add(link, member)
            self._follows &= self._archive.held_aggregate(link.round) == mask(range(len(link.body.parts)))
        self._previous = link

    def _add(self, link: Link, member: int) -> None:
        commit, before = link.commit_of(member), self._previous
        if commit is None:
            return
        carries = before is not None and member in before.members
        if commit.fresh is carries:
            what = "left its momentum out" if carries else "carried momentum that nobody knows"
            self.odd.append(f"round {link.round}: {self._archive.name_of(member)} {what}")
            return
        self.sound += 1
        parts = self._archive.held(link.round, member)
        if carries and before is not None:
            parts = parts & self._archive.held(before.round, member) if before.commits else frozenset()
        if parts and self._follows:
            self.replayable.append(Replayable(link.round, member, tuple(sorted(parts)), carries))


def draw(replayable: Iterable[Replayable], count: int, seed: bytes) -> frozenset[tuple[int, int]]:
    """(round, member) of so many updates, each as likely as any other. A larger draw by one seed holds a smaller."""

    def lot(one: Replayable) -> bytes:
        return blake3(b"celluler-audit-1\0" + seed + bytes((one.member,)) + one.round.to_bytes(4, "big")).digest()

    return frozenset((one.round, one.member) for one in sorted(replayable, key=lot)[:count])


def odds(replays: int, replayable: int, shares: Sequence[float] = SHARES) -> tuple[Odds, ...]:
    """1 − (1 − s)^k for k replays: what drawing with replacement would find; without, it is more. 1 when all were."""
    return tuple(Odds(s, 1.0 if 0 < replayable <= replays else 1.0 - (1.0 - s) ** replays) for s in shares)
