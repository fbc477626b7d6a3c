"""Reduced parts that others hold and we lack: which, from whom, and again until they are here."""

from __future__ import annotations

from collections.abc import Sequence

from celluler.learning.course import Course, Step, View
from celluler.learning.effects import Fetch
from celluler.learning.messages import Certificate, Part, record_hash


class Fetching:
    """again_at: when to ask once more; None when nothing is asked for."""

    def __init__(self, course: Course) -> None:
        self.setting, self._course, self._ledger = course.setting, course, course.ledger
        self._electorate = course.setting.electorate
        self._delta_s = course.setting.roster.rules.delta_ms / 1000
        self.again_at: float | None = None
        self._asked: tuple[tuple[int, Part], ...] = ()
        self._times = 0

    @property
    def _view(self) -> View:
        return self._course.view

    @property
    def lacking(self) -> int:
        """How many are asked for."""
        return len(self._asked)

    def ask(self, certificate: Certificate | None) -> None:
        """Ask for the parts that others hold and we lack, again and again, each time starting with another holder."""
        inputs, lacking, holders = self._parts(certificate)
        if not lacking or not holders:
            self._asked, self.again_at = (), None
            return
        if lacking == self._asked and self.again_at is not None and self._course.now < self.again_at:
            return
        turn = self._times % len(holders)
        peers = tuple(self.setting.roster.members[place].peer for place in holders[turn:] + holders[:turn])
        self._times += 1
        self._asked, self.again_at = lacking, self._course.now + self._delta_s / 2
        self._course.out.append(Fetch(self.setting.round, inputs, lacking, peers))

    def _parts(self, certificate: Certificate | None) -> tuple[bytes, tuple[tuple[int, Part], ...], list[int]]:
        """The set they were reduced from, the parts that are not here, and the places of those who hold them."""
        holders: list[int] = []
        parts: Sequence[Part | None] = ()
        inputs = b""
        if certificate is not None:
            inputs, parts = certificate.body.set_hash, certificate.body.parts
            holders = [*(mark.member for mark in certificate.quorum.marks), *self._electorate.places]
        elif self._course.step in (Step.SET, Step.EXCHANGE) and not self._view.exchanging:
            signed = self._ledger.proposals.get(self._view.number)
            if signed is not None:
                name = record_hash(signed.record.body)
                inputs, parts = signed.record.body.set_hash, signed.record.body.parts
                holders = [
                    self.setting.leader(self._view.number),
                    *self._ledger.tally(self._view.number, 1).voters_for(name),
                ]
            elif self._course.leading and self._view.inputs is not None:
                stated = [self._course.stated(part) for part in range(self.setting.parts)]
                inputs = self._view.inputs.hash
                parts = [None if signed is None else signed.record.result for signed in stated]
                holders = list(self._view.inputs.reducers)
        lacking = tuple((n, p) for n, p in enumerate(parts) if p is not None and p.digest not in self._course.held)
        return inputs, lacking, [place for place in dict.fromkeys(holders) if place != self.setting.me]
