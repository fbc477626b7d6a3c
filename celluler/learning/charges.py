"""What is held against members at a height: proof, what did not get through, and whom a body should send away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celluler.identity import Signed
from celluler.learning.checks import Case, Verdict
from celluler.learning.course import Course, View
from celluler.learning.effects import Exclude, Fault, Send
from celluler.learning.evidence import FalseAccusationsEvidence, FraudEvidence
from celluler.learning.evidence_file import Evidence, Kind, evidence_file
from celluler.learning.inputs import Inputs
from celluler.learning.messages import Body, Equivocation, Fraud, Reduced, places


class Charges:
    def __init__(self, course: Course) -> None:
        self.setting, self._course, self._ledger = course.setting, course, course.ledger
        self._electorate = course.setting.electorate

    @property
    def _view(self) -> View:
        return self._course.view

    def judge(self, case: Case) -> None:
        """Convict whose result was found to be another, or those who said so of a right one."""
        if case.verdict is Verdict.DIFFERENT:
            for reducer, statement in case.statements.items():
                self._convict_reducer(case, reducer, statement)
        elif case.verdict is Verdict.SAME:
            for accuser, raw in case.accusers.items():
                self._note_false(case, accuser, raw)

    def _convict_reducer(self, case: Case, reducer: int, statement: Signed[Reduced]) -> None:
        setting, part = self.setting, statement.record.part
        if reducer in setting.docket.proven or not self._electorate.acts(reducer):
            return
        accusation = setting.seal(Fraud(setting.roster.run, self.setting.round, statement.raw, case.entries))
        commits = tuple(signed.raw for signed in self._ledger.commits_of(case.entries))
        evidence = FraudEvidence(setting.roster.run, statement.raw, commits)
        reason = f"reduced part {part} wrongly in round {self.setting.round}"
        self._convict(reducer, reason, Kind.FRAUD, evidence, (accusation,))

    def _note_false(self, case: Case, accuser: int, raw: bytes) -> None:
        docket = self.setting.docket
        if accuser in docket.proven or case.key in docket.false.get(accuser, {}):
            return
        commits = tuple(signed.raw for signed in self._ledger.commits_of(case.entries))
        proof = docket.accused_falsely(accuser, case.key, raw, commits)
        if proof is None:
            reason = "accused a reducer that had reduced rightly"
            self._course.out.append(Fault(self.setting.roster.members[accuser].peer, reason))
            return
        evidence = FalseAccusationsEvidence(self.setting.roster.run, proof)
        words = tuple(one.accusation for one in proof)
        self._convict(accuser, "accused reducers that had reduced rightly", Kind.FALSE_ACCUSATIONS, evidence, words)

    def _convict(self, member: int, reason: str, kind: Kind, evidence: Evidence, words: tuple[bytes, ...]) -> None:
        """words: what makes the others see it too."""
        setting = self.setting
        setting.docket.proven[member] = words
        peer = setting.roster.members[member].peer
        self._course.out.append(Exclude(peer, reason, evidence_file(setting.roster, kind, evidence)))
        self._course.out += [Send(None, word) for word in words]

    def equivocated(self, member: int, what: str, first: Signed[Any], second: Signed[Any]) -> None:
        setting = self.setting
        if member in setting.docket.proven:
            return
        record = Equivocation(setting.roster.run, self.setting.round, first.raw, second.raw)
        words = (setting.seal(record),) if setting.checks else ()
        self._convict(member, what, Kind.EQUIVOCATION, record, words)

    def to_expel(self) -> int:
        """Those against whom a quorum says it holds proof: so all honest members hear of b+1 that do."""
        if not self.setting.checks:
            return 0
        found = 0
        for member in places(self._electorate.acting):
            more = found | 1 << member
            if (
                self.setting.condemned(member)
                and self.setting.proofs(member) >= self._electorate.q
                and self._electorate.may_expel(more)
            ):
                found = more
        return found

    def to_suspend(self, expelled: int) -> int:
        """Those of whom a quorum says that they do not serve."""
        found, left = 0, replace(self._electorate, expelled=self._electorate.expelled | expelled)
        for member in places(self._electorate.acting & ~expelled):
            more = found | 1 << member
            if (
                self.setting.failing(member)
                and self.setting.failures(member) >= self._electorate.q
                and self._electorate.may_suspend(more)
                and left.may_suspend(more)
            ):
                found = more
        return found

    def note_suspects(self) -> None:
        """Reducers whose part we did not get, or b+1 members say they did not."""
        if self._view.inputs is None:
            return
        complaints = [signed.record.lacking for signed in self._ledger.tally(self._view.number, 1).votes.values()]
        for part, reducer in enumerate(self._view.inputs.reducers):
            told = sum(lacking >> part & 1 for lacking in complaints)
            if (self._view.lacking >> part & 1 or told > self._electorate.b) and reducer != self.setting.me:
                self.setting.suspects.pop(reducer, None)
                self.setting.suspects[reducer] = None
        self.note_links()

    def note_links(self) -> None:
        """Between whom something did not get through in this view, by the voters' word; a liar's is about itself."""
        inputs, tally = self._view.inputs, self._ledger.tally(self._view.number, 1)
        for voter, signed in tally.votes.items() if inputs is not None else ():
            for part in places(signed.record.lacking):
                if inputs is not None and part < len(inputs.reducers):
                    self.setting.links.note(self.setting.round, inputs.reducers[part], voter)

    def note_missing(self, inputs: Inputs, body: Body) -> None:
        """Between whom something did not get through, as the certified body shows it."""
        for reducer, part in zip(inputs.reducers, body.parts, strict=True):
            for number, sender in enumerate(inputs.members):
                if not part.used >> number & 1:
                    self.setting.links.note(self.setting.round, reducer, sender)

    def deserved(self, body: Body) -> bool:
        """Whether we know of all whom a fresh body sends away that they deserve it, and may let in those it admits."""
        setting = self.setting
        return (
            all(setting.condemned(member) for member in places(body.expelled))
            and all(setting.failing(member) for member in places(body.suspended))
            and setting.welcome(body.admitted)
        )
