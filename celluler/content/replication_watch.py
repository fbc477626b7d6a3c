"""Which content a peer looks at when, and what it does about it then: the replicator's machine, sans-IO.

Holds one line for each content of the swarm's catalogue: when to look next, who held it last time, what was seen.
Looks are spread, rarer for contents that others are nearer to and for those that have enough copies; but whoever is
near looks at once when somebody known to hold one is gone, which costs no question to find out.
Time is an argument. Knows neither the DHT nor the store: who asks is told whom to ask about and hands in the answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from celluler.content.replication import (
    NOTHING_SEEN,
    Candidate,
    Decision,
    Policy,
    Replicated,
    Seen,
    Verdict,
    attention,
    plan,
)
from celluler.identity import PeerId

MAX_WATCHED = 4096
_SOON_S = 2.0
_SETTLED = 10
"""Intervals between two looks at what has enough copies: only a holder that lives and gave it up shows by looking."""
_RETRY_S = 60.0
_RETRY_MOST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A content of the catalogue, as this peer stands to it.

    manifest: digest of the signed manifest that names it. held: it is here, or on its way. spare: it is here for
    the swarm alone, so that it may be given up.
    """

    content: Replicated
    manifest: bytes
    held: bool
    spare: bool = False


@dataclass(slots=True)
class _Line:
    wanted: Wanted
    look_at: float
    providers: frozenset[PeerId] = frozenset()
    seen: Seen = NOTHING_SEEN
    decision: Decision | None = None
    busy: bool = False
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Watched:
    """What the last look at a content showed."""

    root: bytes
    decision: Decision


@dataclass(slots=True)
class Watch:
    """The machine. `update` now and then, `due` when `wait_s` is over, then `judge`, then `pulled` if it said so."""

    own: Candidate
    interval_s: float
    rng: random.Random
    policy: Policy = field(default_factory=Policy)
    _lines: dict[bytes, _Line] = field(default_factory=dict)
    _members: tuple[Candidate, ...] = ()

    def update(self, catalogue: Iterable[Wanted], members: Sequence[Candidate], now: float) -> None:
        """The catalogue and the live others as they are now. Beyond 4096 contents the later ones are passed over."""
        moved = self._members != tuple(members)
        self._members = tuple(members)
        wanted = {one.content.root: one for one in catalogue}
        for root in [root for root in self._lines if root not in wanted]:
            del self._lines[root]
        present = {member.peer for member in members}
        for root, one in wanted.items():
            if (line := self._lines.get(root)) is not None:
                line.wanted = one
                if moved and self._lost(line, present):
                    line.look_at = min(line.look_at, now + self._notice_s(one) * self.rng.random())
            elif len(self._lines) < MAX_WATCHED:
                self._lines[root] = _Line(one, now + self.interval_s * self.rng.random())

    def due(self, now: float) -> Wanted | None:
        """A content to look at now, if there is one: that with the fewest copies first. It waits for `judge`."""
        ready = [line for line in self._lines.values() if line.look_at <= now and not line.busy]
        if not ready:
            return None
        line = min(ready, key=lambda line: (line.decision.copies if line.decision else 0, line.look_at))
        line.busy = True
        return line.wanted

    def wait_s(self, now: float) -> float:
        """How long until something is due; infinite when nothing is watched."""
        return max(0.0, min((line.look_at for line in self._lines.values() if not line.busy), default=math.inf) - now)

    def judge(self, root: bytes, providers: Collection[PeerId], room_bytes: int, now: float) -> Decision:
        """What to do about a content whose providers were just asked for. After PULL and RELEASE call `pulled`."""
        line = self._lines.get(root)
        if line is None:
            return Decision(Verdict.ENOUGH, 0, 0)
        wanted = line.wanted
        decision = plan(
            now,
            wanted.content,
            self._members,
            providers,
            self.own,
            room_bytes,
            held=wanted.held,
            seen=line.seen,
            policy=self.policy,
        )
        line.providers, line.seen, line.decision = frozenset(providers), decision.seen, decision
        if decision.verdict is Verdict.RELEASE and not wanted.spare:
            decision = Decision(Verdict.ENOUGH, decision.copies, 0)
        line.busy = decision.verdict in (Verdict.PULL, Verdict.RELEASE)
        line.look_at = self._next_look(line, decision, now)
        return decision

    def unanswered(self, root: bytes, now: float) -> None:
        """The providers could not be asked for: another time."""
        if (line := self._lines.get(root)) is not None:
            line.busy, line.look_at = False, now + self.interval_s * self.rng.uniform(0.75, 1.25)

    def pulled(self, root: bytes, now: float, *, done: bool) -> None:
        """What became of a pull or a release. One that failed is tried again ever later, and meanwhile by others."""
        if (line := self._lines.get(root)) is not None:
            line.busy, line.seen = False, NOTHING_SEEN
            line.failed = 0 if done else line.failed + 1
            pause_s = self.interval_s if done else min(_RETRY_S * 2.0 ** (line.failed - 1), _RETRY_MOST_S)
            line.look_at = now + pause_s * self.rng.uniform(0.75, 1.25)

    def watched(self) -> tuple[Watched, ...]:
        """The last look at each content that was looked at."""
        return tuple(Watched(root, line.decision) for root, line in self._lines.items() if line.decision is not None)

    def _next_look(self, line: _Line, decision: Decision, now: float) -> float:
        if decision.verdict is Verdict.WAIT:
            return decision.until_s
        intervals = attention(line.wanted.content, self._members, self.own)
        if not decision.lacking:
            intervals = max(intervals, _SETTLED)
        return now + intervals * self.interval_s * self.rng.uniform(0.75, 1.25)

    def _notice_s(self, wanted: Wanted) -> float:
        """How long to wait at most before asking who is left: those far behind leave it to the near ones."""
        far = attention(wanted.content, self._members, self.own) - 1
        return far * self.interval_s if far else _SOON_S

    def _lost(self, line: _Line, present: Collection[PeerId]) -> bool:
        """Whether fewer hold it than at the last look, and too few. At least by what is known here without asking."""
        if line.busy or line.decision is None:
            return False
        left = sum(peer in present for peer in line.providers) + line.wanted.held
        return left < min(line.wanted.content.copies, line.decision.copies)
