"""What happened in a run, for the person who asked for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from celluler.identity import PeerId
from celluler.learning.admission import admitted_members
from celluler.learning.messages import Body, places
from celluler.learning.standing import Standing

MAX_FAULTS = 256


@dataclass(frozen=True, slots=True)
class RoundReport:
    """views: how many were needed, 1 when all went well. no_weight: contributed, and the rule counted none of it.

    absent: would have counted, and was not in the set. expelled, suspended, admitted: by this round, so from the next
    one on.
    """

    round: int
    views: int
    contributed: tuple[PeerId, ...]
    no_weight: tuple[PeerId, ...]
    absent: tuple[PeerId, ...]
    expelled: tuple[PeerId, ...] = ()
    suspended: tuple[PeerId, ...] = ()
    admitted: tuple[PeerId, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """peer: who; reason: what; count: how often."""

    peer: PeerId
    reason: str
    count: int


@dataclass(slots=True)
class RunReport:
    """Grows with the run. excluded: with proof that we hold; expelled: by whom all agree, and the round after which;
    faults: without proof."""

    rule: str
    rounds: list[RoundReport] = field(default_factory=list)
    excluded: dict[PeerId, str] = field(default_factory=dict)
    expelled: dict[PeerId, int] = field(default_factory=dict)
    _faults: Counter[tuple[PeerId, str]] = field(default_factory=Counter)

    def fault(self, peer: PeerId, reason: str) -> None:
        if (peer, reason) in self._faults or len(self._faults) < MAX_FAULTS:
            self._faults[peer, reason] += 1

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Everything held against anybody: proofs first, then faults, then who was given no weight."""
        proofs = [Finding(peer, reason, 1) for peer, reason in self.excluded.items()]
        faults = [Finding(peer, reason, count) for (peer, reason), count in self._faults.items()]
        unweighted = Counter(peer for report in self.rounds for peer in report.no_weight)
        ignored = [Finding(peer, f"given no weight by rule {self.rule}", n) for peer, n in unweighted.items()]
        return (*proofs, *faults, *ignored)


def report_of(standing: Standing, body: Body, view: int) -> RoundReport:
    """Read from the certified bodies alone, so every member reports the same. standing: that of the body's round."""
    roster = standing.roster
    inside = places(body.members)
    unweighted = [
        member for place, member in enumerate(inside) if body.parts and not any(p.weights[place] for p in body.parts)
    ]
    return RoundReport(
        round=body.round,
        views=view + 1,
        contributed=tuple(roster.members[place].peer for place in inside),
        no_weight=tuple(roster.members[place].peer for place in unweighted),
        absent=tuple(roster.members[place].peer for place in places(standing.senders & ~body.members)),
        expelled=tuple(roster.members[place].peer for place in places(body.expelled)),
        suspended=tuple(roster.members[place].peer for place in places(body.suspended)),
        admitted=tuple(member.peer for member in admitted_members(roster, body.admitted)),
    )
