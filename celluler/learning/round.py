"""One height: from the members' commits to one certificate, whatever up to b of them do.

A round is decided in views. Each view has a leader, who names the set of inputs; the members exchange and reduce;
the leader proposes the body that came out; two phases of votes decide it. The vote is Tendermint's: q votes of
phase 1 lock a member on a body, q votes of phase 2 are the certificate, and a locked member votes for another body
only when shown a later phase-1 quorum for it. Source: Buchman, Kwon, Milosevic 2018, algorithm 1; here the value is
not known to the leader when the view opens, so the set comes first and the body after the exchange.

Between exchange and vote each member computes some parts anew and votes only for what came out the same. It needs
nobody's word for that either; a part that did not is shown to the others with the reducer's signature, and they look
for themselves. Whom enough of them have seen lie is expelled by the body.

Two things turn with the view beside the leader: who reduces what, and whom the leader bars from reducing because
its part did not come. Nobody's word is needed for that: an honest leader bars those who failed it.

Knows nothing of training, arrays, sockets, or of other heights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celluler.errors import PeerViolation, ProtocolViolation
from celluler.identity import Signed
from celluler.learning.charges import Charges
from celluler.learning.checking import WAIT, Checking, Wait
from celluler.learning.checks import CheckOutcome
from celluler.learning.course import Course, Step, View
from celluler.learning.effects import Diverged, Effect, Exchange, Fault
from celluler.learning.fetching import Fetching
from celluler.learning.inputs import Inputs, inputs_of
from celluler.learning.ledger import Ledger, Setting
from celluler.learning.messages import (
    Body,
    BodyProposal,
    Certificate,
    Commit,
    Entry,
    Fraud,
    Part,
    Quorum,
    SetProposal,
    Status,
    Vote,
    mask,
    record_hash,
    signature_of,
)
from celluler.learning.proposing import barred, check_fresh, chosen
from celluler.learning.roster import MAX_MEMBERS
from celluler.learning.tally import Tally
from celluler.learning.transcript import Signatures, signatures_of


@dataclass(frozen=True, slots=True)
class Lock:
    view: int
    body: bytes


class Height:
    """Feed it with what arrives, then `take` what it wants done. Every call brings `now`, in seconds."""

    def __init__(self, setting: Setting, now: float) -> None:
        self.setting = setting
        self.round = setting.round
        self.certificate: Certificate | None = None
        self._electorate = setting.electorate
        self._delta_s, self._exchange_s = setting.roster.rules.delta_ms / 1000, setting.roster.rules.exchange_ms / 1000
        self._ledger = Ledger(setting, self._equivocated)
        self._course = Course(setting, self._ledger, now, View(0, grace=now, deadline=now))
        self._checking, self._charges = Checking(self._course), Charges(self._course)
        self._locked: Lock | None = None
        self._valid: tuple[Lock, Quorum] | None = None
        self._fetching = Fetching(self._course)

    # --- what happens ------------------------------------------------------------------------------------------

    def commit(self, hashes: tuple[bytes, ...], exponents: tuple[int, ...], fresh: bool, now: float) -> None:
        """Our own training is done."""
        self._course.now = now
        setting = self.setting
        if setting.me not in self._ledger.commits and setting.sends and not self._course.diverged:
            run = setting.roster.run
            self._course.say(Commit(run, self.round, setting.prev, setting.state_root, hashes, exponents, fresh))
        self._advance()

    def receive(self, member: int, signed: Signed[Any], now: float) -> bool:
        """A message of this round, signed by `member`. True if it was new. Raises PeerViolation, blaming `member`."""
        self._course.now = now
        claimed = self._ledger.claims.get(member)
        new = self._ledger.add(member, signed, self.view)
        if new or claimed != self._ledger.claims.get(member):
            self._advance()
        return new

    def claim(self, member: int, view: int, now: float) -> None:
        """A member says in which view it is."""
        self._course.now = now
        if self._ledger.claim(member, view):
            self._advance()

    def exchanged(self, view: int, results: Sequence[Part | None], now: float) -> None:
        """The exchange of a view is over. None: that part did not come."""
        self._course.now = now
        self._course.held |= {result.digest for result in results if result is not None}
        inputs = self._view.inputs
        if self._view.exchanging and inputs is not None and inputs.view == view:
            self._view.exchanging = False
            self._view.undelivered = mask(part for part, result in enumerate(results) if result is None)
            self._state_results(inputs, results)
        self._advance()

    def checked(self, results: Sequence[CheckOutcome], now: float) -> None:
        """What came of a Check."""
        self._course.now = now
        self._checking.answer(results)
        self._advance()

    def accuse(self, accuser: int, signed: Signed[Fraud], now: float) -> bool:
        """A member says that another reduced wrongly. True if it is new to us and worth looking into.

        Raises PeerViolation, the accuser's, for what is no accusation by its form.
        """
        self._course.now = now
        new = self._checking.accuse(accuser, signed)
        if new:
            self._advance()
        return new

    def fetched(self, digest: bytes, now: float) -> None:
        """A reduced part that hashes to this digest is here."""
        self._course.now = now
        self._course.held.add(digest)
        self._advance()

    def certify(self, certificate: Certificate, now: float) -> bool:
        """A certificate whose quorum was checked. Raises ProtocolViolation if it is of another history."""
        self._course.now = now
        if self.certificate is not None:
            return False
        self.setting.standing.check(certificate.body)
        self._decide(certificate)
        self._advance()
        return True

    def tick(self, now: float) -> None:
        self._course.now = now
        self._advance()

    def take(self) -> tuple[Effect, ...]:
        """What is to be done since the last call."""
        effects = tuple(self._course.out)
        self._course.out.clear()
        return effects

    def next_deadline(self) -> float | None:
        times = [self._fetching.again_at]
        match self._course.step:
            case Step.SET | Step.EXCHANGE:
                times += [
                    self._view.deadline,
                    self._view.grace if self._course.now < self._view.grace and self._course.leading else None,
                ]
            case Step.CHECK:
                times += [self._view.deadline, self._view.objections]
            case Step.VOTE_1 | Step.VOTE_2:
                times.append(self._view.timer)
        return min((time for time in times if time is not None), default=None)

    @property
    def view(self) -> int:
        return self._view.number

    @property
    def _view(self) -> View:
        return self._course.view

    @property
    def step(self) -> Step:
        return self._course.step

    @property
    def diverged(self) -> bool:
        """Whether our own state is not the others'."""
        return self._course.diverged

    @property
    def has_checked(self) -> bool:
        return self._checking.has_checked

    @property
    def others_wait(self) -> bool:
        return self._checking.others_wait

    @property
    def voters(self) -> int:
        """Mask of those who voted for what was certified, as far as it came here. Once decided."""
        assert self.certificate is not None
        return self._ledger.voters_for(self.certificate)

    @property
    def complete(self) -> bool:
        """Decided, and every part of the certified body is here."""
        return self.certificate is not None and all(
            part.digest in self._course.held for part in self.certificate.body.parts
        )

    # --- what we tell each other -------------------------------------------------------------------------------

    def status(self, incarnation: int, sequence: int, heard: int, proven: int, failing: int) -> Status:
        return Status(
            run=self.setting.roster.run,
            round=self.round,
            view=self.view,
            incarnation=incarnation,
            sequence=sequence,
            certified=self.certificate is not None,
            commits=mask(self._ledger.commits),
            has_set=self.view in self._ledger.sets,
            has_body=self.view in self._ledger.proposals,
            reduced=self._course.reduced,
            votes_1=self._ledger.tally(self.view, 1).mask,
            votes_2=self._ledger.tally(self.view, 2).mask,
            heard=heard,
            wanted=tuple(dict.fromkeys((*self._ledger.missing_commits(self.view), *self._ledger.wanted)))[:MAX_MEMBERS],
            checked=self.has_checked,
            proven=proven,
            failing=failing,
        )

    def signatures(self) -> Signatures:
        """Who signed what of the body that was certified, as far as it came here. Once decided."""
        assert self.certificate is not None
        return signatures_of(self._ledger, self.certificate.body)

    def answer(self, status: Status) -> list[bytes]:
        """Everything we hold that a member of this round and view says it lacks."""
        return self._ledger.answer(status)

    def obstacle(self) -> str:
        """In words, what this height waits for: the reason given when a run stalls here."""
        where = f"round {self.round}, view {self.view}"
        match self._course.step:
            case Step.COMMITS:
                return (
                    f"{where}: {len(self._ledger.largest_group())} of the {self.setting.standing.least} "
                    "updates needed from one state"
                )
            case Step.SET:
                return f"{where}: no set of inputs from the leader {self._nickname(self.setting.leader(self.view))}"
            case Step.EXCHANGE:
                return f"{where}: {self._checking.lacking().bit_count()} of {self.setting.parts} parts missing"
            case Step.CHECK:
                return f"{where}: parts of the result are still being computed anew"
            case Step.DECIDED:
                return f"{where}: decided, but {self._fetching.lacking} of its parts could not be fetched"
            case _:
                votes = self._ledger.tally(self.view, 1 if self._course.step is Step.VOTE_1 else 2).votes
                return f"{where}: {len(votes)} votes without a quorum of {self._electorate.q} for one result"

    # --- the machine: rules tried in order until none applies --------------------------------------------------

    def _advance(self) -> None:
        for case in self._checking.news():
            self._charges.judge(case)
        rules = (
            self._count_decision, self._open, self._jump, self._propose_set, self._accept_set, self._propose_body,
            self._vote_1, self._lock, self._give_up_phase_1, self._give_up_phase_2,
        )  # fmt: skip
        while self._course.step is not Step.DECIDED and any(rule() for rule in rules):
            pass
        self._fetching.ask(self.certificate)
        self._checking.ask()

    def _open(self) -> bool:
        """View 0 opens when enough have committed: how long training takes is nobody's fault before that."""
        if self._course.step is not Step.COMMITS or len(self._ledger.largest_group()) < self.setting.standing.least:
            return False
        self._enter(0)
        return True

    def _jump(self) -> bool:
        """b+1 members in a later view hold an honest one: follow."""
        ahead = sorted((view for view in self._ledger.claims.values() if view > self.view), reverse=True)
        if len(ahead) <= self._electorate.b:
            return False
        self._enter(ahead[self._electorate.b])
        return True

    def _enter(self, view: int) -> None:
        if self._course.step is not Step.COMMITS:
            self._charges.note_suspects()
        now, grace_s = self._course.now, self._delta_s / 2 if view == 0 else 0.0
        self._course.view = View(view, grace=now + grace_s, deadline=now + self._delta_s * (1 + view))
        self._course.step = Step.SET

    def _propose_set(self) -> bool:
        """The leader's first word: a body with an earlier quorum again, or else a set of inputs."""
        if (
            not self._course.leading
            or self._course.step is not Step.SET
            or self.view in self._ledger.sets
            or self.view in self._ledger.proposals
        ):
            return False
        run = self.setting.roster.run
        if self._valid is not None:
            lock, proof = self._valid
            self._course.say(BodyProposal(run, self.round, self.view, self._ledger.bodies[lock.body], (), proof))
            return True
        members = chosen(self._course)
        if members is None:
            return False
        entries = tuple(Entry(member, next(iter(self._ledger.commits[member]))) for member in members)
        self._course.say(SetProposal(run, self.round, self.view, entries, barred(self._course, members)))
        return True

    def _accept_set(self) -> bool:
        signed = self._ledger.sets.get(self.view)
        if (
            self._course.step is not Step.SET
            or signed is None
            or self._view.bad_set
            or self._ledger.missing_commits(self.view)
        ):
            return False
        proposal = signed.record
        commits = self._ledger.commits_of(proposal.entries)
        try:
            self._view.inputs = inputs = inputs_of(self.setting.standing, proposal, commits, self.setting.parts)
        except ProtocolViolation as error:
            self._blame_leader(error)
            return True
        self._compare_state(inputs.state_root)
        self._course.step = Step.EXCHANGE
        self._view.drawn = self._checking.draw(inputs)
        wait_s = self._exchange_s * (1 + self.view)
        self._view.deadline = (
            self._course.now + wait_s + (0.0 if self._course.leading else self._delta_s * (1 + self.view))
        )
        if inputs.reducers and self.setting.me in inputs.members and self._course.may_sign:
            self._view.exchanging = True
            self._course.out.append(
                Exchange(
                    self.round, self.view, inputs.hash, inputs.members, inputs.commits, inputs.reducers, wait_s,
                    least=max(1, len(inputs.members) - self._electorate.spared),
                )
            )  # fmt: skip
        return True

    def _state_results(self, inputs: Inputs, results: Sequence[Part | None]) -> None:
        """Sign what we reduced ourselves; a part from too few inputs is as good as missing."""
        for part, (reducer, result) in enumerate(zip(inputs.reducers, results, strict=True)):
            if (
                reducer == self.setting.me
                and result is not None
                and self._course.may_sign
                and self._course.sensible(result, inputs)
            ):
                self._course.say(inputs.states(self.setting.roster, self.round, part, result))

    def _propose_body(self) -> bool:
        """The leader's second word. It holds every part itself, so that it can serve those who lack one."""
        inputs = self._view.inputs
        if (
            inputs is None
            or not self._course.leading
            or self._course.step is not Step.EXCHANGE
            or self.view in self._ledger.proposals
        ):
            return False
        stated = [signed for part in range(self.setting.parts) if (signed := self._course.stated(part)) is not None]
        if len(stated) < self.setting.parts or any(s.record.result.digest not in self._course.held for s in stated):
            return False
        if self._checking.known_bad():
            return False
        setting, expelled = self.setting, self._charges.to_expel()
        body = Body(
            self.round, setting.prev, inputs.hash, inputs.mask, inputs.state_root,
            tuple(signed.record.result for signed in stated), expelled, self._charges.to_suspend(expelled),
            setting.voted(), () if setting.standing.closing else setting.applicants(),
        )  # fmt: skip
        signatures = tuple(signature_of(signed.raw) for signed in stated)
        self._course.say(BodyProposal(self.setting.roster.run, self.round, self.view, body, signatures, None))
        return True

    def _vote_1(self) -> bool:
        if self._course.step not in (Step.SET, Step.EXCHANGE, Step.CHECK):
            return False
        signed = self._ledger.proposals.get(self.view)
        choice = WAIT if signed is None else self._judge(signed.record)
        if signed is not None and isinstance(choice, bytes) and signed.record.proof is None:
            choice = self._checking.examine(signed.record.body, choice)
        if choice is WAIT:
            if self._course.now < self._view.deadline and not self._leader_failed():
                return False
            choice = None
        self._view.lacking = self._checking.complaint() if choice is None else 0
        self._checking.note_tardy()
        self._course.step = Step.VOTE_1
        self._cast(1, choice, self._view.lacking)
        return True

    def _judge(self, proposal: BodyProposal) -> bytes | Wait | None:
        """The hash to vote for, None to vote against, WAIT while something may still come."""
        name, proof = record_hash(proposal.body), proposal.proof
        if proof is not None:
            self._compare_state(proposal.body.state_root)  # a quorum compared it with its own
        elif self._view.inputs is None:
            return WAIT
        else:
            if self._view.sound is None:
                self._view.sound = self._is_sound(proposal, self._view.inputs)
            if not self._view.sound:
                return None
        free = (
            self._locked is None or self._locked.body == name or (proof is not None and proof.view >= self._locked.view)
        )
        if not free or self._course.diverged:
            return None
        if proof is None and not self._charges.deserved(proposal.body):
            return WAIT
        return name if all(part.digest in self._course.held for part in proposal.body.parts) else WAIT

    def _is_sound(self, proposal: BodyProposal, inputs: Inputs) -> bool:
        try:
            check_fresh(self._course, proposal, inputs)
        except PeerViolation as error:
            self._blame_leader(error)
            return False
        return True

    def _lock(self) -> bool:
        """A phase-1 quorum: lock, and say so in phase 2. The parts need not be here: b+1 honest voters hold them."""
        name = self._ledger.tally(self.view, 1).body_with(self._electorate.q)
        if self._course.step not in (Step.VOTE_1, Step.VOTE_2) or name is None or name not in self._ledger.bodies:
            return False
        lock = Lock(self.view, name)
        if self._valid is not None and self._valid[0].view >= lock.view:
            return False
        self._valid = (lock, self._ledger.tally(self.view, 1).proof(name))
        if self._course.step is Step.VOTE_1:
            self._locked = lock
            self._to_phase_2(name)
        return True

    def _give_up_phase_1(self) -> bool:
        if self._course.step is not Step.VOTE_1 or not self._time_is_up(self._ledger.tally(self.view, 1)):
            return False
        self._to_phase_2(None)
        return True

    def _to_phase_2(self, choice: bytes | None) -> None:
        self._course.step, self._view.timer = Step.VOTE_2, None
        self._cast(2, choice, 0)

    def _give_up_phase_2(self) -> bool:
        if self._course.step is not Step.VOTE_2 or not self._time_is_up(self._ledger.tally(self.view, 2)):
            return False
        self._enter(self.view + 1)
        return True

    def _time_is_up(self, tally: Tally) -> bool:
        """No body can win any more, or a quorum has voted and the rest had their time."""
        if tally.hopeless(len(self._electorate), self._electorate.q):
            return True
        if self._view.timer is None and len(tally.votes) >= self._electorate.q:
            self._view.timer = self._course.now + self._delta_s * (1 + self.view)
        return self._view.timer is not None and self._course.now >= self._view.timer

    def _count_decision(self) -> bool:
        for (_, phase), tally in self._ledger.tallies.items():
            name = tally.body_with(self._electorate.q) if phase == 2 else None
            if name is not None and name in self._ledger.bodies:
                self._decide(Certificate(self.setting.roster.run, self._ledger.bodies[name], tally.proof(name)))
                return True
        return False

    def _decide(self, certificate: Certificate) -> None:
        self.certificate, self._course.step = certificate, Step.DECIDED
        inputs = self._view.inputs
        if inputs is not None and inputs.view == certificate.quorum.view:
            for reducer in inputs.reducers:
                self.setting.suspects.pop(reducer, None)
            self._charges.note_links()
            if inputs.hash == certificate.body.set_hash:
                self._charges.note_missing(inputs, certificate.body)
        self._compare_state(certificate.body.state_root)

    # --- small parts -------------------------------------------------------------------------------------------

    def _cast(self, phase: int, choice: bytes | None, lacking: int) -> None:
        if self._course.may_vote:
            self._course.say(Vote(self.setting.roster.run, self.round, self.view, phase, choice, lacking))

    def _leader_failed(self) -> bool:
        """Nothing more is to be hoped for in this view: its leader proposed nonsense, votes against it, or is gone."""
        leader = self.setting.leader(self.view)
        vote = self._ledger.tally(self.view, 1).votes.get(leader)
        gone = self._course.step is Step.SET and leader != self.setting.me and not self.setting.expected(leader)
        resigns = leader == self.setting.me and self._course.step is Step.EXCHANGE and bool(self._checking.known_bad())
        return self._view.bad_set or gone or resigns or (vote is not None and vote.record.body is None)

    def _equivocated(self, member: int, what: str, first: Signed[Any], second: Signed[Any]) -> None:
        self._charges.equivocated(member, what, first, second)

    def _blame_leader(self, error: PeerViolation) -> None:
        self._view.bad_set = True
        self._course.out.append(Fault(self.setting.roster.members[self.setting.leader(self.view)].peer, str(error)))

    def _compare_state(self, agreed: bytes) -> None:
        if agreed != self.setting.state_root and not self._course.diverged:
            self._course.diverged = True
            self._course.out.append(Diverged(self.round, self.setting.state_root, agreed))

    def _nickname(self, place: int) -> str:
        member = self.setting.roster.members[place]
        return member.nickname or member.peer[-8:]
