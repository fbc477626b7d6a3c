"""`celluler model convert` as a person calls it: a confined worker reads the file, and nothing else is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from celluler.models.body import parse_body
from celluler.models.weights import check_weights
from celluler_node.cli.root import run
from tests.support.model_files import an_onnx


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLULER_HOME", str(tmp_path / "home"))


def test_onnx_is_read_traced_and_compared_within_the_walls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    source, out = an_onnx(folder), folder / "ours"
    assert run(["model", "convert", str(source), str(out), "--objective", "classification", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["source"], told["body"], told["files"]) == ("onnx", "graph", ["model.json", "weights.safetensors"])
    assert told["deviation"] < 1e-6
    assert told["notes"] == []
    body = parse_body("graph", (out / "model.json").read_bytes())
    check_weights(body, out / "weights.safetensors")
    assert body.parameter_count == 12
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "ours"}


def test_what_carries_code_leaves_with_an_exit_code_and_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    (tmp_path / "spec.json").write_text(
        json.dumps(
            {
                "spec": 1,
                "input": {"dtype": "float32", "shape": [2]},
                "layers": [{"kind": "dense", "width": 2}],
                "objective": {"kind": "regression"},
            }
        )
    )
    given = [str(tmp_path / "spec.json"), str(tmp_path / "out"), "--weights", str(tmp_path / "module.pt")]
    assert run(["model", "convert", *given, "--json"]) == 2
    error = json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
    assert "torch.nn.modules.linear.Linear" in error["problem"]
    assert "state_dict" in error["hint"]
    assert not (tmp_path / "out").exists()
