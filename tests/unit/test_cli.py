"""The command line: what it prints where, its exit codes, and that it starts light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from celluler.client import AsyncClient
from celluler.identity import load_identity
from celluler.jobs.states import JobState
from celluler_node.cli import blob_commands, job_commands, model_commands, node_commands, peer_commands, run_command
from celluler_node.cli.root import COMMANDS, load, run
from celluler_node.gateway.app import gateway_app
from tests.support.jobs import DATA_CID, JOB_YAML
from tests.support.operations import MemoryNode

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def node() -> Iterator[MemoryNode]:
    node = MemoryNode()
    yield node
    node.close()


@pytest.fixture
def celluler(
    node: MemoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command in this process against the node in memory: (exit code, stdout, stderr)."""

    @asynccontextmanager
    async def session(join: list[str] = []) -> AsyncIterator[AsyncClient]:  # noqa: B006
        transport = httpx.ASGITransport(app=gateway_app(node, "t"), raise_app_exceptions=False)
        async with AsyncClient("http://localhost", "t", transport=transport) as client:
            yield client

    for module in (blob_commands, job_commands, model_commands, node_commands, peer_commands, run_command):
        monkeypatch.setattr(module, "open_session", session)
    monkeypatch.setenv("CELLULER_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_every_command_is_listed_and_can_be_loaded() -> None:
    for name in COMMANDS:
        assert load(name).help


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["--home", "x", "--version"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys, json; from celluler_node.cli import main; sys.argv[1:] = json.loads(sys.argv[1])\n"
        "try: main()\n"
        "except SystemExit as leaving: assert not leaving.code, leaving.code\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments)], capture_output=True, timeout=30, check=True
    )
    text, _, modules = done.stdout.decode().strip().rpartition("\n")
    assert "celluler" in text
    heavy = {"torch", "libp2p", "hivemind", "httpx", "trio", "numpy", "yaml", "starlette", "rich", "nacl"}
    assert not heavy & set(json.loads(modules))


def test_no_command_at_all_is_wrong_use(celluler: Run) -> None:
    code, out, _ = celluler()
    assert code == 2
    assert "Commands:" in out


@pytest.mark.parametrize("arguments", [["sumbit"], ["job", "sumbit"], ["status", "--nope"], ["model", "show"]])
def test_wrong_use_exits_with_2(celluler: Run, arguments: list[str]) -> None:
    assert celluler(*arguments)[0] == 2


def test_without_a_node_the_next_command_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "CELLULER_HOME": str(tmp_path)}
    for arguments in (["down"], ["job", "ls", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "celluler_node.cli", *arguments],
            capture_output=True, text=True, timeout=30, check=False, env=environment,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (3, "")
        assert "celluler up" in done.stderr
    assert json.loads(done.stderr)["error"]["type"] == "NodeNotRunning"


def test_a_document_has_a_schema_and_lines_have_tabs(celluler: Run) -> None:
    code, out, err = celluler("status", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert (document["schema"], document["nickname"]) == ("celluler/v1", "alice")
    _, out, _ = celluler("peer", "ls")
    assert [line.split("\t")[1] for line in out.splitlines()] == ["alice", "bob"]
    assert json.loads(celluler("peer", "ls", "--json")[1])["peers"][1]["nickname"] == "bob"
    assert "2.0 ms" in celluler("peer", "ping", "bob")[1]
    assert "bob" in celluler("peer", "show", "bob")[1]


def test_an_error_goes_to_stderr_with_its_exit_code(celluler: Run) -> None:
    code, out, err = celluler("peer", "show", "carol")
    assert (code, out) == (4, "")
    assert "not found: peer carol" in err
    assert "next: celluler peer ls" in err
    code, _, err = celluler("peer", "show", "carol", "--json")
    assert json.loads(err)["error"]["exit_code"] == code == 4


def test_doctor_fails_when_something_is_wrong(celluler: Run) -> None:
    code, out, _ = celluler("doctor")
    assert code == 1
    assert "WRONG\tpeers" in out


def test_content_goes_in_and_comes_out(celluler: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"bytes")
    cid = json.loads(celluler("blob", "add", str(tmp_path / "in"), "--json")[1])["cid"]
    assert celluler("blob", "get", cid, str(tmp_path / "out"))[0] == 0
    assert (tmp_path / "out").read_bytes() == b"bytes"
    assert "all of it" in celluler("blob", "stat", cid)[1]
    assert celluler("blob", "stat", DATA_CID)[0] == 4
    assert celluler("blob", "add", str(tmp_path / "absent"))[0] == 2


def test_a_model_is_published_shown_and_run(celluler: Run, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"layers": []}')
    code, out, _ = celluler("model", "add", "alice/d:1.0.0", str(tmp_path / "m.json"), "--label", "a", "--label", "b")
    assert code == 0
    assert "alice/d:1.0.0" in out
    assert celluler("model", "add", "alice/d:1.0.0", str(tmp_path / "m.json"))[0] == 2
    assert json.loads(celluler("model", "ls", "--json")[1])["models"][0]["labels"] == ["a", "b"]
    assert celluler("model", "pull", "alice/d")[0] == 0
    assert celluler("model", "show", "alice/none")[0] == 4
    code, out, err = celluler("run", "alice/d", "[[1, 5], [7, 2]]")
    assert (code, [line.split("\t")[1] for line in out.splitlines()]) == (0, ["one", "zero"])
    assert "alice/d:1.0.0 at" in err
    (tmp_path / "in.json").write_text("[[1.5]]")
    assert json.loads(celluler("run", "alice/d", str(tmp_path / "in.json"), "--json")[1])["outputs"] == [[3.0]]
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY no")
    for wrong in ("[1", "[[1], [2, 3]]", str(tmp_path / "absent.json"), str(tmp_path / "bad.npy")):
        assert celluler("run", "alice/d", wrong)[0] == 2


def test_a_job_is_submitted_with_its_files_and_followed(celluler: Run, node: MemoryNode, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB_YAML.replace(f"{{cid: {DATA_CID}, partition: iid}}", "{partition: iid}"))
    (tmp_path / "data").write_bytes(b"samples")
    (tmp_path / "arch.json").write_text("{}")
    code, out, err = celluler(
        "job", "submit", str(tmp_path / "job.yaml"), "--data", str(tmp_path / "data"),
        "--architecture", str(tmp_path / "arch.json"), "--client-id", "mine", "--json",
    )  # fmt: skip
    assert code == 0
    assert "added" in err
    job = json.loads(out)["id"]
    assert len(node.attachments) == 3
    assert json.loads(celluler("job", "show", job[-6:], "--json")[1])["state"] == "Pending"
    node.move(job, JobState.FETCHING)
    node.move(job, JobState.RUNNING)
    node.measure(job, round=1, loss=0.25)
    node.move(job, JobState.FAILED, "two members left")
    code, out, _ = celluler("job", "logs", "-f", job)
    assert code == 0
    assert "loss 0.25" in out
    assert "two members left" in out
    lines = [json.loads(line) for line in celluler("job", "logs", job, "--json", "--since", "3")[1].splitlines()]
    assert [line["cursor"] for line in lines] == [4, 5]
    assert celluler("job", "wait", job)[0] == 1
    assert "Failed\t" in celluler("job", "ls")[1]
    assert celluler("job", "cancel", job)[0] == 0
    assert celluler("job", "show", "000000")[0] == 4


def test_waiting_for_a_job_has_an_end(celluler: Run, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB_YAML)
    job = json.loads(celluler("job", "submit", str(tmp_path / "job.yaml"), "--json")[1])["id"]
    assert celluler("job", "wait", job, "--timeout", "0.05")[0] == 6


def test_a_spec_is_validated_without_a_node(celluler: Run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(JOB_YAML)
    (tmp_path / "bad.yaml").write_text(JOB_YAML.replace("rounds", "round"))
    code, out, _ = celluler("job", "validate", str(tmp_path / "good.yaml"), "--json")
    assert (code, json.loads(out)["name"]) == (0, "digits")
    code, _, err = celluler("job", "validate", str(tmp_path / "bad.yaml"))
    assert code == 2
    assert "train.round: unknown key" in err
    assert "did you mean 'rounds'" in err
    assert celluler("job", "validate", str(tmp_path / "absent.yaml"))[0] == 2


def test_an_identity_is_made_shown_and_moved(celluler: Run, tmp_path: Path) -> None:
    assert celluler("id", "show")[0] == 2
    peer = json.loads(celluler("init", "--nickname", "alice", "--json")[1])["peer_id"]
    assert json.loads(celluler("init", "--json")[1])["peer_id"] == peer
    assert json.loads(celluler("id", "show", "--json")[1])["peer_id"] == peer
    assert celluler("id", "export", str(tmp_path / "key"))[0] == 0
    assert load_identity(tmp_path / "key").peer_id == peer
    code, _, err = celluler("id", "import", str(tmp_path / "key"))
    assert code == 2
    assert "is there already" in err
    assert celluler("--home", str(tmp_path / "other"), "id", "import", str(tmp_path / "key"))[0] == 0
    assert json.loads(celluler("--home", str(tmp_path / "other"), "id", "show", "--json")[1])["peer_id"] == peer
    (tmp_path / "torn").write_text("celluler-ed25519-1 AAAA")
    assert celluler("--home", str(tmp_path / "third"), "id", "import", str(tmp_path / "torn"))[0] == 7


def test_a_wrong_configuration_stops_up_before_anything_starts(celluler: Run, tmp_path: Path) -> None:
    code, _, err = celluler("up", "--listen", "4040")
    assert code == 2
    assert "network.listen" in err
    assert not (tmp_path / "home").exists()
