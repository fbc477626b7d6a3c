"""A whole run: one height after the other, who is there, who lags, and when to give up.

Sans-IO. Every call brings the time in seconds and returns what is to be done; `next_deadline` says when to `tick`.
Messages may be lost, doubled and reordered at will: every quarter of delta each member tells the others what it holds,
and is sent what it lacks. What is new is passed on once to everybody else, so that one cut link does not matter.

A member killed and started again has forgotten what it signed. With a higher `incarnation` it follows
without signing until it knows that its new signatures cannot contradict its old ones.

Knows nothing of sockets, workers or arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from celluler.errors import LocalError, PeerViolation, ProtocolViolation
from celluler.identity import Identity, PeerId, Record, Signed, seal
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
from celluler.learning.ledger import Setting
from celluler.learning.messages import (
    Certificate,
    Part,
    Status,
    check_certificate,
    mask,
    open_message,
    places,
    record_hash,
)
from celluler.learning.report import RunReport, report_of
from celluler.learning.roster import RosterView
from celluler.learning.round import Height

INACTIVE_ROUNDS = 3
"""Rounds in a row without an update after which nobody waits for a member, nor lets it lead."""
MAX_EARLY_MESSAGES = 96
"""Messages of the next round kept of one member."""
STATUSES_PER_DELTA = 4

Effects = tuple[Effect, ...]


class Run:
    """One member's half of a run."""

    def __init__(self, roster: RosterView, identity: Identity, *, state_root: bytes, incarnation: int = 0) -> None:
        """state_root: of the state before round 0.

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
        self._size = len(roster)
        self._period_s = roster.rules.delta_ms / 1000 / STATUSES_PER_DELTA
        self._silence_s = roster.rules.delta_ms / 1000
        self._stall_s = roster.rules.stall_ms / 1000
        self._patience_s = (roster.rules.train_ms + roster.rules.exchange_ms + roster.rules.stall_ms) / 1000
        self._mute_before: int | None = None if incarnation and self._size > 1 else 0
        self._incarnation = incarnation
        self._suspects: dict[int, None] = {}
        self._excluded: set[int] = set()
        self._heard: dict[int, float] = {}
        self._statuses: dict[int, Status] = {}
        self._answered: dict[int, float] = {}
        self._early: dict[int, dict[bytes, Signed[Any]]] = {}  # by author
        self._applying = self._trained = False
        self._train_at: float | None = None
        self._status_at = self._began = self._now = 0.0
        self._few_since: float | None = None
        self._sequence = 0
        self._out: list[Effect] = []
        self._height: Height | None = None

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
        return all(place in done for place in range(self._size) if place != self.me and self._alive(place))

    def start(self, now: float) -> Effects:
        self._heard = dict.fromkeys(range(self._size), now)
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

    def fetched(self, round_number: int, digest: bytes, now: float) -> Effects:
        """A reduced part was fetched, and hashes to this digest."""
        self._now = now
        if round_number == self._at.round and self.stalled is None:
            self._at.fetched(digest, now)
        return self._drain()

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
            if self._size > 2:
                self._out.append(Send(None, signed.raw, skip=(sender, signed.signer)))

    def _on_certificate(self, certificate: Certificate) -> None:
        if certificate.body.round == self._at.round and self._at.certificate is None:
            check_certificate(self.roster, certificate)
            self._at.certify(certificate, self._now)

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
        return self._at.answer(status)

    def _status(self) -> bytes:
        self._sequence += 1
        heard = mask(place for place, at in self._heard.items() if self._now - at <= self._silence_s)
        return self._seal(self._at.status(self._incarnation, self._sequence, heard | 1 << self.me))

    # --- heights -----------------------------------------------------------------------------------------------

    @property
    def _at(self) -> Height:
        if self._height is None:
            raise LocalError("the run was not started")
        return self._height

    def _enter(self, now: float) -> None:
        """Open the height after the last certificate."""
        number = len(self.certificates)
        closing = number == self._rules.rounds
        self._applying, self._train_at, self._began = False, None, now
        setting = Setting(
            roster=self.roster,
            me=self.me,
            round=number,
            prev=record_hash(self.certificates[-1].body) if self.certificates else self.roster.digest,
            state_root=self._state_root,
            parts=0 if closing else self._rules.parts,
            leaders=self._active(),
            mute=self._mute_before is None or number < self._mute_before,
            seal=self._seal,
            expected=self._expected,
            present=self._present,
            suspects=self._suspects,
            excluded=self._excluded,
        )
        self._height = height = Height(setting, now)
        self._unmute()
        if closing:
            height.commit((), (), False, now)
        elif self._behind():
            self._train_at = now + 2 * self._silence_s  # certificates are on their way; train if they do not come
        else:
            self._train()
        early, self._early = self._early, {}
        for author, kept in early.items():
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

    def _active(self) -> tuple[int, ...]:
        """Who takes turns in leading: read from the chain alone, so that all agree."""
        recent = [certificate.body.members for certificate in self.certificates[-INACTIVE_ROUNDS:]]
        if len(recent) < INACTIVE_ROUNDS:
            return tuple(range(self._size))
        return places(recent[0] | recent[1] | recent[2])

    def _after(self) -> None:
        """What a change in the height means for the run."""
        height = self._at
        if height.certificate is not None and len(self.certificates) == height.round:
            self.certificates.append(height.certificate)
            report = report_of(self.roster, height.certificate.body, height.certificate.quorum.view)
            if height.setting.parts:
                self.report.rounds.append(report)
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
        witnesses = [m for m, s in self._statuses.items() if s.heard >> place & 1 and self._heard[m] >= fresh]
        return len(witnesses) > self._rules.b

    def _expected(self, place: int) -> bool:
        return place in self._at.setting.leaders and self._alive(place)

    def _present(self, place: int) -> bool:
        """Heard from by ourselves within the time of two statuses."""
        return place == self.me or self._now - self._heard[place] <= 2 * self._period_s

    def _behind(self) -> bool:
        ahead = sum(status.round > len(self.certificates) for status in self._statuses.values())
        return ahead > self._rules.b

    def _unmute(self) -> None:
        """A rejoined member signs again two heights after it has caught up with a quorum of the others.

        Its old self cannot have signed in a height later than one past those: of the quorum that certified the height
        before, at least one honest member is among those heard from.
        """
        if self._mute_before is None:
            level = sum(status.round <= self._at.round for status in self._statuses.values())
            if level >= min(self._rules.q, self._size - 1):
                self._mute_before = self._at.round + 2

    def _watch(self) -> None:
        """Give up in bounded time, with the reason."""
        if self.finished:
            return
        present = [place for place in range(self._size) if self._alive(place)]
        if len(present) >= self._rules.q:
            self._few_since = None
        elif self._few_since is None:
            self._few_since = self._now
        elif self._now - self._few_since >= self._stall_s:
            silent = ", ".join(self._names(set(range(self._size)) - set(present)))
            self._stall(
                f"{len(present)} of {self._size} members are alive, {self._rules.q} are needed; silent: {silent}"
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
