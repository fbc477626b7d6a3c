"""What a node knows of one job: its order, its life, and what was found out on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from celluler.content.digest import Digest
from celluler.errors import LocalError
from celluler.identity import PeerId
from celluler.jobs.states import JobEvent, JobLife, JobState
from celluler.learning.report import RunReport
from celluler.learning.roster import RosterView
from celluler_protocols.jobs_messages import Excluded, Facts, Moved, OpenedOrder, Outcome

MAX_EXCLUDED = 64
PICKING = frozenset({"krum", "multi-krum"})
LEAST_ROUNDS = 3
"""Fewer say nothing about a member."""
_REASON_CHARACTERS = 200


@dataclass(slots=True)
class JobRecord:
    """One job at one node. scope: cancelling it ends whatever this node does for the job.

    coordinated: this node gathers the members, and tells how far that is.
    """

    order: OpenedOrder
    life: JobLife
    coordinated: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    roster: RosterView | None = None
    report: RunReport | None = None
    outcome: Outcome | None = None
    moved: dict[PeerId, tuple[int, int]] = field(default_factory=dict)
    roster_taken: trio.Event = field(default_factory=trio.Event)
    changed: trio.Event = field(default_factory=trio.Event)

    @property
    def job(self) -> Digest:
        return self.order.job

    def move(self, state: JobState, now: float, reason: str = "") -> None:
        """Change state and wake whoever watches. A job that has ended stays as it is."""
        if not self.life.ended:
            self.life.move(state, now, reason)
            self._notify()

    def measure(self, now: float, metrics: Mapping[str, float]) -> None:
        if not self.life.ended:
            self.life.measure(now, metrics)
            self._notify()

    def take_roster(self, roster: RosterView) -> None:
        """Raises LocalError when the job has one already."""
        if self.roster is not None:
            raise LocalError("the roster of this job was taken before")
        self.roster = roster
        self.roster_taken.set()

    async def watch(self, cursor: int, wait_s: float) -> tuple[JobEvent, ...]:
        """Events after the cursor; waits for one if there is none and the job goes on."""
        with trio.move_on_after(wait_s):
            while not self.life.since(cursor) and not self.life.ended:
                await self.changed.wait()
        return self.life.since(cursor)

    def facts(self) -> Facts:
        """For whoever watches."""
        members = () if self.roster is None else tuple(member.peer for member in self.roster.members)
        return Facts(
            members=members,
            excluded=() if self.report is None else excluded(self.report),
            moved=tuple(Moved(peer, sent, received) for peer, (sent, received) in self.moved.items()),
            outcome=self.outcome,
        )

    def _notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


def excluded(report: RunReport) -> tuple[Excluded, ...]:
    """Members whose work did not count: with proof, or because every update of theirs was given no weight.

    By a rule that picks a few updates no weight means nothing: an honest member may never be among them.

    A member that the rule passes over in some rounds is none of them: it always leaves the farthest out, and among
    five members with f = 2 that is an honest one too. Absence is no offence, but is told.
    """
    rounds = len(report.rounds)
    reasons = {peer: f"excluded with proof: {reason}" for peer, reason in report.excluded.items()}
    sent = Counter(peer for one in report.rounds for peer in one.contributed)
    ignored = Counter(peer for one in report.rounds for peer in one.no_weight)
    absent = Counter(peer for one in report.rounds for peer in one.absent)
    for peer, count in ignored.items():
        if report.rule not in PICKING and count == sent[peer] >= LEAST_ROUNDS:
            reasons.setdefault(peer, f"given no weight by rule {report.rule} in {count} of {rounds} rounds")
    for peer, count in absent.items():
        if 2 * count > rounds:
            reasons.setdefault(peer, f"absent in {count} of {rounds} rounds")
    return tuple(Excluded(peer, None, reason[:_REASON_CHARACTERS]) for peer, reason in reasons.items())[:MAX_EXCLUDED]
