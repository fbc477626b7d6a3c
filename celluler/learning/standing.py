"""Who is a member, who has a vote and what each has earned: read from the certified bodies, and from nothing else.

A run and whoever verifies its transcript fold the same bodies, so they agree without another word. Nobody is asked, and
nothing of what a member knows for itself enters.

*Credits.* A member earns WORK for a round in which the rule gave its update weight, CARE for one for whose body it
voted. Credit vests VESTING_ROUNDS after it was earned: then it is the member's for good. What has not vested is lost
with an expulsion. During a suspension nothing is earned and nothing vests; what was earned before waits that much
longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from celluler.errors import PeerViolation, ProtocolViolation
from celluler.learning.admission import admitted_members, check_admitted
from celluler.learning.inputs import check_part
from celluler.learning.messages import Body, Certificate, check_certificate, mask, places, record_hash
from celluler.learning.roster import Electorate, RosterView

INACTIVE_ROUNDS = 3
"""Rounds in a row without a word in the chain after which nobody waits for a member, nor lets it lead."""
VESTING_ROUNDS = 32
WORK, CARE = 4, 1
"""Units of credit. A round's training weighs as much as the care for four."""


@dataclass(frozen=True, slots=True)
class Credit:
    """vested: units that nothing takes away. pending: (round from which it counts as earned, units), ascending."""

    vested: int = 0
    pending: tuple[tuple[int, int], ...] = ()

    @property
    def accrued(self) -> int:
        """All units, those that can still be lost included."""
        return self.vested + sum(units for _, units in self.pending)

    def earn(self, round_number: int, units: int) -> Credit:
        return Credit(self.vested, (*self.pending, (round_number, units))) if units else self

    def vest(self, round_number: int) -> Credit:
        due = sum(units for at, units in self.pending if at + VESTING_ROUNDS <= round_number)
        if not due:
            return self
        return Credit(self.vested + due, tuple(one for one in self.pending if one[0] + VESTING_ROUNDS > round_number))

    def defer(self, rounds: int) -> Credit:
        return Credit(self.vested, tuple((at + rounds, units) for at, units in self.pending))

    def lose(self) -> Credit:
        return Credit(self.vested)


@dataclass(frozen=True)
class Standing:
    """After all bodies before `round`; that is the round it is for.

    roster: with those admitted since. prev: what the next body must name. expelled: mask. back: (place, first round in
    which it takes part again) of the suspended. since: by place, the first round in which a member counts. credits: by
    place. seen: mask of those that came late and have shown that they are there. recent: of the last INACTIVE_ROUNDS
    bodies, masks of the set and of who voted before. before: who could vote for the body before; None when there was
    none.
    """

    roster: RosterView
    round: int
    prev: bytes
    expelled: int
    back: tuple[tuple[int, int], ...]
    since: tuple[int, ...]
    credits: tuple[Credit, ...]
    seen: int
    recent: tuple[tuple[int, int], ...]
    before: Electorate | None

    @classmethod
    def of(cls, roster: RosterView) -> Standing:
        """Before round 0. roster: as the coordinator signed it."""
        size = len(roster)
        return cls(roster, 0, roster.digest, 0, (), (0,) * size, (Credit(),) * size, 0, (), None)

    @property
    def size(self) -> int:
        """Members that are left: all but the expelled."""
        return len(self.roster) - self.expelled.bit_count()

    @cached_property
    def electorate(self) -> Electorate:
        """Of this round. Should an expulsion leave too few, all suspensions rest: nobody else could go on.

        Who came late has its vote once it has shown that it is there, by an update in a set or, if it does not train,
        by a vote: one that is gone again, or never was there, must not raise the quorum.
        """
        suspended = mask(place for place, back in self.back if back > self.round)
        waiting = mask(place for place, since in enumerate(self.since) if since > self.round)
        voteless = mask(place for place, since in enumerate(self.since) if since) & ~self.seen
        found = Electorate(self.roster, self.expelled, suspended, waiting, voteless)
        return found if found.able else replace(found, suspended=0)

    @cached_property
    def leaders(self) -> tuple[int, ...]:
        """Voters that take turns in leading: those of whom the last bodies show that they are there."""
        if len(self.recent) < INACTIVE_ROUNDS:
            return self.electorate.places
        seen = self.electorate.voters & _union(one | other for one, other in self.recent)
        return places(seen) or self.electorate.places

    @cached_property
    def awaited(self) -> int:
        """Mask of those for whose commit it is worth waiting: workers of the last sets, and those who just came."""
        if self.closing:
            return mask(self.leaders)
        if len(self.recent) < INACTIVE_ROUNDS:
            return self.electorate.workers
        came = dict(enumerate(self.since)) | dict(self.back)
        fresh = mask(place for place, at in came.items() if 0 < at <= self.round < at + INACTIVE_ROUNDS)
        return self.electorate.workers & (_union(one for one, _ in self.recent) | fresh)

    @property
    def closing(self) -> bool:
        """All rounds are decided; what is left certifies the final state, in no parts and by the voters alone."""
        return self.round == self.roster.rules.rounds

    @property
    def senders(self) -> int:
        """Mask of those whose commits the set of this round may name."""
        return self.electorate.voters if self.closing else self.electorate.workers

    @property
    def least(self) -> int:
        """How many commits that set needs."""
        return self.electorate.q if self.closing else self.electorate.least

    def check(self, body: Body) -> None:
        """Raises PeerViolation for a body that no honest member votes for in this round."""
        electorate, rules = self.electorate, self.roster.rules
        if (body.round, body.prev) != (self.round, self.prev):
            raise ProtocolViolation("a body that follows another history")
        if body.round > rules.rounds or len(body.parts) != (0 if self.closing else rules.parts):
            raise ProtocolViolation(f"a body of {len(body.parts)} parts in round {body.round}")
        size = body.members.bit_count()
        if size < self.least or body.members & ~self.senders:
            raise ProtocolViolation(f"a body from {size} updates, of which {self.least} are needed, or with strangers")
        for part in body.parts:
            check_part(part, size, electorate.spared)
        if not electorate.may_expel(body.expelled):
            raise ProtocolViolation("a body that expels strangers, or more than b in all")
        if body.suspended & body.expelled or not self._may_suspend(body):
            raise ProtocolViolation("a body that suspends strangers, or so many that too few are left")
        if not self._may_have_voted(body.voted):
            raise ProtocolViolation("a body that names others than voters as those of the body before")
        if body.admitted:
            if self.closing:
                raise ProtocolViolation("an admission when all rounds are over")
            check_admitted(self, body.admitted)

    def accept(self, certificate: Certificate) -> Standing:
        """What comes after a certificate of this round. Raises PeerViolation unless it is one of a body that may be."""
        check_certificate(self.electorate, certificate)
        self.check(certificate.body)
        return self.after(certificate.body)

    def after(self, body: Body) -> Standing:
        """What comes after a body that was certified and checked."""
        rules, number = self.roster.rules, self.round
        joined = admitted_members(self.roster, body.admitted)
        back = dict(self.back) | dict.fromkeys(places(body.suspended), number + 1 + rules.suspension)
        return Standing(
            self.roster.with_members(joined),
            number + 1,
            record_hash(body),
            self.expelled | body.expelled,
            tuple(sorted(back.items())),
            self.since + (number + 1 + rules.probation,) * len(joined),
            tuple(self._credit(place, body) for place in range(len(self.roster))) + (Credit(),) * len(joined),
            self.seen | self._shown(body),
            (*self.recent, (body.members, body.voted))[-INACTIVE_ROUNDS:],
            self.electorate,
        )

    def _credit(self, place: int, body: Body) -> Credit:
        credit, number = self.credits[place], self.round
        bit = 1 << place
        if (self.expelled | body.expelled) & bit:
            return credit.lose()
        if any(one == place and back > number for one, back in self.back):
            return credit
        units = WORK * _has_weight(place, body) + CARE * bool(body.voted & bit)
        credit = credit.earn(number, units).vest(number)
        return credit.defer(self.roster.rules.suspension) if body.suspended & bit else credit

    def _shown(self, body: Body) -> int:
        """Mask of those without a vote whom a body shows to be there."""
        voteless = self.electorate.voteless
        return voteless & (body.members | (body.voted & ~self.electorate.workers))

    def _may_suspend(self, body: Body) -> bool:
        left = replace(self.electorate, expelled=self.expelled | body.expelled)
        return self.electorate.may_suspend(body.suspended) and left.may_suspend(body.suspended)

    def _may_have_voted(self, voted: int) -> bool:
        return not voted if self.before is None else not voted & ~(self.before.voters | self.before.trying)


def follow(roster: RosterView, chain: Iterable[Certificate]) -> Standing:
    """What comes after a chain of certificates from round 0 on. Raises PeerViolation, naming the round."""
    standing = Standing.of(roster)
    for certificate in chain:
        try:
            standing = standing.accept(certificate)
        except PeerViolation as error:
            raise type(error)(f"round {standing.round}: {error}", peer=error.peer) from error
    return standing


def _has_weight(place: int, body: Body) -> bool:
    if not body.members >> place & 1:
        return False
    inside = (body.members & ((1 << place) - 1)).bit_count()
    return any(part.weights[inside] for part in body.parts)


def _union(masks: Iterable[int]) -> int:
    found = 0
    for one in masks:
        found |= one
    return found
