"""Stages at work: what comes out of them, one behind another, is what the whole model says."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.engines.modules import module_of
from celluler.engines.stages import StageSlots, load_stage
from celluler.engines.stages_check import SplitDiffers, check_split
from celluler.errors import InvalidSpec, LocalError, ProtocolViolation
from celluler.inference.hidden import WIRES, check_hidden, decode_hidden, encode_hidden, hidden_bytes
from celluler.inference.stages import Stage, blocks_of, stage_of
from celluler.models.memory import RUNTIME_BYTES, DoesNotFit
from celluler.models.narrow_weights import narrow_weights
from celluler.models.spec import Architecture, parse_spec
from celluler.models.weights import initial_vector, load_still, load_vector, read_header, save_vector

pytestmark = pytest.mark.thorough

TIME, WORDS, WIDTH = 24, 19, 32


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _added(*layers: dict[str, object]) -> dict[str, object]:
    return {"kind": "residual", "layers": list(layers)}


_LLAMA: list[dict[str, object]] = [
    {
        "kind": "repeat",
        "times": 3,
        "layers": [
            _added(
                {"kind": "rms_norm"},
                {"kind": "attention", "heads": 4, "kv_heads": 2, "causal": True, "rope_base": 10000.0},
            ),
            _added({"kind": "rms_norm"}, {"kind": "swiglu", "hidden": 48}),
        ],
    },
    {"kind": "rms_norm"},
]
_GPT: list[dict[str, object]] = [
    {"kind": "positions"},
    *(
        _added({"kind": "layer_norm"}, {"kind": "attention", "heads": 4, "causal": True, "bias": True}),
        _added({"kind": "layer_norm"}, {"kind": "feed_forward", "hidden": 48}),
    )
    * 2,
    {"kind": "layer_norm"},
]


def _body(layers: list[dict[str, object]]) -> Architecture:
    return parse_spec(
        {
            "spec": 1,
            "input": {"dtype": "int64", "shape": [TIME]},
            "layers": [
                {"kind": "embedding", "vocabulary": WORDS, "width": WIDTH},
                *layers,
                {"kind": "dense", "width": WORDS},
            ],
            "objective": {"kind": "next_token", "vocabulary": WORDS},
        }
    )


BODIES = {"llama": _body(_LLAMA), "gpt": _body(_GPT)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, paths = tmp_path_factory.mktemp("stages"), {}
    for name, body in BODIES.items():
        paths[name] = folder / name
        drawn = np.random.default_rng(0).normal(0.0, 0.1, body.dimension).astype(np.float32)
        save_vector(body, initial_vector(body, b"s" * 32) + drawn, paths[name])
    return paths


def _whole(body: Architecture, path: Path, tokens: list[int]) -> torch.Tensor:
    """(places, vocabulary)"""
    module = module_of(body, torch.from_numpy(load_vector(body, path)), load_still(body, path)).eval()
    with torch.inference_mode():
        told: torch.Tensor = module(torch.tensor([tokens + [0] * (TIME - len(tokens))]))[0, : len(tokens)]
    return told


def _cut(body: Architecture, path: Path, *ends: int) -> list[StageSlots]:
    stages = [stage_of(body, first, until) for first, until in pairwise((0, *ends, len(blocks_of(body))))]
    return [StageSlots(one, load_stage(one, path), slots=2, length=TIME) for one in stages]


def _forget(path: Path, stage: Stage, to: Path) -> Path:
    """The file with holes where other tensors than the stage's are."""
    data, names = bytearray(path.read_bytes()), stage.names
    for name, view in read_header(path, "weights").items():
        if name not in names:
            data[view.start : view.end] = bytes(view.end - view.start)
    to.write_bytes(data)
    return to


@pytest.mark.parametrize("name", list(BODIES))
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_logits_are_those_of_the_whole_model_wherever_it_is_cut(
    name: str, data: st.DataObject, files: dict[str, Path]
) -> None:
    body, last = BODIES[name], len(blocks_of(BODIES[name]))
    ends = sorted(data.draw(st.sets(st.integers(1, last - 1), max_size=3)))
    tokens = data.draw(st.lists(st.integers(0, WORDS - 1), min_size=2, max_size=TIME))
    piece = data.draw(st.integers(1, len(tokens)))
    wanted, stages = _whole(body, files[name], tokens), _cut(body, files[name], *ends)
    x = torch.tensor(tokens[:piece])
    for stage in stages:
        told = stage.prefill(1, 0, x)
        assert told is not None
        x = told
    torch.testing.assert_close(x[-1], wanted[piece - 1], rtol=1e-4, atol=1e-4)
    for place in range(piece, len(tokens)):
        x = torch.tensor([tokens[place]])
        for stage in stages:
            x = stage.decode((1,), (place,), x)
        torch.testing.assert_close(x[0], wanted[place], rtol=1e-4, atol=1e-4)
        assert int(x[0].argmax()) == int(wanted[place].argmax())


@pytest.mark.parametrize("name", list(BODIES))
def test_a_stage_reads_its_own_tensors_alone_and_passes_its_test(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    body, last = BODIES[name], len(blocks_of(BODIES[name]))
    for first, until in ((0, 2), (2, 4), (4, last), (0, last), (last - 1, last)):
        stage = stage_of(body, first, until)
        sparse = _forget(files[name], stage, tmp_path / "sparse")
        assert check_split(stage, load_stage(stage, sparse)) < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_narrow_weights_are_split_too(dtype: str, files: dict[str, Path], tmp_path: Path) -> None:
    wide = BODIES["llama"]
    body, vector, still = narrow_weights(wide, load_vector(wide, files["llama"]), dtype)
    assert isinstance(body, Architecture)
    save_vector(body, vector, tmp_path / "narrow", still)
    tokens = [1, 2, 3, 4, 5]
    wanted, x = _whole(body, tmp_path / "narrow", tokens), torch.tensor(tokens)
    for first, until in ((0, 3), (3, 6)):
        stage = stage_of(body, first, until)
        module = load_stage(stage, _forget(tmp_path / "narrow", stage, tmp_path / "sparse"))
        check_split(stage, module)
        told = StageSlots(stage, module, slots=1, length=TIME).prefill(0, 0, x)
        assert told is not None
        x = told
    torch.testing.assert_close(x[0], wanted[-1], rtol=0.05, atol=0.05)


def test_a_layer_that_looks_at_places_unseen_fails_the_test(files: dict[str, Path]) -> None:
    """One that counts positions from the beginning of what comes in, as GPT-2 does where it is cut without care."""

    class Again(torch.nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(weight, requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.weight[: x.shape[-2]]

    stage = stage_of(BODIES["gpt"], 0, 7)
    module = load_stage(stage, files["gpt"])
    check_split(stage, module)
    module.add_module("6", Again(module.get_submodule("1").get_parameter("weight")))
    with pytest.raises(SplitDiffers, match="differs"):
        check_split(stage, module)


def test_a_stage_refuses_what_does_not_fit_and_goes_on(files: dict[str, Path]) -> None:
    body = BODIES["llama"]
    first, second = _cut(body, files["llama"], 3)
    with pytest.raises(LocalError, match="gap"):
        first.prefill(0, 1, torch.tensor([1]))
    with pytest.raises(LocalError, match="not below"):
        first.prefill(0, 0, torch.tensor([WORDS]))
    with pytest.raises(LocalError, match="width"):
        second.prefill(0, 0, torch.zeros(2, WIDTH + 1))
    with pytest.raises(LocalError, match="places"):
        first.prefill(0, 0, torch.zeros(TIME + 1, dtype=torch.int64))
    with pytest.raises(LocalError, match="ascend"):
        first.decode((1, 0), (0, 0), torch.tensor([1, 2]))
    assert first.filled(0) == 0
    told = first.prefill(0, 0, torch.tensor([1, 2]))
    again = first.prefill(0, 0, torch.tensor([1, 2]))
    assert told is not None
    assert again is not None
    assert torch.equal(told, again)
    stage = first.stage
    with pytest.raises(DoesNotFit):
        StageSlots(stage, load_stage(stage, files["llama"]), slots=1, length=TIME, memory_bytes=RUNTIME_BYTES)


def test_weights_that_are_no_numbers_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    body = BODIES["llama"]
    vector = load_vector(body, files["llama"]).copy()
    vector[0] = np.nan
    save_vector(body, vector, tmp_path / "weights")
    with pytest.raises(InvalidSpec, match="not finite"):
        load_stage(stage_of(body, 0, 1), tmp_path / "weights")
    load_stage(stage_of(body, 1, 2), tmp_path / "weights")


@settings(max_examples=40, deadline=None)
@given(places=st.integers(0, 5), width=st.integers(1, 150), seed=st.integers(0, 99), wire=st.sampled_from(WIRES))
def test_hidden_states_come_back_as_near_as_their_wire_says(places: int, width: int, seed: int, wire: str) -> None:
    hidden = np.random.default_rng(seed).normal(0.0, 3.0, (places, width)).astype(np.float32)
    data = encode_hidden(wire, hidden)
    assert len(data) == hidden_bytes(wire, places, width)
    back = decode_hidden(wire, data, places, width)
    near = {"float32": 0.0, "bfloat16": 2.0**-8, "int8": 0.51 / 127}[wire]
    allowed = near * (np.abs(hidden).max(initial=0.0) if wire == "int8" else np.abs(hidden))
    assert back.shape == hidden.shape
    assert bool((np.abs(back - hidden) <= allowed).all())
    with pytest.raises(ProtocolViolation, match="bytes"):
        check_hidden(wire, data + b"\0", places, width)


@pytest.mark.parametrize("wire", WIRES)
def test_hidden_states_that_are_no_numbers_are_refused(wire: str) -> None:
    data = bytearray(encode_hidden(wire, np.ones((1, 64), np.float32)))
    data[:4] = b"\xff\xff\xff\xff"
    with pytest.raises(ProtocolViolation, match="no number"):
        decode_hidden(wire, data, 1, 64)
    largest = np.full((1, 64), 3.4e38, np.float32)
    if wire == "bfloat16":
        assert np.isfinite(decode_hidden(wire, encode_hidden(wire, largest), 1, 64)).all()
