"""`celluler train`: documents from flags and files, following, stopping, resuming, and that `--help` stays light."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import httpx
import pytest
import trio
import typer.main

from celluler.client import AsyncClient
from celluler.content.digest import cid_of, digest_of
from celluler.errors import InvalidSpec, LocalError
from celluler.jobs.checkpoints import checkpoint_version
from celluler.jobs.spec import TrainJob, check_job
from celluler.jobs.states import JobState
from celluler.views import JobChange, Model
from celluler_node.cli import invite_commands, job_commands, live, submitting, train_commands, train_spec
from celluler_node.cli.root import run
from celluler_node.gateway.app import gateway_app
from tests.support.jobs import ALICE, BOB, DATA_CID, JOB_YAML, NOW_S
from tests.support.operations import MemoryNode
from tests.support.trainings import MEMBERS, figures

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def node() -> Iterator[MemoryNode]:
    node = MemoryNode()
    yield node
    node.close()


@asynccontextmanager
async def session_with(node: MemoryNode) -> AsyncIterator[AsyncClient]:
    transport = httpx.ASGITransport(app=gateway_app(node, "t"), raise_app_exceptions=False)
    async with AsyncClient("http://localhost", "t", transport=transport) as client:
        yield client


@pytest.fixture
def celluler(node: MemoryNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process against the node in memory: (exit code, stdout, stderr)."""
    for module in (invite_commands, job_commands, train_commands):
        monkeypatch.setattr(module, "open_session", lambda _join: session_with(node))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def trained(node: MemoryNode, job: str, rounds: int) -> None:
    node.told[job] = replace(node.told[job], members=MEMBERS, coordinator=MEMBERS[1])
    node.move(job, JobState.FETCHING)
    node.move(job, JobState.RUNNING)
    for number in range(1, rounds + 1):
        node.measure(job, figures(number), round=number, loss=figures(number).loss or 0.0)


def started(celluler: Run, tmp_path: Path) -> str:
    (tmp_path / "job.yaml").write_text(JOB_YAML)
    return str(json.loads(celluler("train", "start", str(tmp_path / "job.yaml"), "--json")[1])["id"])


# --- the document ------------------------------------------------------------------------------------------------


def test_flags_alone_make_a_job(celluler: Run) -> None:
    code, out, _ = celluler(
        *("train", "start", "--model", "alice/digits-mlp:0.1.0", "--data", DATA_CID, "--rounds", "5", "--lr", "0.2"),
        *(
            "--optimizer",
            "sgd",
            "--min-peers",
            "2",
            "--set",
            "train.parts=4",
            "--deadline",
            "1h",
            "--dry-run",
            "--json",
        ),
    )
    spec = json.loads(out)["spec"]
    assert code == 0
    assert spec["name"] == "digits-mlp"
    assert (spec["train"]["rounds"], spec["train"]["learning_rate"], spec["train"]["parts"]) == (5, 0.2, 4)
    assert (spec["policy"]["deadline"], spec["resources"]["peers"]["min"]) == (3600, 2)


def test_flags_go_before_the_file(celluler: Run, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB_YAML)
    _, out, _ = celluler("train", "start", str(tmp_path / "job.yaml"), "--rounds", "3", "--name", "other", "--dry-run")
    assert "name: other" in out
    assert "rounds: 3" in out
    assert "inner_steps: 20" in out
    assert check_job(submitting.read_document(out)).train.rounds == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "train.rounds"),
        (["--aggregator", "best"], "train.aggregator"),
        (["--topology", "ring"], "train"),
        (["--set", "train.round=3"], "did you mean 'rounds'"),
        (["--set", "rounds"], "PATH=VALUE"),
        (["--set", "name.x=3"], "not a mapping"),
        (["--data", "./nothing.safetensors"], "no file at"),
        (["--data", "nonsense"], "CID"),
    ],
)
def test_a_flag_out_of_place_is_told_by_its_place(
    celluler: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "job.yaml").write_text(JOB_YAML)
    code, _, err = celluler("train", "start", str(tmp_path / "job.yaml"), *arguments, "--dry-run")
    assert code == 2
    assert said in err


def test_every_flag_has_a_place_in_the_spec_and_every_choice_is_in_its_help() -> None:
    start = typer.main.get_command(train_commands.app).commands["start"]  # type: ignore[attr-defined]
    helps = {param.name: getattr(param, "help", "") for param in start.params}
    for flag, path in train_spec.PATHS.items():
        kind: Any = TrainJob
        for step in path.split("."):
            kind = kind.model_fields[step].annotation
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        assert all(choice in helps[flag] for choice in choices), flag


def test_data_is_a_file_a_cid_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"data")
    document: dict[str, Any] = {"data": {"cid": DATA_CID, "partition": "shard"}}
    assert train_spec.take_data(document, "alice/digits:1.0.0") is None
    assert document == {"data": {"dataset": "alice/digits:1.0.0", "partition": "shard"}}
    assert train_spec.take_data(document, DATA_CID) is None
    assert document == {"data": {"cid": DATA_CID, "partition": "shard"}}
    assert train_spec.take_data(document, str(tmp_path / "x")) == tmp_path / "x"
    assert document == {"data": {"partition": "shard"}}
    with pytest.raises(LocalError):
        train_spec.take_data(document, "a/b/c.parquet")
    with pytest.raises(InvalidSpec):
        train_spec.take_data({"data": 3}, DATA_CID)


def test_files_are_added_and_published_first(celluler: Run, node: MemoryNode, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"samples")
    (tmp_path / "arch.json").write_text("{}")
    arguments = ["--model", "alice/net:0.1.0", "--architecture", str(tmp_path / "arch.json"), "--rounds", "2"]
    code, out, err = celluler("train", "start", *arguments, "--data", str(tmp_path / "data"), "--json")
    assert code == 0
    assert "published alice/net:0.1.0" in err
    assert len(node.attachments) == 3
    assert node.specs[json.loads(out)["id"]].data.cid in node.attachments


# --- watching ----------------------------------------------------------------------------------------------------


def test_without_a_terminal_the_job_is_printed_and_left(celluler: Run, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB_YAML)
    code, out, _ = celluler("train", "start", str(tmp_path / "job.yaml"))
    assert (code, "state\tPending" in out) == (0, True)


async def test_following_gives_lines_with_their_rounds_and_draws(
    node: MemoryNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    async def on_told(training: Any) -> None:
        seen.append(len(training.rounds))

    async with session_with(node) as client:
        job = await client.jobs.submit(JOB_YAML)
        trained(node, job.id, 2)
        node.move(job.id, JobState.FAILED, "two members left")
        training = await live.print_lines(client, job, train_commands.Output(as_json=True), on_told)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["cursor"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[4]["round"]["norms"][MEMBERS[3]] == 40.0
    assert training.job.state == "Failed"
    assert seen == [2, 2]


async def test_the_live_page_is_redrawn_until_the_end_and_the_last_one_stays(
    node: MemoryNode, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(job: str) -> None:
        await node.polled_twice.wait()
        trained(node, job, 3)
        node.move(job, JobState.VERIFYING)
        node.move(job, JobState.SUCCEEDED)

    async def nothing(_training: Any) -> None:
        pass

    async with session_with(node) as client, trio.open_nursery() as nursery:
        job = await client.jobs.submit(JOB_YAML)
        nursery.start_soon(work, job.id)
        with trio.fail_after(10):
            training = await live.watch(client, job, live.console_for(False), nothing, redraw_s=0.01)
    assert (training.job.state, len(training.rounds)) == ("Succeeded", 3)
    out = capsys.readouterr().out
    assert "Succeeded" in out
    assert "3 of 20" in out
    assert "alice/digits:1.0.0" in out


def test_ctrl_c_leaves_the_job_to_itself_and_says_how_to_look_again(
    celluler: Run, node: MemoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_arguments: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "watch", interrupted)
    monkeypatch.setattr(live, "print_lines", interrupted)
    (tmp_path / "job.yaml").write_text(JOB_YAML)
    code, _, err = celluler("train", "start", str(tmp_path / "job.yaml"), "--follow")
    (job,) = node.told
    assert code == 130
    assert f"the job goes on; to look again: celluler train status {job[-8:]}" in err
    assert node.told[job].state == "Pending"


def test_the_newest_training_is_shown_when_none_is_named(celluler: Run, node: MemoryNode, tmp_path: Path) -> None:
    code, _, err = celluler("train", "status")
    assert code == 4
    assert "celluler train start" in err
    trained(node, started(celluler, tmp_path), 2)
    code, out, _ = celluler("train", "status")
    assert code == 0
    assert "2 of 20" in out
    document = json.loads(celluler("train", "status", "--json")[1])
    assert [one["round"] for one in document["rounds"]] == [1, 2]
    assert document["spec"]["train"]["rounds"] == 20
    assert document["job"]["state"] == "Running"


def test_curves_are_drawn_as_one_file(celluler: Run, node: MemoryNode, tmp_path: Path) -> None:
    trained(node, started(celluler, tmp_path), 4)
    assert celluler("train", "status", "--plot", str(tmp_path / "t.html"))[0] == 0
    assert "training loss" in (tmp_path / "t.html").read_text("utf-8")
    code, _, err = celluler("train", "status", "--plot", str(tmp_path / "t.pdf"))
    assert (code, "neither .png nor .html" in err) == (2, True)
    assert celluler("train", "status", "--plot", str(tmp_path / "no" / "t.html"))[0] == 2
    assert [path.name for path in tmp_path.glob("*t.*")] == ["t.html"]


# --- stopping, resuming, changing --------------------------------------------------------------------------------


def test_a_training_is_stopped_and_resumed_from_its_checkpoint(celluler: Run, node: MemoryNode, tmp_path: Path) -> None:
    job = started(celluler, tmp_path)
    trained(node, job, 7)
    code, _, err = celluler("train", "resume", job)
    assert (code, "celluler train stop" in err) == (2, True)
    code, out, err = celluler("train", "stop", job)
    assert code == 0
    assert "alice/digits-checkpoint:2.0.0-round.7" in out
    assert f"celluler train resume {job[-8:]}" in err
    assert celluler("train", "resume", job)[0] == 4
    published(node, job, 5, 7)
    code, out, err = celluler("train", "resume", job, "--set", "train.batch=64", "--json")
    assert (code, "13 rounds more" in err) == (0, True)
    spec = node.specs[json.loads(out)["id"]]
    assert (spec.train.rounds, spec.train.batch, spec.model) == (13, 64, checkpoint_cid(7))
    code, _, err = celluler("train", "resume", job, "--rounds", "0")
    assert (code, "no rounds left" in err) == (2, True)
    assert celluler("train", "resume", job, "--model", "alice/x:1.0.0")[0] == 2


def test_a_training_that_did_all_its_rounds_is_not_resumed(celluler: Run, node: MemoryNode, tmp_path: Path) -> None:
    job = started(celluler, tmp_path)
    trained(node, job, 20)
    node.move(job, JobState.VERIFYING)
    node.move(job, JobState.SUCCEEDED)
    code, _, err = celluler("train", "resume", job)
    assert code == 2
    assert "celluler train start --model alice/digits:1.0.0" in err


def test_a_checkpoint_that_no_member_published_is_not_believed(celluler: Run, node: MemoryNode, tmp_path: Path) -> None:
    job = started(celluler, tmp_path)
    trained(node, job, 7)
    node.move(job, JobState.FAILED, "two members left")
    published(node, job, 5)
    published(node, "of another job", 6)
    published(node, job, 9, author="12D3KooWstranger")
    _, out, _ = celluler("train", "resume", job, "--json")
    assert node.specs[json.loads(out)["id"]].model == checkpoint_cid(5)


def test_the_newest_checkpoint_is_shown_and_none_of_more_rounds_than_there_are(
    celluler: Run, node: MemoryNode, tmp_path: Path
) -> None:
    job = started(celluler, tmp_path)
    trained(node, job, 7)
    assert json.loads(celluler("train", "status", "--json")[1])["checkpoint"] is None
    published(node, job, 3, 6, 21)
    told = json.loads(celluler("train", "status", "--json")[1])["checkpoint"]
    assert (told["rounds"], told["manifest"]) == (6, checkpoint_cid(6))
    assert "digits-checkpoint:2.0.0-round.6 (as its publisher says)" in celluler("train", "status")[1]


def checkpoint_cid(rounds: int) -> str:
    return cid_of(digest_of(bytes([rounds])))


def published(node: MemoryNode, job: str, *rounds: int, author: str = ALICE.peer_id) -> None:
    for count in rounds:
        node.known[f"{author[-3:]}{job[-3:]}{count}"] = Model(
            name="digits-checkpoint",
            version=checkpoint_version("2.0.0", count),
            cid=checkpoint_cid(count),
            author=author,
            nickname="alice",
            task="",
            parameters=1,
            weights=DATA_CID,
            weights_bytes=4,
            local=True,
            created_s=1.0,
            job=job,
            description="digits-checkpoint",
        )


def test_what_may_change_is_changed(celluler: Run, node: MemoryNode, tmp_path: Path) -> None:
    job = started(celluler, tmp_path)
    assert celluler("train", "update", job, "--deadline", "4h", "--max-peers", "5")[0] == 0
    assert node.changes == [JobChange(14400, None, 5)]
    assert celluler("train", "update", job)[0] == 2
    assert celluler("train", "update", job, "--deadline", "soon")[0] == 2


def test_a_peer_is_invited_and_joins(celluler: Run, node: MemoryNode, tmp_path: Path) -> None:
    job = started(celluler, tmp_path)
    code, out, err = celluler("train", "invite", job[-8:], BOB.peer_id, "--for", "30m")
    assert (code, out.startswith("invite-"), "train join" in err) == (0, True, True)
    told = json.loads(celluler("train", "join", out.strip(), "--json")[1])
    assert told["id"] == job
    told = json.loads(celluler("train", "invite", job, BOB.peer_id, "--json")[1])
    assert (told["peer"], told["expires_s"]) == (BOB.peer_id, NOW_S + 3600)
    assert celluler("train", "invite", job, BOB.peer_id, "--for", "soon")[0] == 2
    for_alice = celluler("train", "invite", job, ALICE.peer_id)[1]
    assert celluler("train", "join", for_alice.strip())[0] == 5
    code, _, err = celluler("train", "join", out.strip()[:-9])
    assert (code, "is damaged" in err) == (2, True)


def test_the_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from celluler_node.cli.root import run; run(['train', 'start', '--help']);"
        "sys.exit(bool({'celluler.jobs.spec', 'matplotlib', 'numpy', 'torch', 'libp2p'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)
