"""What a stranger is told of a published model: its papers, and the run it came of by all transcripts there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from celluler.learning.audit import Finding, Outcome, TrainingReport
from celluler_node.verifying.sources import Consulted

NO_JOB = "it names no job: somebody published these weights, and nothing is known of how they came about"
NO_TRANSCRIPT = "no transcript of its run can be had: nothing is known of how it was trained"
_TOLD = 3


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What a stranger found out about a model. model: `author/name:version`. manifest: its CID. author: who signed it.

    transcripts: those that were looked at, left out ones too. training: of the run; its first findings are the model's.
    """

    model: str
    manifest: str
    author: str
    transcripts: tuple[Consulted, ...]
    training: TrainingReport

    @property
    def ok(self) -> bool:
        return self.training.ok


def report_on(
    model: str,
    manifest: str,
    author: str,
    transcripts: tuple[Consulted, ...],
    training: TrainingReport,
    *,
    papers: Sequence[Finding] = (),
    members: int = 0,
    names: dict[str, str] | None = None,
) -> ModelReport:
    """papers: what was found out about the model itself. members: of its run, 0 when they are not known. names: of
    peers, for people."""
    findings = [*papers, *(_transcripts_line(transcripts, members, names or {}) if training.job or transcripts else ())]
    ok = training.ok and all(one.outcome is not Outcome.WRONG for one in findings)
    whole = replace(training, findings=(*findings, *training.findings), ok=ok)
    return ModelReport(model, manifest, author, transcripts, whole)


def _transcripts_line(transcripts: tuple[Consulted, ...], members: int, names: dict[str, str]) -> tuple[Finding]:
    """Whose are there. A file that is false is its provider's shame, and not the run's."""
    used = [one for one in transcripts if not one.problem]
    left_out = [f"{_name(one, names)}: {one.problem}" for one in transcripts if one.problem]
    detail = f"without {'; '.join(left_out[:_TOLD])}" if left_out else ""
    detail += f"; and {len(left_out) - _TOLD} more" if len(left_out) > _TOLD else ""
    outcome = Outcome.OK if used else Outcome.OPEN
    return (Finding("transcripts", outcome, len(used), max(members, len(used)), detail),)


def _name(one: Consulted, names: dict[str, str]) -> str:
    return f"{names.get(one.peer) or one.peer[-8:]}'s" if one.peer else one.transcript[-8:]
