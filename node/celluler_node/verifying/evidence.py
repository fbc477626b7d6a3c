"""Evidence against a member, judged anew by a stranger: signatures, then the work that the case rests on.

What proves itself by signatures is decided with them. What rests on a computation is computed again, from inputs found
in transcripts; what rests on the word of a quorum is done again in a confined worker, since whoever made the roster may
have made the quorum. Where inputs are missing nothing is decided, for or against anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import trio

from celluler.aggregation.rules import RULES
from celluler.content.digest import Digest, cid_of
from celluler.errors import LocalError, PeerViolation, ProtocolViolation
from celluler.identity import public_key_of
from celluler.learning.audit import Finding, Outcome, Replayed, TrainingReport
from celluler.learning.audit_evidence import AuditCase
from celluler.learning.audit_messages import Judgement
from celluler.learning.evidence import FraudCase
from celluler.learning.evidence_file import Basis, Case, Kind
from celluler.learning.roster import RosterView, bad_updates
from celluler.learning.transcript import Transcript
from celluler.learning.verify import Arithmetic
from celluler_node.processes.words import Limits, Program
from celluler_node.verifying.arithmetic import IntegerArithmetic
from celluler_node.verifying.command import Fetch, Sample, verify_training
from celluler_node.verifying.papers import open_papers
from celluler_node.verifying.sources import Consulted


class Judged(StrEnum):
    HOLDS = "holds"
    REFUTED = "does not hold"
    OPEN = "not decided"


@dataclass(frozen=True, slots=True)
class EvidenceReport:
    """What a stranger found out about a case. kind: of evidence. job: a CID. accused: a peer id. what: it is said to
    have done, in words after its name. round: it happened in. transcripts: looked at for inputs."""

    kind: str
    job: str
    accused: str
    nickname: str
    round: int
    what: str
    verdict: Judged
    findings: tuple[Finding, ...]
    replays: tuple[Replayed, ...]
    transcripts: tuple[Consulted, ...]
    ok: bool
    """The evidence holds."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What it takes to do a member's work again. tolerance: deviation up to which it is believed; None for what the
    run's own rules say. foreign: as `worker.foreign` is configured."""

    fetch: Fetch
    worker: Program
    limits: Limits
    scratch: Path
    tolerance: float | None = None
    foreign: bool = False


async def verify_evidence(
    case: Case, paths: Sequence[Path], transcripts: tuple[Consulted, ...], bench: Bench
) -> EvidenceReport:
    """paths: transcripts of the run, each perhaps with gaps; transcripts: what is to be told of them."""
    findings = [Finding("signatures", Outcome.OK, 1, 1, f"roster of {len(case.roster)} members; {case.kind.value}")]
    replays: tuple[Replayed, ...] = ()
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in paths]
        match case.basis:
            case Basis.SIGNATURES:
                verdict = Judged.HOLDS
            case Basis.INPUTS:
                verdict, found = await trio.to_thread.run_sync(_compute, case, files)
                findings.append(found)
            case Basis.VERDICTS:
                findings.append(_quorum(case))
                verdict, found, replays = await _repeat(case, files, bench)
                findings.append(found)
    return EvidenceReport(
        case.kind.value, cid_of(Digest(case.roster.job)), case.peer, case.nickname, case.round, case.what, verdict,
        tuple(findings), replays, transcripts, verdict is Judged.HOLDS,
    )  # fmt: skip


# --- computing anew -----------------------------------------------------------------------------------------------


def _compute(case: Case, files: Sequence[BinaryIO]) -> tuple[Judged, Finding]:
    """The results in question, from the members' updates. Decides only when all of them could be computed."""
    if case.roster.rules.rule not in RULES:
        raise ProtocolViolation(f"a run by the rule {case.roster.rules.rule!r}, which nobody knows")
    sources, maths = _scanned(files, case.roster)
    right: list[bool] = []
    told, missing = [], 0
    for fraud in case.frauds:
        rows = {m: row for m in fraud.members if (row := _row(sources, case.roster, fraud, m, maths)) is not None}
        same = recompute(fraud, case.roster, rows, maths)
        if same is None:
            used = [m for place, m in enumerate(fraud.members) if fraud.claimed.used >> place & 1]
            missing += sum(member not in rows for member in used)
            told.append(f"round {fraud.round}, part {fraud.part}: {missing} of {len(used)} updates are not here")
        else:
            right.append(same)
            says = "the rule gives what was signed" if same else "the rule gives something else"
            told.append(f"round {fraud.round}, part {fraud.part}: {says}")
    verdict = _verdict([same is case.frauds_false for same in right], len(case.frauds))
    return verdict, Finding("results", _outcome(verdict), len(right), len(case.frauds), "; ".join(told))


def recompute(fraud: FraudCase, roster: RosterView, rows: Mapping[int, bytes], arithmetic: Arithmetic) -> bool | None:
    """Whether the rule gives what the reducer signed, bit for bit; None when an update that it used is not here.

    rows: by member, each as committed to.
    """
    claimed, place = fraud.claimed, fraud.part
    used = [at for at in range(len(fraud.members)) if claimed.used >> at & 1]
    if any(fraud.members[at] not in rows for at in used):
        return None
    exponents = [fraud.commits[at].exponents[place] for at in used]
    f = bad_updates(len(fraud.members), iid=roster.rules.iid)
    try:
        exponent, mantissas, given = arithmetic.reduce(
            roster.rules.rule, f, exponents, [rows[fraud.members[at]] for at in used]
        )
    except LocalError:
        return False  # nothing that the rule takes: no honest reducer made a result of it
    weights = dict(zip(used, given, strict=True))
    dense = tuple(weights.get(at, 0) for at in range(len(fraud.members)))
    digest = arithmetic.reduced_digest(
        roster.run, fraud.round, fraud.set_hash, part=place, exponent=exponent, used=claimed.used, weights=dense,
        mantissas=mantissas,
    )  # fmt: skip
    return (exponent, dense, digest) == (claimed.exponent, claimed.weights, claimed.digest)


def _scanned(files: Sequence[BinaryIO], roster: RosterView) -> tuple[list[Transcript], IntegerArithmetic]:
    """Those of the run that can be read, and how its job reduces. Of them nothing else is believed but bytes that have
    the hash asked for: the order is what the roster names by its digest."""
    found, maths = [], IntegerArithmetic()
    for file in files:
        try:
            transcript = Transcript(file)
            papers = open_papers(transcript.opening, None)
            transcript.scan(roster.rules.parts)
        except PeerViolation:
            continue
        if papers.roster.raw == roster.raw:
            found.append(transcript)
            maths = papers.arithmetic
    return found, maths


def _row(
    sources: Sequence[Transcript], roster: RosterView, fraud: FraudCase, member: int, arithmetic: Arithmetic
) -> bytes | None:
    """A member's update of the part, as it committed to it."""
    commit, author = fraud.commits[fraud.members.index(member)], public_key_of(roster.members[member].peer)
    if not fraud.part < min(len(commit.hashes), len(commit.exponents)):
        raise ProtocolViolation("evidence with a commit that lacks the part in question")
    for source in sources:
        data = source.pieces(fraud.round).wire(member, fraud.part)
        if data is not None and commit.hashes[fraud.part] == arithmetic.part_hash(
            roster.run, fraud.round, author, part=fraud.part, exponent=commit.exponents[fraud.part], mantissas=data
        ):
            return data
    return None


# --- doing it again -----------------------------------------------------------------------------------------------


def _quorum(case: Case) -> Finding:
    """Their signatures were verified when the case was opened."""
    told = [f"{len(audit.judges)} members say {audit.judgement.name.lower()}" for audit in case.audits]
    return Finding("verdicts", Outcome.OK, len(case.audits), len(case.audits), "; ".join(told))


async def _repeat(case: Case, files: Sequence[BinaryIO], bench: Bench) -> tuple[Judged, Finding, tuple[Replayed, ...]]:
    """The audited steps, from the members' transcripts."""
    count = len(case.audits)
    if case.kind is Kind.UNSERVED:
        why = "that something was kept back can be seen by those alone who asked for it then"
        return Judged.OPEN, Finding("training", Outcome.OPEN, 0, count, why), ()
    if not files:
        return Judged.OPEN, Finding("training", Outcome.OPEN, 0, count, "no transcript of the run is here"), ()
    tolerance = case.roster.rules.tolerance if bench.tolerance is None else bench.tolerance
    sample = Sample(0, b"", tolerance, {audit.accusal.key: audit.accusal.name for audit in case.audits})
    report = await verify_training(
        files,
        bench.fetch,
        sample,
        worker=bench.worker,
        limits=bench.limits,
        scratch=bench.scratch,
        foreign=bench.foreign,
    )
    broken = next((f"{one.check}: {one.detail}" for one in report.findings if _spoils(one)), "")
    if broken:
        return Judged.OPEN, Finding("training", Outcome.OPEN, 0, count, broken), ()
    return _judged(case, report)


def _spoils(finding: Finding) -> bool:
    """What is wrong with the transcripts themselves, so that a replay from them would say nothing."""
    return finding.outcome is Outcome.WRONG and finding.check in ("papers", "certificates", "states", "aggregates")


def _judged(case: Case, report: TrainingReport) -> tuple[Judged, Finding, tuple[Replayed, ...]]:
    told, proves = [], []
    for audit in case.audits:
        replay = _of(report.replays, case.roster, audit)
        if replay is None:
            continue
        told.append(f"round {replay.round}: off by {replay.deviation:.2g}, {report.tolerance:.2g} are let pass")
        proves.append(replay.guilty is (audit.judgement is Judgement.GUILTY))
    why = next((one.detail for one in report.findings if one.check == "training" and not one.checked), "")
    verdict = _verdict(proves, len(case.audits))
    detail = "; ".join(told) or why or "what it takes is not in these transcripts"
    return verdict, Finding("training", _outcome(verdict), len(proves), len(case.audits), detail), report.replays


def _of(replays: Sequence[Replayed], roster: RosterView, audit: AuditCase) -> Replayed | None:
    number, target = audit.accusal.key
    peer = roster.members[target].peer
    return next((one for one in replays if (one.round, one.peer) == (number, peer)), None)


def _verdict(proves: Sequence[bool], of: int) -> Judged:
    """One that does not prove what it should is enough against a case; for it, all are needed."""
    if not all(proves):
        return Judged.REFUTED
    return Judged.HOLDS if len(proves) == of else Judged.OPEN


def _outcome(verdict: Judged) -> Outcome:
    return {Judged.HOLDS: Outcome.OK, Judged.REFUTED: Outcome.WRONG, Judged.OPEN: Outcome.OPEN}[verdict]
