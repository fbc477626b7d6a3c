"""The command line: what it prints where, its exit codes, and that it starts light."""

from __future__ import annotations

import io
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
from celluler.views import DamagedContent, ModelQuery
from celluler_node.cli import (
    blob_commands,
    data_commands,
    embed_command,
    job_commands,
    model_commands,
    node_commands,
    peer_commands,
    run_command,
    version_commands,
)
from celluler_node.cli.output import Output
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

    for module in (
        blob_commands,
        data_commands,
        embed_command,
        job_commands,
        model_commands,
        node_commands,
        peer_commands,
        run_command,
        version_commands,
    ):
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
    assert celluler("run", "alice/d", "[1, 2]", "--output", "sample")[1].split() == ["3", "6"]
    (tmp_path / "in.json").write_text("[[1.5]]")
    assert json.loads(celluler("run", "alice/d", str(tmp_path / "in.json"), "--json")[1])["outputs"] == [[3.0]]
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY no")
    assert celluler("run", "alice/d", '["käse", "a"]', "--output", "echo")[1].splitlines() == ['"käse"', '"a"']
    for wrong in ("[1", "[[1], [2, 3]]", str(tmp_path / "absent.json"), str(tmp_path / "bad.npy")):
        assert celluler("run", "alice/d", wrong)[0] == 2


def test_texts_become_vectors(celluler: Run, node: MemoryNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.json").write_text('{"layers": []}')
    assert celluler("model", "add", "alice/d:1.0.0", str(tmp_path / "m.json"))[0] == 0
    code, out, err = celluler("embed", "alice/d", "!!", '"')
    assert (code, out.splitlines()) == (0, ["[66, 66]", "[68, 0]"])
    assert "alice/d:1.0.0 at" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("!!\n!\n"))
    told = json.loads(celluler("embed", "alice/d", "-", "--json")[1])
    assert (told["output"], told["outputs"]) == ("embedding", [[66, 66], [66, 0]])
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert celluler("embed", "alice/d", "-")[0] == 2
    assert celluler("embed", "alice/d")[0] == 2


def test_transforms_are_read_from_files(celluler: Run, node: MemoryNode, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"layers": []}')
    (tmp_path / "after.json").write_text('{"transforms": 1}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "twice.json").write_text('{"a": 1, "a": 2}')
    add = ("model", "add", "alice/d:1.0.0", str(tmp_path / "m.json"))
    for wrong in ("absent", "list.json", "twice.json"):
        assert celluler(*add, "--preprocess", str(tmp_path / wrong))[0] == 2
    assert celluler(*add, "--postprocess", str(tmp_path / "after.json"))[0] == 0
    model = node.known["alice/d:1.0.0"]
    assert (model.preprocess, model.postprocess) == (None, {"transforms": 1})


@pytest.fixture
def published(celluler: Run, tmp_path: Path) -> Run:
    """alice/d:1.0.0 with everything that can be said of a model, then 1.1.0."""
    (tmp_path / "m.json").write_text('{"layers": []}')
    (tmp_path / "card.md").write_text("# Digits\n\x1b[31mred\n")
    code, _, _ = celluler(
        "model", "add", "alice/d:1.0.0", str(tmp_path / "m.json"), "--card", str(tmp_path / "card.md"),
        "--tag", "digits", "--tag", "small", "--licence", "MIT", "--category", "vision", "--description", "8x8 digits",
        "--copies", "5", "--region", "eu", "--reader", "bob", "--alias", "stable",
    )  # fmt: skip
    assert code == 0
    assert celluler("model", "add", "alice/d:1.1.0", str(tmp_path / "m.json"))[0] == 0
    return celluler


def test_what_is_said_of_a_model_is_shown(published: Run, node: MemoryNode) -> None:
    model = node.known["alice/d:1.0.0"]
    assert (model.tags, model.licence, model.copies, model.regions) == (("digits", "small"), "MIT", 5, ("eu",))
    facts = dict(line.split("\t") for line in published("model", "show", "alice/d@stable")[1].splitlines())
    assert (facts["tags"], facts["readable by"], facts["copies wanted"]) == ("digits, small", "bob", "5 eu")
    assert facts["versions"] == "1.1.0 (current), 1.0.0 (stable)"
    assert facts["card"] == "celluler model card alice/d:1.0.0"
    document = json.loads(published("model", "show", "alice/d:1.0.0", "--json")[1])
    assert [version["version"] for version in document["versions"]] == ["1.1.0", "1.0.0"]
    assert document["category"] == "vision"


def test_models_are_searched_filtered_and_sorted(published: Run, node: MemoryNode) -> None:
    code, out, _ = published("model", "search", "8x8", "digits", "--licence", "MIT")
    assert code == 0
    assert out.split("\t")[:5] == ["alice/d:1.0.0", "classification", "10", "40 B", "MIT"]
    assert out.rstrip().endswith("here, encrypted")
    assert node.searched == ModelQuery("8x8 digits", licence="MIT", sort="relevance")
    listed = json.loads(published("model", "ls", "--tag", "small", "--local", "--sort", "newest", "--json")[1])
    assert [model["version"] for model in listed["models"]] == ["1.0.0"]
    assert node.searched == ModelQuery(tag="small", local=True, sort="newest")
    assert published("model", "ls", "--sort", "beauty")[0] == 2
    assert published("model", "search", "nothing-like-it") == (0, "", "")


def test_a_name_is_moved_between_versions(published: Run) -> None:
    def rows(*arguments: str) -> list[list[str]]:
        code, out, _ = published("model", *arguments)
        assert code == 0
        return [line.split("\t")[:3] for line in out.splitlines()]

    assert rows("versions", "alice/d") == [["1.1.0", "current", ""], ["1.0.0", "", "stable"]]
    assert rows("alias", "alice/d:1.1.0", "stable")[0] == ["1.1.0", "current", "stable"]
    assert rows("alias", "--drop", "alice/d@stable")[0] == ["1.1.0", "current", ""]
    assert rows("rollback", "alice/d:1.0.0")[1] == ["1.0.0", "current", ""]
    assert rows("retract", "alice/d:1.1.0", "--reason", "wrong labels")[0][1] == "RETRACTED: wrong labels"
    assert [row[2] for row in rows("log", "alice/d")][:2] == ["retracted", "rolled-back"]
    assert published("model", "alias", "alice/d:1.1.0")[0] == 2
    assert published("model", "retract", "alice/d:1.1.0")[0] == 2
    assert len(json.loads(published("model", "log", "alice/d", "--json")[1])["entries"]) == 7


def test_differences_and_lineage_are_told(published: Run) -> None:
    code, out, _ = published("model", "diff", "alice/d:1.0.0", "alice/d:1.1.0")
    assert code == 0
    for line in (
        "step\tminor",
        "to fetch\t2.0 KiB",
        "equal tensors\t5",
        "architecture\tlayers[2].width\t3\t4\t",
        "tensor\t0.weight\t[2, 3]\t[2, 3]\tnorm 0.5, 25.00%",
        "tensor\t1.weight\t\t[4]\tadded",
        "tensor\t2.bias\t[7]\t\tremoved",
        'metadata\tlicence\t"MIT"\t""\t',
    ):
        assert line in out.splitlines()
    assert json.loads(published("model", "diff", "alice/d:1.0.0", "alice/d", "--json")[1])["bump"] == "minor"
    assert [line.split("\t")[:2] for line in published("model", "lineage", "alice/d")[1].splitlines()] == [
        ["alice/d:1.1.0", "model"],
        ["  ?", "dataset"],
    ]


def test_a_model_is_verified_pulled_in_part_and_removed(published: Run, node: MemoryNode) -> None:
    assert published("model", "verify", "alice/d:1.1.0")[0] == 0
    published("model", "retract", "alice/d:1.1.0", "--reason", "wrong labels")
    code, out, _ = published("model", "verify", "alice/d:1.1.0")
    assert (code, out.splitlines()[1].split("\t")[0]) == (7, "WRONG")
    assert published("model", "pull", "alice/d:1.0.0", "--layers", "0:6")[0] == 0
    assert node.pulled == "0:6"
    code, _, err = published("model", "rm", "alice/d:1.0.0")
    assert (code, "is in use" in err) == (2, True)
    assert published("model", "rm", "alice/d:1.1.0")[0] == 0
    assert published("model", "show", "alice/d:1.1.0")[0] == 4


def test_what_others_wrote_cannot_steer_the_terminal(published: Run) -> None:
    code, out, _ = published("model", "card", "alice/d@stable")
    assert (code, out) == (0, "# Digits\n\ufffd[31mred\n")
    assert json.loads(published("model", "card", "alice/d@stable", "--json")[1])["card"] == "# Digits\n\x1b[31mred\n"
    assert published("model", "card", "alice/d:1.1.0")[0] == 4
    published("model", "retract", "alice/d:1.1.0", "--reason", "a\x1b]0;b\tc\u202e\x9b")
    assert "RETRACTED: a\ufffd]0;b c\ufffd\ufffd\t" in published("model", "versions", "alice/d")[1]


def test_a_table_on_a_terminal_takes_words_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    Output(as_json=False).table(("model", "note"), [("alice/d:1.0.0", "[/red] [bold]x")])
    assert "alice/d:1.0.0  [/red] [bold]x" in capsys.readouterr().out


def test_a_dataset_is_published_and_shown(celluler: Run, node: MemoryNode, tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"rows")
    code, out, _ = celluler(
        "data", "add", str(tmp_path / "d.parquet"), "--name", "alice/digits:1.0.0", "--label", "digit", "--tag", "small"
    )
    assert code == 0
    assert "label\tdigit" in out.splitlines()
    assert "x\tfloat32\t8×8\t\t0\t16\t4.5\t" in out.splitlines()
    assert [kind for kind, _ in node.blobs.values()] == ["dataset"]
    assert celluler("data", "ls")[1].split("\t")[:3] == ["alice/digits:1.0.0", "parquet", "3"]
    assert json.loads(celluler("data", "show", "alice/digits", "--json")[1])["balance"] == {"0": 2, "9": 1}
    assert celluler("data", "pull", "alice/digits:1.0.0")[0] == 0
    assert celluler("data", "show", "alice/none")[0] == 4
    assert celluler("data", "add", str(tmp_path / "d.parquet"), "--name", "bob/digits:1.0.0")[0] == 5


def test_room_is_made_but_not_of_what_is_pinned(celluler: Run, tmp_path: Path) -> None:
    cids = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 2048)
        cids.append(json.loads(celluler("blob", "add", str(tmp_path / name), "--json")[1])["cid"])
    assert celluler("blob", "gc") == (0, "", "0 B freed\n")
    assert celluler("model", "unpin", cids[0]) == (0, "", f"{cids[0]} (2.0 KiB) may be evicted\n")
    code, out, err = celluler("blob", "gc", "--dry-run")
    assert (code, out.split("\t")[0], err) == (0, cids[0], "2.0 KiB would be freed\n")
    assert json.loads(celluler("blob", "gc", "--target", "4KiB", "--json")[1])["contents"] == []
    assert json.loads(celluler("blob", "gc", "--target", "1KiB", "--json")[1])["freed_bytes"] == 2048
    assert celluler("blob", "stat", cids[0])[0] == 4
    facts = dict(line.split("\t") for line in celluler("blob", "stat", cids[1])[1].splitlines())
    assert (facts["kept"], facts["came from"][-7:]) == ("pinned", "2.0 KiB")
    assert celluler("model", "pin", cids[1])[0] == 0
    assert celluler("blob", "gc", "--target", "much")[0] == 2


def test_the_store_is_checked_and_repaired(celluler: Run, node: MemoryNode) -> None:
    assert celluler("doctor", "--store")[0] == 0
    node.damaged = (DamagedContent(DATA_CID, "model", 2, 2 << 20),)
    code, out, err = celluler("doctor", "--store")
    assert (code, out) == (7, f"{DATA_CID}\tmodel\t2\t2.0 MiB\tDAMAGED\n")
    assert "next: celluler doctor --store --repair" in err
    code, out, _ = celluler("doctor", "--store", "--repair", "--json")
    assert (code, json.loads(out)["damaged"][0]["restored"]) == (0, True)
    assert celluler("doctor", "--repair")[0] == 2


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
    told = json.loads(out)
    assert (code, told["name"]) == (0, "digits")
    assert any("audited" in one for one in told["guaranteed"])
    assert told["not_guaranteed"]
    gossip = JOB_YAML.replace("rounds: 20", "rounds: 20, consensus: gossip, topology: ring")
    (tmp_path / "gossip.yaml").write_text(gossip)
    code, _, err = celluler("job", "validate", str(tmp_path / "gossip.yaml"))
    assert code == 0
    assert "gossip over a ring does not give" in err
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
