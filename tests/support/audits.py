"""The audits of one member of four, and the other members' pens, over a chain of rounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from celluler.identity import seal
from celluler.learning.audit_messages import Accuse, Conviction, Judgement, Verdict
from celluler.learning.auditing import Auditing
from celluler.learning.court import Bench
from celluler.learning.effects import Audit, Effect, Send
from celluler.learning.evidence import Docket
from celluler.learning.messages import open_message, record_hash
from simulations.audit_liars import Chain, Honest, keys_of, roster_of

T = TypeVar("T")
SIZE = 4
WRONG, RIGHT = (0.2, 0.4), (1e-6, 2e-6)


class Audits:
    """audits: expected a round, in thousandths; 4,000 are one a member. classes: by place."""

    def __init__(
        self, *, audits: int = 0, rounds: int = 1, size: int = SIZE, classes: tuple[str, ...] = (), speaks: bool = True
    ) -> None:
        roster = roster_of(size, audits, classes)
        self.chain, self.now, self.height, self.speaks = Chain(roster, 1), 0.0, 0, speaks
        self.roster, self.keys, self.docket = roster, keys_of(roster), Docket()
        self.effects: list[Effect] = []
        chain = self.chain
        self.machine = Auditing(
            Bench(
                me=0, roster=lambda: roster, seal=lambda record: seal(self.keys[0], record), docket=self.docket,
                electorate_of=lambda number: chain.electorates[number] if number < self.height else None,
                body_of=lambda number: chain.bodies[number] if 0 <= number < self.height else None,
                may_speak=lambda number: self.speaks,
            )
        )  # fmt: skip
        for _ in range(rounds):
            self.certify()

    def certify(self, *, inside: Iterable[int] | None = None, odd: Iterable[int] = ()) -> None:
        """One more round, of all members unless said; `odd` are wrong about their momentum."""
        size = len(self.roster)
        self.chain.extend(range(size) if inside is None else inside, odd, {}, 0)
        self.height += 1
        self.machine.certified(self.height - 1, tuple(self.chain.commits[-1].values()), self.now)
        self._take()

    def idle(self) -> None:
        self.machine.idle(self.now)
        self._take()

    def find(self, deviations: tuple[float, ...] | None) -> Audit:
        """What comes of the audit that is under way."""
        audit = self.did(Audit)[-1]
        self.machine.audited(audit.round, audit.member, deviations, self.now)
        self._take()
        return audit

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.machine.tick(self.now)
        self._take()

    def say(self, place: int, record: Any, *, sender: int | None = None) -> bool:
        """Another member says something. Raises what the machine raises."""
        signed, machine = open_message(seal(self.keys[place], record)), self.machine
        match record:
            case Accuse():
                new = machine.accuse(place if sender is None else sender, signed, self.now)
            case Verdict():
                new = machine.judged(signed, self.now)
            case Conviction():
                new = machine.convict(place, signed, self.now)
            case _:
                raise AssertionError(record)
        self._take()
        return new

    def accusation(self, target: int, deviations: tuple[float, ...] = WRONG, *, number: int = -1) -> Accuse:
        record = Honest(0, self.chain, None).accusation(number % self.height, target, deviations)  # type: ignore[arg-type]
        assert record is not None
        return record

    def verdict(self, target: int, judgement: Judgement, *, number: int = -1, found: float | None = None) -> Verdict:
        number %= self.height
        name = record_hash(open_message(self.chain.commits[number][target]).record)
        usual = {Judgement.GUILTY: 0.4, Judgement.INNOCENT: 0.0, Judgement.UNSERVED: 0.0}[judgement]
        return Verdict(self.roster.run, number, target, name, judgement.value, usual if found is None else found)

    def judge(self, target: int, judgement: Judgement, *places: int, number: int = -1) -> None:
        for place in places:
            self.say(place, self.verdict(target, judgement, number=number))

    def said(self, kind: type[T], *, to: int | None = None) -> list[T]:
        """to: to this member alone; otherwise to all."""
        peer = None if to is None else self.roster.members[to].peer
        records = [open_message(e.data).record for e in self.effects if isinstance(e, Send) and e.to == peer]
        return [record for record in records if isinstance(record, kind)]

    def did(self, kind: type[T]) -> list[T]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def _take(self) -> None:
        self.effects += self.machine.take()
