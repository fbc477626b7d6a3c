"""A stranger's verification of a run, from its transcript: papers, chain, bytes, states, and a sample of the training.

Signatures, hashes and the rule are checked in this process, which takes nothing on trust; the model and the data are
touched by a confined worker alone. Fetches the base model's weights and the data by digest and by nothing else.
What it finds wrong, and what it could not look at, stands in the report: it raises only when it cannot begin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import trio

from celluler.content.digest import Codec, Digest, cid_of
from celluler.content.manifest import describe
from celluler.errors import CellulerError, PeerViolation, ProtocolViolation
from celluler.learning.audit import (
    TOLERANCE,
    Finding,
    Outcome,
    Population,
    Replayable,
    Replayed,
    TrainingReport,
    draw,
    odds,
)
from celluler.learning.messages import places, record_hash
from celluler.learning.transcript import Transcript
from celluler.learning.verify import Archive, Link
from celluler_node.processes import worker_words as words
from celluler_node.processes.confinement import Confinement, confinement
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits, Program
from celluler_node.processes.written import written
from celluler_node.training.worker_trainer import OUTER_LEARNING_RATE, OUTER_MOMENTUM
from celluler_node.verifying.papers import Claim, Papers, open_papers

Fetch = Callable[[Digest, str], Awaitable[Path]]
"""(root of a content, `weights` or `data`) → its file. Raises a CellulerError when it cannot be had."""

EXPORT_NAME = "weights.safetensors"
_TOLD = 3
"""Of what is wrong in one respect, this much is told."""


@dataclass(frozen=True, slots=True)
class Sample:
    """replays: updates to draw. seed: chosen after the run was made, or whoever chose it before could evade it.
    tolerance: deviation up to which a replay is believed. only: instead of a draw these, by (round, roster place),
    each with the hash of the commit that is meant; nothing is followed further than they need.
    """

    replays: int
    seed: bytes
    tolerance: float = TOLERANCE
    only: Mapping[tuple[int, int], bytes] | None = None


async def verify_training(
    files: Sequence[BinaryIO],
    fetch: Fetch,
    sample: Sample,
    *,
    worker: Program,
    limits: Limits,
    scratch: Path,
    model: Claim | None = None,
    on_round: Callable[[int, int], None] = lambda number, of: None,
    foreign: bool = False,
) -> TrainingReport:
    """files: transcripts of one run, each perhaps with gaps. model: what is said to have come of the run, if anything.

    scratch: an existing folder. on_round: told how far it is. foreign: as `worker.foreign` is configured.
    Raises LocalError for files of different runs.
    """
    verification = _Verification(sample, model, on_round)
    try:
        transcripts = [await trio.to_thread.run_sync(Transcript, file) for file in files]
        papers = verification.papers = open_papers(transcripts[0].opening, model)
        verification.ok("papers", 1, f"job {cid_of(papers.order.job)}, {len(papers.roster)} members")
        archive = await trio.to_thread.run_sync(Archive, transcripts, papers.roster, papers.arithmetic)
    except PeerViolation as error:
        verification.wrong("papers", str(error))
        return verification.report()
    if await trio.to_thread.run_sync(verification.walk, archive):
        here = confinement(sandbox=worker.confined, foreign=foreign)
        await verification.follow(archive, fetch, worker, limits, scratch, here)
    return verification.report()


@dataclass(slots=True)
class _Line:
    """One finding as it grows."""

    of: int = 0
    checked: int = 0
    detail: str = ""
    wrong: list[str] = field(default_factory=list)

    def finding(self, check: str) -> Finding:
        outcome = Outcome.WRONG if self.wrong else Outcome.OK if self.checked else Outcome.OPEN
        more = [f"and {len(self.wrong) - _TOLD} more"] if len(self.wrong) > _TOLD else []
        detail = "; ".join([*self.wrong[:_TOLD], *more]) if self.wrong else self.detail
        return Finding(check, outcome, self.checked, self.of, detail)


_CHECKS = ("papers", "certificates", "commits", "updates", "aggregates", "rule", "momentum", "states", "result")


class _Verification:
    def __init__(self, sample: Sample, model: Claim | None, on_round: Callable[[int, int], None]) -> None:
        self._sample, self._model, self._on_round = sample, model, on_round
        self._lines = {check: _Line(of=1) for check in (*_CHECKS, "training")}
        self._replayable: list[Replayable] = []
        self._drawn: dict[int, list[Replayable]] = {}
        self._meant: set[tuple[int, int]] = set()
        self._replays: list[Replayed] = []
        self._weights = ""
        self._updates = 0
        self._root: bytes | None = None  # of the state as it is now; None when that is not known
        self.papers: Papers | None = None

    # --- what is found -----------------------------------------------------------------------------------------

    def ok(self, check: str, count: int, detail: str = "") -> None:
        line = self._lines[check]
        line.checked += count
        line.detail = detail or line.detail

    def wrong(self, check: str, reason: str) -> None:
        self._lines[check].wrong.append(reason)

    def explain(self, reason: str) -> None:
        """Why there was nothing to look at."""
        for line in self._lines.values():
            line.detail = reason

    def report(self) -> TrainingReport:
        findings = tuple(line.finding(check) for check, line in self._lines.items())
        return TrainingReport(
            job="" if self.papers is None else cid_of(self.papers.order.job),
            weights=self._weights,
            findings=findings,
            replays=tuple(self._replays),
            updates=self._updates,
            replayable=len(self._replayable),
            odds=odds(len(self._replays), len(self._replayable)),
            seed=self._sample.seed.hex(),
            tolerance=self._sample.tolerance,
            ok=all(finding.outcome is not Outcome.WRONG for finding in findings),
        )

    # --- without the model ---------------------------------------------------------------------------------------

    def walk(self, archive: Archive) -> bool:
        """The chain, every byte, the rule. False when the chain is broken: then nothing after it means anything."""
        rounds = archive.roster.rules.rounds
        self._expect(rounds, archive.roster.rules.parts)
        population, expelled, out = Population(archive), list[str](), 0
        try:
            for link in archive.walk():
                self.ok("certificates", 1)
                population.add(link)
                self._note_meant(link)
                self._examine(archive, link)
                expelled += [f"{archive.name_of(one)} in round {link.round}" for one in places(link.body.expelled)]
                out |= link.body.expelled
                self._on_round(link.round, 2 * rounds)
        except PeerViolation as error:
            self.wrong("certificates", str(error))
            return False
        finally:
            self._updates, self._replayable = population.updates, self._in_question(population, out)
            self._lines["updates"].of = self._lines["training"].of = population.updates
        told = [f"each by a quorum of {len(archive.roster)} members"]
        told += [] if archive.complete else ["the run is not finished in this transcript"]
        told += [f"expelled: {', '.join(expelled)}"] if expelled else []
        self._lines["certificates"].detail = "; ".join(told)
        self._lines["momentum"].of = population.updates
        self.ok("momentum", population.sound)
        self._lines["momentum"].wrong += population.odd
        if self._sample.only is None:
            chosen = draw(self._replayable, self._sample.replays, self._sample.seed)
        else:
            chosen = frozenset(self._meant)
        for one in self._replayable:
            if (one.round, one.member) in chosen:
                self._drawn.setdefault(one.round, []).append(one)
        return True

    def _in_question(self, population: Population, out: int) -> list[Replayable]:
        """What may be drawn: not what those did whom the run itself expelled, which is known and told. Evidence asks
        for exactly that."""
        if self._sample.only is not None:
            return population.replayable
        return [one for one in population.replayable if not out >> one.member & 1]

    def _note_meant(self, link: Link) -> None:
        """Of the updates asked for by name, those that this history has."""
        for (number, member), name in (self._sample.only or {}).items():
            commit = link.commit_of(member) if number == link.round else None
            if commit is not None and record_hash(commit) == name:
                self._meant.add((number, member))

    def _expect(self, rounds: int, parts: int) -> None:
        counts = {"certificates": rounds + 1, "commits": rounds, "states": rounds + 1}
        for check, count in (counts | {"aggregates": rounds * parts, "rule": rounds * parts}).items():
            self._lines[check].of = count

    def _examine(self, archive: Archive, link: Link) -> None:
        found = archive.examine(link)
        if link.body.parts:
            self.ok("commits", bool(link.commits))
        self.ok("updates", len(found.updates))
        self.ok("aggregates", found.parts)
        self.ok("rule", found.reduced)
        for check, reasons in (("updates", found.false_updates), ("aggregates", found.false_parts)):
            self._lines[check].wrong += [f"round {link.round}: {reason}" for reason in reasons]
        self._lines["rule"].wrong += [f"round {link.round}: {reason}" for reason in found.not_by_rule]

    # --- with the model ------------------------------------------------------------------------------------------

    async def follow(
        self, archive: Archive, fetch: Fetch, worker: Program, limits: Limits, scratch: Path, here: Confinement
    ) -> None:
        """Every state from the first, and the replays drawn, in a worker. What it lacks is told, not raised."""
        assert self.papers is not None
        if self._sample.only is not None and not self._drawn:
            return
        try:
            here.require(self.papers.base.record.body, own=False)
            weights = await fetch(Digest(self.papers.base.record.weights), "weights")
            data = await fetch(self.papers.order.spec.data.content, "data")
            async with open_process(worker, limits=limits, readable=(weights, data), scratch=scratch) as child:
                await self._follow(archive, child, scratch, _start(self.papers, weights, data))
        except CellulerError as error:
            for check in ("states", "training"):
                line = self._lines[check]
                line.detail = f"{error}" if not line.checked else f"then no more: {error}"

    async def _follow(self, archive: Archive, child: Child, scratch: Path, start: words.StartRun) -> None:
        self._root = (await child.call(start)).record.state_root
        links, before = archive.walk(), None
        rounds = archive.roster.rules.rounds
        while (link := await trio.to_thread.run_sync(next, links, None)) is not None:
            self._compare(link)
            if self._root is None or (self._sample.only is not None and link.round > max(self._drawn)):
                return
            for one in self._drawn.get(link.round, ()):
                await self._replay(archive, child, one, link, before)
            if link.body.parts:
                await self._apply(archive, child, link)
            else:
                await self._finish(child, scratch, None)
            if self._model is not None and self._model.rounds == link.round + 1 and self._root is not None:
                await self._finish(child, scratch, self._model.rounds)
            before = link
            self._on_round(rounds + link.round, 2 * rounds)

    def _compare(self, link: Link) -> None:
        """The state that the members say they were in, with the one that came of everything before."""
        if self._root is None or link.body.state_root == self._root:
            self.ok("states", self._root is not None)
            return
        self.wrong("states", f"the state before round {link.round} is not what the rounds before it give")
        self._root = None

    async def _replay(self, archive: Archive, child: Child, one: Replayable, link: Link, before: Link | None) -> None:
        commit = link.commit_of(one.member)
        carried = before if one.carries else None
        blobs = await trio.to_thread.run_sync(_wires, archive, one, link, carried)
        earlier = None if carried is None else carried.commit_of(one.member)
        if commit is None or blobs is None or (carried is not None and earlier is None):
            return  # what is false in it was told with the updates
        request = words.Replay(
            round=link.round,
            index=one.member,
            parts=one.parts,
            exponents=tuple(commit.exponents[part] for part in one.parts),
            before=() if earlier is None else tuple(earlier.exponents[part] for part in one.parts),
        )
        told = (await child.call(request, *blobs)).record
        member = archive.roster.members[one.member]
        deviation = max(told.deviations)
        guilty = deviation > self._sample.tolerance
        replayed = Replayed(link.round, member.peer, member.nickname, told.same, deviation, guilty)
        self._replays.append(replayed)
        same = sum(each.same for each in self._replays)
        worst = max(each.deviation for each in self._replays)
        self.ok("training", 1, f"{same} gave the same bits, the largest deviation is {worst:.2g}")
        if guilty:
            what = f"its steps give something else, by {deviation:.2g}"
            assert self.papers is not None
            usual = self.papers.order.spec.train.tolerance
            what += f" (the job lets {usual:g} pass)" if deviation <= usual else ""
            self.wrong("training", f"round {link.round}: {archive.name_of(one.member)}: {what}")

    async def _apply(self, archive: Archive, child: Child, link: Link) -> None:
        mantissas = await trio.to_thread.run_sync(_aggregate, archive, link)
        if mantissas is None:
            self._lines["states"].detail = f"the aggregate of round {link.round} is not here"
            self._root = None
            return
        exponents = tuple(part.exponent for part in link.body.parts)
        self._root = (await child.call(words.ApplyRound(link.round, exponents), mantissas)).record.state_root

    async def _finish(self, child: Child, scratch: Path, rounds: int | None) -> None:
        """The weights that the certified final state is, or that the run had come to after so many rounds."""
        claimed = None if self._model is None else self._model.rounds
        if claimed != rounds:
            return
        await child.call(words.Export(EXPORT_NAME))
        path = written(scratch, EXPORT_NAME)
        root = (await trio.to_thread.run_sync(describe, path, "model")).root
        self._weights = cid_of(root, Codec.MANIFEST)
        came = "ends in" if rounds is None else f"had come to after {rounds} rounds"
        if self._model is None:
            self._lines["result"].detail = f"no model to compare with; the run ends in weights {self._weights}"
        elif self._model.weights == root:
            self.ok("result", 1, f"the model's weights are those that the run {came}: {self._weights}")
        else:
            self.wrong("result", f"the run {came}: {self._weights}, and these are not the model's")


def nothing_verified(sample: Sample, reason: str) -> TrainingReport:
    """What is said of a run of which nothing could be looked at."""
    verification = _Verification(sample, None, lambda number, of: None)
    verification.explain(reason)
    return verification.report()


def _start(papers: Papers, weights: Path, data: Path) -> words.StartRun:
    """The run as every member of it started it."""
    train = papers.order.spec.train
    return words.StartRun(
        run=papers.roster.run,
        body=papers.base.record.body,
        spec=papers.base.record.spec,
        weights=str(weights),
        data=str(data),
        partition=papers.order.spec.data.partition,
        index=0,
        members=len(papers.roster),
        parts=papers.roster.rules.parts,
        inner_steps=train.inner_steps,
        batch=train.batch,
        learning_rate=train.learning_rate,
        optimizer=train.optimizer,
        outer_learning_rate=OUTER_LEARNING_RATE,
        outer_momentum=OUTER_MOMENTUM,
        selection=papers.order.spec.data.selection,
        precision=train.precision,
        wire=train.wire,
    )


def _wires(archive: Archive, one: Replayable, link: Link, carried: Link | None) -> list[bytes] | None:
    """The blobs of a replay; None when something in them is not what was committed to."""
    blobs = []
    for at in (link, carried):
        if at is None:
            continue
        try:
            pieces = [archive.wire(at, one.member, part) for part in one.parts]
        except ProtocolViolation:
            return None
        if None in pieces:
            return None
        blobs.append(b"".join(piece for piece in pieces if piece is not None))
    return blobs


def _aggregate(archive: Archive, link: Link) -> bytes | None:
    try:
        pieces = [archive.aggregate(link, part) for part in range(len(link.body.parts))]
    except ProtocolViolation:
        return None
    return None if None in pieces else b"".join(piece for piece in pieces if piece is not None)
