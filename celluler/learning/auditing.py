"""Who really trained, found out while the run goes on: one machine a member, for all rounds.

Once a round is certified, and our own update of the next one is handed over, we draw by ourselves whether to audit
somebody, and whom: from our own signature, so that nobody can foresee, choose or forbid it. An audit is to do that
member's steps again from the public state and to compare. What is found wrong, or is kept from us, is shown to all,
and whoever computes alike looks for itself (`court`):

    q guilty                the accused is proven to have lied
    q innocent              the accusation is refuted; the second one of an accuser proves *it* to be a liar
    q unserved or guilty    the accused kept from the others what it sent

An honest member is never proven guilty while at most b lie, whatever is lost, late or in what order: of q verdicts
q − b are of honest members, who sign nothing but what they computed. It may be found unserved, when it could not be
reached; that suspends, and expels nobody.

An update that says wrongly whether it carries momentum contradicts its own signature; that is looked at in every
certified set, for nothing.

Knows nothing of training: an `Audit` is the caller's. Nothing here ends a round or holds one up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from blake3 import blake3

from celluler.identity import Signed
from celluler.learning import checks
from celluler.learning.audit_evidence import MomentumEvidence, jury, odd_momentum, open_accusal
from celluler.learning.audit_messages import Accuse, AuditDraw, Conviction, Verdict
from celluler.learning.court import Bench, Court
from celluler.learning.effects import Audit, Effect, Send
from celluler.learning.evidence_file import Kind
from celluler.learning.messages import Body, Commit, open_message, places, record_hash, signature_of
from celluler.learning.trials import Key

LEAST_S = 1.0
"""That the data of an audit may take at least."""


class Auditing:
    """Feed it with what arrives, then `take` what it wants done."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._rules = bench.roster().rules
        self._court = Court(bench)
        self._out: list[Effect] = []
        self._commits: dict[int, dict[int, Signed[Commit]]] = {}  # of certified sets, by round and member
        self._drawn: dict[Key, None] = {}
        self._held_back: dict[Key, tuple[float, ...]] = {}  # what to accuse of once an earlier accusation is judged
        self._under_way: Key | None = None
        self._free = False
        self._certified_at: float | None = None
        self._pace_s = self._rules.exchange_ms / 1000  # how long the last round took
        self.done = 0
        """Audits that were carried out."""

    # --- what happens ------------------------------------------------------------------------------------------

    def certified(self, number: int, commits: Sequence[bytes], now: float) -> None:
        """A round of training is certified. commits: envelopes of its set, ascending; none when they are not here."""
        body = self._bench.body_of(number)
        assert body is not None
        self._court.here = number + 1
        if self._certified_at is not None:
            self._pace_s = now - self._certified_at
        self._certified_at = now
        self._commits[number] = dict(zip(places(body.members), map(open_message, commits), strict=False))
        self._check_momentum(number, body)
        self._draw(number, body)
        self._forget()
        self._advance(now)

    def occupied(self) -> None:
        """Our worker is to train."""
        self._free = False

    def idle(self, now: float) -> None:
        """Our worker has nothing to train for now."""
        self._free = True
        self._advance(now)

    def audited(self, number: int, member: int, deviations: Sequence[float] | None, now: float) -> None:
        """The answer to an Audit: one deviation a part; None when its data was not served; none at all when it could
        not be done here, which says nothing of anybody."""
        key = number, member
        if key != self._under_way:
            return
        self._under_way = None
        self._court.wanted.pop(key, None)
        if deviations is None or len(deviations) > 0:
            self.done += 1
            self._court.found[key] = None if deviations is None else max(deviations)
            self._conclude(key, tuple(deviations or ()))
        self._advance(now)

    def receive(self, sender: int | None, author: int, signed: Signed[Any], now: float) -> bool:
        """A message of audits, signed by `author`. sender: the place of who brought it. True if it is new and worth
        passing on. Raises PeerViolation, blaming the author."""
        match signed.record:
            case Accuse():
                return self.accuse(sender, signed, now)
            case Verdict():
                return self.judged(signed, now)
            case Conviction():
                return self.convict(author, signed, now)
        return False

    def accuse(self, sender: int | None, signed: Signed[Accuse], now: float) -> bool:
        """Somebody accuses a trainer. sender: the place of who brought it. True if it is new and to be looked into.

        Raises PeerViolation, the accuser's, for what is no accusation by its form.
        """
        new = self._court.accuse(sender, signed, now)
        self._advance(now)
        return new

    def judged(self, signed: Signed[Verdict], now: float) -> bool:
        """Somebody says what it found. True if it is new. Raises PeerViolation, its author's."""
        new = self._court.judged(signed)
        self._advance(now)
        return new

    def convict(self, author: int, signed: Signed[Conviction], now: float) -> bool:
        """Evidence that proves itself. True if it tells us of somebody we did not know about.

        Raises PeerViolation, the author's: an honest one has looked before it passes such a thing off as its own.
        """
        new = self._court.convict(author, signed)
        self._advance(now)
        return new

    def tick(self, now: float) -> None:
        self._advance(now)

    def next_deadline(self) -> float | None:
        return self._court.next_deadline()

    def take(self) -> tuple[Effect, ...]:
        """What is to be done since the last call."""
        effects = (*self._court.out, *self._out)
        self._court.out, self._out = [], []
        return effects

    # --- drawing and asking ------------------------------------------------------------------------------------

    def _check_momentum(self, number: int, body: Body) -> None:
        """Whether each update of a certified set says rightly what it carries."""
        bench, before = self._bench, self._bench.body_of(number - 1) if number else None
        if number and before is None:
            return  # the first that we know of
        for member, signed in self._commits[number].items():
            if odd_momentum(member, signed.record, bench.roster().digest, before):
                what = "left its momentum out" if signed.record.fresh else "carried momentum where there was none"
                evidence = MomentumEvidence(bench.run, signed.raw, before)
                self._court.convict_of(member, f"{what} in round {number}", number, Kind.MOMENTUM, evidence)

    def _draw(self, number: int, body: Body) -> None:
        """Whom to audit: together, the voters audit as many a round as the rules expect."""
        bench, electorate = self._bench, self._bench.electorate(number)
        if bench.me not in electorate or not self._rules.audits or not bench.may_speak(number):
            return
        candidates = [member for member in self._commits[number] if self._can_audit(number, member)]
        if candidates:
            secret = signature_of(bench.seal(AuditDraw(bench.run, number, record_hash(body))))
            expected = self._rules.audits / 1000 / len(electorate)
            self._drawn |= {(number, member): None for member in draw(secret, candidates, expected)}

    def _can_audit(self, number: int, member: int) -> bool:
        """Whether it is another's, of our class, not yet proven a liar, and what it takes is here."""
        bench = self._bench
        known = self._commits[number][member].record.fresh or member in self._commits.get(number - 1, {})
        alike = bench.me in jury(bench.electorate(number), member)
        return known and alike and member != bench.me and member not in bench.docket.proven

    def _ask(self) -> None:
        """One audit at a time, while there is nothing to train: those that an accusation asks for first."""
        court = self._court
        if self._under_way is not None and self._under_way[0] < court.oldest:
            self._under_way = None
        if not self._free or self._under_way is not None:
            return
        urged = min(court.wanted, default=None)
        key = min(self._drawn, default=None) if urged is None else urged
        if key is None:
            return
        court.wanted.pop(key, None)
        self._drawn.pop(key, None)
        self._under_way = key
        commit, before = self._update_of(key)
        parts = tuple(range(len(commit.hashes)))
        self._out.append(Audit(*key, commit, before, parts, urged is not None, self._within_s))

    @property
    def _within_s(self) -> float:
        """How long the data may take. Two updates, where a round moves many; others must look while they are kept."""
        return max(LEAST_S, min(self._pace_s, self._rules.exchange_ms / 1000))

    def _update_of(self, key: Key) -> tuple[Commit, Commit | None]:
        (number, member), trial = key, self._court.trials.get(key)
        if trial is not None:
            before = trial.accusal.before
            return trial.accusal.commit.record, None if before is None else before.record
        commit = self._commits[number][member].record
        return commit, None if commit.fresh else self._commits[number - 1][member].record

    # --- accusing ----------------------------------------------------------------------------------------------

    def _conclude(self, key: Key, deviations: tuple[float, ...]) -> None:
        """What we found: our verdict where somebody accuses already, else an accusation, if there is cause."""
        found, trial, bench = self._court.found[key], self._court.trials.get(key), self._bench
        if trial is not None:
            self._court.speak(trial)
        elif (found is None or found > self._rules.tolerance) and key[1] not in bench.docket.proven:
            electorate = bench.electorate(key[0])
            if len(jury(electorate, key[1])) > electorate.q:  # it will not say guilty of itself
                self._held_back[key] = deviations
            elif found is not None:
                self._court.blame(key[1], f"its update of round {key[0]} is off by {found:.1e}; too few can tell")

    def _accuse_next(self, now: float) -> None:
        """Others look into one of ours at a time."""
        bench, court = self._bench, self._court
        for key, deviations in list(self._held_back.items()):
            trial = court.trials.get(key)
            if trial is not None or key[1] in bench.docket.proven or key[0] < court.oldest:
                del self._held_back[key]  # somebody else was first, or it is too late
            elif court.may_accuse(bench.me):
                del self._held_back[key]
                raw = bench.seal(self._accusation(key, deviations))
                self._out.append(Send(None, raw))
                court.open(open_accusal(bench.electorate(key[0]), open_message(raw)), now)

    def _accusation(self, key: Key, deviations: tuple[float, ...]) -> Accuse:
        number, member = key
        commit, before = self._commits[number][member], None
        if not commit.record.fresh:
            before = self._commits[number - 1][member].raw
        inside_before = () if before is None else self._names(number - 1)
        return Accuse(
            self._bench.run, number, member, commit.raw, before, self._names(number), inside_before, deviations
        )

    def _names(self, number: int) -> tuple[bytes, ...]:
        return tuple(record_hash(signed.record) for _, signed in sorted(self._commits[number].items()))

    def _advance(self, now: float) -> None:
        self._court.advance(now)
        self._accuse_next(now)
        self._ask()

    def _forget(self) -> None:
        self._court.forget()
        oldest = self._court.oldest
        self._commits = {number: kept for number, kept in self._commits.items() if number >= oldest - 1}
        self._drawn = {key: None for key in self._drawn if key[0] >= oldest}


def draw(secret: bytes, candidates: Iterable[int], expected: float) -> tuple[int, ...]:
    """So many of the members on average, ascending; rounded by lot. secret: our signature, which nobody has seen."""
    lot = int.from_bytes(blake3(secret + b"whether").digest()[:8], "big") / 2**64
    whole = int(expected)
    return checks.draw(secret, candidates, whole + (lot < expected - whole))
