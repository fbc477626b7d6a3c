"""From one format to another: what the worker that converts is asked, and what it answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from celluler.engines.load import load_model
from celluler.models.body import parse_body
from celluler_node.cli.convert_commands import needs_conversion
from celluler_node.processes.refusals import Refused
from celluler_node.processes.worker_formats import Converter
from celluler_node.processes.worker_formats_words import Convert, Converted
from tests.support.decoders import LLAMA, hf_folder, llama_state, tokens
from tests.support.model_files import a_checkpoint, a_gguf, a_safetensors
from tests.support.specs import RELU, dense, regression

SPEC: dict[str, Any] = regression(dense(4), RELU, dense(2), shape=(3,))


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC))
    return path


def ask(tmp_path: Path, source: Path, *, out: str = "out", to: str = "celluler", **more: Any) -> Converted | Refused:
    wanted = Convert(str(source), more.pop("weights", ""), to, out, **more)
    return Converter(tmp_path).handlers[Convert](wanted, ())


def predict(folder: Path, kind: str, given: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    body = parse_body(kind, (folder / "model.json").read_bytes())
    return load_model(body, folder / "weights.safetensors").predictor().predict(given)


def test_a_folder_goes_to_our_form_and_back_to_a_folder_that_says_the_same(tmp_path: Path) -> None:
    first = ask(tmp_path, hf_folder(tmp_path / "hf", LLAMA, llama_state(LLAMA)), context=8)
    assert isinstance(first, Converted)
    assert (first.form, first.body, first.files) == ("hf", "spec", ("model.json", "weights.safetensors"))
    there = ask(tmp_path, tmp_path / "out", out="back", to="hf")
    assert isinstance(there, Converted)
    again = ask(tmp_path, tmp_path / "back", out="again")
    assert isinstance(again, Converted)
    assert again.parameters == first.parameters
    given = tokens(LLAMA, 8).numpy()
    assert np.array_equal(predict(tmp_path / "out", "spec", given), predict(tmp_path / "again", "spec", given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_state_dict_of_any_precision_goes_under_its_spec(dtype: torch.dtype, spec: Path, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).to(dtype)
    wrapped = {f"module.{name}": value for name, value in module.state_dict().items()}
    torch.save({"epoch": 1, "model": wrapped}, tmp_path / "state.pt")
    done = ask(tmp_path, spec, weights=str(tmp_path / "state.pt"))
    assert isinstance(done, Converted)
    given = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module.float()(torch.from_numpy(given)).numpy()
    assert np.allclose(predict(tmp_path / "out", "spec", given), expected, atol=1e-6, rtol=0)


def test_tensors_of_other_names_are_told_by_order_only_when_asked(spec: Path, tmp_path: Path) -> None:
    state = {"fc1.weight": torch.ones(4, 3), "fc1.bias": torch.zeros(4), "fc2.weight": torch.ones(2, 4)}
    torch.save({**state, "fc2.bias": torch.tensor([1.0, 2.0])}, tmp_path / "state.pt")
    refused = ask(tmp_path, spec, weights=str(tmp_path / "state.pt"))
    assert isinstance(refused, Refused)
    assert "--by-order" in refused.hint
    done = ask(tmp_path, spec, weights=str(tmp_path / "state.pt"), out="other", by_order=True)
    assert isinstance(done, Converted)
    assert done.notes
    assert predict(tmp_path / "other", "spec", np.ones((1, 3), np.float32)).tolist() == [[13.0, 14.0]]


@pytest.mark.parametrize(
    ("make", "to", "said"),
    [
        (a_checkpoint, "celluler", "weights alone"),
        (a_safetensors, "celluler", "weights alone"),
        (a_gguf, "celluler", "no language model"),
        (a_gguf, "pickle", "must be one of"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_words(make: Any, to: str, said: str, tmp_path: Path) -> None:
    refused = ask(tmp_path, make(tmp_path), to=to)
    assert isinstance(refused, Refused)
    assert said in refused.problem


def test_a_state_dict_goes_to_safetensors_as_it_is(tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(6.0).view(2, 3).t().bfloat16(), "steps": torch.tensor(3)}
    torch.save(state, tmp_path / "state.pt")
    done = ask(tmp_path, tmp_path / "state.pt", to="safetensors")
    assert isinstance(done, Converted)
    assert (done.form, done.body, done.files, done.weights_bytes) == ("torch", "", ("weights.safetensors",), 20)
    again = load_file(tmp_path / "out" / "weights.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in state.items())


def test_a_spec_goes_to_onnx_and_says_how_far_it_is_off(spec: Path, tmp_path: Path) -> None:
    done = ask(tmp_path, spec, weights=str(a_checkpoint(tmp_path)), to="onnx")
    assert isinstance(done, Converted)
    assert done.files == ("model.onnx",)
    assert done.compared
    assert done.deviation < 1e-5
    back = ask(tmp_path, tmp_path / "out" / "model.onnx", out="back")
    assert isinstance(back, Converted)
    assert (back.form, back.body, back.parameters) == ("onnx", "graph", done.parameters)


def test_a_net_that_no_folder_can_say_is_not_exported_as_one(spec: Path, tmp_path: Path) -> None:
    refused = ask(tmp_path, spec, weights=str(a_checkpoint(tmp_path)), to="hf")
    assert isinstance(refused, Refused)
    assert "Llama-shaped" in refused.problem


def test_only_what_does_not_fit_as_it_is_is_converted_before_it_is_added(spec: Path, tmp_path: Path) -> None:
    assert not needs_conversion(spec, None)
    assert needs_conversion(spec, a_checkpoint(tmp_path))
    assert needs_conversion(spec, a_safetensors(tmp_path))
    assert needs_conversion(a_gguf(tmp_path), None)
    assert needs_conversion(hf_folder(tmp_path / "hf", LLAMA, llama_state(LLAMA)), None)
    done = ask(tmp_path, spec, weights=str(a_checkpoint(tmp_path)))
    assert isinstance(done, Converted)
    assert not needs_conversion(spec, tmp_path / "out" / "weights.safetensors")
    assert not needs_conversion(tmp_path / "out", None)
