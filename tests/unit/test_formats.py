"""Files of other formats: told by their bytes, read within bounds, and refused when they may carry code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from celluler.errors import InvalidSpec
from celluler.formats import protobuf_walk
from celluler.formats.gguf_blocks import BLOCK_TYPES
from celluler.formats.gguf_files import Many, open_gguf
from celluler.formats.hf_folders import open_hf
from celluler.formats.onnx_files import read_onnx
from celluler.formats.onnx_messages import MODEL
from celluler.formats.recognise import MayCarryCode, recognise
from celluler.formats.safetensors_files import open_safetensors, write_safetensors
from celluler.formats.torch_files import open_torch
from celluler.formats.torch_pickles import CodeInPickle
from tests.support.model_files import a_checkpoint, a_gguf, a_safetensors, an_onnx

MAKERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "safetensors": (a_safetensors, open_safetensors),
    "torch": (a_checkpoint, open_torch),
    "gguf": (a_gguf, open_gguf),
    "onnx": (an_onnx, read_onnx),
}


@pytest.mark.parametrize("form", MAKERS)
def test_a_file_is_told_by_its_bytes_whatever_it_is_called(form: str, tmp_path: Path) -> None:
    path = MAKERS[form][0](tmp_path).rename(tmp_path / "holiday.jpg")
    assert recognise(path) == form


# --- what is in them -------------------------------------------------------------------------------------------------


def test_a_checkpoint_gives_what_torch_would_load(tmp_path: Path) -> None:
    path = a_checkpoint(tmp_path)
    expected = torch.load(path, weights_only=True)["state_dict"]
    found = open_torch(path)
    assert list(found) == list(expected)
    for name, stored in found.items():
        assert np.array_equal(stored.floats(), expected[name].numpy())


def test_views_of_one_storage_come_out_as_torch_sees_them(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    views = {"turned": base.view(4, 6).t(), "tail": base[20:], "halves": base.bfloat16(), "none": base[:0]}
    torch.save(views, tmp_path / "views.pt")
    found = open_torch(tmp_path / "views.pt")
    for name, value in views.items():
        assert found[name].shape == tuple(value.shape)
        assert np.array_equal(found[name].floats(), value.float().numpy())


def test_safetensors_come_back_as_they_were_written(tmp_path: Path) -> None:
    tensors = open_safetensors(a_safetensors(tmp_path))
    write_safetensors(tmp_path / "again", tensors.values(), {"format": "pt"})
    again = open_safetensors(tmp_path / "again")
    assert {name: (one.dtype, one.shape) for name, one in again.items()} == {"a": ("F32", (2, 3)), "b": ("F16", (3,))}
    assert np.array_equal(again["a"].floats(), np.arange(6, dtype=np.float32).reshape(2, 3))


def test_a_value_that_no_float32_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "x.pt")
    with pytest.raises(InvalidSpec, match="not finite"):
        open_torch(tmp_path / "x.pt")["x"].floats()


def test_gguf_metadata_and_tensors_are_read(tmp_path: Path) -> None:
    found = open_gguf(a_gguf(tmp_path, llama__block_count=2, llama__rope__freq_base=5e5, epsilon=1e-5))
    assert found.metadata["epsilon"] == 1e-5
    assert found.metadata["general.architecture"] == "llama"
    assert found.metadata["llama.block_count"] == 2
    assert isinstance(found.metadata["tokenizer.ggml.tokens"], Many)
    assert found.texts("tokenizer.ggml.tokens", 3) == ("a", "b", "longer")
    for key, most in (("tokenizer.ggml.tokens", 2), ("numbers", 3)):
        with pytest.raises(InvalidSpec, match="is no array of at most"):
            found.texts(key, most)
    assert found.numbers("numbers", 3) == (1, 2, 3)
    assert found.metadata["numbers"] == (1, 2, 3)
    assert np.array_equal(found.tensors["x"].floats(), np.arange(64, dtype=np.float32).reshape(2, 32))


@pytest.mark.parametrize("number", BLOCK_TYPES, ids=lambda number: BLOCK_TYPES[number].name)
def test_blocks_are_dequantised_as_the_reference_does_it(number: int) -> None:
    form = BLOCK_TYPES[number]
    kind = gguf.GGMLQuantizationType(number)
    blocks = np.random.default_rng(number).integers(0, 256, (64, form.block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        ours = form.floats(blocks)
        theirs = gguf.quants.dequantize(blocks, kind).reshape(ours.shape)
    assert np.array_equal(ours, theirs, equal_nan=True)


# --- what may carry code ---------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("run",))


def zipped(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), data)
    return file.getvalue()


def npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


CARRIERS: dict[str, tuple[bytes, str]] = {
    "pickle": (pickle.dumps(Evil()), "pickle"),
    "joblib": (pickle.dumps({"model": Evil()}, protocol=4), "pickle"),
    "elf": (b"\x7fELF\x02\x01\x01" + bytes(64), "shared library"),
    "windows": (b"MZ" + bytes(64), "shared library"),
    "script": (b"#!/bin/sh\necho run\n", "shared library"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "numpy": (npy(np.array([Evil()], dtype=object)), "NumPy"),
    "npz": (zipped(a_DOT_npy=npy(np.zeros(2))), "NumPy"),
    "torchscript": (zipped(a__code__m_DOT_py=b"", a__data_DOT_pkl=b""), "TorchScript"),
    "mobile": (zipped(a__bytecode_DOT_pkl=b""), "TorchScript"),
    "pt2": (zipped(a__archive_format=b"pt2", a__models__model_DOT_json=b"{}"), "torch.export"),
    "old pt2": (zipped(serialized_exported_program_DOT_json=b"{}", version=b"1"), "torch.export"),
    "keras": (zipped(metadata_DOT_json=b"{}", config_DOT_json=b"{}", model_DOT_weights_DOT_h5=b""), "Keras"),
    "tar": (bytes(257) + b"ustar\x0000" + bytes(247), "tar archive"),
}


@pytest.mark.parametrize("form", CARRIERS)
def test_what_may_carry_code_is_refused_and_says_what_to_do(form: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CARRIERS[form][0])
    with pytest.raises(MayCarryCode, match=CARRIERS[form][1]) as refused:
        recognise(path)
    assert refused.value.hint


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_torch_itself_exports_as_code_is_refused(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    torch.jit.save(torch.jit.script(layer), tmp_path / "scripted.pt")
    with pytest.raises(MayCarryCode, match="TorchScript"):
        recognise(tmp_path / "scripted.pt")
    torch.save(layer.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(MayCarryCode, match="pickle"):
        recognise(tmp_path / "old.pt")


@pytest.mark.parametrize("saved", [torch.nn.Linear(2, 2), {"w": Evil()}, {"w": torch.zeros(2), "step": np.int64(3)}])
def test_a_checkpoint_that_names_anything_but_tensors_is_refused(
    saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(CodeInPickle) as refused:
        open_torch(tmp_path / "x.pt")
    assert "state_dict" in (refused.value.hint or "")
    assert capsys.readouterr().out == ""


def test_a_saved_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(MayCarryCode, match="SavedModel"):
        recognise(tmp_path)


def hf_folder(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    a_safetensors(folder).rename(folder / "model.safetensors")
    return folder


def test_a_folder_that_brings_code_is_refused(tmp_path: Path) -> None:
    assert recognise(hf_folder(tmp_path, {"model_type": "llama"})) == "hf"
    assert set(open_hf(tmp_path).tensors) == {"a", "b"}
    (tmp_path / "modeling_new.py").write_text("print('run')")
    with pytest.raises(InvalidSpec, match="no code"):
        open_hf(tmp_path)
    (tmp_path / "modeling_new.py").unlink()
    hf_folder(tmp_path, {"model_type": "llama", "auto_map": {"AutoModel": "modeling_new.Model"}})
    with pytest.raises(InvalidSpec, match="trust_remote_code"):
        open_hf(tmp_path)


def test_a_folder_with_pickled_weights_is_refused_unless_they_are_tensors_alone(tmp_path: Path) -> None:
    hf_folder(tmp_path, {"model_type": "llama"})
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InvalidSpec, match="pickle") as refused:
        open_hf(tmp_path)
    assert "safe_serialization" in (refused.value.hint or "")
    torch.save({"a": Evil()}, path)
    with pytest.raises(CodeInPickle):
        open_hf(tmp_path)
    torch.save({"a": torch.zeros(2)}, path)
    assert set(open_hf(tmp_path).tensors) == {"a"}


@pytest.mark.parametrize(
    ("change", "said"),
    [({"external": "/etc/passwd"}, "another file"), ({"domain": "com.evil"}, "com.evil")],
    ids=("external data", "custom domain"),
)
def test_onnx_that_reaches_beyond_its_file_is_refused(change: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=said):
        read_onnx(an_onnx(tmp_path, **change))


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_view_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1).expand(1 << 33)}, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 4096
    with pytest.raises(InvalidSpec, match="larger than its storage"):
        open_torch(tmp_path / "x.pt")


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 20))
    with pytest.raises(InvalidSpec, match="uncompressed"):
        open_torch(tmp_path / "bomb.pt")


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<IQQ", 3, 1 << 40, 0),
        struct.pack("<IQQ", 3, 0, 1 << 40),
        struct.pack("<IQQQ", 3, 0, 1, 1 << 60),
        struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 1 << 50),
        struct.pack("<IQQQ1sIQQIQ", 3, 1, 0, 1, b"t", 2, 1 << 38, 1 << 38, 0, 0),
    ],
    ids=("tensors", "keys", "text", "array", "shape"),
)
def test_gguf_that_announces_more_than_it_holds_is_refused(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"GGUF" + head + bytes(64))
    with pytest.raises(InvalidSpec):
        open_gguf(tmp_path / "x")


def test_empty_messages_are_counted_before_any_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf_walk, "MAX_FIELDS", 1000)
    nodes = b"\x0a\x00" * 1500
    graph = b"\x3a" + bytes([0x80 | len(nodes) & 127, len(nodes) >> 7]) + nodes
    (tmp_path / "x").write_bytes(b"\x08\x09" + graph + b"\x42\x02\x10\x11")
    with pytest.raises(InvalidSpec, match="fields"):
        read_onnx(tmp_path / "x")


relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("form", MAKERS)
@relaxed
@given(data=st.data())
def test_a_torn_or_damaged_file_is_read_or_refused_and_nothing_else(form: str, data: Any, tmp_path: Path) -> None:
    make, read = MAKERS[form]
    whole = make(tmp_path).read_bytes()
    torn = bytearray(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(whole)), st.integers(0, 255)), max_size=6)):
        if place < len(torn):
            torn[place] = byte
    path = tmp_path / "torn"
    path.write_bytes(torn)
    for reader in (recognise, read):
        try:
            found = reader(path)
        except InvalidSpec:
            continue
        tensors = getattr(found, "tensors", found)
        for one in tensors.values() if isinstance(tensors, dict) else ():
            with contextlib.suppress(InvalidSpec):
                assert one.floats().shape == one.shape


@relaxed
@given(
    garbage=st.binary(max_size=600),
    head=st.sampled_from([b"", b"GGUF\3\0\0\0", b"PK\3\4", b"\x08\x08", b"{", b"\x80\x02"]),
)
def test_garbage_is_refused(garbage: bytes, head: bytes, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(head + garbage)
    with contextlib.suppress(InvalidSpec):
        recognise(tmp_path / "garbage")  # may say what it would be, if it were whole
    for reader in (open_safetensors, open_torch, open_gguf, read_onnx):
        with pytest.raises(InvalidSpec):
            reader(tmp_path / "garbage")


def test_no_more_of_a_document_is_read_than_it_may_have(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").symlink_to("/dev/zero")  # it says that it has no bytes
    with pytest.raises(InvalidSpec, match="more than"):
        open_hf(tmp_path / "m")


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InvalidSpec, match="is a pipe"):
        open_hf(tmp_path)


@pytest.mark.parametrize("name", ["__metadata__", "__private"])
def test_a_tensor_of_a_name_that_no_reader_would_take_for_one_is_not_written(name: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(3)}, tmp_path / "state.pt")
    with pytest.raises(InvalidSpec, match="a name of the format itself"):
        write_safetensors(tmp_path / "out", open_torch(tmp_path / "state.pt").values(), {"format": "pt"})
    assert not (tmp_path / "out").exists()


def test_every_message_of_onnx_that_can_grow_is_walked() -> None:
    """Held against the package's own description of the format: a field that it gains is a hole."""

    def grows(kind: Any) -> bool:
        return any(one.message_type for one in kind.fields)

    met = set()

    def compare(kind: Any, message: protobuf_walk.Message) -> None:
        if kind.full_name in met:
            return
        met.add(kind.full_name)
        for one in kind.fields:
            if one.message_type and grows(one.message_type):
                assert one.number in message.fields, f"{kind.name}.{one.name}"
                compare(one.message_type, message.fields[one.number])

    compare(ModelProto.DESCRIPTOR, MODEL)
    assert {"GraphProto", "TypeProto", "TensorProto"} <= {name.rpartition(".")[2] for name in met}
