"""`celluler model quantize` and its like as a person calls them: with a confined worker, and with a node in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from celluler.client import AsyncClient
from celluler.errors import LocalError
from celluler.models.body import parse_body
from celluler.models.folder import DOCUMENT, WEIGHTS
from celluler.models.spec import parse_spec
from celluler.models.weights import check_weights, initial_weights
from celluler_node import compressing
from celluler_node.cli import compress_session, model_commands
from celluler_node.cli.root import run
from celluler_node.gateway.app import gateway_app
from celluler_node.processes.worker_compress import Compressor
from celluler_node.processes.worker_compress_words import OUT, Compressed, Judged, Quantise
from tests.support.operations import MemoryNode
from tests.support.specs import MLP, digits, save_tensors

pytestmark = pytest.mark.thorough

SEED = b"s" * 32


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of ours. What is asked of a node fails: there is none."""
    monkeypatch.setenv("CELLULER_HOME", str(tmp_path / "home"))
    folder = tmp_path / "mlp"
    folder.mkdir()
    (folder / DOCUMENT).write_text(json.dumps(MLP))
    initial_weights(parse_spec(MLP), SEED, folder / WEIGHTS)
    return folder


def test_a_folder_is_quantised_without_a_node(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = digits()
    data, out = save_tensors(tmp_path / "data", {"x": x[:100].copy(), "y": y[:100].copy()}), tmp_path / "small"
    command = ["model", "quantize", str(model), "--to", "int8", "--data", str(data), "-o", str(out), "--json"]
    assert run(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["before"]["dtype"], told["after"]["dtype"]) == ("float32", "int8")
    assert told["after"]["metric"] == "accuracy"
    assert told["model"] is None
    body = parse_body("spec", (out / DOCUMENT).read_bytes())
    check_weights(body, out / WEIGHTS)
    assert body.dtype == "int8"
    assert "| dtype | float32 | int8 |" in (out / "card.md").read_text()
    assert run(command) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_published_model_gets_a_next_version_with_itself_as_parent(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = MemoryNode()

    @asynccontextmanager
    async def session(_join: object) -> AsyncIterator[AsyncClient]:
        transport = httpx.ASGITransport(app=gateway_app(node, "t"), raise_app_exceptions=False)
        async with AsyncClient("http://localhost", "t", transport=transport) as client:
            yield client

    @asynccontextmanager
    async def here(_config: object, wanted: Quantise) -> AsyncIterator[tuple[Path, Compressed]]:
        """The worker's own work, without a process."""
        yield tmp_path / OUT, Compressor(tmp_path).quantise(wanted)

    monkeypatch.setattr(compressing, "compressed", here)
    for module in (compress_session, model_commands):
        monkeypatch.setattr(module, "open_session", session)
    try:
        assert run(["model", "optimize", str(model)]) == 2
        assert "--as" in capsys.readouterr().err
        (tmp_path / "before.json").write_text('{"steps": []}')
        named = ("--label", "zero", "--licence", "MIT", "--preprocess", str(tmp_path / "before.json"))
        assert run(["model", "add", "alice/digits:1.0.0", str(model), *named, "--json"]) == 0
        parent = json.loads(capsys.readouterr().out)
        assert run(["model", "optimize", "alice/digits:1.0.0", "--alias", "small", "--json"]) == 0
        made = json.loads(capsys.readouterr().out)["model"]
        assert (made["version"], made["parents"], made["aliases"]) == ("1.1.0", [parent["cid"]], ["small"])
        assert (made["labels"], made["licence"], made["spec"]["dtype"]) == (["zero"], "MIT", "int8")
        assert made["preprocess"] == {"steps": []}
        assert "| dtype | float32 | int8 |" in node.cards["alice/digits:1.1.0"]
        assert run(["model", "prune", "alice/digits@small", "--share", "0.5"]) == 2
        assert "start from the model it was made from" in capsys.readouterr().err
    finally:
        node.close()


def test_words_that_nobody_knows_are_told_before_anything_starts(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model", "quantize", str(model), "--to", "int3"]) == 2
    assert "bf16" in capsys.readouterr().err
    assert run(["model", "optimize", str(model), "--target", "moon"]) == 2
    assert "edge" in capsys.readouterr().err
    assert run(["model", "quantize", str(model), "--to", "int8", "--as", "a/b:1.0.0", "-o", "x"]) == 2


def test_a_model_that_cannot_be_written_whole_leaves_no_folder(tmp_path: Path) -> None:
    judged = Judged("int8", 1, 1, 0.0, "", None, None, None, None)
    done = Compressed(b"{}", "spec", judged, judged)
    with pytest.raises(LocalError, match="cannot be written"):
        compress_session.write(tmp_path / "small", tmp_path / "nothing", done, "card")
    assert not list(tmp_path.iterdir())
    (tmp_path / WEIGHTS).write_bytes(b"weights")
    compress_session.write(tmp_path / "small", tmp_path / WEIGHTS, done, "card")
    assert (tmp_path / "small" / WEIGHTS).read_bytes() == b"weights"
