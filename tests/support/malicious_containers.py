"""Crafted containers: each tries to run something, to read elsewhere, or to have more allocated than it weighs.

Each maker writes one into a folder and returns its path. Whatever would run writes `canary`
beside the file; whatever would be read elsewhere is `secret` there.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CANARY, SECRET = "canary", "secret"
Maker = Callable[[Path], Path]


class Runs:
    """Unpickled, it runs a command."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch {self._folder / CANARY}",)


def zipped(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def torch_zip(folder: Path, program: bytes, **storages: bytes) -> Path:
    entries = {"archive/data.pkl": program, "archive/byteorder": b"little", "archive/version": b"3\n"}
    return zipped(folder / "model.pt", entries | {f"archive/data/{key}": data for key, data in storages.items()})


# --- programs of pickles -----------------------------------------------------------------------------------------


def _touch(folder: Path) -> bytes:
    return f"touch {folder / CANARY}".encode()


def _unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _global(folder: Path) -> bytes:
    return b"\x80\x02cposix\nsystem\n(" + _unicode(_touch(folder).decode()) + b"tR."


def _protocol_0(folder: Path) -> bytes:
    return b"cos\nsystem\n(S'" + _touch(folder) + b"'\ntR."


def _from_stack(folder: Path) -> bytes:
    return b"\x80\x04" + _unicode("builtins") + _unicode("eval") + b"\x93(" + _unicode("1/0") + b"tR."


def _instance(folder: Path) -> bytes:
    return b"\x80\x02(S'" + _touch(folder) + b"'\nios\nsystem\n."


def _new_object(folder: Path) -> bytes:
    return b"\x80\x02csubprocess\nPopen\n(" + _unicode(_touch(folder).decode()) + b"t\x81."


def _extension(_: Path) -> bytes:
    return b"\x80\x02\x82\x01."


def _set_state(folder: Path) -> bytes:
    """The state of an allowed object sets what is called later."""
    return b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\0\0\0acposix\nsystem\nub."


def _hidden_in_name(folder: Path) -> bytes:
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n."


def _hook(folder: Path) -> bytes:
    """The fifth argument of a tensor is code for its gradients."""
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(cposix\nsystem\nK\0))NNtR."


_VIEW = (
    b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
    b"X\x01\0\0\x000X\x03\0\0\0cpu%stQK\0%s%stRs."
)


def _view(size: bytes, shape: bytes, stride: bytes) -> bytes:
    return _VIEW % (size, shape, stride)


def _long(number: int) -> bytes:
    data = number.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _laughs(_: Path) -> bytes:
    """Lists within lists, each twice in the next: 2³⁰ leaves in six hundred bytes."""
    entry = b"X\x01\0\0\0%c]q%c(h%ch%ces"
    steps = b"".join(entry % (65 + place, place + 1, place, place) for place in range(30))
    return b"\x80\x02}X\x01\0\0\0w]q\0s" + steps + b"."


def _laughs_as_a_name(_: Path) -> bytes:
    """The same, where a pickle names a module: whoever writes that into an error writes 2³⁰ letters."""
    doubled = b"".join(b"h%ch%c\x86\x94" % (place, place) for place in range(30))
    return b"\x80\x04\x8c\x01a\x94" + doubled + b"\x8c\x01b\x93."


def _copies(_: Path) -> bytes:
    """A long tuple, remembered, and of it one size after another."""
    long = b"(" + b"K\1" * 10_000 + b"t\x94"
    return b"\x80\x04ctorch\nSize\n\x94" + long + b"h\1\x85\x94" + b"h\0h\2R" * 5000 + b"."


def _hoard(_: Path) -> bytes:
    """Many empty lists, each remembered."""
    return b"\x80\x04" + b"]\x94" * 60_000 + b"."


# --- zip archives ------------------------------------------------------------------------------------------------


def _overlapping(folder: Path) -> Path:
    """A thousand names for the same bytes (Fifield 2019, the part that needs no compression)."""
    kernel = bytes(1 << 16)
    name = b"archive/data.pkl"
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(kernel), 1 << 16, 1 << 16, len(name), 0)
    data = local + name + kernel
    table = b""
    for number in range(1000):
        entry = b"archive/data/%04d" % number
        table += struct.pack(
            *("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 0, zlib.crc32(kernel)),
            *(1 << 16, 1 << 16, len(entry), 0, 0, 0, 0, 0, 0),
        )
        table += entry
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1000, 1000, len(table), len(data), 0)
    return written(folder, "model.pt", data + table + end)


def _million_entries(folder: Path) -> Path:
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 10**12, 10**12, 10**14, 4)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, 4, 1)
    end += struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return written(folder, "model.pt", b"PK\3\4" + end)


def _more_than_it_says(folder: Path) -> Path:
    """A hundred thousand entries behind an end that tells of one."""
    entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0)
    table = b"".join(entry + b"%05d" % number for number in range(100_000))
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(table), 4, 0)
    return written(folder, "model.pt", b"PK\3\4" + table + end)


def _longer_than_file(folder: Path) -> Path:
    path = torch_zip(folder, b"\x80\2}.", **{"0": bytes(16)})
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\1\2", 20), (b"PK\3\4", 18)):
        at = data.index(mark)
        data[at + place : at + place + 8] = struct.pack("<II", 1 << 31, 1 << 31)
    return written(folder, "model.pt", bytes(data))


def _bomb(folder: Path) -> Path:
    return zipped(folder / "model.pt", {"archive/data.pkl": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)


def _deflated_storage(folder: Path) -> Path:
    many = b"J" + struct.pack("<i", 16 << 20)
    path = torch_zip(folder, _view(many, many + b"\x85", b"K\1\x85"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(64 << 20), zipfile.ZIP_DEFLATED)
    return path


# --- pt2 -----------------------------------------------------------------------------------------------------------

_SYMPY = '{"graph_module": {"graph": {"tensor_values": {"x": {"sizes": [{"as_expr": {"expr_str": "%s"}}]}}}}}'


def _pt2(entries: Callable[[Path], dict[str, bytes]]) -> Maker:
    return lambda folder: zipped(folder / "model.pt2", entries(folder))


def _expression(folder: Path) -> bytes:
    return (_SYMPY % f"__import__('os').system('touch {folder / CANARY}')").encode()


PT2: dict[str, Maker] = {
    "pt2: expressions": _pt2(lambda f: {"serialized_exported_program.json": _expression(f), "version": b"8.1"}),
    "pt2: state": _pt2(
        lambda f: {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": pickle.dumps(Runs(f))}
    ),
    "pt2: archive": _pt2(lambda f: {"m/archive_format": b"pt2", "m/models/model.json": _expression(f)}),
    "pt2: weights": _pt2(lambda f: {"m/archive_format": b"pt2", "m/data/weights/model.pt": pickle.dumps(Runs(f))}),
    "pt2: constants": _pt2(lambda f: {"m/archive_format": b"pt2", "m/data/constants/obj_0": pickle.dumps(Runs(f))}),
    "pt2: inputs": _pt2(lambda f: {"m/archive_format": b"pt2", "m/data/sample_inputs/m.pt": pickle.dumps(Runs(f))}),
    "pt2: library": _pt2(lambda f: {"m/archive_format": b"pt2", "m/data/aotinductor/m/m.so": b"\x7fELF" + bytes(64)}),
    "pt2: aotinductor alone": _pt2(lambda f: {"data/aotinductor/m/m.so": b"\x7fELF" + bytes(64)}),
    "pt2: json alone": lambda f: written(f, "model.json", _expression(f)),
}

# --- containers of pickles, and other code -------------------------------------------------------------------------


def _tar(folder: Path) -> Path:
    path = folder / "model.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        data = pickle.dumps(Runs(folder))
        info = tarfile.TarInfo("pickle")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return path


def _npy(folder: Path) -> bytes:
    buffer = io.BytesIO()
    array = np.empty(1, dtype=object)
    array[0] = Runs(folder)
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _saved_model(folder: Path) -> Path:
    (folder / "m").mkdir()
    written(folder / "m", "saved_model.pb", b"\x08\x01\x12\x00")
    return folder / "m"


CODE: dict[str, Maker] = {
    "pickle": lambda f: written(f, "model.pkl", pickle.dumps(Runs(f), protocol=2)),
    "pickle of protocol 0": lambda f: written(f, "model.pkl", _protocol_0(f)),
    "pickle of protocol 5": lambda f: written(f, "model.pkl", pickle.dumps(Runs(f), protocol=5)),
    "pickle called safetensors": lambda f: written(f, "model.safetensors", pickle.dumps(Runs(f))),
    "pickle behind a safetensors length": lambda f: written(
        f, "model.safetensors", len(pickle.dumps(Runs(f))).to_bytes(8, "little") + pickle.dumps(Runs(f))
    ),
    "joblib, compressed": lambda f: written(f, "model.joblib", zlib.compress(pickle.dumps(Runs(f)))),
    "checkpoint of before 1.6": lambda f: written(
        f, "model.pt", pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(Runs(f), protocol=2)
    ),
    "numpy of objects": lambda f: written(f, "model.npy", _npy(f)),
    "npz of objects": lambda f: zipped(f / "model.npz", {"a.npy": _npy(f)}),
    "tar": _tar,
    "torchscript": lambda f: zipped(f / "model.pt", {"m/code/__torch__.py": b"import os", "m/data.pkl": _global(f)}),
    "torchscript for phones": lambda f: zipped(f / "model.ptl", {"m/bytecode.pkl": _global(f), "m/data.pkl": b""}),
    "keras with a lambda": lambda f: zipped(
        f / "model.keras",
        {"metadata.json": b"{}", "config.json": b'{"class_name": "Lambda"}', "model.weights.h5": b"\x89HDF\r\n\x1a\n"},
    ),
    "hdf5": lambda f: written(f, "model.h5", b"\x89HDF\r\n\x1a\n" + bytes(512)),
    "saved model": _saved_model,
    "shared object": lambda f: written(f, "model.onnx", b"\x7fELF\2\1\1" + bytes(512)),
    "script": lambda f: written(f, "model.gguf", b"#!/bin/sh\n" + _touch(f)),
    **{
        f"checkpoint: {made.__name__.strip('_').replace('_', ' ')}": (lambda f, made=made: torch_zip(f, made(f)))
        for made in (_global, _from_stack, _instance, _new_object, _extension, _set_state, _hidden_in_name, _hook)
    },
}

# --- more than it weighs -------------------------------------------------------------------------------------------

_HUGE = b"\x8a\x05" + (1 << 33).to_bytes(5, "little")
_HUGER = b"\x8a\x05" + (1 << 38).to_bytes(5, "little")


def header(text: bytes | str, data: bytes = b"", length: int | None = None) -> Callable[[Path], Path]:
    raw = text.encode() if isinstance(text, str) else text
    size = len(raw) if length is None else length
    return lambda folder: written(folder, "model.safetensors", size.to_bytes(8, "little") + raw + data)


def tensor(**fields: Any) -> str:
    return json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | fields})


SIZES: dict[str, Maker] = {
    "zip bomb": _bomb,
    "zip: compressed storage": _deflated_storage,
    "zip: overlapping entries": _overlapping,
    "zip: 10^12 entries": _million_entries,
    "zip: 10^5 entries said to be one": _more_than_it_says,
    "zip: longer than the file": _longer_than_file,
    "checkpoint: 32 GiB out of one number": lambda f: torch_zip(
        f, _view(b"K\1", _HUGE + b"\x85", b"K\0\x85"), **{"0": bytes(4)}
    ),
    "checkpoint: storage of 32 GiB": lambda f: torch_zip(
        f, _view(_HUGE, _HUGE + b"\x85", b"K\1\x85"), **{"0": bytes(4)}
    ),
    "checkpoint: sizes below zero": lambda f: torch_zip(
        f, _view(b"K\4", _long(-4) + b"\x85", b"K\1\x85"), **{"0": bytes(16)}
    ),
    "checkpoint: nothing, 2^76 times": lambda f: torch_zip(
        f, _view(b"K\4", b"K\0" + _HUGER * 2 + b"\x87", b"K\1K\1K\1\x87"), **{"0": bytes(16)}
    ),
    "checkpoint: billion laughs": lambda f: torch_zip(f, _laughs(f)),
    "checkpoint: billion laughs as a name": lambda f: torch_zip(f, _laughs_as_a_name(f)),
    "checkpoint: one size many times": lambda f: torch_zip(f, _copies(f)),
    "checkpoint: hoard": lambda f: torch_zip(f, _hoard(f)),
    "checkpoint: deep": lambda f: torch_zip(f, b"\x80\2" + b"]" * 20_000 + b"a" * 19_999 + b"."),
    "safetensors: header of 2^63": header("{}", length=1 << 63),
    "safetensors: header of 4 GiB": header("{" + " " * 100, length=4 << 30),
    "safetensors: header of blanks": header("{" + " " * (1 << 20) + "}", bytes(16)),
    "safetensors: deep header": header('{"w":' + "[" * 200_000 + "]" * 200_000 + "}"),
    "safetensors: shape of 2^120": header(tensor(shape=[1 << 40] * 3), bytes(16)),
    "safetensors: rank of a million": header(tensor(shape=[1] * 100_000), bytes(16)),
    "safetensors: number of a million digits": header('{"w": ' + "9" * 1_000_000 + "}"),
    "safetensors: below zero": header(tensor(shape=[-4, -1]), bytes(16)),
    "safetensors: beyond the end": header(tensor(data_offsets=[0, 1 << 40], shape=[1 << 38]), bytes(16)),
    "safetensors: nothing, 2^80 times": header(tensor(shape=[0, 1 << 40, 1 << 40], data_offsets=[0, 0])),
    "safetensors: rank of a hundred": header(tensor(shape=[1] * 100, data_offsets=[0, 4]), bytes(4)),
    "safetensors: overlapping": header(
        json.dumps({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}), bytes(16)
    ),
    "safetensors: gap": header(tensor(data_offsets=[16, 32]), bytes(32)),
    "safetensors: twice": header(tensor()[:-1] + "," + tensor()[1:], bytes(16)),
    "safetensors: NaN": header('{"w": NaN}'),
}
