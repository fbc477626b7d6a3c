"""The checking half of a height: what we compute anew before we vote, and what others accuse.

A member draws some parts of the view's set, waits until their reducers have signed, and has them computed anew;
likewise what others say is wrong. It votes for a body only once all of that came out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from celluler.errors import ProtocolViolation
from celluler.identity import Signed
from celluler.learning.checks import Case, CheckOutcome, Checks, Verdict, draw, inputs_for
from celluler.learning.course import Course, Step, View
from celluler.learning.effects import Check
from celluler.learning.evidence import open_accusation
from celluler.learning.inputs import Inputs
from celluler.learning.messages import (
    Body,
    CheckDraw,
    Entry,
    Fraud,
    Reduced,
    check_signature,
    mask,
    open_message,
    signature_of,
)


class Wait(Enum):
    WAIT = auto()


WAIT: Final = Wait.WAIT


class Checking:
    def __init__(self, course: Course) -> None:
        self.setting, self._course, self._ledger = course.setting, course, course.ledger
        self._electorate = course.setting.electorate
        rules = course.setting.roster.rules
        self._delta_s, self._exchange_s = rules.delta_ms / 1000, rules.exchange_ms / 1000
        self._checks = Checks()

    @property
    def _view(self) -> View:
        return self._course.view

    def news(self) -> list[Case]:
        """Cases of which something was learnt since the last call."""
        news, self._checks.news = self._checks.news, {}
        return [self._checks.cases[key] for key in news]

    def answer(self, results: Sequence[CheckOutcome]) -> None:
        """What came of a Check."""
        self._checks.answer(results, self._view.number)

    def accuse(self, accuser: int, signed: Signed[Fraud]) -> bool:
        """A member says that another reduced wrongly. True if it is new to us and worth looking into.

        Raises PeerViolation, the accuser's, for what is no accusation by its form.
        """
        setting, accusation = self.setting, open_accusation(self.setting.roster, signed.record)
        accused, statement, docket = accusation.accused, accusation.statement, self.setting.docket
        reduced = statement.record
        key = (reduced.set_hash, reduced.part, reduced.result)
        if accused == accuser:
            raise ProtocolViolation("an accusation of oneself")
        if not setting.checks or not self._electorate.acts(accused) or {accused, accuser} & docket.proven.keys():
            return False
        checks = self._checks
        if checks.has_accused(accuser, key) or checks.open_accusations(accuser) >= max(1, self._electorate.b):
            return False
        checks.accuse(accuser, signed.raw, accused, statement, accusation.entries)
        if self._course.step is Step.CHECK:  # what is said of the body before us may need a look before we vote
            self._view.deadline = max(
                self._view.deadline, self._course.now + (self._exchange_s + self._delta_s) * (1 + self._view.number)
            )
        return True

    def draw(self, inputs: Inputs) -> tuple[int, ...]:
        """Parts of others. Seeded by the view too: asking for inputs in one view betrays nothing of the next."""
        setting = self.setting
        candidates = [part for part, reducer in enumerate(inputs.reducers) if reducer != setting.me]
        if not setting.checks or not candidates or not self._course.may_vote:
            return ()
        if len(candidates) <= setting.checks:
            return tuple(candidates)
        secret = signature_of(setting.seal(CheckDraw(setting.roster.run, self._view.number, inputs.hash)))
        return draw(secret, candidates, setting.checks)

    def _to_check(self) -> list[int]:
        """The parts that we drew, and those of proven liars: the leader may not have known, or be one itself."""
        inputs, me = self._view.inputs, self.setting.me
        if inputs is None or not self.setting.checks or not self._course.may_vote:
            return []
        return [
            part for part, reducer in enumerate(inputs.reducers)
            if part in self._view.drawn or (reducer != me and self.setting.condemned(reducer))
        ]  # fmt: skip

    def ask(self) -> None:
        """Have computed anew what is stated of what we drew, and what others say is wrong."""
        inputs = self._view.inputs
        if not self.setting.checks or not self._course.may_vote:
            return
        if inputs is not None and not self._view.exchanging and self._course.step in (Step.EXCHANGE, Step.CHECK):
            entries = self._ledger.sets[self._view.number].record.entries
            for part in self._to_check():
                for signed in self._statements_on(part):
                    self._note_check(inputs, entries, signed)
        self._resolve_accusations()
        groups: dict[tuple[bytes, int], list[Case]] = {}
        for case in self._checks.unasked(self._view.number):
            assert case.inputs is not None
            case.asked, case.pending = self._view.number, case.pending + 1
            groups.setdefault((case.inputs.hash, case.inputs.view), []).append(case)
        for cases in groups.values():
            self._ask_check(cases)

    def _ask_check(self, cases: list[Case]) -> None:
        inputs = cases[0].inputs
        assert inputs is not None
        parts = tuple(case.as_check for case in cases)
        self._course.out.append(
            Check(
                self.setting.round, inputs.view, inputs.hash, inputs.members, inputs.commits, inputs.reducers, parts,
                self._exchange_s * (1 + self._view.number),
            )
        )  # fmt: skip

    def _statements_on(self, part: int) -> list[Signed[Reduced]]:
        """What this view's reducer signed: to us, and under the leader's body, should that be another thing."""
        stated, signed = self._course.stated(part), self._ledger.proposals.get(self._view.number)
        found = [] if stated is None else [stated]
        inputs = self._view.inputs
        if signed is None or signed.record.proof is not None or not self._view.sound or inputs is None:
            return found
        result, reducer = signed.record.body.parts[part], inputs.reducers[part]
        if stated is None or stated.record.result != result:
            record = inputs.states(self.setting.roster, self.setting.round, part, result)
            found.append(
                open_message(check_signature(self.setting.roster, reducer, record, signed.record.statements[part]))
            )
        return found

    def _note_check(self, inputs: Inputs, entries: tuple[Entry, ...], signed: Signed[Reduced]) -> None:
        reduced = signed.record
        key = (reduced.set_hash, reduced.part, reduced.result)
        reducer = inputs.reducers[reduced.part]
        case = self._checks.cases.get(key)
        if case is None or case.noted < self._view.number or reducer not in case.statements:
            self._checks.note(inputs, entries, reducer, signed)

    def _resolve_accusations(self) -> None:
        """Those whose commits are all here can be looked into; the others' commits are asked for."""
        wanted: list[Entry] = []
        for case in self._checks.unresolved():
            absent = self._ledger.absent(case.entries)
            wanted += absent
            if not absent:
                commits = tuple(signed.record for signed in self._ledger.commits_of(case.entries))
                reducer, statement = next(iter(case.statements.items()))
                case.inputs = inputs_for(reducer, case.entries, commits, statement.record)
        self._ledger.wanted = tuple(wanted)

    def examine(self, body: Body, name: bytes) -> bytes | Wait | None:
        """Whether checks allow to vote for this body: WAIT while they are under way."""
        if not self.setting.checks or not body.parts:
            return name
        verdicts = [
            self._checks.verdict((body.set_hash, n, part), self._view.number) for n, part in enumerate(body.parts)
        ]
        if any(verdict in (Verdict.DIFFERENT, Verdict.UNSERVED) for verdict in verdicts):
            return None
        if all(verdicts[n] is Verdict.SAME for n in self._needed(body)) and not self._await_objections(verdicts):
            return name
        if self._course.step is not Step.CHECK:
            self._course.step = Step.CHECK
            self._view.deadline = self._course.now + (self._exchange_s + self._delta_s) * (1 + self._view.number)
        return WAIT

    def _needed(self, body: Body) -> list[int]:
        """The parts that are ours to check, and those that somebody accuses."""
        cases = [self._checks.cases.get((body.set_hash, n, part)) for n, part in enumerate(body.parts)]
        ours = self._to_check()
        return [n for n, case in enumerate(cases) if n in ours or (case is not None and case.accusers)]

    def _await_objections(self, verdicts: Sequence[Verdict | None]) -> bool:
        """Where nobody checks everything: whether somebody who is there has yet to say that it found nothing wrong.

        So that one honest member that did find something is heard before the others vote. Who holds this up once is
        not waited for until it was in time again.
        """
        inputs = self._view.inputs
        assert inputs is not None
        if all(v is Verdict.SAME or r == self.setting.me for v, r in zip(verdicts, inputs.reducers, strict=True)):
            return False
        if self._view.objections is None:
            self._view.objections = self._course.now + self._delta_s * (1 + self._view.number)
            if self._course.step is Step.CHECK:
                self._view.deadline = max(self._view.deadline, self._view.objections)
        return self._course.now < self._view.objections and any(
            member not in self.setting.tardy and self.setting.present(member) for member in self._unheard()
        )

    def _unheard(self) -> list[int]:
        """Members that have not said that they checked, nor voted, in this view."""
        setting, voted = self.setting, self._ledger.tally(self._view.number, 1).votes
        return [
            member for member in self._electorate.places
            if member not in voted and member not in setting.docket.proven and member != setting.me
            and not setting.has_checked(member, self._view.number)
        ]  # fmt: skip

    def note_tardy(self) -> None:
        if self._view.objections is not None:
            unheard = self._unheard()
            self.setting.tardy.difference_update(set(self._electorate.places) - set(unheard))
            if self._course.now >= self._view.objections:
                self.setting.tardy.update(unheard)

    @property
    def has_checked(self) -> bool:
        """What we drew in this view is judged, so whatever is wrong with it we have said."""
        if self._course.step in (Step.COMMITS, Step.SET) or not self.setting.checks:
            return False
        inputs, voted = self._view.inputs, self.setting.me in self._ledger.tally(self._view.number, 1).votes
        if inputs is None or voted:
            return voted
        stated = [self._course.stated(part) for part in self._to_check()]
        return all(
            signed is not None
            and self._checks.verdict((inputs.hash, signed.record.part, signed.record.result), self._view.number)
            is not None
            for signed in stated
        )

    @property
    def others_wait(self) -> bool:
        """Whether what we checked matters to others because nobody checks everything."""
        inputs = self._view.inputs
        return inputs is not None and len(self._view.drawn) < sum(place != self.setting.me for place in inputs.reducers)

    def known_bad(self) -> int:
        """Mask of the parts whose stated result we found wrong, or could not check in this view."""
        if self._view.inputs is None:
            return 0
        stated = [self._course.stated(part) for part in range(self.setting.parts)]
        verdicts = [
            None if s is None else self._checks.verdict((self._view.inputs.hash, n, s.record.result), self._view.number)
            for n, s in enumerate(stated)
        ]
        return mask(n for n, v in enumerate(verdicts) if v in (Verdict.DIFFERENT, Verdict.UNSERVED))

    def lacking(self) -> int:
        """Mask of the parts that we have no statement on, or not the bytes of."""
        if self._view.inputs is None:
            return 0
        stated = [self._course.stated(part) for part in range(self.setting.parts)]
        absent = mask(n for n, s in enumerate(stated) if s is None or s.record.result.digest not in self._course.held)
        return absent | self.known_bad()

    def complaint(self) -> int:
        """Mask of the parts whose reducer failed us, to be told with a vote against. While there is still time, only
        what is certain: another's haste is no reducer's fault."""
        if self._course.now >= self._view.deadline:
            return self.lacking()
        return self.known_bad() | (0 if self._view.exchanging else self._view.undelivered)
