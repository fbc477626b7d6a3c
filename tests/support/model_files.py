"""Small files of other people's formats, as those who made the formats write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file


def a_safetensors(folder: Path) -> Path:
    path = folder / "weights.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}, path)
    return path


def a_checkpoint(folder: Path) -> Path:
    path = folder / "checkpoint.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).state_dict()
    torch.save({"epoch": 3, "state_dict": state, "loss": [0.5, None, True]}, path)
    return path


def a_gguf(folder: Path, tensors: dict[str, Any] | None = None, **metadata: Any) -> Path:
    """tensors: name → array, or (array, the quantisation that gguf is to make of it)."""
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    adders = {float: writer.add_float32, int: writer.add_uint32, bool: writer.add_bool}
    adders |= {str: writer.add_string, list: writer.add_array}
    metadata = {"tokenizer__ggml__tokens": ["a", "b", "longer"], "numbers": [1, 2, 3]} | metadata
    for key, value in metadata.items():
        adders[type(value)](key.replace("__", "."), value)
    for name, value in (tensors or {"x": np.arange(64, dtype=np.float32).reshape(2, 32)}).items():
        if isinstance(value, tuple):
            writer.add_tensor(name, gguf.quants.quantize(*value), raw_dtype=value[1])
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def an_onnx(folder: Path, **changes: Any) -> Path:
    """A dense layer and a ReLU. changes: `domain` of the first node, `external` data of its weight."""
    weight = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    if "external" in changes:
        weight.data_location = TensorProto.EXTERNAL
        weight.ClearField("raw_data")
        weight.external_data.add(key="location", value=changes["external"])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], domain=changes.get("domain", "")),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weight],
    )
    domains = {"", changes.get("domain", "")}
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(one, 17) for one in sorted(domains)])
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert onnx.__version__
    return path
