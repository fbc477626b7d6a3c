"""A stranger verifies a run by its transcript, with the real worker process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import trio

from celluler.aggregation.digests import mantissas_of
from celluler.aggregation.q16 import decode_parts
from celluler.content.digest import Codec, Digest, cid_of, digest_of, parse_cid
from celluler.content.manifest import describe
from celluler.errors import NotFound, WorkerFailed
from celluler.jobs.checkpoints import checkpoint_name, checkpoint_version
from celluler.learning.audit import TOLERANCE, Outcome, TrainingReport
from celluler.learning.transcript import Transcript
from celluler_node.cli import verify_commands
from celluler_node.cli.root import run
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits
from celluler_node.processes.worker_words import WORKER, ApplyRound, Replay, Replayed, StartRun, TrainRound
from celluler_node.verifying.command import Sample, verify_training
from celluler_node.verifying.papers import claim_of, rounds_claimed
from tests.support import cases
from tests.support.specs import as_bytes
from tests.support.transcripts import BATCH, SPEC, STEPS, Member, Played, Update, honest, play
from tests.support.verifying import KnowingNode, cid_of_file

LIMITS = Limits(memory_bytes=4 << 30, file_bytes=1 << 30, threads=1)
EVERYTHING = Sample(1 << 20, b"seed" * 4)


async def verify(
    played: Played, transcripts: Sequence[Path] | None = None, sample: Sample = EVERYTHING, **options: Any
) -> TrainingReport:
    here = {
        bytes(describe(path, kind).root): path for path, kind in ((played.weights, "model"), (played.data, "dataset"))
    }

    async def fetch(root: Digest, _: str) -> Path:
        if root not in here or options.get("lost"):
            raise NotFound(cid_of(root))
        return here[root]

    scratch = played.folder / f"scratch-{len(list(played.folder.iterdir()))}"
    scratch.mkdir()
    with ExitStack() as stack, trio.fail_after(120):
        files = [stack.enter_context(path.open("rb")) for path in transcripts or played.transcripts]
        return await verify_training(
            files, fetch, sample, worker=WORKER, limits=LIMITS, scratch=scratch, model=options.get("model")
        )


def outcomes(report: TrainingReport) -> dict[str, Outcome]:
    return {finding.check: finding.outcome for finding in report.findings}


def details(report: TrainingReport) -> dict[str, str]:
    return {finding.check: finding.detail for finding in report.findings}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Four honest members, three rounds."""
    return play(tmp_path_factory.mktemp("honest"))


async def test_an_honest_run_passes_and_every_replay_gives_the_same_bits(played: Played) -> None:
    report = await verify(played, model=claim_of(played.model()))
    assert report.ok
    assert set(outcomes(report).values()) == {Outcome.OK}
    assert all(finding.checked == finding.of for finding in report.findings)
    assert len(report.replays) == report.updates == report.replayable == 12
    assert all(one.same and one.deviation == 0 for one in report.replays)
    assert report.weights == cid_of(describe(played.result, "model").root, Codec.MANIFEST)
    assert {one.caught for one in report.odds} == {1.0}


async def test_a_run_on_a_coarse_wire_passes_too(tmp_path: Path) -> None:
    played = play(tmp_path, size=4, rounds=2, wire="q8")
    report = await verify(played, model=claim_of(played.model()))
    assert set(outcomes(report).values()) == {Outcome.OK}
    assert all(one.same for one in report.replays)


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No node runs here."""
    monkeypatch.setenv("CELLULER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CELLULER_CONFIG", raising=False)


def command(played: Played, *arguments: str, files: Sequence[Path] | None = None) -> list[str]:
    return ["verify", *map(str, files or played.transcripts[:1]), *arguments]


def given(played: Played) -> list[str]:
    return ["--weights", str(played.weights), "--data", str(played.data)]


@pytest.mark.usefixtures("alone")
def test_the_command_verifies_one_members_file_without_a_node(
    played: Played, capfd: pytest.CaptureFixture[str]
) -> None:
    seed = "00112233"
    assert run(command(played, *given(played), "--rounds", "1", "--peers", "2", "--seed", seed, "--json")) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["schema"], told["ok"], told["seed"]) == ("celluler/v1", True, seed)
    assert (told["updates"], told["replayable"], len(told["replays"])) == (12, 3, 2)
    found = {finding["check"]: finding for finding in told["findings"]}
    assert found["rule"]["outcome"] == found["result"]["outcome"] == "not checked"
    assert found["states"]["outcome"] == found["training"]["outcome"] == "ok"
    assert all(replay["deviation"] == 0 for replay in told["replays"])
    assert told["odds"][2] == {"share": 0.1, "caught": pytest.approx(1 - 0.9**2)}


@pytest.mark.usefixtures("alone")
def test_the_command_says_when_no_training_could_be_looked_at(
    played: Played, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(command(played)) == 6
    out, err = capfd.readouterr()
    assert "not checked\ttraining\t0 of 12\tno node runs" in out
    assert "0 of 3 updates that can be replayed were" in err
    assert "9 updates cannot be replayed" in err
    assert run(command(played, "--weights", str(played.data), "--data", str(played.data))) == 6
    assert "is not the weights of this run" in capfd.readouterr().out


@pytest.mark.usefixtures("alone")
def test_the_command_fails_with_7_when_a_signature_does_not_hold(
    played: Played, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with played.transcripts[0].open("rb") as file:
        transcript = Transcript(file)
        transcript.scan(played.roster.rules.parts)
        last = transcript.height(3)
    assert last is not None
    data = bytearray(played.transcripts[0].read_bytes())
    data[data.index(last.certificate.quorum.marks[0].signature)] ^= 1
    (tmp_path / "torn").write_bytes(data)
    assert run(command(played, *given(played), files=[tmp_path / "torn"])) == 7
    assert "wrong\tcertificates\t3 of 4\tround 3:" in capfd.readouterr().out
    (tmp_path / "none").write_bytes(b"not a transcript at all")
    assert run(command(played, files=[tmp_path / "none"])) == 7
    assert run(command(played, "--seed", "xyz")) == 2
    assert run(["verify", "neither-a-file-nor-a-cid"]) == 2


# --- members that do not do their work ------------------------------------------------------------------------------


def half_the_steps(member: Member, number: int, fresh: bool) -> npt.NDArray[np.float32]:
    return member.lazy.train(number, fresh=fresh)[0]


def wrong_data(member: Member, number: int, fresh: bool) -> npt.NDArray[np.float32]:
    return member.misled.train(number, fresh=fresh)[0]


def cached(member: Member, number: int, fresh: bool) -> npt.NDArray[np.float32]:
    """What it sent in the first round, again and again."""
    if number == 0:
        return honest(member, number, fresh)
    exponents, mantissas = member.wires[0]
    return decode_parts(exponents, mantissas_of(mantissas))


def copied(member: Member, number: int, fresh: bool) -> npt.NDArray[np.float32]:
    """The first member's update under its own name."""
    return member.world.members[0].trainer.train(number, fresh=fresh)[0]


LAZY: dict[int, Update] = {1: half_the_steps, 2: wrong_data, 3: cached, 4: copied}


async def test_members_that_do_not_do_their_work_are_told_apart_from_one_that_does(tmp_path: Path) -> None:
    report = await verify(play(tmp_path, size=5, rounds=2, updates=LAZY))
    assert not report.ok
    found = outcomes(report)
    assert found.pop("training") is Outcome.WRONG
    assert found.pop("result") is Outcome.OPEN
    assert set(found.values()) == {Outcome.OK}  # all of it was certified, and nothing but a replay shows it
    guilty = {(one.nickname, one.round) for one in report.replays if one.guilty}
    assert len({one.peer for one in report.replays} - {one.peer for one in report.replays if one.guilty}) == 1
    assert {number for _, number in guilty} == {0, 1}
    assert len(guilty) == 7  # the cached one is honest in the first round
    assert min(one.deviation for one in report.replays if one.guilty) > 0.1
    assert all(one.same for one in report.replays if not one.guilty)


async def test_a_checkpoint_is_what_the_run_had_come_to_then(tmp_path: Path, played: Played) -> None:
    version = checkpoint_version("1.0.0", 2)
    claim = claim_of(played.model())
    other = replace(claim, rounds=2)
    report = await verify(played, model=other, sample=Sample(0, b"s"))
    assert outcomes(report)["result"] is Outcome.WRONG  # these are the weights after three
    assert "had come to after 2 rounds" in details(report)["result"]
    weights = parse_cid(report.weights)
    report = await verify(played, model=replace(other, weights=weights), sample=Sample(0, b"s"))
    assert outcomes(report)["result"] is Outcome.OK
    assert rounds_claimed(checkpoint_name("digits"), version) == 2
    assert rounds_claimed("digits", version) is None


# --- by name, and as evidence ---------------------------------------------------------------------------------------


@pytest.fixture
def node(played: Played, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KnowingNode]:
    """Knows the weights the run began from, the data, and all that the members announced."""
    node = KnowingNode(played)
    node.hold(played.weights, "model")
    node.hold(played.data, "dataset")
    monkeypatch.setattr(verify_commands, "open_session", node.session)
    monkeypatch.setenv("CELLULER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CELLULER_CONFIG", raising=False)
    yield node
    node.close()


def announce_all(node: KnowingNode, played: Played) -> None:
    for member, path in zip(played.roster.members, played.transcripts, strict=True):
        node.announce(member.peer, path)


def test_a_model_is_verified_by_its_name_alone(
    played: Played, node: KnowingNode, capfd: pytest.CaptureFixture[str]
) -> None:
    announce_all(node, played)
    model = node.publish(played.model(transcripts=(describe(played.transcripts[2], "blob").root,)))
    assert run(["verify", model.reference, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["ok"]
    assert all(found["outcome"] == "ok" and found["checked"] == found["of"] for found in told["findings"])
    assert len(told["replays"]) == told["updates"] == 12


def test_evidence_of_an_audit_is_judged_by_doing_the_steps_again(
    tmp_path: Path, node: KnowingNode, capfd: pytest.CaptureFixture[str]
) -> None:
    """Half of the steps, in round 1; the quorum says guilty of that member, and of one that did its work."""
    (tmp_path / "run").mkdir()
    lazy = play(tmp_path / "run", size=4, rounds=2, updates={1: half_the_steps})
    node.hold(lazy.weights, "model")
    node.hold(lazy.data, "dataset")
    node.job_id = cid_of(digest_of(lazy.opening.order))
    announce_all(node, lazy)

    def judged(evidence: bytes) -> tuple[int, str, str]:
        (tmp_path / "evidence").write_bytes(evidence)
        code = run(["verify", str(tmp_path / "evidence"), "--json"])
        told = json.loads(capfd.readouterr().out)
        return code, told["verdict"], told["findings"][-1]["detail"]

    code, verdict, detail = judged(cases.audit(lazy, 1, 1))
    assert (code, verdict) == (0, "holds"), detail
    code, verdict, detail = judged(cases.audit(lazy, 1, 2))
    assert (code, verdict) == (7, "does not hold"), detail
    assert "off by 0," in detail
    code, verdict, detail = judged(cases.refuted(lazy, 1, (0, 2)))
    assert (code, verdict) == (0, "holds"), detail
    node.blobs.pop(cid_of_file(lazy.data, "dataset"))
    assert judged(cases.audit(lazy, 1, 1))[:2] == (6, "not decided")


# --- the worker's word ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_worker(folder: Path, name: str) -> AsyncIterator[Child]:
    scratch = folder / name
    scratch.mkdir()
    with trio.fail_after(60):
        async with open_process(WORKER, limits=LIMITS, readable=[folder], scratch=scratch) as child:
            yield child


def start(played: Played, index: int, **changes: Any) -> StartRun:
    base = StartRun(
        run=b"r" * 32, spec=as_bytes(SPEC), weights=str(played.weights), data=str(played.data), partition="shard",
        index=index, members=3, parts=2, inner_steps=STEPS, batch=BATCH, learning_rate=0.01, optimizer="adam",
        outer_learning_rate=0.7, outer_momentum=0.4,
    )  # fmt: skip
    return replace(base, **changes)


async def test_one_worker_replays_what_another_trained_bit_for_bit(played: Played, tmp_path: Path) -> None:
    async with open_worker(played.folder, "trainer") as trainer, open_worker(played.folder, "auditor") as auditor:
        await trainer.call(start(played, 2))
        await auditor.call(start(played, 0))
        first = await trainer.call(TrainRound(0, fresh=True))
        for child in (trainer, auditor):
            await child.call(ApplyRound(0, first.record.exponents), first.blobs[0])
        second = await trainer.call(TrainRound(1, fresh=False))
        both, wires = (0, 1), (second.blobs[0], first.blobs[0])
        honest_one = Replay(1, 2, both, second.record.exponents, first.record.exponents)
        assert (await auditor.call(honest_one, *wires)).record == Replayed(True, (0.0, 0.0))
        half = len(wires[0]) // 2
        only = Replay(1, 2, (1,), second.record.exponents[1:], first.record.exponents[1:])
        assert (await auditor.call(only, *(wire[half:] for wire in wires))).record == Replayed(True, (0.0,))
        flipped = bytearray(wires[0])
        flipped[0] ^= 1
        told = (await auditor.call(honest_one, flipped, wires[1])).record
        assert not told.same
        assert told.deviations[1] == 0
        for other in (replace(honest_one, index=1), replace(honest_one, before=())):
            told = (await auditor.call(other, *wires[: 1 + bool(other.before)])).record
            assert min(told.deviations) > TOLERANCE
        coarse = tuple(exponent + 14 for exponent in second.record.exponents)  # zero is within half of such a unit
        told = (await auditor.call(replace(honest_one, exponents=coarse), bytes(2 * half), wires[1])).record
        assert min(told.deviations) > TOLERANCE
        for wrong, blobs, reason in [
            (replace(honest_one, round=0), wires, "the state before round 0 is not here"),
            (replace(honest_one, round=2), wires, "the state before round 2 is not here"),
            (honest_one, wires[:1], "1 blobs"),
            (replace(honest_one, parts=(1, 0)), wires, "parts"),
            (replace(honest_one, parts=(1, 2)), wires, "no part 2"),
            (honest_one, (wires[0][:-2], wires[1]), "bytes"),
            (replace(honest_one, exponents=(1, 2000)), wires, "exponent"),
            (replace(honest_one, before=(1,)), wires, "exponents"),
        ]:
            with pytest.raises(WorkerFailed, match=reason):
                await auditor.call(wrong, *blobs)
        assert (await auditor.call(honest_one, *wires)).record.same
