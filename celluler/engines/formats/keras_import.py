"""Keras and TensorFlow, by the converter that their makers give, into ONNX and from there into a graph of ours.

Only where such a converter is installed (`pip install 'celluler[keras]'`), in a confined worker of the author alone. It
is Keras and TensorFlow that read the file here, after its layers were held against a closed list; what they answer is
compared with what comes of it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.engines.formats.onnx_import import TOLERANCE, import_onnx
from celluler.engines.load import load_model
from celluler.errors import InvalidSpec
from celluler.formats.imported import Imported
from celluler.formats.importing import Wishes
from celluler.formats.keras_files import MAX_CONFIG_BYTES, checked_config, config_of_keras
from celluler.formats.recognise import KERAS, KERAS_HDF5, SAVED_MODEL, TO_ONNX, MayCarryCode
from celluler.models.graph_body import MAX_VOCABULARY, GraphBody

OPSET = 18
MAX_GRAPH_BYTES = 1 << 30
_FOREIGN = frozenset(
    ("EagerPyFunc", "LoadAndRemapMatrix", "MatchingFiles", "PyFunc", "PyFuncStateless", "ReadFile", "WriteFile")
)
"""Operations of TensorFlow that reach files or Python."""
_TRIED = 3

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Opened:
    """answer: of the original, to an input. export: writes it as ONNX. held: what both stand on, and would not keep."""

    answer: Callable[[Numbers], Numbers]
    export: Callable[[Path], None]
    held: Any = None


def import_keras(refused: MayCarryCode, source: Path, wishes: Wishes, folder: Path) -> tuple[Imported, float]:
    """(body and tensors, largest difference to the original's answers relative to the largest answer).

    refused: what the file is, and raised again where no converter is installed. folder: for what lies between.
    Raises InvalidSpec.
    """
    tensorflow = all(map(importlib.util.find_spec, ("tensorflow", "tf2onnx")))
    if not tensorflow and (refused.source == SAVED_MODEL or importlib.util.find_spec("keras") is None):
        raise refused
    with tempfile.TemporaryDirectory(dir=folder) as name:
        between = Path(name)
        os.environ |= {  # of this process, which is there for one file
            "KERAS_BACKEND": "tensorflow" if tensorflow else "torch",
            "KERAS_HOME": name,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "",
        }
        opened = _saved_model(source) if refused.source == SAVED_MODEL else _keras(refused.source, source, between)
        opened.export(between / "model.onnx")
        imported, body, _ = import_onnx(between / "model.onnx", wishes)
        deviation = _difference(opened, imported, body, between)
    if not deviation <= TOLERANCE:
        raise InvalidSpec(
            "file",
            f"what was converted answers otherwise than the original, by {deviation:.2g} of the answer",
            hint=None if tensorflow else "install tensorflow and tf2onnx: the converter without them unrolls loops",
        )
    by = "tf2onnx" if tensorflow else "Keras on torch"
    told = tuple(one for one in imported.notes if "onnxruntime" not in one)
    return replace(imported, notes=(f"converted by way of ONNX, by {by}", *told)), deviation


def _keras(form: str, path: Path, between: Path) -> _Opened:
    if form == KERAS:
        config_of_keras(path)
    else:
        assert form == KERAS_HDF5
        checked_config(_config_of_hdf5(path))
    import keras  # noqa: PLC0415

    named = _named(path, form, between)
    model = _guarded("Keras does not load it", lambda: keras.saving.load_model(named, compile=False, safe_mode=True))
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        told = f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs; a model of ours has one of each"
        raise InvalidSpec("config", told)
    sides = [3, *(7 if side is None else side for side in model.inputs[0].shape[1:])]
    first = np.zeros(sides, model.inputs[0].dtype)

    def answer(x: Numbers) -> Numbers:
        return np.asarray(keras.ops.convert_to_numpy(model(x.astype(first.dtype), training=False)))

    def export(to: Path) -> None:
        told = "Keras does not write it as ONNX"
        _guarded(told, lambda: model.export(str(to), format="onnx", verbose=False, opset_version=OPSET))

    _guarded("Keras does not run it", lambda: answer(first))  # and it is not exported before it was asked once
    return _Opened(answer, export)


def _named(path: Path, form: str, between: Path) -> str:
    """Keras goes by what a file is called: a copy of the right name, where it has another."""
    ending = ".keras" if form == KERAS else ".h5"
    if path.name.endswith(ending):
        return str(path)
    return shutil.copyfile(path, str(between / f"model{ending}"))


def _config_of_hdf5(path: Path) -> bytes:
    import h5py  # noqa: PLC0415  it comes with Keras

    def read() -> Any:
        with h5py.File(path, "r") as file:
            return file.attrs.get("model_config")

    told = _guarded("HDF5 does not read it", read)
    raw = told.encode("utf-8") if isinstance(told, str) else told
    if not isinstance(raw, bytes) or len(raw) > MAX_CONFIG_BYTES:
        raise InvalidSpec(
            "file", "says of no model what it computes: weights alone", hint="save the whole model: model.save(path)"
        )
    return raw


def _saved_model(folder: Path) -> _Opened:
    import tensorflow as tf  # noqa: PLC0415
    import tf2onnx  # noqa: PLC0415

    _check_operations(folder / "saved_model.pb")
    loaded = _guarded("TensorFlow does not load it", lambda: tf.saved_model.load(str(folder)))
    signature = loaded.signatures.get("serving_default")
    if signature is None:
        raise InvalidSpec("signatures", "hold no serving_default")
    given, outputs = signature.structured_input_signature[1], sorted(signature.structured_outputs)
    if len(given) != 1 or len(outputs) != 1:
        told = f"takes {len(given)} inputs and gives {len(outputs)}; a model of ours has one of each"
        raise InvalidSpec("signatures.serving_default", told)
    ((name, spec),) = given.items()

    def call(x: Any) -> Any:
        return signature(**{name: x})[outputs[0]]

    def export(to: Path) -> None:
        asked = [tf.TensorSpec(spec.shape, spec.dtype, name=name)]
        made = tf.function(call, input_signature=asked)
        told = "tf2onnx does not convert it"
        _guarded(told, lambda: tf2onnx.convert.from_function(made, asked, opset=OPSET, output_path=str(to)))

    return _Opened(lambda x: np.asarray(call(tf.constant(x, spec.dtype))), export, loaded)


def _check_operations(path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415

    if not path.is_file() or path.stat().st_size > MAX_GRAPH_BYTES:
        raise InvalidSpec("folder.saved_model.pb", f"is missing, or has more than {MAX_GRAPH_BYTES} bytes")
    held = _guarded("is no SavedModel", lambda: saved_model_pb2.SavedModel.FromString(path.read_bytes()))
    for one in held.meta_graphs:
        nodes = [one.graph_def.node, *(function.node_def for function in one.graph_def.library.function)]
        if found := sorted({node.op for some in nodes for node in some} & _FOREIGN):
            why = f"its graph holds {found[0]}, which reaches files or Python"
            raise MayCarryCode("a TensorFlow SavedModel", why, TO_ONNX)


def _difference(opened: _Opened, imported: Imported, body: GraphBody, folder: Path) -> float:
    """Of the answers of what came of it to those of the original, on inputs drawn for it."""
    _, weights = imported.write(folder)
    ours = load_model(body, weights).predictor()
    worst = 0.0
    for seed in range(_TRIED):
        x = _drawn(body, seed)
        theirs = _guarded("the original does not answer", lambda x=x: opened.answer(x))  # type: ignore[misc]
        got = ours.predict(x)
        if got.shape != theirs.shape:
            raise InvalidSpec("file", f"as a graph it gives {got.shape}, by its own library {theirs.shape}")
        worst = max(worst, float(np.abs(got - theirs).max() / max(1e-6, np.abs(theirs).max())))
    return worst


def _drawn(body: GraphBody, seed: int) -> Numbers:
    """Whole numbers where a table is looked up, of whatever type they come in; else normal ones."""
    generator = np.random.default_rng(seed)
    shape = (1 + seed, *body.input.shape)
    if body.input.dtype == "int64":
        return generator.integers(0, 2 if body.vocabulary == MAX_VOCABULARY else body.vocabulary, shape)
    return generator.normal(size=shape).astype(np.float32)


def _guarded(told: str, what: Callable[[], Any]) -> Any:
    try:
        return what()
    except InvalidSpec:
        raise
    except Exception as error:  # a library of others, over a file of anybody's
        raise InvalidSpec("file", f"{told}: {type(error).__name__}: {str(error)[:256]}") from error
