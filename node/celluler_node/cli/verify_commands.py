"""`celluler verify`: how a model came about, checked from outside."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import trio
import typer

from celluler.client import AsyncClient
from celluler.content.digest import Codec, Digest, cid_of, parse_cid
from celluler.errors import IntegrityError, InvalidSpec, Unavailable
from celluler.learning.audit import SEED_BYTES, TOLERANCE, Outcome, TrainingReport
from celluler_node.cli.output import Output, say
from celluler_node.cli.session import NOBODY, Join, Json, log_to, open_session, run

TOLD_SHARE = 0.1
"""Of the training, forged: the odds that people are told."""
KINDS = {"weights": "model", "data": "dataset"}


def verify(
    transcript: Annotated[
        list[str], typer.Argument(metavar="TRANSCRIPT", help="File or CID; several of one run fill each other's gaps.")
    ],
    rounds: Annotated[int, typer.Option(min=0, help="Replay as many updates as so many rounds …")] = 8,
    peers: Annotated[int, typer.Option(min=1, help="… of so many peers have, drawn from all alike.")] = 4,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="What is said to have come of it: author/name:1.0.0 or a CID.")
    ] = "",
    weights: Annotated[Path | None, typer.Option(help="File of the weights the run began from; else fetched.")] = None,
    data: Annotated[Path | None, typer.Option(help="File of the data it learnt from; else fetched.")] = None,
    seed: Annotated[str, typer.Option(metavar="HEX", help="Draw as an earlier verification did.")] = "",
    tolerance: Annotated[
        float, typer.Option(min=0, help="Deviation of a replay that is put down to another kind of machine.")
    ] = TOLERANCE,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Verify how a model was trained, from the transcript of its run.

    Walks the chain of certificates, hashes every byte, reduces every part again, follows every state, and lets a
    confined worker repeat a random sample of the training. Exit code 7 when something is wrong, 6 when no training
    could be looked at.
    """
    given = {name: path for name, path in (("weights", weights), ("data", data)) if path is not None}
    log_to(None, "text", "warning")
    named = [_named(text) for text in transcript]
    chosen = Draw(rounds * peers, _seed(seed), tolerance)

    async def main() -> TrainingReport:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celluler-verify-")))
            source = _Source(stack, folder, join, given)
            return await _verify(source, named, model, chosen, stack, quiet=json)

    report = run(main)
    if json:
        Output(as_json=True).document(report)
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(IntegrityError.exit_code)
    if any(one.outcome is Outcome.OPEN for one in report.findings if one.check in ("states", "training")):
        raise typer.Exit(Unavailable.exit_code)


class Draw(NamedTuple):
    """What was asked for: fields of a `Sample`, which only a verification imports."""

    replays: int
    seed: bytes
    tolerance: float


class _Source:
    """Where files come from: those given, else the node, which is asked only when there is need of it."""

    def __init__(self, stack: AsyncExitStack, folder: Path, join: Sequence[str], given: dict[str, Path]) -> None:
        self._stack, self._join, self._given, self.folder = stack, join, given, folder
        self._client: AsyncClient | None = None

    async def client(self) -> AsyncClient:
        if self._client is None:
            self._client = await self._stack.enter_async_context(open_session(self._join))
        return self._client

    async def fetch(self, root: Digest, name: str) -> Path:
        """Port `Fetch` of `verify_training`. A file that was given is that content, or it is refused."""
        from celluler.content.manifest import describe  # noqa: PLC0415  only once there is something to describe

        path = self._given.get(name)
        if path is None:
            return await self.content(root)
        if (await trio.to_thread.run_sync(describe, path, KINDS[name])).root != root:
            raise InvalidSpec(name, f"{path} is not the {name} of this run, which is {cid_of(root, Codec.MANIFEST)}")
        return path

    async def content(self, root: Digest) -> Path:
        path = self.folder / root.hex()
        await (await self.client()).blobs.get(cid_of(root, Codec.MANIFEST), path)
        return path


async def _verify(
    source: _Source,
    transcripts: Sequence[Path | Digest],
    model: str,
    chosen: Draw,
    stack: AsyncExitStack,
    *,
    quiet: bool,
) -> TrainingReport:
    from celluler_node.config import load_config  # noqa: PLC0415  `--help` needs none of it
    from celluler_node.processes.words import Limits  # noqa: PLC0415
    from celluler_node.processes.worker_words import WORKER  # noqa: PLC0415
    from celluler_node.verify_command import Sample, verify_training  # noqa: PLC0415
    from celluler_node.verify_papers import Claim  # noqa: PLC0415

    claim = None
    if model:
        told = await (await source.client()).models.show(model)
        job = None if told.job is None else parse_cid(told.job)
        claim = Claim(job, tuple(map(parse_cid, told.parents)), parse_cid(told.weights), told.spec)
    paths = [one if isinstance(one, Path) else await source.content(one) for one in transcripts]
    config = load_config(os.environ)
    scratch = source.folder / "worker"
    scratch.mkdir()
    return await verify_training(
        [stack.enter_context(path.open("rb")) for path in paths],
        source.fetch,
        Sample(chosen.replays, chosen.seed, chosen.tolerance),
        worker=replace(WORKER, confined=config.sandbox),
        limits=Limits(config.worker_memory_bytes, threads=config.worker_threads),
        scratch=scratch,
        model=claim,
        on_round=(lambda number, of: None) if quiet or not sys.stderr.isatty() else _tell,
    )


def _named(text: str) -> Path | Digest:
    """A file by its path, or a content by its CID."""
    path = Path(text)
    return path if path.exists() else parse_cid(text)


def _seed(text: str) -> bytes:
    if not text:
        return secrets.token_bytes(SEED_BYTES)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidSpec("seed", "must be hexadecimal") from None


def _tell(done: int, of: int) -> None:
    print(f"\r{100 * done // max(1, of):3d} % looked at", end="\r", file=sys.stderr, flush=True)


def _show(report: TrainingReport) -> None:
    rows = [(one.outcome.value, one.check, f"{one.checked} of {one.of}", one.detail) for one in report.findings]
    Output(as_json=False).table(("", "what", "checked", "found"), rows)
    left = report.updates - report.replayable
    say(f"{len(report.replays)} of {report.replayable} updates that can be replayed were, drawn by seed {report.seed}")
    if left:
        say(f"{left} updates cannot be replayed from what is here: nothing is known of how they came about")
    caught = next((one.caught for one in report.odds if one.share == TOLD_SHARE), 0.0)
    say(f"had one in ten of the {report.replayable} been forged, this would have shown with probability {caught:.3f}")


app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command()(verify)
APPS = {"verify": app}
