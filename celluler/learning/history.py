"""The chain of one run as one member has it, and all that is read from it: who took part, what is to be reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from celluler.errors import LocalError
from celluler.identity import PeerId
from celluler.learning.effects import Effect, Exclude
from celluler.learning.evidence_file import with_chain
from celluler.learning.messages import Body, Certificate
from celluler.learning.report import RoundReport, RunReport, report_of
from celluler.learning.roster import Electorate, RosterView
from celluler.learning.standing import Standing


class History:
    """standing: after the last certificate. roster: with everybody admitted so far, as `places` by peer."""

    def __init__(self, roster: RosterView) -> None:
        """roster: as the coordinator signed it."""
        self.standing = Standing.of(roster)
        self.report = RunReport(roster.rules.rule)
        self.certificates: list[Certificate] = []
        self.places: dict[PeerId, int] = {}
        self._electorates: list[Electorate] = []
        self._name_members()

    @property
    def roster(self) -> RosterView:
        return self.standing.roster

    def begin(self, chain: Sequence[Certificate], state_root: bytes) -> Standing:
        """Take all of a chain but its last link, which is returned as what comes after it.

        Raises PeerViolation for a chain that is none, LocalError when it names another state than this.
        """
        for certificate in chain[:-1]:
            self.standing.accept(certificate)
            self.add(certificate)
        if not chain:
            return self.standing
        after = self.standing.accept(chain[-1])
        if chain[-1].body.state_root != state_root:
            raise LocalError(f"this is not the state before round {self.standing.round}")
        return after

    def add(self, certificate: Certificate) -> RoundReport:
        """One more link, checked by the caller."""
        body, before = certificate.body, self.standing
        report = report_of(before, body, certificate.quorum.view)
        self._electorates.append(before.electorate)
        self.standing = before.after(body)
        self.certificates.append(certificate)
        if body.parts:
            self.report.rounds.append(report)
        for peer in report.expelled:
            self.report.expelled[peer] = report.round
        self._name_members()
        return report

    def electorate_of(self, number: int) -> Electorate | None:
        """Of a round that was decided, or is being decided now."""
        known = self._electorates
        return known[number] if number < len(known) else self.standing.electorate if number == len(known) else None

    def body_of(self, number: int) -> Body | None:
        return self.certificates[number].body if 0 <= number < len(self.certificates) else None

    def was_in(self, place: int) -> bool:
        """Whether an update of this member was in the last set."""
        return bool(self.certificates) and bool(self.certificates[-1].body.members >> place & 1)

    def with_chain(self, effect: Effect) -> Effect:
        """Evidence for strangers says who took part, where that has changed."""
        bodies = (certificate.body for certificate in self.certificates)
        if isinstance(effect, Exclude) and any(b.expelled or b.suspended or b.admitted for b in bodies):
            return replace(effect, evidence=with_chain(effect.evidence, self.certificates))
        return effect

    def _name_members(self) -> None:
        if len(self.places) < len(self.roster):
            self.places = {member.peer: member.index for member in self.roster.members}
