"""`celluler verify`: how a model came about, or what is held against a member, checked from outside."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from celluler.errors import IntegrityError, InvalidSpec, Unavailable
from celluler.learning.audit import SEED_BYTES, TOLERANCE, Finding, Outcome, TrainingReport
from celluler.quantities import parse_bytes
from celluler.views import to_json
from celluler_node.cli.output import Output, say
from celluler_node.cli.session import NOBODY, Join, Json, log_to, open_session, run
from celluler_node.scratch import temporary_folder

if TYPE_CHECKING:
    from celluler_node.verifying.answer import AnswerReport
    from celluler_node.verifying.evidence import EvidenceReport
    from celluler_node.verifying.model import ModelReport

TOLD_SHARE = 0.1
"""Of the training, forged: the odds that people are told."""
NOTHING: list[str] = []


def verify(
    target: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET",
            help="A model (author/name:1.0.0 or a CID), evidence, or transcripts (files or CIDs), several of one run.",
        ),
    ],
    rounds: Annotated[int, typer.Option(min=0, help="Replay as many updates as so many rounds …")] = 8,
    peers: Annotated[int, typer.Option(min=1, help="… of so many peers have, drawn from all alike.")] = 4,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="What is said to have come of the transcripts given.")
    ] = "",
    transcript: Annotated[
        list[str],
        typer.Option(metavar="FILE|CID", help="A transcript, beside those that the swarm has. May be repeated."),
    ] = NOTHING,
    weights: Annotated[Path | None, typer.Option(help="File of the weights the run began from; else fetched.")] = None,
    data: Annotated[Path | None, typer.Option(help="File of the data it learnt from; else fetched.")] = None,
    most: Annotated[str, typer.Option(metavar="SIZE", help="Fetch no more than this of transcripts, in all.")] = "4GiB",
    seed: Annotated[str, typer.Option(metavar="HEX", help="Draw as an earlier verification did.")] = "",
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help=f"Deviation of a replay that is put down to another kind of machine: {TOLERANCE:g}, for evidence what "
            "the run says.",
        ),
    ] = None,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Verify how a model was trained, or what is held against a member.

    Of a model, finds every transcript of the run it came of. Walks the chain of certificates, hashes every byte,
    reduces every part again, follows every state, and lets a confined worker repeat a random sample of the training.
    Of evidence, verifies every signature and does the work anew that it rests on; of a wrong answer, what the model
    itself says.

    Exit code 7 when something is wrong or the evidence does not hold, 6 when no training could be looked at or nothing
    could be decided.
    """
    given = {name: path for name, path in (("weights", weights), ("data", data)) if path is not None}
    log_to(None, "text", "warning")
    from celluler_node.cli.verify_session import Asked, Verifier  # noqa: PLC0415  `--help` needs none of it

    asked = Asked(
        targets=tuple(target),
        transcripts=tuple(transcript),
        model=model,
        replays=rounds * peers,
        seed=_seed(seed),
        tolerance=tolerance,
        given=given,
        most_bytes=_size(most),
        quiet=json or not sys.stderr.isatty(),
    )

    async def main() -> TrainingReport | ModelReport | EvidenceReport | AnswerReport:
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(temporary_folder("verify"))
            return await Verifier(asked, stack, folder, lambda: open_session(join)).verify()

    _answer(run(main), json)


def _answer(report: TrainingReport | ModelReport | EvidenceReport | AnswerReport, as_json: bool) -> None:
    """Print it, and leave with the exit code that it means."""
    from celluler_node.verifying.answer import AnswerReport  # noqa: PLC0415  loaded by now
    from celluler_node.verifying.evidence import EvidenceReport, Judged  # noqa: PLC0415
    from celluler_node.verifying.model import ModelReport  # noqa: PLC0415

    output = Output(as_json=as_json)
    if isinstance(report, EvidenceReport | AnswerReport):
        output.document(report) if as_json else _show_case(report)
        wrong, undecided = report.verdict is Judged.REFUTED, report.verdict is Judged.OPEN
    else:
        training = report.training if isinstance(report, ModelReport) else report
        if as_json:
            output.document(_flat(report) if isinstance(report, ModelReport) else training)
        else:
            _show(training)
        wrong = not training.ok
        looked = ("states", "training")
        undecided = any(one.outcome is Outcome.OPEN for one in training.findings if one.check in looked)
    if wrong or undecided:
        raise typer.Exit(IntegrityError.exit_code if wrong else Unavailable.exit_code)


def _flat(report: ModelReport) -> dict[str, Any]:
    """What was found out about the run, as without a model, and beside it whose it is."""
    told = to_json(report)
    training = told.pop("training")
    return {**told, **training}


def _table(findings: Sequence[Finding]) -> None:
    rows = [(one.outcome.value, one.check, f"{one.checked} of {one.of}", one.detail) for one in findings]
    Output(as_json=False).table(("", "what", "checked", "found"), rows)


def _show(report: TrainingReport) -> None:
    _table(report.findings)
    if not report.updates:
        return
    left = report.updates - report.replayable
    say(f"{len(report.replays)} of {report.replayable} updates that can be replayed were, drawn by seed {report.seed}")
    if left:
        say(f"{left} updates cannot be replayed from what is here: nothing is known of how they came about")
    caught = next((one.caught for one in report.odds if one.share == TOLD_SHARE), 0.0)
    say(f"had one in ten of the {report.replayable} been forged, this would have shown with probability {caught:.3f}")


def _show_case(report: EvidenceReport | AnswerReport) -> None:
    _table(report.findings)
    name = f"{report.nickname} ({report.accused})" if report.nickname else report.accused
    say(f"{name} {report.what}")
    say(f"the evidence {'is ' if report.verdict == 'not decided' else ''}{report.verdict.value}")


def _seed(text: str) -> bytes:
    if not text:
        return secrets.token_bytes(SEED_BYTES)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidSpec("seed", "must be hexadecimal") from None


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise InvalidSpec("most", str(error)) from None


app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command()(verify)
APPS = {"verify": app}
