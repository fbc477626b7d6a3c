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
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Final

from celluler.errors import PeerViolation, ProtocolViolation
from celluler.identity import Record, Signed
from celluler.learning.checks import Case, CheckOutcome, Checks, Verdict, draw, inputs_for
from celluler.learning.effects import Check, Diverged, Effect, Exchange, Exclude, Fault, Fetch, Send
from celluler.learning.evidence import FalseAccusationsEvidence, FraudEvidence, open_accusation
from celluler.learning.evidence_file import Evidence, Kind, evidence_file
from celluler.learning.inputs import Inputs, check_part, inputs_of
from celluler.learning.ledger import Ledger, Setting
from celluler.learning.messages import (
    Body,
    BodyProposal,
    Certificate,
    CheckDraw,
    Commit,
    Entry,
    Equivocation,
    Fraud,
    Part,
    Quorum,
    Reduced,
    SetProposal,
    Status,
    Vote,
    check_signature,
    mask,
    open_message,
    places,
    record_hash,
    signature_of,
)
from celluler.learning.roster import MAX_MEMBERS
from celluler.learning.tally import Tally
from celluler.learning.transcript import Signatures, signatures_of


class Step(Enum):
    COMMITS = auto()
    """Fewer than q commits from one state: no clock runs."""
    SET = auto()
    EXCHANGE = auto()
    CHECK = auto()
    """The leader's body is what was signed and all of it is here; what we drew of it is still being computed anew."""
    VOTE_1 = auto()
    VOTE_2 = auto()
    DECIDED = auto()


class _Wait(Enum):
    WAIT = auto()


WAIT: Final = _Wait.WAIT


@dataclass(frozen=True, slots=True)
class Lock:
    view: int
    body: bytes


class Height:
    """Feed it with what arrives, then `take` what it wants done. Every call brings `now`, in seconds."""

    def __init__(self, setting: Setting, now: float) -> None:
        self.setting = setting
        self.round = setting.round
        self.step = Step.COMMITS
        self.view = 0
        self.certificate: Certificate | None = None
        self.diverged = False
        self._rules = setting.roster.rules
        self._electorate = setting.electorate
        self._delta_s = self._rules.delta_ms / 1000
        self._exchange_s = self._rules.exchange_ms / 1000
        self._now = now
        self._out: list[Effect] = []
        self._ledger = Ledger(setting, self._equivocated)
        self._checks = Checks()
        self._held: set[bytes] = set()
        self._locked: Lock | None = None
        self._valid: tuple[Lock, Quorum] | None = None
        self._inputs: Inputs | None = None  # of this view
        self._bad_set = False
        self._sound: bool | None = None  # whether the leader's fresh body was compared, and how it came out
        self._drawn: tuple[int, ...] = ()  # the parts that are ours to check in this view
        self._objections: float | None = None  # until when others are waited for that may have found a wrong part
        self._exchanging = False
        self._lacking = self._undelivered = 0  # masks of parts: what our vote says, what the exchange did not bring
        self._grace = self._deadline = now
        self._timer: float | None = None
        self._fetch_at: float | None = None
        self._fetching: tuple[tuple[int, Part], ...] = ()
        self._fetches = 0

    # --- what happens ------------------------------------------------------------------------------------------

    def commit(self, hashes: tuple[bytes, ...], exponents: tuple[int, ...], fresh: bool, now: float) -> None:
        """Our own training is done."""
        self._now = now
        setting = self.setting
        if setting.me not in self._ledger.commits and setting.sends and not self.diverged:
            run = setting.roster.run
            self._broadcast(Commit(run, self.round, setting.prev, setting.state_root, hashes, exponents, fresh))
        self._advance()

    def receive(self, member: int, signed: Signed[Any], now: float) -> bool:
        """A message of this round, signed by `member`. True if it was new. Raises PeerViolation, blaming `member`."""
        self._now = now
        claimed = self._ledger.claims.get(member)
        new = self._ledger.add(member, signed, self.view)
        if new or claimed != self._ledger.claims.get(member):
            self._advance()
        return new

    def claim(self, member: int, view: int, now: float) -> None:
        """A member says in which view it is."""
        self._now = now
        if self._ledger.claim(member, view):
            self._advance()

    def exchanged(self, view: int, results: Sequence[Part | None], now: float) -> None:
        """The exchange of a view is over. None: that part did not come."""
        self._now = now
        self._held |= {result.digest for result in results if result is not None}
        inputs = self._inputs
        if self._exchanging and inputs is not None and inputs.view == view:
            self._exchanging = False
            self._undelivered = mask(part for part, result in enumerate(results) if result is None)
            self._state_results(inputs, results)
        self._advance()

    def checked(self, results: Sequence[CheckOutcome], now: float) -> None:
        """What came of a Check."""
        self._now = now
        self._checks.answer(results, self.view)
        self._advance()

    def accuse(self, accuser: int, signed: Signed[Fraud], now: float) -> bool:
        """A member says that another reduced wrongly. True if it is new to us and worth looking into.

        Raises PeerViolation, the accuser's, for what is no accusation by its form.
        """
        self._now = now
        setting, accusation = self.setting, open_accusation(self.setting.roster, signed.record)
        accused, statement, docket = accusation.accused, accusation.statement, self.setting.docket
        reduced = statement.record
        key = (reduced.set_hash, reduced.part, reduced.result)
        if accused == accuser:
            raise ProtocolViolation("an accusation of oneself")
        if not setting.checks or accused not in self._electorate or {accused, accuser} & docket.proven.keys():
            return False
        checks = self._checks
        if checks.has_accused(accuser, key) or checks.open_accusations(accuser) >= max(1, self._electorate.b):
            return False
        checks.accuse(accuser, signed.raw, accused, statement, accusation.entries)
        if self.step is Step.CHECK:  # what is said of the body before us may need a look before we vote
            self._deadline = max(self._deadline, self._now + (self._exchange_s + self._delta_s) * (1 + self.view))
        self._advance()
        return True

    def fetched(self, digest: bytes, now: float) -> None:
        """A reduced part that hashes to this digest is here."""
        self._now = now
        self._held.add(digest)
        self._advance()

    def certify(self, certificate: Certificate, now: float) -> bool:
        """A certificate whose quorum was checked. Raises ProtocolViolation if it is of another history."""
        self._now = now
        if self.certificate is not None:
            return False
        self.setting.standing.check(certificate.body)
        self._decide(certificate)
        self._advance()
        return True

    def tick(self, now: float) -> None:
        self._now = now
        self._advance()

    def take(self) -> tuple[Effect, ...]:
        """What is to be done since the last call."""
        effects, self._out = tuple(self._out), []
        return effects

    def next_deadline(self) -> float | None:
        times = [self._fetch_at]
        match self.step:
            case Step.SET | Step.EXCHANGE:
                times += [self._deadline, self._grace if self._now < self._grace and self._leading else None]
            case Step.CHECK:
                times += [self._deadline, self._objections]
            case Step.VOTE_1 | Step.VOTE_2:
                times.append(self._timer)
        return min((time for time in times if time is not None), default=None)

    @property
    def voters(self) -> int:
        """Mask of those who voted for what was certified, as far as it came here. Once decided."""
        assert self.certificate is not None
        name = record_hash(self.certificate.body)
        tallies = [tally for (_, phase), tally in self._ledger.tallies.items() if phase == 2]
        found = {mark.member for mark in self.certificate.quorum.marks}
        found |= {member for member, body in self._ledger.trials.items() if body == name}
        return mask(found.union(*(tally.voters_for(name) for tally in tallies)))

    @property
    def complete(self) -> bool:
        """Decided, and every part of the certified body is here."""
        return self.certificate is not None and all(part.digest in self._held for part in self.certificate.body.parts)

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
            reduced=self._reduced_mask(),
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
        match self.step:
            case Step.COMMITS:
                return (
                    f"{where}: {len(self._ledger.largest_group())} of the {self.setting.standing.least} "
                    "updates needed from one state"
                )
            case Step.SET:
                return f"{where}: no set of inputs from the leader {self._nickname(self.setting.leader(self.view))}"
            case Step.EXCHANGE:
                return f"{where}: {self._lacking_now().bit_count()} of {self.setting.parts} parts missing"
            case Step.CHECK:
                return f"{where}: parts of the result are still being computed anew"
            case Step.DECIDED:
                return f"{where}: decided, but {len(self._fetching)} of its parts could not be fetched"
            case _:
                votes = self._ledger.tally(self.view, 1 if self.step is Step.VOTE_1 else 2).votes
                return f"{where}: {len(votes)} votes without a quorum of {self._electorate.q} for one result"

    # --- the machine: rules tried in order until none applies --------------------------------------------------

    def _advance(self) -> None:
        self._act_on_news()
        rules = (
            self._count_decision, self._open, self._jump, self._propose_set, self._accept_set, self._propose_body,
            self._vote_1, self._lock, self._give_up_phase_1, self._give_up_phase_2,
        )  # fmt: skip
        while self.step is not Step.DECIDED and any(rule() for rule in rules):
            pass
        self._fetch()
        self._ask_checks()

    def _open(self) -> bool:
        """View 0 opens when enough have committed: how long training takes is nobody's fault before that."""
        if self.step is not Step.COMMITS or len(self._ledger.largest_group()) < self.setting.standing.least:
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
        if self.step is not Step.COMMITS:
            self._note_suspects()
        self.view, self.step = view, Step.SET
        self._inputs, self._exchanging, self._bad_set = None, False, False
        self._lacking = self._undelivered = 0
        self._timer = self._sound = self._objections = None
        self._drawn = ()
        self._grace = self._now + (self._delta_s / 2 if view == 0 else 0.0)
        self._deadline = self._now + self._delta_s * (1 + view)

    def _note_suspects(self) -> None:
        """Reducers whose part we did not get, or b+1 members say they did not."""
        if self._inputs is None:
            return
        complaints = [signed.record.lacking for signed in self._ledger.tally(self.view, 1).votes.values()]
        for part, reducer in enumerate(self._inputs.reducers):
            told = sum(lacking >> part & 1 for lacking in complaints)
            if (self._lacking >> part & 1 or told > self._electorate.b) and reducer != self.setting.me:
                self.setting.suspects.pop(reducer, None)
                self.setting.suspects[reducer] = None
        self._note_links()

    def _note_links(self) -> None:
        """Between whom something did not get through in this view, by the voters' word; a liar's is about itself."""
        inputs, tally = self._inputs, self._ledger.tally(self.view, 1)
        for voter, signed in tally.votes.items() if inputs is not None else ():
            for part in places(signed.record.lacking):
                if inputs is not None and part < len(inputs.reducers):
                    self.setting.links.note(self.round, inputs.reducers[part], voter)

    def _note_missing(self, inputs: Inputs, body: Body) -> None:
        """Between whom something did not get through, as the certified body shows it."""
        for reducer, part in zip(inputs.reducers, body.parts, strict=True):
            for number, sender in enumerate(inputs.members):
                if not part.used >> number & 1:
                    self.setting.links.note(self.round, reducer, sender)

    def _propose_set(self) -> bool:
        """The leader's first word: a body with an earlier quorum again, or else a set of inputs."""
        if (
            not self._leading
            or self.step is not Step.SET
            or self.view in self._ledger.sets
            or self.view in self._ledger.proposals
        ):
            return False
        run = self.setting.roster.run
        if self._valid is not None:
            lock, proof = self._valid
            self._broadcast(BodyProposal(run, self.round, self.view, self._ledger.bodies[lock.body], (), proof))
            return True
        members = self._chosen()
        if members is None:
            return False
        entries = tuple(Entry(member, next(iter(self._ledger.commits[member]))) for member in members)
        self._broadcast(SetProposal(run, self.round, self.view, entries, self._barred(members)))
        return True

    def _chosen(self) -> tuple[int, ...] | None:
        """Whose commits to propose; None while it is worth waiting for more."""
        group, standing = self._ledger.largest_group(), self.setting.standing
        if not self._suffices(group):
            return None
        awaited = [member for member in places(standing.awaited) if self.setting.expected(member)]
        if self._now < self._grace and not set(awaited) <= self._ledger.commits.keys():
            return None
        trusted = tuple(member for member in group if member not in self.setting.docket.proven)
        chosen = trusted if self._suffices(trusted) else group
        if self.view > 0:  # the view before failed: do without those that have fallen silent since they committed
            present = tuple(member for member in chosen if self.setting.present(member))
            chosen = present if self._suffices(present) else chosen
        return chosen

    def _suffices(self, members: tuple[int, ...]) -> bool:
        """Enough of them, one of whom may reduce."""
        reduces = not self.setting.parts or mask(members) & self._electorate.aggregators
        return len(members) >= self.setting.standing.least and bool(reduces)

    def _barred(self, members: tuple[int, ...]) -> int:
        """At most b, so that a lying leader cannot keep the work among its friends; never all that may reduce."""
        latest_first = [*sorted(self.setting.docket.proven), *reversed(self.setting.suspects)]
        barred, able = 0, mask(members) & self._electorate.aggregators
        for member in dict.fromkeys(member for member in latest_first if member in members):
            more = barred | 1 << member
            if more.bit_count() <= self._electorate.b and able & ~more:
                barred = more
        return barred

    def _accept_set(self) -> bool:
        signed = self._ledger.sets.get(self.view)
        if self.step is not Step.SET or signed is None or self._bad_set or self._ledger.missing_commits(self.view):
            return False
        proposal = signed.record
        commits = self._ledger.commits_of(proposal.entries)
        try:
            self._inputs = inputs = inputs_of(self.setting.standing, proposal, commits, self.setting.parts)
        except ProtocolViolation as error:
            self._blame_leader(error)
            return True
        self._compare_state(inputs.state_root)
        self.step = Step.EXCHANGE
        self._drawn = self._draw(inputs)
        wait_s = self._exchange_s * (1 + self.view)
        self._deadline = self._now + wait_s + (0.0 if self._leading else self._delta_s * (1 + self.view))
        if inputs.reducers and self.setting.me in inputs.members and self._may_sign:
            self._exchanging = True
            self._out.append(
                Exchange(
                    self.round, self.view, inputs.hash, inputs.members, inputs.commits, inputs.reducers, wait_s,
                    least=max(1, len(inputs.members) - self._electorate.spared),
                )
            )  # fmt: skip
        return True

    def _state_results(self, inputs: Inputs, results: Sequence[Part | None]) -> None:
        """Sign what we reduced ourselves; a part from too few inputs is as good as missing."""
        for part, (reducer, result) in enumerate(zip(inputs.reducers, results, strict=True)):
            if reducer == self.setting.me and result is not None and self._may_sign and self._sensible(result, inputs):
                self._broadcast(inputs.states(self.setting.roster, self.round, part, result))

    def _sensible(self, result: Part, inputs: Inputs) -> bool:
        try:
            check_part(result, len(inputs.members), self._electorate.spared)
        except ProtocolViolation:
            return False
        return True

    def _stated(self, part: int) -> Signed[Reduced] | None:
        """The assigned reducer's statement on a part in this view, if it came and makes sense."""
        inputs = self._inputs
        if inputs is None:
            return None
        signed = self._ledger.reduced.get((self.view, part, inputs.reducers[part]))
        if signed is None or signed.record.set_hash != inputs.hash or not self._sensible(signed.record.result, inputs):
            return None
        return signed

    def _propose_body(self) -> bool:
        """The leader's second word. It holds every part itself, so that it can serve those who lack one."""
        inputs = self._inputs
        if inputs is None or not self._leading or self.step is not Step.EXCHANGE or self.view in self._ledger.proposals:
            return False
        stated = [signed for part in range(self.setting.parts) if (signed := self._stated(part)) is not None]
        if len(stated) < self.setting.parts or any(s.record.result.digest not in self._held for s in stated):
            return False
        if self._known_bad():
            return False
        setting, expelled = self.setting, self._to_expel()
        body = Body(
            self.round, setting.prev, inputs.hash, inputs.mask, inputs.state_root,
            tuple(signed.record.result for signed in stated), expelled, self._to_suspend(expelled),
            setting.voted(), () if setting.standing.closing else setting.applicants(),
        )  # fmt: skip
        signatures = tuple(signature_of(signed.raw) for signed in stated)
        self._broadcast(BodyProposal(self.setting.roster.run, self.round, self.view, body, signatures, None))
        return True

    def _vote_1(self) -> bool:
        if self.step not in (Step.SET, Step.EXCHANGE, Step.CHECK):
            return False
        signed = self._ledger.proposals.get(self.view)
        choice = WAIT if signed is None else self._judge(signed.record)
        if signed is not None and isinstance(choice, bytes) and signed.record.proof is None:
            choice = self._examine(signed.record.body, choice)
        if choice is WAIT:
            if self._now < self._deadline and not self._leader_failed():
                return False
            choice = None
        self._lacking = self._complaint() if choice is None else 0
        self._note_tardy()
        self.step = Step.VOTE_1
        self._cast(1, choice, self._lacking)
        return True

    def _judge(self, proposal: BodyProposal) -> bytes | _Wait | None:
        """The hash to vote for, None to vote against, WAIT while something may still come."""
        name, proof = record_hash(proposal.body), proposal.proof
        if proof is not None:
            self._compare_state(proposal.body.state_root)  # a quorum compared it with its own
        elif self._inputs is None:
            return WAIT
        else:
            if self._sound is None:
                self._sound = self._from_inputs(proposal, self._inputs)
            if not self._sound:
                return None
        free = (
            self._locked is None or self._locked.body == name or (proof is not None and proof.view >= self._locked.view)
        )
        if not free or self.diverged:
            return None
        if proof is None and not self._agrees(proposal.body):
            return WAIT
        return name if all(part.digest in self._held for part in proposal.body.parts) else WAIT

    def _agrees(self, body: Body) -> bool:
        """Whether we know of all whom a fresh body sends away that they deserve it, and may let in those it admits."""
        setting = self.setting
        return (
            all(setting.condemned(member) for member in places(body.expelled))
            and all(setting.failing(member) for member in places(body.suspended))
            and setting.welcome(body.admitted)
        )

    def _from_inputs(self, proposal: BodyProposal, inputs: Inputs) -> bool:
        """Whether a fresh body is what the reducers of this view signed for this view's set."""
        body, roster = proposal.body, self.setting.roster
        try:
            if (body.set_hash, body.members, body.state_root) != (inputs.hash, inputs.mask, inputs.state_root):
                raise ProtocolViolation("a body that is not of the leader's own set")
            for number, (part, signature) in enumerate(zip(body.parts, proposal.statements, strict=True)):
                reducer = inputs.reducers[number]
                raw = check_signature(roster, reducer, inputs.states(roster, self.round, number, part), signature)
                self._ledger.keep(self._ledger.reduced, (self.view, number, reducer), reducer, open_message(raw))
        except PeerViolation as error:
            self._blame_leader(error)
            return False
        return True

    def _lock(self) -> bool:
        """A phase-1 quorum: lock, and say so in phase 2. The parts need not be here: b+1 honest voters hold them."""
        name = self._ledger.tally(self.view, 1).body_with(self._electorate.q)
        if self.step not in (Step.VOTE_1, Step.VOTE_2) or name is None or name not in self._ledger.bodies:
            return False
        lock = Lock(self.view, name)
        if self._valid is not None and self._valid[0].view >= lock.view:
            return False
        self._valid = (lock, self._ledger.tally(self.view, 1).proof(name))
        if self.step is Step.VOTE_1:
            self._locked = lock
            self._to_phase_2(name)
        return True

    def _give_up_phase_1(self) -> bool:
        if self.step is not Step.VOTE_1 or not self._time_is_up(self._ledger.tally(self.view, 1)):
            return False
        self._to_phase_2(None)
        return True

    def _to_phase_2(self, choice: bytes | None) -> None:
        self.step, self._timer = Step.VOTE_2, None
        self._cast(2, choice, 0)

    def _give_up_phase_2(self) -> bool:
        if self.step is not Step.VOTE_2 or not self._time_is_up(self._ledger.tally(self.view, 2)):
            return False
        self._enter(self.view + 1)
        return True

    def _time_is_up(self, tally: Tally) -> bool:
        """No body can win any more, or a quorum has voted and the rest had their time."""
        if tally.hopeless(len(self._electorate), self._electorate.q):
            return True
        if self._timer is None and len(tally.votes) >= self._electorate.q:
            self._timer = self._now + self._delta_s * (1 + self.view)
        return self._timer is not None and self._now >= self._timer

    def _count_decision(self) -> bool:
        for (_, phase), tally in self._ledger.tallies.items():
            name = tally.body_with(self._electorate.q) if phase == 2 else None
            if name is not None and name in self._ledger.bodies:
                self._decide(Certificate(self.setting.roster.run, self._ledger.bodies[name], tally.proof(name)))
                return True
        return False

    def _decide(self, certificate: Certificate) -> None:
        self.certificate, self.step = certificate, Step.DECIDED
        inputs = self._inputs
        if inputs is not None and inputs.view == certificate.quorum.view:
            for reducer in inputs.reducers:
                self.setting.suspects.pop(reducer, None)
            self._note_links()
            if inputs.hash == certificate.body.set_hash:
                self._note_missing(inputs, certificate.body)
        self._compare_state(certificate.body.state_root)

    def _fetch(self) -> None:
        """Ask for the parts that others hold and we lack, again and again, each time starting with another holder."""
        inputs, lacking, holders = self._parts_to_fetch()
        if not lacking or not holders:
            self._fetching, self._fetch_at = (), None
            return
        if lacking == self._fetching and self._fetch_at is not None and self._now < self._fetch_at:
            return
        turn = self._fetches % len(holders)
        peers = tuple(self.setting.roster.members[place].peer for place in holders[turn:] + holders[:turn])
        self._fetches += 1
        self._fetching, self._fetch_at = lacking, self._now + self._delta_s / 2
        self._out.append(Fetch(self.round, inputs, lacking, peers))

    def _parts_to_fetch(self) -> tuple[bytes, tuple[tuple[int, Part], ...], list[int]]:
        """The set they were reduced from, the parts that are not here, and the places of those who hold them."""
        holders: list[int] = []
        parts: Sequence[Part | None] = ()
        inputs = b""
        if self.certificate is not None:
            inputs, parts = self.certificate.body.set_hash, self.certificate.body.parts
            holders = [*(mark.member for mark in self.certificate.quorum.marks), *self._electorate.places]
        elif self.step in (Step.SET, Step.EXCHANGE) and not self._exchanging:
            signed = self._ledger.proposals.get(self.view)
            if signed is not None:
                name = record_hash(signed.record.body)
                inputs, parts = signed.record.body.set_hash, signed.record.body.parts
                holders = [self.setting.leader(self.view), *self._ledger.tally(self.view, 1).voters_for(name)]
            elif self._leading and self._inputs is not None:
                stated = [self._stated(part) for part in range(self.setting.parts)]
                inputs = self._inputs.hash
                parts = [None if signed is None else signed.record.result for signed in stated]
                holders = list(self._inputs.reducers)
        lacking = tuple((n, p) for n, p in enumerate(parts) if p is not None and p.digest not in self._held)
        return inputs, lacking, [place for place in dict.fromkeys(holders) if place != self.setting.me]

    # --- checks ------------------------------------------------------------------------------------------------

    def _draw(self, inputs: Inputs) -> tuple[int, ...]:
        """Parts of others. Seeded by the view too: asking for inputs in one view betrays nothing of the next."""
        setting = self.setting
        candidates = [part for part, reducer in enumerate(inputs.reducers) if reducer != setting.me]
        if not setting.checks or not candidates or not self._may_vote:
            return ()
        if len(candidates) <= setting.checks:
            return tuple(candidates)
        secret = signature_of(setting.seal(CheckDraw(setting.roster.run, self.view, inputs.hash)))
        return draw(secret, candidates, setting.checks)

    def _to_check(self) -> list[int]:
        """The parts that we drew, and those of proven liars: the leader may not have known, or be one itself."""
        inputs, me = self._inputs, self.setting.me
        if inputs is None or not self.setting.checks or not self._may_vote:
            return []
        return [
            part for part, reducer in enumerate(inputs.reducers)
            if part in self._drawn or (reducer != me and self.setting.condemned(reducer))
        ]  # fmt: skip

    def _ask_checks(self) -> None:
        """Have computed anew what is stated of what we drew, and what others say is wrong."""
        inputs = self._inputs
        if not self.setting.checks or not self._may_vote:
            return
        if inputs is not None and not self._exchanging and self.step in (Step.EXCHANGE, Step.CHECK):
            entries = self._ledger.sets[self.view].record.entries
            for part in self._to_check():
                for signed in self._statements_on(part):
                    self._note_check(inputs, entries, signed)
        self._resolve_accusations()
        groups: dict[tuple[bytes, int], list[Case]] = {}
        for case in self._checks.unasked(self.view):
            assert case.inputs is not None
            case.asked, case.pending = self.view, case.pending + 1
            groups.setdefault((case.inputs.hash, case.inputs.view), []).append(case)
        for cases in groups.values():
            self._ask_check(cases)

    def _ask_check(self, cases: list[Case]) -> None:
        inputs = cases[0].inputs
        assert inputs is not None
        parts = tuple(case.as_check for case in cases)
        self._out.append(
            Check(
                self.round, inputs.view, inputs.hash, inputs.members, inputs.commits, inputs.reducers, parts,
                self._exchange_s * (1 + self.view),
            )
        )  # fmt: skip

    def _statements_on(self, part: int) -> list[Signed[Reduced]]:
        """What this view's reducer signed: to us, and under the leader's body, should that be another thing."""
        stated, signed = self._stated(part), self._ledger.proposals.get(self.view)
        found = [] if stated is None else [stated]
        inputs = self._inputs
        if signed is None or signed.record.proof is not None or not self._sound or inputs is None:
            return found
        result, reducer = signed.record.body.parts[part], inputs.reducers[part]
        if stated is None or stated.record.result != result:
            record = inputs.states(self.setting.roster, self.round, part, result)
            found.append(
                open_message(check_signature(self.setting.roster, reducer, record, signed.record.statements[part]))
            )
        return found

    def _note_check(self, inputs: Inputs, entries: tuple[Entry, ...], signed: Signed[Reduced]) -> None:
        reduced = signed.record
        key = (reduced.set_hash, reduced.part, reduced.result)
        reducer = inputs.reducers[reduced.part]
        case = self._checks.cases.get(key)
        if case is None or case.noted < self.view or reducer not in case.statements:
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

    def _act_on_news(self) -> None:
        """Convict whose result was found to be another, and those who said so of a right one."""
        news, self._checks.news = self._checks.news, {}
        for key in news:
            case = self._checks.cases[key]
            if case.verdict is Verdict.DIFFERENT:
                for reducer, statement in case.statements.items():
                    self._convict_reducer(case, reducer, statement)
            elif case.verdict is Verdict.SAME:
                for accuser, raw in case.accusers.items():
                    self._note_false(case, accuser, raw)

    def _convict_reducer(self, case: Case, reducer: int, statement: Signed[Reduced]) -> None:
        setting, part = self.setting, statement.record.part
        if reducer in setting.docket.proven or reducer not in self._electorate:
            return
        accusation = setting.seal(Fraud(setting.roster.run, self.round, statement.raw, case.entries))
        commits = tuple(signed.raw for signed in self._ledger.commits_of(case.entries))
        evidence = FraudEvidence(setting.roster.run, statement.raw, commits)
        reason = f"reduced part {part} wrongly in round {self.round}"
        self._convict(reducer, reason, Kind.FRAUD, evidence, (accusation,))

    def _note_false(self, case: Case, accuser: int, raw: bytes) -> None:
        docket = self.setting.docket
        if accuser in docket.proven or case.key in docket.false.get(accuser, {}):
            return
        commits = tuple(signed.raw for signed in self._ledger.commits_of(case.entries))
        proof = docket.accused_falsely(accuser, case.key, raw, commits)
        if proof is None:
            reason = "accused a reducer that had reduced rightly"
            self._out.append(Fault(self.setting.roster.members[accuser].peer, reason))
            return
        evidence = FalseAccusationsEvidence(self.setting.roster.run, proof)
        words = tuple(one.accusation for one in proof)
        self._convict(accuser, "accused reducers that had reduced rightly", Kind.FALSE_ACCUSATIONS, evidence, words)

    def _convict(self, member: int, reason: str, kind: Kind, evidence: Evidence, words: tuple[bytes, ...]) -> None:
        """words: what makes the others see it too."""
        setting = self.setting
        setting.docket.proven[member] = words
        peer = setting.roster.members[member].peer
        self._out.append(Exclude(peer, reason, evidence_file(setting.roster, kind, evidence)))
        self._out += [Send(None, word) for word in words]

    def _examine(self, body: Body, name: bytes) -> bytes | _Wait | None:
        """Whether checks allow to vote for this body: WAIT while they are under way."""
        if not self.setting.checks or not body.parts:
            return name
        verdicts = [self._checks.verdict((body.set_hash, n, part), self.view) for n, part in enumerate(body.parts)]
        if any(verdict in (Verdict.DIFFERENT, Verdict.UNSERVED) for verdict in verdicts):
            return None
        if all(verdicts[n] is Verdict.SAME for n in self._needed(body)) and not self._await_objections(verdicts):
            return name
        if self.step is not Step.CHECK:
            self.step = Step.CHECK
            self._deadline = self._now + (self._exchange_s + self._delta_s) * (1 + self.view)
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
        inputs = self._inputs
        assert inputs is not None
        if all(v is Verdict.SAME or r == self.setting.me for v, r in zip(verdicts, inputs.reducers, strict=True)):
            return False
        if self._objections is None:
            self._objections = self._now + self._delta_s * (1 + self.view)
            if self.step is Step.CHECK:
                self._deadline = max(self._deadline, self._objections)
        return self._now < self._objections and any(
            member not in self.setting.tardy and self.setting.present(member) for member in self._unheard()
        )

    def _unheard(self) -> list[int]:
        """Members that have not said that they checked, nor voted, in this view."""
        setting, voted = self.setting, self._ledger.tally(self.view, 1).votes
        return [
            member for member in self._electorate.places
            if member not in voted and member not in setting.docket.proven and member != setting.me
            and not setting.has_checked(member, self.view)
        ]  # fmt: skip

    def _note_tardy(self) -> None:
        if self._objections is not None:
            unheard = self._unheard()
            self.setting.tardy.difference_update(set(self._electorate.places) - set(unheard))
            if self._now >= self._objections:
                self.setting.tardy.update(unheard)

    @property
    def has_checked(self) -> bool:
        """What we drew in this view is judged, so whatever is wrong with it we have said."""
        if self.step in (Step.COMMITS, Step.SET) or not self.setting.checks:
            return False
        inputs, voted = self._inputs, self.setting.me in self._ledger.tally(self.view, 1).votes
        if inputs is None or voted:
            return voted
        stated = [self._stated(part) for part in self._to_check()]
        return all(
            signed is not None
            and self._checks.verdict((inputs.hash, signed.record.part, signed.record.result), self.view) is not None
            for signed in stated
        )

    @property
    def others_wait(self) -> bool:
        """Whether what we checked matters to others because nobody checks everything."""
        inputs = self._inputs
        return inputs is not None and len(self._drawn) < sum(place != self.setting.me for place in inputs.reducers)

    def _known_bad(self) -> int:
        """Mask of the parts whose stated result we found wrong, or could not check in this view."""
        if self._inputs is None:
            return 0
        stated = [self._stated(part) for part in range(self.setting.parts)]
        verdicts = [
            None if s is None else self._checks.verdict((self._inputs.hash, n, s.record.result), self.view)
            for n, s in enumerate(stated)
        ]
        return mask(n for n, v in enumerate(verdicts) if v in (Verdict.DIFFERENT, Verdict.UNSERVED))

    def _to_expel(self) -> int:
        """Those against whom a quorum says it holds proof: so all honest members hear of b+1 that do."""
        if not self.setting.checks:
            return 0
        found = 0
        for member in self._electorate.places:
            more = found | 1 << member
            if (
                self.setting.condemned(member)
                and self.setting.proofs(member) >= self._electorate.q
                and self._electorate.may_expel(more)
            ):
                found = more
        return found

    def _to_suspend(self, expelled: int) -> int:
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

    # --- small parts -------------------------------------------------------------------------------------------

    def _broadcast(self, record: Record) -> None:
        raw = self.setting.seal(record)
        self._out.append(Send(None, raw))
        self._ledger.add(self.setting.me, open_message(raw), self.view)

    def _cast(self, phase: int, choice: bytes | None, lacking: int) -> None:
        if self._may_vote:
            self._broadcast(Vote(self.setting.roster.run, self.round, self.view, phase, choice, lacking))

    @property
    def _may_sign(self) -> bool:
        return not self.setting.mute and not self.diverged

    @property
    def _may_vote(self) -> bool:
        return self.setting.votes and not self.diverged

    @property
    def _leading(self) -> bool:
        return self.setting.leader(self.view) == self.setting.me and self._may_vote

    def _leader_failed(self) -> bool:
        """Nothing more is to be hoped for in this view: its leader proposed nonsense, votes against it, or is gone."""
        leader = self.setting.leader(self.view)
        vote = self._ledger.tally(self.view, 1).votes.get(leader)
        gone = self.step is Step.SET and leader != self.setting.me and not self.setting.expected(leader)
        resigns = leader == self.setting.me and self.step is Step.EXCHANGE and bool(self._known_bad())
        return self._bad_set or gone or resigns or (vote is not None and vote.record.body is None)

    def _equivocated(self, member: int, what: str, first: Signed[Any], second: Signed[Any]) -> None:
        setting = self.setting
        if member in setting.docket.proven:
            return
        record = Equivocation(setting.roster.run, self.round, first.raw, second.raw)
        words = (setting.seal(record),) if setting.checks else ()
        self._convict(member, what, Kind.EQUIVOCATION, record, words)

    def _blame_leader(self, error: PeerViolation) -> None:
        self._bad_set = True
        self._out.append(Fault(self.setting.roster.members[self.setting.leader(self.view)].peer, str(error)))

    def _compare_state(self, agreed: bytes) -> None:
        if agreed != self.setting.state_root and not self.diverged:
            self.diverged = True
            self._out.append(Diverged(self.round, self.setting.state_root, agreed))

    def _lacking_now(self) -> int:
        """Mask of the parts that we have no statement on, or not the bytes of."""
        if self._inputs is None:
            return 0
        stated = [self._stated(part) for part in range(self.setting.parts)]
        absent = mask(n for n, s in enumerate(stated) if s is None or s.record.result.digest not in self._held)
        return absent | self._known_bad()

    def _complaint(self) -> int:
        """Mask of the parts whose reducer failed us, to be told with a vote against. While there is still time, only
        what is certain: another's haste is no reducer's fault."""
        if self._now >= self._deadline:
            return self._lacking_now()
        return self._known_bad() | (0 if self._exchanging else self._undelivered)

    def _reduced_mask(self) -> int:
        return mask(part for part in range(self.setting.parts) if self._stated(part) is not None)

    def _nickname(self, place: int) -> str:
        member = self.setting.roster.members[place]
        return member.nickname or member.peer[-8:]
