"""Accusations of trainers, the verdicts on them, and what follows: one object a member, for all rounds.

Whoever computes alike does the accused one's steps again and signs what it found; nobody's word counts but that of q
together. Both the accusation and each verdict are signed once: what a member cannot know to have said already it does
not say (`Bench.may_speak`). Accusations are sent again, to those whose verdict is missing, until they are judged; to
send one that is known asks what is known of it. Convictions travel like all proof: to whoever says that it lacks one.

Knows nothing of replays; says only which it wants (`wanted`) and takes what was `found`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from celluler.errors import PeerViolation, ProtocolViolation
from celluler.identity import Record, Signed
from celluler.learning.audit_evidence import CLEAR, Accusal, ElectorateOf, jury, open_accusal, open_verdict
from celluler.learning.audit_messages import Accuse, Conviction, Judgement, Verdict
from celluler.learning.effects import Effect, Exclude, Fault, Send
from celluler.learning.evidence import Docket
from celluler.learning.evidence_file import Evidence, Kind, evidence_file, open_conviction
from celluler.learning.messages import Body, Entry, Equivocation, open_message, places, record_hash, set_hash
from celluler.learning.roster import Electorate, RosterView
from celluler.learning.trials import Key, Trial, Trials
from celluler.wire import pack

KEPT_STATES = 4
"""The states before so many rounds, the one in hand among them, are at hand: only these can be replayed."""
VERDICT_ROUNDS = 8
"""So long verdicts on a round still count."""
OPEN_ACCUSATIONS = 1
"""Of one member, not found true, within KEPT_STATES rounds."""
VAIN_ROUNDS = 32
"""Who said in vain that something was not served is not listened to in that for so long. It costs it nothing else: a
member that serves all but one makes that one say so."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a run tells its audits. me: our place. roster: with those admitted so far.

    body_of, electorate_of: of a round; None of one that is not certified here, or where that is not known. may_speak:
    whether we know all that we have signed about a round, and have a right to sign.
    """

    me: int
    roster: Callable[[], RosterView]
    seal: Callable[[Record], bytes]
    docket: Docket
    electorate_of: ElectorateOf
    body_of: Callable[[int], Body | None]
    may_speak: Callable[[int], bool]

    @property
    def run(self) -> bytes:
        return self.roster().run

    def electorate(self, number: int) -> Electorate:
        """Of a round that is certified here."""
        electorate = self.electorate_of(number)
        assert electorate is not None
        return electorate


class Court:
    """here: the round that is open."""

    def __init__(self, bench: Bench) -> None:
        self.here = 0
        self.out: list[Effect] = []
        self.trials = Trials()
        self.found: dict[Key, float | None] = {}
        """What our own replays gave: the largest deviation, None where it was not served."""
        self.wanted: dict[Key, None] = {}
        """Replays that accusations ask us for."""
        self._bench = bench
        self._tolerance = bench.roster().rules.tolerance
        self._delta_s = bench.roster().rules.delta_ms / 1000
        self._spoken: set[Key] = set()
        self._vain: dict[int, int] = {}  # by accuser, the latest round of which it said so
        self._cried: set[int] = set()  # authors of convictions that prove nothing
        self._beat_at: float | None = None

    @property
    def oldest(self) -> int:
        """The first round that can still be replayed."""
        return self.here - KEPT_STATES + 1

    # --- what is said ------------------------------------------------------------------------------------------

    def accuse(self, sender: int | None, signed: Signed[Accuse], now: float) -> bool:
        """As `Auditing.accuse`."""
        record = signed.record
        electorate = self._bench.electorate_of(record.round)
        if electorate is None or self._bench.body_of(record.round) is None:
            return False  # ahead of us; it comes again
        trial, author = self.trials.get((record.round, record.target)), electorate.roster.index_of(signed.signer)
        if trial is not None and author is not None and author in trial.accusals:
            if trial.accusals[author].record != record:
                self._contradicts(author, trial.accusals[author].raw, signed.raw, record.round)
            elif sender is not None:
                self._tell(sender, trial, now)
            return False
        accusal = open_accusal(electorate, signed)
        self._check_sets(accusal)
        if not self._hears(accusal):
            return False
        self.open(accusal, now)
        return True

    def judged(self, signed: Signed[Verdict]) -> bool:
        """As `Auditing.judged`."""
        record = signed.record
        electorate = self._bench.electorate_of(record.round)
        if electorate is None or not self.here - VERDICT_ROUNDS <= record.round < self.here:
            return False
        author = open_verdict(electorate, signed)
        known = self.trials.verdict_of(author, (record.round, record.target))
        if known is None:
            return self.trials.add(author, signed)
        if known.record != record:
            self._contradicts(author, known.raw, signed.raw, record.round)
        return False

    def convict(self, author: int, signed: Signed[Conviction]) -> bool:
        """As `Auditing.convict`."""
        record = signed.record
        if self._bench.electorate_of(record.round) is None or author in self._cried:
            return False
        try:
            case = open_conviction(self._bench.electorate_of, record)
        except PeerViolation:
            self._cried.add(author)
            raise
        return self._note(case.accused, case.what, record)

    # --- what we do --------------------------------------------------------------------------------------------

    def may_accuse(self, accuser: int) -> bool:
        """Whether none of its accusations is still open."""
        return self.trials.pending_of(accuser, self.oldest) < OPEN_ACCUSATIONS

    def open(self, accusal: Accusal, now: float) -> None:
        """An accusation to be looked into, or one of our own."""
        bench, key = self._bench, accusal.key
        trial = self.trials.accuse(accusal, now)
        if self._beat_at is None:
            self._beat_at = now + self._delta_s
        if key[1] == bench.me or key in self.found:
            self.speak(trial)
        elif bench.me in jury(bench.electorate(key[0]), key[1]) and bench.may_speak(key[0]):
            self.wanted[key] = None

    def speak(self, trial: Trial) -> None:
        """Say what we found, once. Between clear and guilty nothing is said; of ourselves we know that we did it."""
        bench, key, tolerance = self._bench, trial.key, self._tolerance
        found = 0.0 if key[1] == bench.me else self.found[key]
        between = found is not None and tolerance * CLEAR < found <= tolerance
        if key in self._spoken or between or not bench.may_speak(key[0]):
            return
        judgement = Judgement.UNSERVED
        if found is not None:
            judgement = Judgement.GUILTY if found > tolerance else Judgement.INNOCENT
        self._spoken.add(key)
        raw = bench.seal(Verdict(bench.run, *key, trial.accusal.name, judgement.value, found or 0.0))
        self.trials.add(bench.me, open_message(raw))
        self.out.append(Send(None, raw))

    def advance(self, now: float) -> None:
        """Judge what can be judged, and remind those whose verdicts are missing."""
        for trial in list(self.trials.open.values()):
            self._judge(trial)
        if self._beat_at is not None and now >= self._beat_at:
            waiting = [trial for key, trial in self.trials.open.items() if not trial.over and key[0] >= self.oldest]
            self._beat_at = now + self._delta_s if waiting else None
            for trial in waiting:
                self._remind(trial)

    def next_deadline(self) -> float | None:
        return self._beat_at

    def convict_of(self, member: int, reason: str, number: int, kind: Kind, evidence: Evidence) -> None:
        """number: the round it is about."""
        self._note(member, reason, Conviction(self._bench.run, number, kind.value, pack(evidence)))

    def blame(self, member: int, reason: str) -> None:
        self.out.append(Fault(self._bench.roster().members[member].peer, reason))

    def forget(self) -> None:
        """What nobody asks about any more."""
        before = self.here - VERDICT_ROUNDS
        self.trials.forget(before)
        self.found = {key: found for key, found in self.found.items() if key[0] >= before}
        self._spoken = {key for key in self._spoken if key[0] >= before}
        self.wanted = {key: None for key in self.wanted if key[0] >= self.oldest}

    # --- small parts -------------------------------------------------------------------------------------------

    def _check_sets(self, accusal: Accusal) -> None:
        """Raises ProtocolViolation unless the commits are of the sets that were certified."""
        number, target = accusal.key
        self._check_set(number, target, accusal.record.inside, accusal.name)
        if accusal.before is not None:
            self._check_set(number - 1, target, accusal.record.inside_before, record_hash(accusal.before.record))

    def _check_set(self, number: int, member: int, names: tuple[bytes, ...], name: bytes) -> None:
        body = self._bench.body_of(number)
        inside = () if body is None else places(body.members)
        entries = tuple(Entry(place, one) for place, one in zip(inside, names, strict=False))
        if body is None or len(names) != len(inside) or set_hash(entries) != body.set_hash:
            raise ProtocolViolation("an accusation that names another set than the certified one")
        if Entry(member, name) not in entries:
            raise ProtocolViolation("an accusation for an update that does not count")

    def _hears(self, accusal: Accusal) -> bool:
        """Whether there is still something to be looked at, and this accuser's turn to ask for it."""
        (number, target), accuser = accusal.key, accusal.accuser
        if number < self.oldest or {target, accuser} & self._bench.docket.proven.keys():
            return False
        if accusal.deviation is None and number < self._vain.get(accuser, -VAIN_ROUNDS) + VAIN_ROUNDS:
            return False
        return self.may_accuse(accuser)

    def _remind(self, trial: Trial) -> None:
        """Those whose verdict we lack: of the accusation, and of what we say ourselves."""
        bench, told = self._bench, self.trials.verdicts(trial.key)
        words = [trial.accusal.raw, *([told[bench.me].raw] if bench.me in told else [])]
        for place in jury(bench.electorate(trial.key[0]), trial.key[1]):
            if place != bench.me and place not in told:
                peer = bench.roster().members[place].peer
                self.out += [Send(peer, word) for word in words]

    def _tell(self, sender: int, trial: Trial, now: float) -> None:
        """All verdicts, to a member that brings an accusation which we have had for a while."""
        pause_s = self._delta_s / 2
        if now - trial.opened < pause_s or now - trial.answered.get(sender, -pause_s) < pause_s:
            return
        trial.answered[sender] = now
        peer = self._bench.roster().members[sender].peer
        self.out += [Send(peer, signed.raw) for signed in self.trials.verdicts(trial.key).values()]

    def _judge(self, trial: Trial) -> None:
        bench, (number, target) = self._bench, trial.key
        judgement = self.trials.judge(bench.electorate(number), trial)
        if judgement is None:
            return
        if judgement is Judgement.INNOCENT:
            for accuser in trial.accusals:
                self._refuted(trial, accuser)
            return
        evidence = self.trials.evidence(bench.run, trial, trial.accusal.accuser)
        if judgement is Judgement.GUILTY:
            reason = f"sent an update in round {number} that its steps do not give"
            self.convict_of(target, reason, number, Kind.AUDIT, evidence)
        else:
            self.convict_of(target, "kept what it sent from those who audited it", number, Kind.UNSERVED, evidence)

    def _refuted(self, trial: Trial, accuser: int) -> None:
        """An accusation of nothing. That something was not served is true of one, as far as anybody can tell."""
        number, docket = trial.key[0], self._bench.docket
        if trial.accusals[accuser].deviation is None:
            self._vain[accuser] = max(number, self._vain.get(accuser, number))
            return
        if accuser in docket.proven or trial.key in docket.refuted.get(accuser, {}):
            return
        proof = docket.accused_in_vain(accuser, trial.key, self.trials.evidence(self._bench.run, trial, accuser))
        if proof is None:
            self.blame(accuser, "accused a trainer whose update a quorum found in order")
            return
        latest = max(key[0] for key in docket.refuted[accuser])
        self.convict_of(accuser, "accused trainers of what a quorum found in order", latest, Kind.REFUTED, proof)

    def _contradicts(self, author: int, first: bytes, second: bytes, number: int) -> None:
        record = Equivocation(self._bench.run, number, first, second)
        self.convict_of(author, "said two different things of one audit", number, Kind.EQUIVOCATION, record)

    def _note(self, member: int, reason: str, word: Conviction) -> bool:
        """Proof against somebody: say so, and make the others see it too. False if it is nothing new."""
        bench, kind = self._bench, Kind(word.kind)
        docket, roster = bench.docket, bench.roster()
        known = docket.unserved if kind is Kind.UNSERVED else docket.proven
        if member in known or member in docket.proven or member == bench.me:
            return False
        now = bench.electorate_of(self.here)
        if now is not None and now.expelled >> member & 1:
            return False
        if kind is Kind.UNSERVED and self._was_suspended(member, word.round):
            return False
        raw = bench.seal(word)
        known[member] = (raw,)
        self.out.append(Send(None, raw))
        if kind is not Kind.UNSERVED:
            self.out.append(Exclude(roster.members[member].peer, reason, evidence_file(roster, kind, word.body)))
        return True

    def _was_suspended(self, member: int, number: int) -> bool:
        """Since that round: then it has paid for it."""
        electorates = map(self._bench.electorate_of, range(number + 1, self.here + 1))
        return any(one is not None and one.suspended >> member & 1 for one in electorates)
