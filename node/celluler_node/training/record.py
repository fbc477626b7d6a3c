"""What a node knows of one job: its order, its life, and what was found out on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import trio

from celluler.content.digest import Digest
from celluler.errors import LocalError
from celluler.identity import PeerId
from celluler.jobs.states import JobEvent, JobLife, JobState
from celluler.jobs.telemetry import RoundFigures
from celluler.learning.invites import OpenedInvite
from celluler.learning.report import RunReport
from celluler.learning.roster import RosterView, open_roster
from celluler_node.training.archive import Kept
from celluler_node.training.live import LiveRun
from celluler_protocols.jobs_messages import Excluded, Facts, Moved, Outcome, from_event, to_event
from celluler_protocols.jobs_orders import MAX_LIFE_S, ChangeOrder, OpenedOrder, open_order

MAX_EXCLUDED = 64
PICKING = frozenset({"krum", "multi-krum"})
LEAST_ROUNDS = 3
"""Fewer say nothing about a member."""
_REASON_CHARACTERS = 200


@dataclass(slots=True)
class JobRecord:
    """One job at one node. scope: cancelling it ends whatever this node does for the job.

    coordinated: this node gathers the members, and tells how far that is. told: what was known of it when this node
    was last started. live: its run, while it goes on here. changed_to: what its submitter changed since.
    """

    order: OpenedOrder
    life: JobLife
    coordinated: bool = False
    told: Facts = field(default_factory=Facts)
    live: LiveRun | None = None
    changed_to: ChangeOrder = field(default_factory=lambda: ChangeOrder(bytes(32), 0, None, None, None))
    invite: OpenedInvite | None = None
    """With which we may join its run late, whoever the job lists."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    limited: list[trio.CancelScope] = field(default_factory=list)
    """Scopes that end with the job's deadline."""
    roster: RosterView | None = None
    report: RunReport | None = None
    outcome: Outcome | None = None
    evidence: dict[PeerId, str] = field(default_factory=dict)
    transcript: Digest | None = None
    """Ours of the run, once it is a content."""
    moved: dict[PeerId, tuple[int, int]] = field(default_factory=dict)
    roster_taken: trio.Event = field(default_factory=trio.Event)
    changed: trio.Event = field(default_factory=trio.Event)

    @property
    def job(self) -> Digest:
        return self.order.job

    @property
    def expires_s(self) -> int:
        """Unix seconds, as last changed."""
        return self.changed_to.expires_s or self.order.signed.record.expires_s

    @property
    def max_peers(self) -> int:
        return self.changed_to.max_peers or self.order.spec.resources.peers.max

    @property
    def priority(self) -> int:
        changed = self.changed_to.priority
        return self.order.spec.policy.priority if changed is None else changed

    @contextmanager
    def within_deadline(self, now: float) -> Iterator[trio.CancelScope]:
        """A scope that ends when the job's deadline passes, also one that it is given later. now: Unix seconds."""
        with trio.CancelScope() as scope:
            self.limited.append(scope)
            self._limit(now)
            try:
                yield scope
            finally:
                self.limited.remove(scope)

    def change(self, wanted: ChangeOrder, now: float) -> None:
        """By its submitter; an older change than the last one does nothing. Raises LocalError for what cannot be."""
        record, known = self.order.signed.record, self.changed_to
        if self.life.ended:
            raise LocalError(f"the job has ended as {self.life.state.value}")
        if wanted.expires_s is not None and not record.created_s < wanted.expires_s <= record.created_s + MAX_LIFE_S:
            raise LocalError(f"a deadline is at most {MAX_LIFE_S} s after submission")
        if wanted.max_peers is not None and wanted.max_peers < self.order.spec.resources.peers.min:
            raise LocalError(f"the job needs {self.order.spec.resources.peers.min} peers")
        if wanted.issued_s < known.issued_s:
            return
        self.changed_to = ChangeOrder(
            job=bytes(self.job),
            issued_s=wanted.issued_s,
            expires_s=known.expires_s if wanted.expires_s is None else wanted.expires_s,
            max_peers=known.max_peers if wanted.max_peers is None else wanted.max_peers,
            priority=known.priority if wanted.priority is None else wanted.priority,
        )
        self._limit(now)
        self._notify()

    def move(self, state: JobState, now: float, reason: str = "") -> None:
        """Change state and wake whoever watches. A job that has ended stays as it is."""
        if not self.life.ended:
            self.life.move(state, now, reason)
            self._notify()

    def measure(self, now: float, metrics: Mapping[str, float], round_figures: RoundFigures | None = None) -> None:
        if not self.life.ended:
            self.life.measure(now, metrics, round_figures)
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
        moved = tuple(Moved(peer, sent, received) for peer, (sent, received) in self.moved.items())
        return Facts(
            members=self.told.members if self.roster is None else tuple(one.peer for one in self.roster.members),
            excluded=self.told.excluded if self.report is None else excluded(self.report, self.evidence),
            moved=moved or self.told.moved,
            outcome=self.outcome or self.told.outcome,
        )

    def kept(self) -> Kept:
        """What to write down."""
        events = tuple(map(to_event, self.life.events))
        roster = None if self.roster is None else self.roster.raw
        return Kept(self.order.signed.raw, roster, self.coordinated, events, self.facts(), self.changed_to)

    @classmethod
    def restore(cls, kept: Kept) -> JobRecord:
        """Raises CellulerError for what was not written by us."""
        order, life = open_order(kept.order), JobLife.restore(map(from_event, kept.events))
        record = cls(order, life, kept.coordinated, kept.facts, changed_to=kept.changed_to)
        if kept.roster is not None:
            record.take_roster(open_roster(kept.roster, order.signed.record.coordinator))
        return record

    def _limit(self, now: float) -> None:
        for scope in self.limited:
            scope.deadline = trio.current_time() + max(0.0, self.expires_s - now)

    def _notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


def excluded(report: RunReport, evidence: Mapping[PeerId, str] = MappingProxyType({})) -> tuple[Excluded, ...]:
    """Members whose work did not count: with proof, or because every update of theirs was given no weight.

    By a rule that picks a few updates no weight means nothing: an honest member may never be among them.

    A member that the rule passes over in some rounds is none of them: it always leaves the farthest out, and among
    five members with f = 2 that is an honest one too. Absence is no offence, but is told.

    evidence: CID of the file that proves it, by peer.
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
    told = {peer: _with_evidence(reason, evidence.get(peer)) for peer, reason in reasons.items()}
    return tuple(Excluded(peer, None, reason) for peer, reason in told.items())[:MAX_EXCLUDED]


def _with_evidence(reason: str, cid: str | None) -> str:
    if cid is None:
        return reason[:_REASON_CHARACTERS]
    tail = f"; evidence {cid}"
    return reason[: _REASON_CHARACTERS - len(tail)] + tail
