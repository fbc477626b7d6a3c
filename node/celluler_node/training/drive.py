"""Drives one member's `Run`: carries out what the machine asks for and tells it what came of it. Decides nothing.

streams ─ receive ─▶ ┌─────┐ ─ Send ────▶ streams to the members
worker ── trained ─▶ │ Run │ ─ Train ───▶ worker
averager  exchanged▶ │     │ ─ Exchange ▶ averager
averager ─ checked ▶ │     │ ─ Check ───▶ averager
members ─ fetched ─▶ │     │ ─ Fetch ───▶ a member that holds the part
both ──── audited ─▶ │     │ ─ Audit ───▶ averager, for what was sent, then worker
worker ── applied ─▶ └─────┘ ─ Apply ───▶ worker
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog
import trio

from celluler.aggregation.digests import reduced_digest
from celluler.aggregation.q16 import part_slices
from celluler.errors import LocalError, PeerViolation, ProtocolViolation, Unavailable
from celluler.identity import PeerId, short
from celluler.learning.checks import CheckOutcome, CheckPart, Verdict
from celluler.learning.effects import (
    Admitted,
    Apply,
    Audit,
    Behind,
    Certified,
    Check,
    Diverged,
    Effect,
    Exchange,
    Exclude,
    Fault,
    Fetch,
    Finished,
    Send,
    Stalled,
    Train,
)
from celluler.learning.evidence_file import Kind, read_evidence_file
from celluler.learning.messages import Certificate, Commit, Part
from celluler.learning.report import RoundReport
from celluler.learning.roster import RosterView
from celluler.learning.run import Run
from celluler_node.bounded import bounded
from celluler_node.training.audit import Audited, audit
from celluler_node.training.averaging import Averaging
from celluler_node.training.chronicle import Chronicle
from celluler_node.training.figures import Figures, norm_of
from celluler_node.training.machine import Drive
from celluler_node.training.trainer import Trainer, Update, hashes_of
from celluler_protocols.averaging_messages import VALUE_BYTES
from celluler_protocols.rounds import Rounds

FETCH_S = 15.0
LEAST_KEPT, MOST_KEPT = 2, 64
"""Rounds whose reduced parts are kept for members that lag: so many at least, and so many at most …"""
KEPT_BYTES = 1 << 28
"""… as long as they take no more than this."""

log = structlog.get_logger()


class RunStalled(Unavailable):
    """The run ended without a result; the message is the reason."""

    exit_code = 1


class LeftBehind(Unavailable):
    """The others are further ahead than what they still serve: begin anew from their state."""

    exit_code = 1


class Reductions:
    """Reduced parts of the last rounds, by digest: for ourselves and for members that lag."""

    def __init__(self) -> None:
        self._held: dict[int, dict[bytes, bytes]] = {}

    def keep(self, round_number: int, digest: bytes, mantissas: bytes) -> None:
        self._held.setdefault(round_number, {})[digest] = mantissas

    def find(self, digest: bytes) -> bytes | None:
        return next((held[digest] for held in self._held.values() if digest in held), None)

    def of(self, digest: bytes) -> bytes:
        """One that must be here. Raises LocalError."""
        held = self.find(digest)
        if held is None:
            raise LocalError(f"the reduced part {digest.hex()[:16]}… is not here")
        return held

    def trim(self) -> None:
        """Forget the oldest rounds beyond what is kept."""
        newest = sorted(self._held, reverse=True)
        size = 0
        for place, number in enumerate(newest):
            size += sum(map(len, self._held[number].values()))
            if place >= MOST_KEPT or (place >= LEAST_KEPT and size > KEPT_BYTES):
                del self._held[number]


class Driver:
    """One run at one member.

    `run` it once, until the caller cancels: after `finished`, which is set when the final state is certified, it goes
    on answering members that lag. Raises RunStalled, LeftBehind, WorkerFailed.
    """

    def __init__(
        self,
        run: Run,
        members: Rounds,
        reduced: Reductions,
        trainer: Trainer,
        averaging: Averaging,
        *,
        chronicle: Chronicle | None,
        figures: Figures,
        on_violation: Callable[[PeerId, Exception], None],
        on_roster: Callable[[RosterView], None],
        on_evidence: Callable[[PeerId, bytes], None],
        on_handed_over: Callable[[int], None],
    ) -> None:
        """on_roster: the roster has grown. on_evidence: what proves that a member lied, as a file for strangers.
        on_handed_over: our update of this round is ready; until it is certified the trainer has nothing to do for it.
        """
        self._run, self._members, self._trainer, self._averaging = run, members, trainer, averaging
        self._reduced, self._chronicle = reduced, chronicle
        self._figures, self._on_violation = figures, on_violation
        self._on_roster, self._on_evidence, self._on_handed_over = on_roster, on_evidence, on_handed_over
        self._update: tuple[int, Update] | None = None
        self._round_scope: trio.CancelScope | None = None
        self._fetching: set[bytes] = set()
        self._drive = Drive[Effect](run, members, self._carry_out)
        self.run, self.finished, self.settled = self._drive.run, self._drive.finished, self._drive.settled

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(None, data, skip):
                self._members.broadcast(data, skip=skip)
            case Send(to, data, _) if to is not None:
                self._members.send(to, data)
            case Train(number, fresh):
                self._drive.nursery.start_soon(self._train, number, fresh)
            case Exchange():
                self._begin(self._exchange, effect)
            case Check():
                self._drive.nursery.start_soon(self._examine, effect)
            case Fetch(_, _, parts, _):
                for number, part in parts:
                    if part.digest not in self._fetching:
                        self._fetching.add(part.digest)
                        self._drive.nursery.start_soon(self._fetch, effect, number, part)
            case Apply():
                self._begin(self._apply, effect)
            case Audit():
                self._drive.nursery.start_soon(self._audit, effect)
            case Certified(_, report):
                self._certified(report)
            case Admitted(_, members):
                log.info("members_admitted", peers=[short(member.peer) for member in members])
                self._members.add(member.peer for member in members)
                self._drive.nursery.start_soon(self._averaging.admit, self._run.roster)
                self._on_roster(self._run.roster)
            case Fault(peer, reason):
                self._suspect(self._run.round, peer, reason)
                log.info("round_fault", peer=short(peer), reason=reason)
            case Exclude(peer, reason, evidence):
                log.info("member_excluded", peer=short(peer), reason=reason)
                self._on_violation(peer, ProtocolViolation(reason, peer=peer))
                self._on_evidence(peer, evidence)
                place = self._run.roster.index_of(peer)
                if place is not None and read_evidence_file(evidence).kind == Kind.AUDIT:
                    self._figures.convicted(place)
            case Diverged(number, own, agreed):
                text = f"in round {number} our state {own.hex()[:8]} was not the others' {agreed.hex()[:8]}"
                self._drive.fail(RunStalled(text))
            case Finished(certificate, _):
                self._drive.nursery.start_soon(self._close, certificate)
            case Behind(number, _):
                self._drive.fail(LeftBehind(f"left behind in round {number}"))
            case Stalled(reason):
                self._drive.fail(RunStalled(reason))

    def _begin(self, work: Callable[..., object], effect: Effect) -> None:
        """Exchange and Apply each cancel the one before."""
        if self._round_scope is not None:
            self._round_scope.cancel()
        self._round_scope = trio.CancelScope()
        self._drive.nursery.start_soon(self._within, self._round_scope, work, effect)

    async def _within(self, scope: trio.CancelScope, work: Callable[..., object], effect: Effect) -> None:
        with scope:
            await work(effect)  # type: ignore[misc]

    async def _train(self, number: int, fresh: bool) -> None:
        root = self._trainer.state_root
        update = await self._trainer.train(number, fresh=fresh)
        self._update = number, update
        hashes = await trio.to_thread.run_sync(hashes_of, update, self._run.roster, self._run.me, number)
        norm = await trio.to_thread.run_sync(norm_of, update)
        self._figures.trained(number, update.loss, norm, metric=update.metric, value=update.value)
        self._drive.perform(self._run.trained(number, hashes, update.exponents, root, trio.current_time()))
        self._on_handed_over(number)

    async def _exchange(self, effect: Exchange) -> None:
        if self._update is None or self._update[0] != effect.round:
            raise LocalError(f"an exchange of round {effect.round}, for which we have no update")
        run = self._run
        exchanged = await self._averaging.exchange(
            run.roster, run.me, effect, self._trainer.dimension, self._update[1].mantissas
        )
        for blame in exchanged.blames:
            run.report.fault(blame.peer, blame.reason)
            self._suspect(effect.round, blame.peer, blame.reason)
            log.info("averaging_fault", peer=short(blame.peer), reason=blame.reason)
            if blame.violation:
                self._on_violation(blame.peer, ProtocolViolation(blame.reason, peer=blame.peer))
        for seen in exchanged.seen:
            self._figures.seen(effect.round, seen)
        for one in exchanged.results:
            if one is not None:
                self._reduced.keep(effect.round, one.part.digest, one.mantissas)
        parts = tuple(None if one is None else one.part for one in exchanged.results)
        self._drive.perform(run.exchanged(effect.round, effect.view, parts, trio.current_time()))

    async def _examine(self, effect: Check) -> None:
        """Compute others' parts anew. What is not answered in time was not served."""
        run, found = self._run, dict[int, CheckOutcome]()

        async def one(place: int, part: CheckPart) -> None:
            checked = await self._averaging.check(run.roster, run.me, effect, part, self._trainer.dimension)
            found[place] = checked.outcome
            if checked.seen is not None:
                self._figures.seen(effect.round, checked.seen)
            commits = dict(zip(effect.members, effect.commits, strict=True))
            self._prove(part.reducer, effect.round, part.part, checked.inputs, commits)

        with trio.move_on_after(effect.within_s):
            async with trio.open_nursery() as nursery:
                for place, part in enumerate(effect.parts):
                    nursery.start_soon(one, place, part)
        results = [found.get(place, CheckOutcome(part, Verdict.UNSERVED)) for place, part in enumerate(effect.parts)]
        for result in results:
            if result.outcome is not Verdict.SAME:
                log.info("part_not_confirmed", round=effect.round, part=result.part.part, outcome=result.outcome.value)
        self._drive.perform(run.checked(effect.round, effect.view, results, trio.current_time()))

    async def _audit(self, effect: Audit) -> None:
        run = self._run
        audited = await audit(effect, run.roster, self._averaging, self._trainer)
        guilty = bool(audited.deviations) and max(audited.deviations or ()) > run.roster.rules.tolerance
        if audited.deviations != ():
            self._figures.audited(effect.member, guilty=guilty)
        if guilty:
            self._keep_sent(effect, audited)
        self._drive.perform(run.audited(effect.round, effect.member, audited.deviations, trio.current_time()))

    def _keep_sent(self, effect: Audit, audited: Audited) -> None:
        pieces = part_slices(self._trainer.dimension, self._run.roster.rules.parts)
        for number, whole in audited.sent.items():
            commit, at = effect.commit if number == effect.round else effect.before, 0
            assert commit is not None
            for part in effect.parts:
                size = VALUE_BYTES * (pieces[part].stop - pieces[part].start)
                self._prove(
                    effect.member, number, part, {effect.member: whole[at : at + size]}, {effect.member: commit}
                )
                at += size

    def _prove(
        self, against: int, number: int, part: int, inputs: Mapping[int, bytes], commits: Mapping[int, Commit]
    ) -> None:
        if self._chronicle is not None:
            named = {member: commits[member].hashes[part] for member in inputs}
            self._chronicle.prove(against, number, part, inputs, named)

    def _certified(self, report: RoundReport) -> None:
        run = self._run
        if report.round < run.roster.rules.rounds:  # the closing height certifies the final state and trains nothing
            self._figures.certified(run.roster, report, run.standing, run.me)

    def _suspect(self, number: int, peer: PeerId, reason: str) -> None:
        place = self._run.roster.index_of(peer)
        if place is not None:
            self._figures.suspect(number, place, reason)

    def admit(self, admission: bytes) -> None:
        """Hand an admission to the run. Raises PeerViolation for one that nothing stands behind."""
        self._drive.perform(self._run.admit(admission, trio.current_time()))

    async def _fetch(self, effect: Fetch, number: int, part: Part) -> None:
        """From one holder after the other. What hashes to the digest is the part, whoever sent it."""
        piece = part_slices(self._trainer.dimension, self._run.roster.rules.parts)[number]
        length = VALUE_BYTES * (piece.stop - piece.start)
        try:
            for holder in effect.holders:
                try:
                    with bounded(FETCH_S, "fetching a reduced part", peer=holder):
                        mantissas = bytes(await self._members.fetch_part(holder, part.digest, length=length))
                    await trio.to_thread.run_sync(self._check, effect, number, part, mantissas)
                except Unavailable as error:
                    log.debug("part_not_fetched", peer=short(holder), error=str(error))
                except PeerViolation as error:
                    self._on_violation(holder, error)
                else:
                    self._reduced.keep(effect.round, part.digest, mantissas)
                    self._drive.perform(self._run.fetched(effect.round, part.digest, trio.current_time()))
                    return
        finally:
            self._fetching.discard(part.digest)

    def _check(self, effect: Fetch, number: int, part: Part, mantissas: bytes) -> None:
        """Raises ProtocolViolation unless everything hashes to the digest asked for."""
        found = reduced_digest(
            self._run.roster.run,
            effect.round,
            effect.set_hash,
            part=number,
            exponent=part.exponent,
            used=part.used,
            weights=part.weights,
            mantissas=mantissas,
        )
        if found != part.digest:
            raise ProtocolViolation("another reduced part than the one asked for")

    async def _apply(self, effect: Apply) -> None:
        mantissas = b"".join(self._reduced.of(part.digest) for part in effect.parts)
        exponents = tuple(part.exponent for part in effect.parts)
        root = await self._trainer.apply(effect.round, exponents, mantissas)
        with trio.CancelScope(shield=True):  # written down and applied, or neither
            await self._write_down(effect)
            self._reduced.trim()
            self._drive.perform(self._run.applied(effect.round, root, trio.current_time()))

    async def _write_down(self, effect: Apply) -> None:
        if self._chronicle is None:
            return
        aggregate = {number: self._reduced.of(part.digest) for number, part in enumerate(effect.parts)}
        ours = self._run.me in effect.members and self._update is not None and self._update[0] == effect.round
        update = self._update[1] if ours and self._update is not None else None
        await self._chronicle.applied(self._run, aggregate, update)

    async def _close(self, certificate: Certificate) -> None:
        if self._chronicle is not None:
            await self._chronicle.closed(self._run, certificate)
        self.finished.set()
