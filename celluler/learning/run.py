"""A whole run: one height after the other, who is there, who lags, and when to give up.

Sans-IO. Every call brings the time in seconds and returns what is to be done; `next_deadline` says when to `tick`.
Messages may be lost, doubled and reordered at will: every quarter of delta each member tells the others what it holds,
and is sent what it lacks. What is new is passed on once to everybody else, so that one cut link does not matter.

A member killed and started again has forgotten what it signed. With a higher `incarnation` it follows
without signing until it knows that its new signatures cannot contradict its old ones.

Who takes part in a height, and how, is its `Standing`: read from the certified bodies, so all agree on it. An expelled
member is not listened to any more; one that is suspended, in probation or without a vote follows, and is told of its
lack like the others. Who comes late, or was away for so long that nobody serves what it lacks, begins with a chain.

Knows nothing of sockets, workers or arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from celluler.errors import LocalError, PeerViolation, ProtocolViolation
from celluler.identity import Identity, PeerId, Record, Signed, seal
from celluler.learning.admission import Applicants
from celluler.learning.audit_messages import Accuse, Conviction, Verdict
from celluler.learning.auditing import Auditing
from celluler.learning.checks import CheckOutcome
from celluler.learning.court import Bench
from celluler.learning.effects import (
    Admitted,
    Apply,
    Certified,
    Effect,
    Exclude,
    Fault,
    Finished,
    Send,
    Stalled,
    Train,
)
from celluler.learning.evidence import check_equivocation
from celluler.learning.evidence_file import Kind, evidence_file
from celluler.learning.history import History
from celluler.learning.ledger import Setting
from celluler.learning.messages import (
    OF_A_HEIGHT,
    Admission,
    Certificate,
    Equivocation,
    Fraud,
    Part,
    Status,
    check_certificate,
    mask,
    open_message,
    places,
)
from celluler.learning.opinion import Opinion
from celluler.learning.presence import Presence
from celluler.learning.report import RunReport
from celluler.learning.roster import Electorate, RosterView
from celluler.learning.round import Height
from celluler.learning.transcript import Signatures
from celluler.learning.vigil import Vigil

MAX_EARLY_MESSAGES = 96
"""Messages of the next round kept of one member."""
STATUSES_PER_DELTA = 4

Effects = tuple[Effect, ...]


class Run:
    """One member's half of a run."""

    def __init__(
        self,
        roster: RosterView,
        identity: Identity,
        *,
        state_root: bytes,
        incarnation: int = 0,
        checks: int = 0,
        chain: Sequence[Certificate] = (),
        epoch_s: float | None = None,
        audits: bool = False,
    ) -> None:
        """roster: as the coordinator signed it. state_root: of the state before round 0; with a chain, of the state
        before its last round, which we then ask for and apply like any other.

        checks: how many parts to compute anew in each view, `checks_for` says how many are due; with 0 nothing is
        checked, and nobody accused or expelled at our instance. incarnation: 0 at this key's first start in this run; a
        later start passes a higher number than the one before (the seconds since the epoch will do). chain: what was
        certified from round 0 on. epoch_s: the Unix time at `now` 0, by which invites expire; without it none does.
        audits: whether to audit others, at the rate of the rules, and to look into what others accuse trainers of; only
        with checks, for without them nobody is expelled.

        Raises PeerViolation for a chain that is none; LocalError when we are not a member after it, or do not hold the
        state that it names.
        """
        if audits and not checks:
            raise LocalError("audits expel nobody where nothing is checked")
        self._history = History(roster)
        after = self._history.begin(chain, state_root)
        me = after.roster.index_of(identity.peer_id)
        if me is None:
            raise LocalError("this identity is not in the roster")
        self.me, self.standing = me, self._history.standing
        self.finished = False
        self.stalled: str | None = None
        self._decided_already = chain[-1] if chain else None  # the height that we open with
        self._seal: Callable[[Record], bytes] = lambda record: seal(identity, record)
        self._state_root = state_root
        self._rules = roster.rules
        self._checks = checks
        self._epoch_s = epoch_s
        delta_s = roster.rules.delta_ms / 1000
        self._presence = Presence(
            me, self.standing.electorate, period_s=delta_s / STATUSES_PER_DELTA, silence_s=delta_s
        )
        self._vigil = Vigil(roster.rules, self._presence)
        self._opinion = Opinion(self.standing, self._presence)
        self._applicants = Applicants()
        self._mute_before: int | None = None if incarnation and len(after.roster) > 1 else 0
        self._incarnation = incarnation
        self._audits = Auditing(self._bench()) if audits else None
        self._early: dict[int, dict[bytes, Signed[Any]]] = {}  # by author
        self._applying = False
        self._train_at: float | None = None
        self._status_at = 0.0
        self._told: tuple[int, int] | None = None  # round and view of which we last said at once that we had checked
        self._sequence = 0
        self._out: list[Effect] = []
        self._height: Height | None = None
        self._previous: Height | None = None  # for checks and accusations that come late

    # --- what happens ------------------------------------------------------------------------------------------

    @property
    def round(self) -> int:
        return self._at.round

    @property
    def roster(self) -> RosterView:
        """With everybody who was admitted so far."""
        return self._history.roster

    @property
    def certificates(self) -> Sequence[Certificate]:
        """The chain from round 0 on."""
        return self._history.certificates

    @property
    def report(self) -> RunReport:
        return self._history.report

    @property
    def settled(self) -> bool:
        """Finished, and so by their own word are all others that are alive: nobody needs us any more."""
        if not self.finished:
            return False
        done = self._presence.certified(self._rules.rounds) | {self.me, *places(self.standing.expelled)}
        return all(place in done or not self._presence.alive(place) for place in range(len(self.roster)))

    def start(self, now: float) -> Effects:
        self._status_at = self._presence.now = now
        for place in range(len(self.roster)):
            self._presence.expect(place)
        self._enter(now)
        if self._decided_already is not None:
            self._at.certify(self._decided_already, now)
        return self.tick(now)

    def receive(self, sender: PeerId, raw: bytes, now: float) -> Effects:
        """Bytes that a member's stream brought. Never raises for what a peer sent: that becomes a Fault."""
        if self.stalled is not None:
            return ()
        self._presence.now = now
        try:
            signed = open_message(raw)
            if signed.record.run != self.roster.run:
                raise ProtocolViolation("passed on a message of another run")
        except PeerViolation as error:
            self._out.append(Fault(sender, str(error)))
            return self._drain()
        author = self._history.places.get(signed.signer)  # None: a stranger, or a member that we do not know of yet
        if isinstance(signed.record, Admission):
            self._on_admission(sender, raw)
        elif author is not None and author != self.me:
            try:
                self._dispatch(sender, author, signed)
            except PeerViolation as error:
                self._out.append(Fault(signed.signer, str(error)))
        return self._drain()

    def admit(self, raw: bytes, now: float) -> Effects:
        """Somebody hands us its sealed Admission: we pass it on, and propose it when we lead.

        Raises PeerViolation, the applicant's, for one that no member would accept now.
        """
        self._presence.now = now
        if self.stalled is None and self._applicants.add(self._history.standing, raw, self._unix_s()):
            self._out.append(Send(None, raw))
        return self._drain()

    def trained(
        self, round_number: int, hashes: tuple[bytes, ...], exponents: tuple[int, ...], state_root: bytes, now: float
    ) -> Effects:
        """Our update of this round is ready. state_root: of the state it started from. Late answers are ignored."""
        height = self._at
        self._presence.now = now
        if round_number != height.round or self.stalled is not None or height.certificate is not None:
            return ()
        if state_root != height.setting.state_root:
            raise LocalError("the update starts from another state than the one last applied")
        if not len(hashes) == len(exponents) == height.setting.parts:
            raise LocalError(f"an update of {len(hashes)} parts in a round of {height.setting.parts}")
        height.commit(hashes, exponents, not self._history.was_in(self.me), now)
        if self._audits is not None:
            self._audits.idle(now)
        return self._drain()

    def exchanged(self, round_number: int, view: int, results: Sequence[Part | None], now: float) -> Effects:
        """The exchange of a view is over: one result a part, None where it did not come. Late answers still help."""
        height = self._at
        self._presence.now = now
        if round_number != height.round or self.stalled is not None:
            return ()
        if len(results) != height.setting.parts:
            raise LocalError(f"{len(results)} results for {height.setting.parts} parts")
        height.exchanged(view, results, now)
        return self._drain()

    def checked(self, round_number: int, view: int, results: Sequence[CheckOutcome], now: float) -> Effects:
        """The answer to a Check of this round and view. Late ones still convict whoever is still to be convicted."""
        self._presence.now = now
        height = self._height_of(round_number)
        if height is not None and self.stalled is None:
            height.checked(results, now)
        return self._drain()

    def audited(self, round_number: int, member: int, deviations: Sequence[float] | None, now: float) -> Effects:
        """The answer to an Audit: one deviation a part; None when its data was not served; none at all when it could
        not be done here, which says nothing of anybody."""
        self._presence.now = now
        if self._audits is not None and self.stalled is None:
            self._audits.audited(round_number, member, deviations, now)
        return self._drain()

    def fetched(self, round_number: int, digest: bytes, now: float) -> Effects:
        """A reduced part was fetched, and hashes to this digest."""
        self._presence.now = now
        if round_number == self._at.round and self.stalled is None:
            self._at.fetched(digest, now)
        return self._drain()

    def signatures(self) -> Signatures:
        """What was signed in the newest certified height, for a transcript; before `applied` opens the next one."""
        return self._at.signatures()

    def applied(self, round_number: int, state_root: bytes, now: float) -> Effects:
        """The certified round is applied; state_root is of the state that came out."""
        self._presence.now = now
        if self._applying and round_number == self._at.round:
            self._state_root = state_root
            self._enter(now)
        return self._drain()

    def tick(self, now: float) -> Effects:
        self._presence.now = now
        if self.stalled is None:
            self._at.tick(now)
            if now >= self._status_at:
                self._status_at = now + self._presence.period_s
                self._out.append(Send(None, self._status()))
            if self._train_at is not None and now >= self._train_at:
                self._train()
            if self._audits is not None:
                self._audits.tick(now)
            self._watch()
        return self._drain()

    def next_deadline(self) -> float | None:
        if self._height is None or self.stalled is not None:
            return None
        audits_at = None if self._audits is None else self._audits.next_deadline()
        times = (self._status_at, self._train_at, self._height.next_deadline(), audits_at)
        return min(time for time in times if time is not None)

    # --- messages ----------------------------------------------------------------------------------------------

    def _dispatch(self, sender: PeerId, author: int, signed: Signed[Any]) -> None:
        record, here = signed.record, self._at.round
        if isinstance(record, Certificate):
            self._on_certificate(record)
        elif self.standing.expelled >> author & 1:
            self._tell_expelled(author, record)
        elif isinstance(record, Status):
            self._on_status(author, record)
        elif isinstance(record, OF_A_HEIGHT) and record.round == here + 1:
            self._keep_early(sender, author, signed)
        elif not self._electorate.acts(author):
            return  # it takes no part in this round
        elif isinstance(record, Equivocation):
            self._note(sender, author, signed, self._on_equivocation(record))
        elif isinstance(record, Fraud):
            height = self._height_of(record.round)
            new = height is not None and height.accuse(author, signed, self._now)
            self._note(sender, author, signed, new)
        elif isinstance(record, OF_A_HEIGHT) and record.round == here:
            self._note(sender, author, signed, self._at.receive(author, signed, self._now))
        elif self._audits is not None and isinstance(record, Accuse | Verdict | Conviction):
            new = self._audits.receive(self._history.places.get(sender), author, signed, self._now)
            self._note(sender, author, signed, new)

    def _keep_early(self, sender: PeerId, author: int, signed: Signed[Any]) -> None:
        kept = self._early.setdefault(author, {})
        new = signed.raw not in kept and len(kept) < MAX_EARLY_MESSAGES
        if new:
            kept[signed.raw] = signed
        self._note(sender, author, signed, new)

    def _on_admission(self, sender: PeerId, raw: bytes) -> None:
        """Passed on by a member, to whom it may have been good; whether we take it is ours to see."""
        try:
            new = self._applicants.add(self._history.standing, raw, self._unix_s())
        except PeerViolation:
            return
        if new:
            self._out.append(Send(None, raw, skip=(sender,)))

    def _note(self, sender: PeerId, author: int, signed: Signed[Any], new: bool) -> None:
        """What is new shows its author alive, and goes on to everybody else."""
        if new:
            self._presence.hear(author)
            if len(self.roster) > 2:
                self._out.append(Send(None, signed.raw, skip=(sender, signed.signer)))

    def _on_certificate(self, certificate: Certificate) -> None:
        if certificate.body.round == self._at.round and self._at.certificate is None:
            check_certificate(self._electorate, certificate)
            self._at.certify(certificate, self._now)

    def _on_equivocation(self, record: Equivocation) -> bool:
        """True if it tells us of a liar that we did not know."""
        member, what = check_equivocation(self.roster, record)
        docket = self._opinion.docket
        if member in docket.proven or not self._electorate.acts(member):
            return False
        docket.proven[member] = (self._seal(record),) if self._checks else ()
        evidence = evidence_file(self.roster, Kind.EQUIVOCATION, record)
        self._out.append(Exclude(self.roster.members[member].peer, what, evidence))
        return True

    def _tell_expelled(self, place: int, record: Any) -> None:
        """Nothing it says counts any more; it may be told so, should it not know."""
        if not isinstance(record, Status) or record.certified or record.round >= len(self.certificates):
            return
        if self._presence.may_answer(place):
            self._out.append(Send(self.roster.members[place].peer, self._seal(self.certificates[record.round])))

    def _on_status(self, author: int, status: Status) -> None:
        if not self._presence.take(author, status):
            return
        height = self._at
        if status.round == height.round:
            height.claim(author, status.view, self._now)
        self._unmute()
        if self._presence.may_answer(author):
            peer = self.roster.members[author].peer
            self._out += [Send(peer, raw) for raw in self._answer(status)]

    def _answer(self, status: Status) -> list[bytes]:
        """What a member lacks by its own word; to one that is ahead, where we are, so that it helps us."""
        if status.round > self._at.round:
            return [self._status()]
        if status.certified:
            return []
        if status.round < len(self.certificates):
            return [self._seal(self.certificates[status.round])]
        return [*self._at.answer(status), *self._opinion.proofs_for(status)]

    def _status(self) -> bytes:
        self._sequence += 1
        acting = places(self._electorate.acting)
        proven = mask(filter(self._opinion.condemned, acting)) if self._checks else 0
        failing = mask(filter(self._opinion.failing, acting))
        return self._seal(self._at.status(self._incarnation, self._sequence, self._presence.heard, proven, failing))

    # --- heights -----------------------------------------------------------------------------------------------

    @property
    def _at(self) -> Height:
        if self._height is None:
            raise LocalError("the run was not started")
        return self._height

    @property
    def _electorate(self) -> Electorate:
        return self.standing.electorate

    def _height_of(self, round_number: int) -> Height | None:
        """This round's or the one before, of which things are still said."""
        heights = (self._at, self._previous)
        return next((height for height in heights if height is not None and height.round == round_number), None)

    def _enter(self, now: float) -> None:
        """Open the height after the last certificate."""
        self.standing = self._opinion.standing = standing = self._history.standing
        self._presence.electorate = standing.electorate
        self._vigil.opened()
        if standing.expelled >> self.me & 1:
            self._stall(f"expelled by the others in round {standing.round - 1}")
            return
        self._applying, self._train_at = False, None
        opinion = self._opinion
        setting = Setting(
            standing=standing,
            me=self.me,
            state_root=self._state_root,
            mute=self._mute_before is None or standing.round < self._mute_before,
            checks=self._checks,
            seal=self._seal,
            voted=self._voted,
            applicants=lambda: self._applicants.chosen(standing, self._unix_s()),
            welcome=lambda admitted: self._applicants.welcome(admitted, self._unix_s()),
            expected=self._presence.alive,
            present=self._presence.present,
            has_checked=opinion.has_checked,
            proofs=opinion.proofs,
            condemned=opinion.condemned,
            failures=opinion.failures,
            failing=opinion.failing,
            suspects=opinion.suspects,
            tardy=opinion.tardy,
            links=opinion.links,
            docket=opinion.docket,
        )
        self._previous, self._height = self._height, Height(setting, now)
        self._unmute()
        self._begin_work(now)
        early, self._early = self._early, {}
        for author, kept in early.items():
            if standing.electorate.acts(author):
                for signed in kept.values():
                    self._replay(author, signed)

    def _begin_work(self, now: float) -> None:
        """Our own part of a height: an update, or at the end only our word that we got there."""
        if self._previous is None and self._decided_already is not None:
            return
        if self._audits is not None and not self._at.setting.sends:
            self._audits.idle(now)
        if self.standing.closing:
            self._at.commit((), (), False, now)
        elif self._behind():
            self._train_at = (
                now + 2 * self._presence.silence_s
            )  # certificates are on their way; train if they do not come
        else:
            self._train()

    def _replay(self, author: int, signed: Signed[Any]) -> None:
        try:
            self._at.receive(author, signed, self._now)
        except PeerViolation as error:
            self._out.append(Fault(signed.signer, str(error)))

    def _train(self) -> None:
        self._train_at = None
        if self._at.setting.sends and not self._at.diverged:
            self._out.append(Train(self._at.round, fresh=not self._history.was_in(self.me)))

    def _voted(self) -> int:
        """Mask of those of whom we know that they voted for the body before."""
        if self.standing.before is None:
            return 0
        before = self._previous if self._previous is not None and self._previous.certificate is not None else None
        marks = mask(mark.member for mark in self.certificates[-1].quorum.marks)
        known = self.standing.before
        return (marks if before is None else before.voters) & (known.voters | known.trying)

    def _after(self) -> None:
        """What a change in the height means for the run."""
        height = self._at
        if self._checks and self._told != (height.round, height.view) and height.has_checked and height.others_wait:
            self._told = height.round, height.view
            self._out.append(Send(None, self._status()))
        if height.certificate is not None and len(self.certificates) == height.round:
            self._decided(height, height.certificate)
        if not height.complete or self._applying or self.finished or height.diverged:
            return
        body = self.certificates[height.round].body
        if height.setting.parts:
            self._applying = True
            self._out.append(Apply(height.round, places(body.members), body.parts))
        else:
            self.finished = True
            self._out.append(Finished(self.certificates[height.round], body.state_root))

    def _decided(self, height: Height, certificate: Certificate) -> None:
        before, self._train_at = self.roster, None
        report = self._history.add(certificate)
        self._out.append(Certified(certificate, report))
        if self._audits is not None and height.setting.parts:
            self._audits.occupied()  # until our next update is handed over
            self._audits.certified(height.round, height.signatures().commits, self._now)
        joined = self.roster.members[len(before) :]
        if joined:
            self._out.append(Admitted(height.round, joined))
        for member in joined:
            self._presence.expect(member.index)
        for place in places(certificate.body.suspended):
            self._opinion.suspended(place)

    def _bench(self) -> Bench:
        """What our audits look at."""
        history = self._history

        def may_speak(number: int) -> bool:
            before = self._mute_before
            return before is not None and number >= before and not self._at.diverged

        docket = self._opinion.docket
        return Bench(
            self.me, lambda: self.roster, self._seal, docket, history.electorate_of, history.body_of, may_speak
        )

    # --- who is there ------------------------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self._presence.now

    def _behind(self) -> bool:
        """More than b members are in later rounds."""
        return len(self._presence.ahead_of(self._at.round)) > self._electorate.b

    def _unix_s(self) -> float | None:
        return None if self._epoch_s is None else self._epoch_s + self._now

    def _unmute(self) -> None:
        """A rejoined member signs again two heights after it has caught up with a quorum of the others.

        Its old self cannot have signed in a height later than one past those: of the quorum that certified the height
        before, at least one honest member is among those heard from.
        """
        if self._mute_before is None:
            electorate = self._electorate
            level = self._presence.level_with(self._at.round)
            if level >= min(electorate.q, len(electorate) - (self.me in electorate)):
                self._mute_before = self._at.round + 2

    def _watch(self) -> None:
        """Give up in bounded time, with the reason; or say that we cannot follow any more."""
        if self.finished:
            return
        reason = self._vigil.too_few(self.roster)
        if reason is None and not self._applying:
            reason = self._vigil.too_long(self._at.obstacle())
        if reason is not None:
            self._stall(reason)
        elif not self._applying and not self._at.complete:
            behind = self._vigil.behind(self.roster, self._at.round)
            self._out += [behind] if behind is not None else []

    def _stall(self, reason: str) -> None:
        self.stalled = reason
        self._out.append(Stalled(reason))

    def _drain(self) -> Effects:
        """Collect what the height and the run want done, and write down what is held against whom."""
        if self._previous is not None:
            self._out += self._previous.take()
        self._out += self._at.take()
        self._after()
        self._out += self._at.take()
        if self._audits is not None:
            self._out += self._audits.take()
        effects, self._out = tuple(map(self._history.with_chain, self._out)), []
        for effect in effects:
            if isinstance(effect, Exclude):
                self.report.excluded[effect.peer] = effect.reason
            elif isinstance(effect, Fault):
                self.report.fault(effect.peer, effect.reason)
        return effects
