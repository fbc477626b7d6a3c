"""KServe's inference requests and answers, as JSON and with tensors in binary behind it. Pure; asks no model.

Source: Open Inference Protocol (KServe V2), REST; extension "binary tensor data".
A model takes one tensor. Its texts are BYTES here, one element a text; seeds, of an output that is made from these,
are an input named `seeds`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec, WorkerFailed
from celluler.models.calls import SAMPLE
from celluler.models.transforms.base import TEXT
from celluler.tensors import DTYPES, Tensor, tensor_of
from celluler.views import ModelPorts, Port, Prediction
from celluler_node.gateway.documents import check_keys, read_object

SEEDS = "seeds"
BYTES = "BYTES"
MAX_OUTPUTS = 32
MAX_ID = 256
DATATYPES = {"FP32": "float32", "FP64": "float64", "INT64": "int64", "INT32": "int32", "UINT8": "uint8"}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()} | {TEXT: BYTES}


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output, and whether it is to come in binary."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class Inference:
    """id: the caller's, or "". outputs: empty for all that can be made from this input."""

    id: str
    name: str
    inputs: Tensor
    outputs: tuple[Wanted, ...]
    binary: bool


# --- metadata ------------------------------------------------------------------------------------------------------


def metadata(ports: ModelPorts, versions: Sequence[str]) -> dict[str, Any]:
    return {
        "name": ports.model.partition(":")[0],
        "versions": list(versions),
        "platform": "celluler",
        "inputs": [_tensor_metadata(ports.takes or Port(SEEDS, "int64", ()))],
        "outputs": [_tensor_metadata(port) for port in ports.gives],
    }


def _tensor_metadata(port: Port) -> dict[str, Any]:
    sides = port.shape[:-1] if port.dtype == TEXT else port.shape
    return {"name": port.name, "datatype": _NAMES[port.dtype], "shape": [-1, *sides]}


# --- requests ------------------------------------------------------------------------------------------------------


def read_inference(body: bytes, header_bytes: int | None) -> Inference:
    """header_bytes: how many of the body are JSON, where tensors in binary follow. Raises InvalidSpec."""
    if header_bytes is not None and not 0 <= header_bytes <= len(body):
        raise InvalidSpec("Inference-Header-Content-Length", f"is {header_bytes}, of a body of {len(body)} bytes")
    head = body if header_bytes is None else body[:header_bytes]
    blobs = b"" if header_bytes is None else body[header_bytes:]
    asked = read_object(head)
    check_keys(asked, {"id": str, "parameters": dict, "inputs": list, "outputs": list}, "inputs")
    if len(asked.get("id") or "") > MAX_ID:
        raise InvalidSpec("id", f"is longer than {MAX_ID} characters")
    if len(asked["inputs"]) != 1:
        raise InvalidSpec("inputs", f"are {len(asked['inputs'])}; a model here takes one")
    name, tensor = _read_input(asked["inputs"][0], blobs)
    binary = _flag(asked.get("parameters"), "binary_data_output", default=False)
    outputs = tuple(_read_outputs(asked.get("outputs") or [], binary=binary))
    if len({one.name for one in outputs}) != len(outputs) or len(outputs) > MAX_OUTPUTS:
        raise InvalidSpec("outputs", f"are more than {MAX_OUTPUTS}, or one is named twice")
    return Inference(asked.get("id") or "", name, tensor, outputs, binary)


def _read_input(given: Any, blobs: bytes) -> tuple[str, Tensor]:
    path = "inputs[0]"
    if not isinstance(given, dict):
        raise InvalidSpec(path, "is no object")
    kinds = {"name": str, "shape": list, "datatype": str, "parameters": dict, "data": list}
    check_keys(given, kinds, "name", "shape", "datatype")
    shape, datatype, size = given["shape"], given["datatype"], _blob_bytes(given.get("parameters"))
    if not shape or not all(type(side) is int and 0 < side <= 1 << 31 for side in shape):
        raise InvalidSpec(f"{path}.shape", "must be whole numbers above zero, the first one samples")
    if (given.get("data") is None) == (size is None):
        raise InvalidSpec(path, "needs either data or parameters.binary_data_size")
    if len(blobs) != (size or 0):
        raise InvalidSpec(path, f"{len(blobs)} bytes follow the header, {size or 0} are told of")
    if datatype == BYTES:
        return given["name"], _texts(_elements(blobs) if size is not None else list(_flat(given["data"])), tuple(shape))
    if datatype not in DATATYPES:
        raise InvalidSpec(f"{path}.datatype", f"{datatype[:32]!r} is not one of {', '.join(DATATYPES)}, {BYTES}")
    dtype = DATATYPES[datatype]
    data = blobs if size is not None else tensor_of(given["data"], dtype).data
    if len(data) != math.prod(shape) * DTYPES[dtype][1]:
        raise InvalidSpec(path, f"{len(data)} bytes do not fill {shape} of {datatype}")
    return given["name"], Tensor(tuple(shape), dtype, data)


def _blob_bytes(parameters: Mapping[str, Any] | None) -> int | None:
    size = (parameters or {}).get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise InvalidSpec("inputs[0].parameters.binary_data_size", "is no number of bytes")
    return size


def _flag(parameters: Any, name: str, *, default: bool) -> bool:
    value = (parameters or {}).get(name, default)
    if not isinstance(value, bool):
        raise InvalidSpec(f"parameters.{name}", "is neither true nor false")
    return value


def _read_outputs(given: list[Any], *, binary: bool) -> Iterator[Wanted]:
    for place, one in enumerate(given):
        if not isinstance(one, dict):
            raise InvalidSpec(f"outputs[{place}]", "is no object")
        check_keys(one, {"name": str, "parameters": dict}, "name")
        parameters = one.get("parameters") or {}
        if parameters.get("classification"):
            raise InvalidSpec(f"outputs[{place}].parameters.classification", "is an extension that is not had here")
        yield Wanted(one["name"], _flag(parameters, "binary_data", default=binary))


def _flat(given: Any) -> Iterator[Any]:
    """Nested lists, eight deep at most, as their items."""
    stack: list[tuple[Any, int]] = [(given, 0)]
    while stack:
        item, depth = stack.pop()
        if not isinstance(item, list):
            yield item
        elif depth == 8:
            raise InvalidSpec("inputs[0].data", "is nested too deep")
        else:
            stack.extend((inner, depth + 1) for inner in reversed(item))


def _elements(blob: bytes) -> list[str]:
    """Each with its length in four bytes before it."""
    found, place = [], 0
    while place < len(blob):
        end = place + 4 + int.from_bytes(blob[place : place + 4], "little")
        if place + 4 > len(blob) or end > len(blob):
            raise InvalidSpec("inputs[0]", "an element is longer than what follows")
        try:
            found.append(blob[place + 4 : end].decode("utf-8"))
        except UnicodeDecodeError:
            raise InvalidSpec("inputs[0]", "an element is not UTF-8") from None
        place = end
    return found


def _texts(texts: list[Any], shape: tuple[int, ...]) -> Tensor:
    if len(texts) != math.prod(shape) or not all(isinstance(text, str) for text in texts):
        raise InvalidSpec("inputs[0].data", f"{len(texts)} elements are not the texts of {list(shape)}")
    rows = tensor_of(texts)
    return Tensor((*shape, rows.shape[1]), rows.dtype, rows.data)


def outputs_for(inference: Inference, ports: ModelPorts) -> tuple[Wanted, ...]:
    """What to ask of the model, the input being one that it takes. Raises InvalidSpec."""
    named = [port.name for port in ports.gives]
    seeded = inference.name == SEEDS and (ports.takes is None or ports.takes.name != SEEDS)
    if not seeded and (ports.takes is None or inference.name != ports.takes.name):
        taken = SEEDS if ports.takes is None else ports.takes.name
        raise InvalidSpec("inputs[0].name", f"is {inference.name[:64]!r}; this model takes {taken}")
    fitting = [name for name in named if (name == SAMPLE) == seeded]
    for one in inference.outputs:
        if one.name not in fitting:
            told = f"{one.name[:64]!r} is not made from {inference.name[:64]}; that gives {', '.join(fitting)}"
            raise InvalidSpec("outputs", told)
    if not fitting:
        raise InvalidSpec("inputs[0].name", "nothing here is made from seeds")
    return inference.outputs or tuple(Wanted(name, inference.binary) for name in fitting)


# --- answers -------------------------------------------------------------------------------------------------------


def write_answer(
    inference: Inference, name: str, version: str, answers: Sequence[tuple[Wanted, Prediction]]
) -> tuple[bytes, int | None]:
    """The body, and how many bytes of it are JSON where binary follows. Raises WorkerFailed for what JSON has not."""
    outputs, blobs = [], []
    for wanted, prediction in answers:
        described, blob = _write_output(wanted, prediction)
        outputs.append(described)
        blobs.append(blob)
    first = answers[0][1]
    told = {
        "model_name": name,
        "model_version": version,
        **({"id": inference.id} if inference.id else {}),
        "parameters": {"cid": first.cid, "peer": first.peer},
        "outputs": outputs,
    }
    try:
        head = json.dumps(told, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
    except ValueError:
        hint = "ask for tensors in binary"
        raise WorkerFailed(f"the model answered with infinities or NaN, which JSON does not have ({hint})") from None
    binary = any(wanted.binary for wanted, _ in answers)
    return (head + b"".join(blobs), len(head)) if binary else (head, None)


def _write_output(wanted: Wanted, prediction: Prediction) -> tuple[dict[str, Any], bytes]:
    outputs, shape = prediction.outputs, prediction.outputs.shape
    texts: list[str] = []
    if prediction.text:
        shape, texts = shape[:-1], list(_flat(outputs.texts()))
    described: dict[str, Any] = {
        "name": wanted.name,
        "datatype": BYTES if prediction.text else _NAMES[outputs.dtype],
        "shape": list(shape),
    }
    if not wanted.binary:
        flat = Tensor((math.prod(shape),), outputs.dtype, outputs.data).lists() if not prediction.text else texts
        return described | {"data": flat}, b""
    blob = b"".join(map(_element, texts)) if prediction.text else outputs.data
    return described | {"parameters": {"binary_data_size": len(blob)}}, blob


def _element(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    return len(data).to_bytes(4, "little") + data
