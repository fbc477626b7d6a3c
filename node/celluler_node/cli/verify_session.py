"""What `celluler verify` was given, brought to those who verify it: files as they are, everything else by a node."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from celluler.client import AsyncClient
from celluler.content.digest import Codec, Digest, cid_of, parse_cid
from celluler.content.manifest import describe
from celluler.errors import CellulerError, InvalidSpec, NotFound, PeerViolation, QuotaExceeded
from celluler.identity import PeerId
from celluler.learning import evidence_file
from celluler.learning.audit import TOLERANCE, Finding, Outcome, TrainingReport
from celluler.learning.transcript import MAX_FILE_BYTES
from celluler.models.names import ModelName, parse_reference
from celluler.views import Check, Model
from celluler_node.config import load_config
from celluler_node.limits import worker_limits
from celluler_node.processes.worker_words import WORKER
from celluler_node.verifying.answer import AnswerReport, verify_answer
from celluler_node.verifying.command import Sample, nothing_verified, verify_training
from celluler_node.verifying.evidence import Bench, EvidenceReport, verify_evidence
from celluler_node.verifying.model import NO_JOB, NO_TRANSCRIPT, ModelReport, report_on
from celluler_node.verifying.papers import Claim, rounds_claimed
from celluler_node.verifying.sources import Consulted, Gathering
from celluler_protocols import answer_evidence

KINDS = {"weights": "model", "data": "dataset"}
MARKS = (evidence_file.MARK, answer_evidence.MARK)
ASK_S = 30.0
"""For who was in a job, when no transcript says it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line. replays: updates to draw. tolerance: None for the usual one. given: files, by `weights` and
    `data`. most_bytes: of transcripts that are fetched. quiet: tell nothing on the way."""

    targets: tuple[str, ...]
    transcripts: tuple[str, ...]
    model: str
    replays: int
    seed: bytes
    tolerance: float | None
    given: Mapping[str, Path]
    most_bytes: int
    quiet: bool

    @property
    def sample(self) -> Sample:
        return Sample(self.replays, self.seed, TOLERANCE if self.tolerance is None else self.tolerance)


@dataclass(frozen=True, slots=True)
class _Evidence:
    path: Path


class Verifier:
    """One verification. A node is asked only when there is need of one."""

    def __init__(
        self,
        asked: Asked,
        stack: AsyncExitStack,
        folder: Path,
        open_client: Callable[[], AbstractAsyncContextManager[AsyncClient]],
    ) -> None:
        """folder: for files that are fetched; the caller removes it. stack: closes what was opened."""
        self._asked, self._stack, self._folder, self._open_client = asked, stack, folder, open_client
        self._client: AsyncClient | None = None
        config = load_config(os.environ)
        self._worker = replace(WORKER, confined=config.sandbox)
        self._limits, self._foreign = worker_limits(config), config.run_foreign

    async def verify(self) -> TrainingReport | ModelReport | EvidenceReport | AnswerReport:
        """Raises InvalidSpec for targets that do not go together, a CellulerError when it cannot begin."""
        targets = [await self._target(text) for text in self._asked.targets]
        more = [await self._transcript(text) for text in self._asked.transcripts]
        subjects = [one for one in targets if not isinstance(one, Path)]
        files = [*(one for one in targets if isinstance(one, Path)), *more]
        if len(subjects) > 1 or (subjects and self._asked.model):
            raise InvalidSpec("target", "one model or one piece of evidence at a time, beside any transcripts")
        match subjects:
            case [Model() as model]:
                return await self._model(model, files)
            case [_Evidence(path)]:
                return await self._case(path, files)
        claim = None
        if self._asked.model:
            claim = _claim(await (await self.client()).models.show(self._asked.model))
        return await self._training(files, claim)

    async def client(self) -> AsyncClient:
        if self._client is None:
            self._client = await self._stack.enter_async_context(self._open_client())
        return self._client

    # --- what is meant -------------------------------------------------------------------------------------------

    async def _target(self, text: str) -> Model | _Evidence | Path:
        """A file is a transcript unless it begins as evidence does."""
        if (path := _file(text)) is not None:
            return _sniffed(path)
        if isinstance(reference := parse_reference(text), ModelName):
            return await (await self.client()).models.show(text)
        try:
            return await (await self.client()).models.show(text)
        except (PeerViolation, NotFound):  # there may be such a content, which is no model
            return _sniffed(await self._content(reference, MAX_FILE_BYTES))

    async def _transcript(self, text: str) -> Path:
        return _file(text) or await self._content(parse_cid(text), MAX_FILE_BYTES)

    # --- the three kinds -----------------------------------------------------------------------------------------

    async def _training(self, paths: Sequence[Path], claim: Claim | None) -> TrainingReport:
        return await verify_training(
            [self._stack.enter_context(path.open("rb")) for path in paths],
            self._fetch,
            self._asked.sample,
            worker=self._worker,
            limits=self._limits,
            scratch=self._scratch(),
            model=claim,
            foreign=self._foreign,
            on_round=(lambda number, of: None) if self._asked.quiet else _tell,
        )

    async def _model(self, model: Model, files: Sequence[Path]) -> ModelReport:
        signed = Finding("model", Outcome.OK, 1, 1, f"{model.reference}, signed by {model.author}")
        if model.job is None:
            papers = [signed, *await self._weights(model)]
            training = nothing_verified(self._asked.sample, NO_JOB)
            return report_on(model.reference, model.cid, model.author, (), training, papers=papers)
        gathering = self._gathering(parse_cid(model.job))
        for file in files:
            gathering.give(file)
        await gathering.name(map(parse_cid, model.transcripts))
        await gathering.ask([PeerId(model.author)])
        if gathering.roster is None:
            await gathering.ask(await self._taking_part(model.job))
        paths, consulted = await trio.to_thread.run_sync(gathering.choose)
        if paths:
            training = await self._training(paths, _claim(model))
        else:
            training = nothing_verified(self._asked.sample, NO_TRANSCRIPT)
        members = () if gathering.roster is None else gathering.roster.members
        names = {member.peer: member.nickname for member in members}
        return report_on(
            model.reference, model.cid, model.author, consulted, training, papers=[signed], members=len(members),
            names={str(peer): name for peer, name in names.items()},
        )  # fmt: skip

    async def _case(self, path: Path, files: Sequence[Path]) -> EvidenceReport | AnswerReport:
        raw = await trio.to_thread.run_sync(_read, path)
        if raw.startswith(answer_evidence.MARK):
            return await self._answer(raw)
        case = await trio.to_thread.run_sync(evidence_file.open_evidence_file, raw)
        paths: list[Path] = []
        consulted: tuple[Consulted, ...] = ()
        if case.basis is not evidence_file.Basis.SIGNATURES:
            gathering = self._gathering(Digest(case.roster.job), only=case.roster.raw)
            for file in files:
                gathering.give(file)
            await gathering.ask(member.peer for member in case.roster.members)
            paths, consulted = await trio.to_thread.run_sync(gathering.choose)
        bench = Bench(self._fetch, self._worker, self._limits, self._scratch(), self._asked.tolerance, self._foreign)
        return await verify_evidence(case, paths, consulted, bench)

    async def _answer(self, raw: bytes) -> AnswerReport:
        case = await trio.to_thread.run_sync(answer_evidence.open_answer_evidence, raw)
        client = await self.client()
        scratch = self._scratch()
        return await verify_answer(
            case, client.models.show, self._fetch, worker=self._worker, limits=self._limits, scratch=scratch,
            foreign=self._foreign,
        )  # fmt: skip

    # --- what a node is asked ------------------------------------------------------------------------------------

    def _gathering(self, job: Digest, only: bytes | None = None) -> Gathering:
        return Gathering(job, self._find, self._content, self._asked.most_bytes, only)

    async def _find(self, job: Digest, peers: Sequence[PeerId]) -> Iterable[tuple[PeerId, Digest]]:
        """Port `Find` of a gathering."""
        told = await (await self.client()).jobs.transcripts(cid_of(job), peers)
        return [(PeerId(one.peer), parse_cid(one.cid)) for one in told]

    async def _taking_part(self, job: str) -> Sequence[PeerId]:
        """Who was in a job, by hearsay: enough to ask them."""
        try:
            with trio.fail_after(ASK_S):
                told = (await (await self.client()).jobs.get(job)).info
        except (CellulerError, trio.TooSlowError):
            return ()
        return [PeerId(peer) for peer in dict.fromkeys((told.coordinator, *told.members))]

    async def _weights(self, model: Model) -> list[Finding]:
        """Signature, records and every byte of a model, for one of which nothing else can be checked."""
        client = await self.client()
        try:
            if not model.local:
                await client.models.pull(model.cid)
            checks = (await client.models.verify(model.cid)).checks
        except CellulerError as error:
            return [Finding("weights", Outcome.OPEN, 0, 1, str(error))]
        return [_finding(check) for check in checks]

    async def _fetch(self, root: Digest, name: str) -> Path:
        """Port `Fetch` of `verify_training`. A file that was given is that content, or it is refused."""
        path = self._asked.given.get(name)
        if path is None:
            return await self._content(root)
        if (await trio.to_thread.run_sync(describe, path, KINDS[name])).root != root:
            raise InvalidSpec(name, f"{path} is not the {name} of this run, which is {cid_of(root, Codec.MANIFEST)}")
        return path

    async def _content(self, root: Digest, at_most: int | None = None) -> Path:
        path = self._folder / root.hex()
        if not path.exists():
            await (await self.client()).blobs.get(cid_of(root, Codec.MANIFEST), path, at_most=at_most)
        return path

    def _scratch(self) -> Path:
        scratch = self._folder / "worker"
        scratch.mkdir(exist_ok=True)
        return scratch


def _claim(told: Model) -> Claim:
    job = None if told.job is None else parse_cid(told.job)
    rounds = rounds_claimed(told.name, told.version)
    return Claim(job, tuple(map(parse_cid, told.parents)), parse_cid(told.weights), told.body, told.spec, rounds)


def _finding(check: Check) -> Finding:
    outcome = Outcome.OK if check.ok else Outcome.OPEN if check.skipped else Outcome.WRONG
    return Finding(check.name, outcome, int(check.ok), 1, check.detail)


def _file(text: str) -> Path | None:
    path = Path(text)
    return path if path.exists() else None


def _sniffed(path: Path) -> _Evidence | Path:
    with path.open("rb") as file:
        return _Evidence(path) if file.read(max(map(len, MARKS))).startswith(MARKS) else path


def _read(path: Path) -> bytes:
    limit = max(evidence_file.MAX_FILE_BYTES, answer_evidence.MAX_FILE_BYTES) + max(map(len, MARKS))
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise QuotaExceeded(f"evidence of more than {limit} bytes")
    return raw


def _tell(done: int, of: int) -> None:
    print(f"\r{100 * done // max(1, of):3d} % looked at", end="\r", file=sys.stderr, flush=True)
