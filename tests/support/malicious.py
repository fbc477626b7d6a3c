"""Crafted files: each tries to run something, to read elsewhere, or to have far more allocated than it weighs.

`CRAFTED` names them; each maker writes one into a folder and returns its path. Whatever would run writes `canary`
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

from tests.support.specs import regression

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


def _header(text: bytes | str, data: bytes = b"", length: int | None = None) -> Callable[[Path], Path]:
    raw = text.encode() if isinstance(text, str) else text
    size = len(raw) if length is None else length
    return lambda folder: written(folder, "model.safetensors", size.to_bytes(8, "little") + raw + data)


def _tensor(**fields: Any) -> str:
    return json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | fields})


SIZES: dict[str, Maker] = {
    "zip bomb": _bomb,
    "zip: compressed storage": _deflated_storage,
    "zip: overlapping entries": _overlapping,
    "zip: 10^12 entries": _million_entries,
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
    "checkpoint: billion laughs": lambda f: torch_zip(f, _laughs(f)),
    "checkpoint: hoard": lambda f: torch_zip(f, _hoard(f)),
    "checkpoint: deep": lambda f: torch_zip(f, b"\x80\2" + b"]" * 20_000 + b"a" * 19_999 + b"."),
    "safetensors: header of 2^63": _header("{}", length=1 << 63),
    "safetensors: header of 4 GiB": _header("{" + " " * 100, length=4 << 30),
    "safetensors: header of blanks": _header("{" + " " * (1 << 20) + "}", bytes(16)),
    "safetensors: deep header": _header('{"w":' + "[" * 200_000 + "]" * 200_000 + "}"),
    "safetensors: shape of 2^120": _header(_tensor(shape=[1 << 40] * 3), bytes(16)),
    "safetensors: rank of a million": _header(_tensor(shape=[1] * 100_000), bytes(16)),
    "safetensors: number of a million digits": _header('{"w": ' + "9" * 1_000_000 + "}"),
    "safetensors: below zero": _header(_tensor(shape=[-4, -1]), bytes(16)),
    "safetensors: beyond the end": _header(_tensor(data_offsets=[0, 1 << 40], shape=[1 << 38]), bytes(16)),
    "safetensors: overlapping": _header(
        json.dumps({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}), bytes(16)
    ),
    "safetensors: gap": _header(_tensor(data_offsets=[16, 32]), bytes(32)),
    "safetensors: twice": _header(_tensor()[:-1] + "," + _tensor()[1:], bytes(16)),
    "safetensors: NaN": _header('{"w": NaN}'),
}

# --- bodies --------------------------------------------------------------------------------------------------------


def _spec(*layers: Any, shape: tuple[int, ...] = (8,), dtype: str = "float32") -> Maker:
    document = regression(*layers, shape=shape, dtype=dtype)
    return lambda folder: written(folder, "model.json", json.dumps(document).encode())


_DENSE = {"kind": "dense", "width": 10**6}


def _repeated(depth: int) -> dict[str, Any]:
    layer: dict[str, Any] = {"kind": "dense", "width": 8}
    for _ in range(depth):
        layer = {"kind": "repeat", "times": 1000, "layers": [layer]}
    return layer


def _graph(**changes: Any) -> Maker:
    graph = {
        "graph": 1,
        "dimensions": {"batch": [1, 8]},
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
        "tensors": [{"name": "w", "role": "parameter", "dtype": "float32", "shape": [3, 4]}],
        "nodes": [{"name": "y", "op": "linear.default", "args": {"input": "x", "weight": "@w"}}],
        "outputs": ["y"],
    } | changes
    body = {"body": 1, "graph": graph, "objective": {"kind": "regression"}, "output": [3], "activation_bytes": 1000}
    return lambda folder: written(folder, "model.json", json.dumps(body).encode())


def _node(op: str, **args: Any) -> Maker:
    return _graph(nodes=[{"name": "y", "op": op, "args": args}])


BODIES: dict[str, Maker] = {
    "spec: 10^12 parameters": _spec(_DENSE, _DENSE),
    "spec: 10^18 by repeats": _spec(_repeated(6)),
    "spec: repeats in repeats": _spec(_repeated(200)),
    "spec: input of 10^15": _spec({"kind": "flatten"}, _DENSE, shape=(10**5, 10**5, 10**5)),
    "spec: embedding of 10^15": _spec({"kind": "embedding", "vocabulary": 10**9, "width": 10**6}, dtype="int64"),
    "spec: width of 4,000 digits": lambda f: written(
        f, "model.json", json.dumps(regression({"kind": "dense", "width": 7})).encode().replace(b"7", b"7" * 4000)
    ),
    "spec: a kind that is a class": _spec({"kind": "__class__"}),
    "spec: a field that is an attribute": _spec({"kind": "dense", "width": 4, "__init__": "x"}),
    "spec: deep": lambda f: written(f, "model.json", b'{"spec":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "graph: from_file": _node("from_file.default", filename="/etc/passwd", size=4),
    "graph: as_strided": _node("as_strided.default", self="x", size=[1 << 40], stride=[0]),
    "graph: empty": _node("empty.memory_format", size=[4]),
    "graph: set_": _node("set_.source_Tensor", self="@w", source="x"),
    "graph: an attribute of Python": _node("__class__.__base__", self="x"),
    "graph: a library's operation": _node("quantized::conv_unpack", self="x"),
    "graph: load_library": _node("_C._jit_pass_inline", self="x"),
    "graph: an expression as a size": _graph(
        inputs=[{"name": "x", "dtype": "float32", "shape": ["__import__('os').system('true')", 4]}]
    ),
    "graph: tensor of 10^24": _graph(
        tensors=[{"name": "w", "role": "parameter", "dtype": "float32", "shape": [10**8, 10**8, 10**8]}]
    ),
    "graph: many large tensors": _graph(
        tensors=[
            {"name": f"w{number}", "role": "parameter", "dtype": "float32", "shape": [10**4, 10**4]}
            for number in range(1000)
        ]
    ),
    "graph: writes what it was given": _graph(
        nodes=[{"name": "y", "op": "add_.Tensor", "args": {"self": "x", "other": 1}, "train_only": True}]
    ),
}

# --- onnx, gguf, folders ---------------------------------------------------------------------------------------------


def _field(number: int, data: bytes | int) -> bytes:
    if isinstance(data, int):
        return _varint(number << 3) + _varint(data)
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _onnx(graph: bytes, domain: bytes = b"", opset: int = 17, more: bytes = b"") -> Maker:
    imported = _field(8, (_field(1, domain) if domain else b"") + _field(2, opset))
    data = _field(1, 8) + _field(7, graph) + imported + more
    return lambda folder: written(folder, "model.onnx", data)


def _onnx_node(operator: bytes, attribute: bytes = b"", domain: bytes = b"") -> bytes:
    node = _field(1, b"x") + _field(2, b"y") + _field(4, operator)
    return _field(1, node + (_field(5, attribute) if attribute else b"") + (_field(7, domain) if domain else b""))


def _onnx_tensor(*dims: int, external: bytes = b"", raw: bytes = b"") -> bytes:
    tensor = b"".join(_field(1, side) for side in dims) + _field(2, 1) + _field(8, b"w")
    if external:
        entry = _field(13, _field(1, b"location") + _field(2, external))
        return _field(5, tensor + entry + _field(14, 1))
    return _field(5, tensor + _field(9, raw))


def _nested_graphs(depth: int) -> bytes:
    graph = _onnx_node(b"Relu")
    for _ in range(depth):
        graph = _onnx_node(b"If", _field(1, b"then_branch") + _field(6, graph) + _field(20, 5))
    return graph


ONNX: dict[str, Maker] = {
    "onnx: weights in another file": _onnx(_onnx_tensor(4, external=b"../secret") + _onnx_node(b"Relu")),
    "onnx: weights at /etc/passwd": _onnx(_onnx_tensor(4, external=b"/etc/passwd") + _onnx_node(b"Relu")),
    "onnx: another domain": _onnx(_onnx_node(b"Run", domain=b"com.evil"), domain=b"com.evil"),
    "onnx: a node of another domain": _onnx(_onnx_node(b"Run", domain=b"com.microsoft")),
    "onnx: graphs in graphs": _onnx(_nested_graphs(3)),
    "onnx: functions": _onnx(_onnx_node(b"Relu"), more=_field(25, _field(1, b"f"))),
    "onnx: tensor of 2^120": _onnx(_onnx_tensor(1 << 40, 1 << 40, 1 << 40) + _onnx_node(b"Relu")),
    "onnx: tensor below zero": _onnx(_onnx_tensor((1 << 64) - 4, raw=bytes(16)) + _onnx_node(b"Relu")),
    "onnx: more nodes than any model": _onnx(_field(1, b"") * 40_000),
    "onnx: length beyond the end": lambda f: written(f, "model.onnx", b"\x08\x08\x3a\xff\xff\xff\xff\x0f"),
    "onnx: length of 2^63": lambda f: written(f, "model.onnx", b"\x08\x08\x3a" + b"\xff" * 8 + b"\x7f"),
}


def _gguf(head: bytes, version: int = 3) -> Maker:
    return lambda folder: written(folder, "model.gguf", b"GGUF" + struct.pack("<I", version) + head)


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _gguf_tensor(*sides: int, kind: int = 0, offset: int = 0) -> bytes:
    return _text(b"w") + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


GGUF: dict[str, Maker] = {
    "gguf: 2^63 tensors": _gguf(struct.pack("<QQ", 1 << 63, 0)),
    "gguf: 2^63 keys": _gguf(struct.pack("<QQ", 0, 1 << 63)),
    "gguf: text of 2^63": _gguf(struct.pack("<QQQ", 0, 1, (1 << 63) - 1)),
    "gguf: array of 2^60": _gguf(struct.pack("<QQ", 0, 1) + _text(b"k") + struct.pack("<IIQ", 9, 0, 1 << 60)),
    "gguf: arrays in arrays": _gguf(
        struct.pack("<QQ", 0, 1) + _text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 10_000
    ),
    "gguf: array of empty texts": _gguf(
        struct.pack("<QQ", 0, 1) + _text(b"k") + struct.pack("<IIQ", 9, 8, 4_000_000) + bytes(1 << 18)
    ),
    "gguf: tensor of 2^120": _gguf(struct.pack("<QQ", 1, 0) + _gguf_tensor(1 << 40, 1 << 40, 1 << 40) + bytes(64)),
    "gguf: rank of 2^31": _gguf(struct.pack("<QQ", 1, 0) + _text(b"w") + struct.pack("<I", 1 << 31) + bytes(64)),
    "gguf: tensor beyond the end": _gguf(struct.pack("<QQ", 1, 0) + _gguf_tensor(1 << 20) + bytes(64)),
    "gguf: tensor before the start": _gguf(
        struct.pack("<QQ", 1, 0) + _gguf_tensor(4, offset=(1 << 64) - 32) + bytes(64)
    ),
    "gguf: alignment of nothing": _gguf(
        struct.pack("<QQ", 0, 1) + _text(b"general.alignment") + struct.pack("<II", 4, 0) + bytes(64)
    ),
    "gguf: type that nobody knows": _gguf(struct.pack("<QQ", 1, 0) + _gguf_tensor(4, kind=1 << 30) + bytes(64)),
    "gguf: garbage": lambda f: written(f, "model.gguf", b"GGUF" + bytes(range(256)) * 64),
}

_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


def _folder(config: dict[str, Any] | bytes, **files: bytes) -> Maker:
    def make(folder: Path) -> Path:
        (folder / "m").mkdir()
        written(folder / "m", "config.json", config if isinstance(config, bytes) else json.dumps(config).encode())
        if not any(name.startswith(("model_", "pytorch")) for name in files):
            _header(_tensor(), bytes(16))(folder / "m")
        for name, data in files.items():
            written(folder / "m", name.replace("__", "."), data)
        return folder / "m"

    return make


def _index(**places: str) -> bytes:
    return json.dumps({"weight_map": places}).encode()


HF: dict[str, Maker] = {
    "hf: auto_map": _folder(_LLAMA | {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}),
    "hf: python beside it": _folder(_LLAMA, modeling__py=b"import os"),
    "hf: custom pipelines": _folder(_LLAMA | {"custom_pipelines": {"x": {"impl": "p.P"}}}),
    "hf: pickled weights": _folder(_LLAMA, pytorch_model__bin=b"\x80\2."),
    "hf: index to elsewhere": _folder(_LLAMA, model__safetensors__index__json=_index(w="../secret")),
    "hf: index to a pickle": _folder(
        _LLAMA, model__safetensors__index__json=_index(w="a.bin"), model_x__bin=b"", a__bin=b"\x80\2."
    ),
    "hf: 10^18 parameters": _folder(_LLAMA | {"hidden_size": 10**9, "intermediate_size": 10**9}),
    "hf: 10^9 layers": _folder(_LLAMA | {"num_hidden_layers": 10**9}),
    "hf: vocabulary of 10^12": _folder(_LLAMA | {"vocab_size": 10**12}),
    "hf: no heads": _folder(_LLAMA | {"num_attention_heads": 0}),
    "hf: an architecture that nobody knows": _folder(_LLAMA | {"model_type": "os.system"}),
    "hf: deep config": _folder(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
}

CRAFTED: dict[str, Maker] = CODE | PT2 | SIZES | BODIES | ONNX | GGUF | HF

PLACES = {
    "zip: compressed storage": "tensors.w",
    "checkpoint: storage of 32 GiB": "tensors.w",
    "safetensors: shape of 2^120": "file.w",
    "safetensors: rank of a million": "file.w",
    "safetensors: below zero": "file.w",
    "safetensors: overlapping": "file.b",
    "safetensors: gap": "file.w",
    "safetensors: twice": "file.w",
    "spec: 10^12 parameters": "layers[1]",
    "spec: 10^18 by repeats": "layers",
    "spec: repeats in repeats": "",
    "spec: input of 10^15": "input.shape",
    "spec: embedding of 10^15": "layers[0].vocabulary",
    "spec: width of 4,000 digits": "layers[0].width",
    "spec: a kind that is a class": "layers[0].kind",
    "spec: a field that is an attribute": "layers[0].__init__",
    "graph: from_file": "graph.nodes[0].op",
    "graph: as_strided": "graph.nodes[0].op",
    "graph: empty": "graph.nodes[0].op",
    "graph: set_": "graph.nodes[0].op",
    "graph: an attribute of Python": "graph.nodes[0].op",
    "graph: a library's operation": "graph.nodes[0].op",
    "graph: load_library": "graph.nodes[0].op",
    "graph: an expression as a size": "graph.inputs[0].shape[0]",
    "graph: tensor of 10^24": "graph.tensors[0]",
    "graph: many large tensors": "graph.tensors[5]",
    "graph: writes what it was given": "graph.nodes[0].args.self",
    "onnx: weights in another file": "graph.initializer.w",
    "onnx: weights at /etc/passwd": "graph.initializer.w",
    "onnx: another domain": "opset_import",
    "onnx: a node of another domain": "graph.node[0]",
    "onnx: graphs in graphs": "graph.node[0]",
    "onnx: functions": "functions",
    "onnx: tensor of 2^120": "graph.initializer.w",
    "onnx: tensor below zero": "graph.initializer.w",
    "onnx: more nodes than any model": "graph",
    "gguf: array of 2^60": "metadata.k",
    "gguf: arrays in arrays": "metadata.k",
    "gguf: tensor of 2^120": "tensors.w",
    "gguf: rank of 2^31": "tensors.w",
    "gguf: tensor beyond the end": "tensors.w",
    "gguf: tensor before the start": "tensors.w",
    "gguf: alignment of nothing": "metadata.general.alignment",
    "gguf: type that nobody knows": "tensors.w",
    "hf: auto_map": "config.json.auto_map",
    "hf: python beside it": "folder.modeling.py",
    "hf: custom pipelines": "config.json.custom_pipelines",
    "hf: pickled weights": "folder.pytorch_model.bin",
    "hf: index to elsewhere": "model.safetensors.index.json.weight_map",
    "hf: 10^18 parameters": "config.hidden_size",
    "hf: 10^9 layers": "config.num_hidden_layers",
    "hf: vocabulary of 10^12": "config.vocab_size",
    "hf: no heads": "config.num_attention_heads",
    "hf: an architecture that nobody knows": "config.json.model_type",
    "hf: deep config": "config.json",
}
"""Where the error says that something is wrong, when that is not the file as a whole."""
