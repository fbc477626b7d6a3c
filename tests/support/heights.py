"""One height at one member, and the other members' pens: four members, two parts, round 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from celluler.identity import seal
from celluler.learning.checks import CheckOutcome, Verdict
from celluler.learning.effects import Check, Effect, Send
from celluler.learning.evidence import Docket
from celluler.learning.inputs import inputs_of
from celluler.learning.ledger import Setting
from celluler.learning.links import Links
from celluler.learning.messages import (
    Body,
    BodyProposal,
    Commit,
    Entry,
    Fraud,
    Mark,
    Part,
    Quorum,
    SetProposal,
    Vote,
    open_message,
    record_hash,
    signature_of,
)
from celluler.learning.round import Height
from celluler.learning.standing import Standing
from simulations.rounds import digest, roster_of, signers_of

T = TypeVar("T")
SIZE, PARTS = 4, 2
ROOT = digest("root")
ROSTER = roster_of(SIZE, 2, PARTS)
DELTA_S, EXCHANGE_S = ROSTER.rules.delta_ms / 1000, ROSTER.rules.exchange_ms / 1000


def sign(place: int, record: Any) -> bytes:
    return seal(signers_of(SIZE)[ROSTER.members[place].peer], record)


class Bench:
    """The height of one member, and the other members' pens. Round 0: the leader of view v is member v."""

    def __init__(self, me: int, *, mute: bool = False, checks: int = 0, alive: Sequence[int] = range(SIZE)) -> None:
        self.me, self.now = me, 0.0
        self.said_checked: set[int] = set()
        self.condemned: set[int] = set()
        self.proofs: dict[int, int] = {}
        self.failing: set[int] = set()
        self.failures: dict[int, int] = {}
        self.applicants: tuple[bytes, ...] = ()
        self.welcomes = True
        self.effects: list[Effect] = []
        self.height = Height(
            Setting(
                standing=Standing.of(ROSTER), me=me, state_root=ROOT, mute=mute, checks=checks,
                seal=lambda record: sign(me, record), voted=lambda: 0,
                applicants=lambda: self.applicants, welcome=lambda admitted: self.welcomes,
                expected=lambda place: place in alive, present=lambda place: place in alive,
                suspects={}, tardy=set(), links=Links(), docket=Docket(),
                failures=lambda place: self.failures.get(place, 0), failing=lambda place: place in self.failing,
                has_checked=lambda place, view: place in self.said_checked,
                proofs=lambda place: self.proofs.get(place, 0), condemned=lambda place: place in self.condemned,
            ),
            self.now,
        )  # fmt: skip

    def say(self, place: int, *records: Any) -> None:
        """Another member says something."""
        for record in records:
            self.height.receive(place, open_message(sign(place, record)), self.now)
        self.effects += self.height.take()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.height.tick(self.now)
        self.effects += self.height.take()

    def commit(self) -> None:
        self.height.commit((digest("hash", self.me),) * PARTS, (0,) * PARTS, False, self.now)
        self.effects += self.height.take()

    def all_commit(self, *others: int) -> None:
        self.commit()
        for place in others or [place for place in range(SIZE) if place != self.me]:
            self.say(place, commit_of(place))

    def hand_over(self, view: int, results: Sequence[Part | None]) -> None:
        self.height.exchanged(view, results, self.now)
        self.effects += self.height.take()

    def accuse(self, place: int, record: Fraud) -> bool:
        new = self.height.accuse(place, open_message(sign(place, record)), self.now)
        self.effects += self.height.take()
        return new

    def find(self, verdict: Verdict, *parts: int) -> None:
        """What comes of everything that was asked to be checked so far of these parts."""
        asked = [part for check in self.did(Check) for part in check.parts if part.part in parts]
        self.height.checked([CheckOutcome(part, verdict) for part in asked], self.now)
        self.effects += self.height.take()

    def said(self, kind: type[T]) -> list[T]:
        records = [open_message(e.data).record for e in self.effects if isinstance(e, Send)]
        return [record for record in records if isinstance(record, kind)]

    def did(self, kind: type[T]) -> list[T]:
        return [effect for effect in self.effects if isinstance(effect, kind)]


def commit_of(place: int, *, root: bytes = ROOT, fresh: bool = False) -> Commit:
    return Commit(ROSTER.run, 0, ROSTER.digest, root, (digest("hash", place),) * PARTS, (0,) * PARTS, fresh)


def entries_of(*places: int) -> tuple[Entry, ...]:
    return tuple(Entry(place, record_hash(commit_of(place))) for place in places)


def set_of(*places: int, view: int = 0, barred: int = 0) -> SetProposal:
    return SetProposal(ROSTER.run, 0, view, entries_of(*places), barred)


def part_of(number: int, size: int = SIZE, *, face: str = "") -> Part:
    return Part(digest("part", number, face), 0, (1 << size) - 1, (1,) * size)


RESULTS = tuple(part_of(number) for number in range(PARTS))


def inputs(proposal: SetProposal) -> Any:
    commits = [open_message(sign(entry.member, commit_of(entry.member))) for entry in proposal.entries]
    return inputs_of(Standing.of(ROSTER), proposal, commits, PARTS)


def body_of(proposal: SetProposal, parts: tuple[Part, ...] = RESULTS) -> Body:
    chosen = inputs(proposal)
    return Body(0, ROSTER.digest, chosen.hash, chosen.mask, ROOT, parts)


def body_proposal(proposal: SetProposal, parts: tuple[Part, ...] = RESULTS) -> BodyProposal:
    chosen = inputs(proposal)
    signatures = [
        signature_of(sign(chosen.reducers[n], chosen.states(ROSTER, 0, n, part))) for n, part in enumerate(parts)
    ]
    return BodyProposal(ROSTER.run, 0, proposal.view, body_of(proposal, parts), tuple(signatures), None)


def vote(body: Body | None, *, phase: int, view: int = 0, lacking: int = 0) -> Vote:
    return Vote(ROSTER.run, 0, view, phase, None if body is None else record_hash(body), lacking)


def quorum_of(body: Body, *places: int, phase: int = 1, view: int = 0) -> Quorum:
    record = vote(body, phase=phase, view=view)
    return Quorum(view, tuple(Mark(place, signature_of(sign(place, record))) for place in places))
