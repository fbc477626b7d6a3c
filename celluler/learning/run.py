"""A whole run: one height after the other, who is there, who lags, and when to give up.

Sans-IO. Every call brings the time in seconds and returns what is to be done; `next_deadline` says when to `tick`.
Messages may be lost, doubled and reordered at will: every quarter of delta each member tells the others what it holds,
and is sent what it lacks. What is new is passed on once to everybody else, so that one cut link does not matter.

A member killed and started again has forgotten what it signed. With a higher `incarnation` it follows
without signing until it knows that its new signatures cannot contradict its old ones.

Who a certified body has expelled takes no part from the next round on: it is not listened to, waited for or counted,
and b and q are those of the members that are left. All agree on that, because it is read from the chain.

Knows nothing of sockets, workers or arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from celluler.errors import LocalError, PeerViolation, ProtocolViolation
from celluler.identity import Identity, PeerId, Record, Signed, seal
from celluler.learning.checks import CheckOutcome
from celluler.learning.effects import (
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
from celluler.learning.evidence import Docket, check_equivocation
from celluler.learning.evidence_file import Kind, evidence_file
from celluler.learning.ledger import Setting
from celluler.learning.messages import (
    Certificate,
    Equivocation,
    Fraud,
    Part,
    Status,
    check_certificate,
    mask,
    open_message,
    places,
    record_hash,
)
from celluler.learning.report import RunReport, report_of
from celluler.learning.roster import Electorate, RosterView
from celluler.learning.round import Height
from celluler.learning.transcript import Signatures

INACTIVE_ROUNDS = 3
"""Rounds in a row without an update after which nobody waits for a member, nor lets it lead."""
MAX_EARLY_MESSAGES = 96
"""Messages of the next round kept of one member."""
STATUSES_PER_DELTA = 4

Effects = tuple[Effect, ...]


class Run:
    """One member's half of a run."""

    def __init__(
        self, roster: RosterView, identity: Identity, *, state_root: bytes, incarnation: int = 0, checks: int = 0
    ) -> None:
        """state_root: of the state before round 0. checks: how many parts to compute anew in each view, `checks_for`
        says how many are due; with 0 nothing is checked, and nobody accused or expelled at our instance.

        incarnation: 0 at this key's first start in this run; a later start passes a higher number than the one before
        (the seconds since the epoch will do).
        """
        me = roster.index_of(identity.peer_id)
        if me is None:
            raise LocalError("this identity is not in the roster")
        self.roster, self.me = roster, me
        self.report = RunReport(roster.rules.rule)
        self.certificates: list[Certificate] = []
        self.finished = False
        self.stalled: str | None = None
        self._seal: Callable[[Record], bytes] = lambda record: seal(identity, record)
        self._state_root = state_root
        self._places = {member.peer: member.index for member in roster.members}
        self._rules = roster.rules
        self._checks = checks
        self._period_s = roster.rules.delta_ms / 1000 / STATUSES_PER_DELTA
        self._silence_s = roster.rules.delta_ms / 1000
        self._stall_s = roster.rules.stall_ms / 1000
        self._patience_s = (roster.rules.train_ms + roster.rules.exchange_ms + roster.rules.stall_ms) / 1000
        self._mute_before: int | None = None if incarnation and len(roster) > 1 else 0
        self._incarnation = incarnation
        self._suspects: dict[int, None] = {}
        self._tardy: set[int] = set()
        self._docket = Docket()
        self._heard: dict[int, float] = {}
        self._statuses: dict[int, Status] = {}
        self._answered: dict[int, float] = {}
        self._early: dict[int, dict[bytes, Signed[Any]]] = {}  # by author
        self._applying = self._trained = False
        self._train_at: float | None = None
        self._status_at = self._began = self._now = 0.0
        self._few_since: float | None = None
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
    def settled(self) -> bool:
        """Finished, and so by their own word are all others that are alive: nobody needs us any more."""
        if not self.finished:
            return False
        done = {m for m, s in self._statuses.items() if s.certified and s.round == self._rules.rounds}
        return all(place in done for place in self._electorate.places if place != self.me and self._alive(place))

    def start(self, now: float) -> Effects:
        self._heard = dict.fromkeys(range(len(self.roster)), now)
        self._status_at = now
        self._enter(now)
        return self.tick(now)

    def receive(self, sender: PeerId, raw: bytes, now: float) -> Effects:
        """Bytes that a member's stream brought. Never raises for what a peer sent: that becomes a Fault."""
        if self.stalled is not None:
            return ()
        self._now = now
        try:
            signed = open_message(raw)
            author = self._places.get(signed.signer)
            if author is None or signed.record.run != self.roster.run:
                raise ProtocolViolation("passed on a message of another run or of a stranger")
        except PeerViolation as error:
            self._out.append(Fault(sender, str(error)))
            return self._drain()
        if author != self.me:
            try:
                self._dispatch(sender, author, signed)
            except PeerViolation as error:
                self._out.append(Fault(signed.signer, str(error)))
        return self._drain()

    def trained(
        self, round_number: int, hashes: tuple[bytes, ...], exponents: tuple[int, ...], state_root: bytes, now: float
    ) -> Effects:
        """Our update of this round is ready. state_root: of the state it started from. Late answers are ignored."""
        height = self._at
        self._now = now
        if round_number != height.round or self.stalled is not None or height.certificate is not None:
            return ()
        if state_root != height.setting.state_root:
            raise LocalError("the update starts from another state than the one last applied")
        if not len(hashes) == len(exponents) == height.setting.parts:
            raise LocalError(f"an update of {len(hashes)} parts in a round of {height.setting.parts}")
        height.commit(hashes, exponents, self._fresh, now)
        return self._drain()

    def exchanged(self, round_number: int, view: int, results: Sequence[Part | None], now: float) -> Effects:
        """The exchange of a view is over: one result a part, None where it did not come. Late answers still help."""
        height = self._at
        self._now = now
        if round_number != height.round or self.stalled is not None:
            return ()
        if len(results) != height.setting.parts:
            raise LocalError(f"{len(results)} results for {height.setting.parts} parts")
        height.exchanged(view, results, now)
        return self._drain()

    def checked(self, round_number: int, view: int, results: Sequence[CheckOutcome], now: float) -> Effects:
        """The answer to a Check of this round and view. Late ones still convict whoever is still to be convicted."""
        self._now = now
        height = self._height_of(round_number)
        if height is not None and self.stalled is None:
            height.checked(results, now)
        return self._drain()

    def fetched(self, round_number: int, digest: bytes, now: float) -> Effects:
        """A reduced part was fetched, and hashes to this digest."""
        self._now = now
        if round_number == self._at.round and self.stalled is None:
            self._at.fetched(digest, now)
        return self._drain()

    def signatures(self) -> Signatures:
        """What was signed in the newest certified height, for a transcript; before `applied` opens the next one."""
        return self._at.signatures()

    def applied(self, round_number: int, state_root: bytes, now: float) -> Effects:
        """The certified round is applied; state_root is of the state that came out."""
        self._now = now
        if self._applying and round_number == self._at.round:
            self._state_root = state_root
            self._enter(now)
        return self._drain()

    def tick(self, now: float) -> Effects:
        self._now = now
        if self.stalled is None:
            self._at.tick(now)
            if now >= self._status_at:
                self._status_at = now + self._period_s
                self._out.append(Send(None, self._status()))
            if self._train_at is not None and now >= self._train_at:
                self._train()
            self._watch()
        return self._drain()

    def next_deadline(self) -> float | None:
        if self._height is None or self.stalled is not None:
            return None
        times = (self._status_at, self._train_at, self._height.next_deadline())
        return min(time for time in times if time is not None)

    # --- messages ----------------------------------------------------------------------------------------------

    def _dispatch(self, sender: PeerId, author: int, signed: Signed[Any]) -> None:
        record, here = signed.record, self._at.round
        if isinstance(record, Certificate):
            self._on_certificate(record)
        elif author not in self._electorate:
            self._tell_expelled(author, record)
        elif isinstance(record, Equivocation):
            self._note(sender, author, signed, self._on_equivocation(record))
        elif isinstance(record, Fraud):
            height = self._height_of(record.round)
            new = height is not None and height.accuse(author, signed, self._now)
            self._note(sender, author, signed, new)
        elif isinstance(record, Status):
            self._on_status(author, record)
        elif record.round == here:
            self._note(sender, author, signed, self._at.receive(author, signed, self._now))
        elif record.round == here + 1:
            kept = self._early.setdefault(author, {})
            new = signed.raw not in kept and len(kept) < MAX_EARLY_MESSAGES
            if new:
                kept[signed.raw] = signed
            self._note(sender, author, signed, new)

    def _note(self, sender: PeerId, author: int, signed: Signed[Any], new: bool) -> None:
        """What is new shows its author alive, and goes on to everybody else."""
        if new:
            self._heard[author] = self._now
            if len(self._electorate) > 2:
                self._out.append(Send(None, signed.raw, skip=(sender, signed.signer)))

    def _on_certificate(self, certificate: Certificate) -> None:
        if certificate.body.round == self._at.round and self._at.certificate is None:
            check_certificate(self.roster, certificate, expelled=self._electorate.expelled)
            self._at.certify(certificate, self._now)

    def _on_equivocation(self, record: Equivocation) -> bool:
        """True if it tells us of a liar that we did not know."""
        member, what = check_equivocation(self.roster, record)
        if member in self._docket.proven or member not in self._electorate:
            return False
        words = (self._seal(record),) if self._checks else ()
        self._docket.proven[member] = words
        evidence = evidence_file(self.roster, Kind.EQUIVOCATION, record)
        self._out.append(Exclude(self.roster.members[member].peer, what, evidence))
        return True

    def _tell_expelled(self, place: int, record: Any) -> None:
        """Nothing it says counts any more; it may be told so, should it not know."""
        if not isinstance(record, Status) or record.certified or record.round >= len(self.certificates):
            return
        if self._now - self._answered.get(place, -self._period_s) >= self._period_s / 2:
            self._answered[place] = self._now
            self._out.append(Send(self.roster.members[place].peer, self._seal(self.certificates[record.round])))

    def _on_status(self, author: int, status: Status) -> None:
        known = self._statuses.get(author)
        if known is not None and (status.incarnation, status.sequence) <= (known.incarnation, known.sequence):
            return  # old, or a replay
        self._statuses[author] = status
        self._heard[author] = self._now
        height = self._at
        if status.round == height.round:
            height.claim(author, status.view, self._now)
        self._unmute()
        if self._now - self._answered.get(author, -self._period_s) < self._period_s / 2:
            return
        self._answered[author] = self._now
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
        return [*self._at.answer(status), *self._proofs_for(status)]

    def _proofs_for(self, status: Status) -> list[bytes]:
        """What proves those to be liars of whom this member does not know it yet. An accusation serves two rounds."""
        words = [
            word for member, words in self._docket.proven.items() for word in words
            if member in self._electorate and not status.proven >> member & 1
        ]  # fmt: skip
        return [word for word in words if _serves(open_message(word).record, self._at.round)]

    def _status(self) -> bytes:
        self._sequence += 1
        heard = mask(place for place, at in self._heard.items() if self._now - at <= self._silence_s)
        proven = mask(place for place in self._electorate.places if self._condemned(place)) if self._checks else 0
        return self._seal(self._at.status(self._incarnation, self._sequence, heard | 1 << self.me, proven))

    # --- heights -----------------------------------------------------------------------------------------------

    @property
    def _at(self) -> Height:
        if self._height is None:
            raise LocalError("the run was not started")
        return self._height

    @property
    def _electorate(self) -> Electorate:
        return Electorate(self.roster) if self._height is None else self._height.setting.electorate

    def _height_of(self, round_number: int) -> Height | None:
        """This round's or the one before, of which things are still said."""
        heights = (self._at, self._previous)
        return next((height for height in heights if height is not None and height.round == round_number), None)

    def _enter(self, now: float) -> None:
        """Open the height after the last certificate."""
        number = len(self.certificates)
        electorate = self._electorate.after(self.certificates[-1].body.expelled if self.certificates else 0)
        if self.me not in electorate:
            self._stall(f"expelled by the others in round {number - 1}")
            return
        closing = number == self._rules.rounds
        self._applying, self._train_at, self._began = False, None, now
        setting = Setting(
            roster=self.roster,
            electorate=electorate,
            me=self.me,
            round=number,
            prev=record_hash(self.certificates[-1].body) if self.certificates else self.roster.digest,
            state_root=self._state_root,
            parts=0 if closing else self._rules.parts,
            leaders=self._active(electorate),
            mute=self._mute_before is None or number < self._mute_before,
            checks=self._checks,
            seal=self._seal,
            expected=self._expected,
            present=self._present,
            has_checked=self._has_checked,
            proofs=self._proofs,
            condemned=self._condemned,
            suspects=self._suspects,
            tardy=self._tardy,
            docket=self._docket,
        )
        self._previous, self._height = self._height, Height(setting, now)
        height = self._height
        self._unmute()
        if closing:
            height.commit((), (), False, now)
        elif self._behind():
            self._train_at = now + 2 * self._silence_s  # certificates are on their way; train if they do not come
        else:
            self._train()
        early, self._early = self._early, {}
        for author, kept in early.items():
            if author not in electorate:
                continue
            for signed in kept.values():
                self._replay(author, signed)

    def _replay(self, author: int, signed: Signed[Any]) -> None:
        try:
            self._at.receive(author, signed, self._now)
        except PeerViolation as error:
            self._out.append(Fault(signed.signer, str(error)))

    def _train(self) -> None:
        self._train_at = None
        if not self._at.setting.mute and not self._at.diverged:
            self._out.append(Train(self._at.round, self._fresh))

    @property
    def _fresh(self) -> bool:
        """Whether our last update was left out, so that nobody knows the momentum it would carry."""
        return not self.certificates or not self.certificates[-1].body.members >> self.me & 1

    def _active(self, electorate: Electorate) -> tuple[int, ...]:
        """Who takes turns in leading: read from the chain alone, so that all agree."""
        recent = [certificate.body.members for certificate in self.certificates[-INACTIVE_ROUNDS:]]
        if len(recent) < INACTIVE_ROUNDS:
            return electorate.places
        return places((recent[0] | recent[1] | recent[2]) & ~electorate.expelled)

    def _after(self) -> None:
        """What a change in the height means for the run."""
        height = self._at
        if self._checks and self._told != (height.round, height.view) and height.has_checked and height.others_wait:
            self._told = height.round, height.view
            self._out.append(Send(None, self._status()))
        if height.certificate is not None and len(self.certificates) == height.round:
            self.certificates.append(height.certificate)
            report = report_of(self._electorate, height.certificate.body, height.certificate.quorum.view)
            if height.setting.parts:
                self.report.rounds.append(report)
            for peer in report.expelled:
                self.report.expelled[peer] = report.round
            self._out.append(Certified(height.certificate, report))
            self._train_at = None
        if not height.complete or self._applying or self.finished or height.diverged:
            return
        body = self.certificates[height.round].body
        if height.setting.parts:
            self._applying = True
            self._out.append(Apply(height.round, places(body.members), body.parts))
        else:
            self.finished = True
            self._out.append(Finished(self.certificates[height.round], body.state_root))

    # --- who is there ------------------------------------------------------------------------------------------

    def _alive(self, place: int) -> bool:
        """Heard from within delta, by us or, should only our link be cut, by b+1 members by their own word."""
        fresh = self._now - self._silence_s
        if place == self.me or self._heard[place] >= fresh:
            return True
        witnesses = [
            m for m, s in self._statuses.items()
            if s.heard >> place & 1 and self._heard[m] >= fresh and m in self._electorate
        ]  # fmt: skip
        return len(witnesses) > self._electorate.b

    def _expected(self, place: int) -> bool:
        return place in self._at.setting.leaders and self._alive(place)

    def _present(self, place: int) -> bool:
        """Heard from by ourselves within the time of two statuses."""
        return place == self.me or self._now - self._heard[place] <= 2 * self._period_s

    def _behind(self) -> bool:
        ahead = sum(s.round > len(self.certificates) for m, s in self._statuses.items() if m in self._electorate)
        return ahead > self._electorate.b

    def _has_checked(self, place: int, view: int) -> bool:
        """Whether it says so of this round and view, and everybody of whom it says to hold proof is known to us too:
        the proof may still be under way."""
        status = self._statuses.get(place)
        if status is None or (status.round, status.view) != (self._at.round, view) or not status.checked:
            return False
        return all(self._condemned(member) for member in places(status.proven) if member in self._electorate)

    def _proofs(self, place: int) -> int:
        """How many members say that they hold proof against one, ourselves included."""
        return self._witnesses(place) + self._condemned(place)

    def _condemned(self, place: int) -> bool:
        """We hold proof, or so many say they do that one of them is honest: should its inputs be kept from us alone."""
        return place in self._docket.proven or self._witnesses(place) > self._electorate.b

    def _witnesses(self, place: int) -> int:
        return sum(
            status.proven >> place & 1
            for member, status in self._statuses.items() if member != place and member in self._electorate
        )  # fmt: skip

    def _unmute(self) -> None:
        """A rejoined member signs again two heights after it has caught up with a quorum of the others.

        Its old self cannot have signed in a height later than one past those: of the quorum that certified the height
        before, at least one honest member is among those heard from.
        """
        if self._mute_before is None:
            electorate = self._electorate
            level = sum(s.round <= self._at.round for member, s in self._statuses.items() if member in electorate)
            if level >= min(electorate.q, len(electorate) - 1):
                self._mute_before = self._at.round + 2

    def _watch(self) -> None:
        """Give up in bounded time, with the reason."""
        if self.finished:
            return
        electorate = self._electorate
        present = [place for place in electorate.places if self._alive(place)]
        if len(present) >= electorate.q:
            self._few_since = None
        elif self._few_since is None:
            self._few_since = self._now
        elif self._now - self._few_since >= self._stall_s:
            silent = ", ".join(self._names(set(electorate.places) - set(present)))
            self._stall(
                f"{len(present)} of {len(electorate)} members are alive, {electorate.q} are needed; silent: {silent}"
            )
            return
        if not self._applying and self._now - self._began >= self._patience_s:
            self._stall(f"no progress for {self._patience_s:g} s; {self._at.obstacle()}")

    def _stall(self, reason: str) -> None:
        self.stalled = reason
        self._out.append(Stalled(reason))

    def _names(self, members: Iterable[int]) -> list[str]:
        chosen = (self.roster.members[place] for place in sorted(members))
        return [member.nickname or member.peer[-8:] for member in chosen]

    def _drain(self) -> Effects:
        """Collect what the height and the run want done, and write down what is held against whom."""
        if self._previous is not None:
            self._out += self._previous.take()
        self._out += self._at.take()
        self._after()
        self._out += self._at.take()
        effects, self._out = tuple(self._out), []
        for effect in effects:
            if isinstance(effect, Exclude):
                self.report.excluded[effect.peer] = effect.reason
            elif isinstance(effect, Fault):
                self.report.fault(effect.peer, effect.reason)
        return effects


def _serves(record: Any, round_number: int) -> bool:
    """Whether a member in this round can still make something of a proof: an accusation needs that round's inputs."""
    return not isinstance(record, Fraud) or record.round + 1 >= round_number
