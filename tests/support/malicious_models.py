"""Crafted specs, graphs, ONNX and GGUF files and Hugging Face folders, see `malicious`."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from tests.support.malicious_containers import Maker, header, tensor, written
from tests.support.specs import regression

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
    body = {"body": 1, "graph": graph, "objective": {"kind": "regression"}, "output": [3], "activation_bytes": 1 << 28}
    return lambda folder: written(folder, "model.json", json.dumps(body).encode())


def _node(op: str, **args: Any) -> Maker:
    return _graph(nodes=[{"name": "y", "op": op, "args": args}])


def _nodes(*operations: tuple[str, dict[str, Any]]) -> Maker:
    """One after the other: the value of the third is `n2`, that of the last is what comes out."""
    nodes = [{"name": f"n{place}", "op": op, "args": args} for place, (op, args) in enumerate(operations)]
    return _graph(nodes=nodes, outputs=[nodes[-1]["name"]])


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
    "graph: a value of 2^60": _nodes(("full.default", {"size": [1 << 20] * 3, "fill_value": 0.0})),
    "graph: a count to 10^15": _nodes(("arange.default", {"end": 10**15})),
    "graph: values that double": _nodes(
        *(("cat.default", {"tensors": [name, name]}) for name in ("x", *(f"n{place}" for place in range(59))))
    ),
    "graph: every value with every other": _nodes(
        ("arange.default", {"end": 1 << 20}),
        ("view.default", {"self": "n0", "size": [-1, 1]}),
        ("add.Tensor", {"self": "n0", "other": "n1"}),
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


_MANY = _field(1, b"") * 1_000_001
"""Empty messages: two bytes each in a file, a hundred in memory."""

ONNX: dict[str, Maker] = {
    "onnx: dimensions without end": _onnx(_field(13, _field(2, _field(1, _field(2, _MANY))))),
    "onnx: a graph without end in a node": _onnx(_onnx_node(b"If", _field(1, b"a") + _field(6, _MANY))),
    "onnx: a function without end": _onnx(_onnx_node(b"Relu"), more=_field(25, _field(7, _MANY))),
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
            header(tensor(), bytes(16))(folder / "m")
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
