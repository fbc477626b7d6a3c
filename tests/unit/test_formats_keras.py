"""Keras files: what may carry code is told before Keras sees it, the rest is converted if a converter is installed."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from celluler.engines.formats import keras_import
from celluler.engines.formats.convert import convert
from celluler.errors import InvalidSpec
from celluler.formats.importing import Wishes
from celluler.formats.keras_files import MAX_DEPTH, checked_config, config_of_keras
from celluler.formats.recognise import MayCarryCode

DENSE = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2}, "registered_name": None}


def model(*layers: Any, **more: Any) -> dict[str, Any]:
    config = {"name": "sequential", "layers": list(layers)}
    return {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": "Sequential"} | more


def archive(folder: Path, config: Any, *, compression: int = zipfile.ZIP_STORED, **more: bytes) -> Path:
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w", compression) as made:
        for name in ("metadata.json", "model.weights.h5"):
            made.writestr(name, b"{}")
        made.writestr("config.json", json.dumps(config))
        for name, content in more.items():
            made.writestr(name, content)
    return path


def layer(name: str, module: str | None = "keras.layers", **more: Any) -> dict[str, Any]:
    told = {"class_name": name, "config": {}, "registered_name": None} | more
    return told if module is None else told | {"module": module}


CARRIERS = {
    "a lambda": (model(DENSE, layer("Lambda")), r"config\.config\.layers\[1\] is a Lambda, which holds Python"),
    "a lambda in a layer": (model(layer("TimeDistributed", layer=layer("Lambda"))), "is a Lambda"),
    "a lambda as a function": (model(layer("Dense", activation=layer("__lambda__", None))), "is a __lambda__"),
    "a function by its name": (model(layer("function", "builtins", config="exec")), "a function, which names"),
    "a module of Keras that is no layer's": (model(layer("get_file", "keras.utils")), "of the module 'keras.utils'"),
    "a module of Python": (model(layer("Dense", "os")), "of the module 'os'"),
    "its author's own class": (model(layer("Mine", registered_name="mine>Mine")), "not among the layers"),
    "a layer under another name": (model(layer("Dense", registered_name="mine>Dense")), "not among the layers"),
    "its author's own model": (layer("Mine", "mine"), "is a Mine, which is a class of its author's"),
    "a pickle in a layer": (model(layer("TorchModuleWrapper")), "which holds a pickle"),
    "another model by its path": (model(layer("TFSMLayer")), "loads another model"),
    "a table of words from a file": (model(layer("StringLookup")), "not among the layers"),
    "a loss that names a function": (model(model(DENSE, compile_config={"loss": "x"})), "says how to compile it"),
}


@pytest.mark.parametrize("name", CARRIERS)
def test_a_layer_that_may_carry_code_is_named(name: str, tmp_path: Path) -> None:
    config, why = CARRIERS[name]
    with pytest.raises(MayCarryCode, match=why):
        checked_config(json.dumps(config).encode())
    with pytest.raises(MayCarryCode):
        config_of_keras(archive(tmp_path, config))


def test_layers_of_the_list_and_arithmetic_between_them_are_let_through(tmp_path: Path) -> None:
    added = layer("Add", "keras.src.ops.numpy", registered_name="Add")
    config = model(DENSE, layer("LSTM", None), added, compile_config={"loss": "mse"})
    assert checked_config(json.dumps(config).encode()) == config
    assert config_of_keras(archive(tmp_path, config)) == config


@pytest.mark.parametrize(
    ("config", "more", "problem"),
    [
        ([], {}, "is no model's"),
        ({"class_name": 3}, {}, "is no model's"),
        ({"class_name": []}, {}, "is no model's"),
        (model(layer("Dense", module=[])), {}, "its module is none"),
        (model(layer("Dense"), {"class_name": []}), {}, "is no text"),
        (model(DENSE), {"assets_vocabulary.txt": b"x"}, "and must hold"),
        (model(DENSE), {"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
    ],
)
def test_what_is_no_model_of_keras_is_refused(config: Any, more: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=problem):
        config_of_keras(archive(tmp_path, config, **more))


def test_layers_within_layers_end(tmp_path: Path) -> None:
    nested: dict[str, Any] = DENSE
    for _ in range(MAX_DEPTH):
        nested = model(nested)
    with pytest.raises(InvalidSpec, match="nested deeper"):
        checked_config(json.dumps(nested).encode())


def test_without_a_converter_it_is_said_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_import.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MayCarryCode, match="a Keras archive") as told:
        convert(archive(tmp_path, model(DENSE)), None, "celluler", Wishes(), tmp_path)
    assert "pip install 'celluler[keras]'" in str(told.value.hint)


# --- where one is installed -----------------------------------------------------------------------------------------

installed = all(map(importlib.util.find_spec, ("keras", "tensorflow", "tf2onnx")))
large = pytest.mark.skipif(not installed, reason="pip install 'celluler[keras]'")


def made(name: str, folder: Path) -> Path:
    import keras  # noqa: PLC0415

    layers, path = keras.layers, folder / f"{name}.keras"
    match name:
        case "picture":
            x = given = keras.Input((12, 12, 3))
            y = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
            y = layers.BatchNormalization()(layers.MaxPooling2D()(y))
            y = layers.Conv2DTranspose(4, 2, strides=2, padding="valid")(layers.UpSampling2D()(y))
            answer = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(y))
        case "text":
            given = keras.Input((9,), dtype="int32")
            x = layers.Embedding(50, 16)(given)
            x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
            answer = layers.Dense(3)(layers.Bidirectional(layers.LSTM(8))(x))
        case _:
            given = keras.Input((5,))
            answer = layers.Dense(2)(layers.Dropout(0.5)(layers.Dense(7, activation="silu")(given)))
    built = keras.Model(given, answer)
    built.save(path)
    if name == "table":
        built.save(path.with_suffix(".h5"))
        built.export(folder / "saved", verbose=False)
    return path


@pytest.mark.large
@large
@pytest.mark.parametrize("name", ["picture", "text", "table"])
def test_a_model_of_keras_answers_here_as_there(name: str, tmp_path: Path) -> None:
    paths = [made(name, tmp_path)]
    paths += [tmp_path / "table.h5", tmp_path / "saved"] if name == "table" else []
    for place, path in enumerate(paths):
        (folder := tmp_path / str(place)).mkdir()
        done = convert(path, None, "celluler", Wishes(), folder)
        assert done.deviation is not None
        assert done.deviation < 1e-5
        assert done.form == ("keras", "keras-h5", "saved-model")[place]
        assert sorted(one.name for one in folder.iterdir()) == ["model.json", "weights.safetensors"]


@pytest.mark.large
@large
def test_code_in_a_file_of_keras_does_not_run(tmp_path: Path) -> None:
    import keras  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    layers = [keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2), keras.layers.Dense(2)]
    for name in ("code.keras", "code.h5"):
        keras.Sequential(layers).save(tmp_path / name)
        with pytest.raises(MayCarryCode, match="is a Lambda, which holds Python"):
            convert(tmp_path / name, None, "celluler", Wishes(), tmp_path)

    class Writes(tf.Module):  # type: ignore[misc,name-defined]
        @tf.function(input_signature=[tf.TensorSpec((None, 3))])  # type: ignore[untyped-decorator]
        def answer(self, x: Any) -> Any:
            tf.io.write_file(str(tmp_path / "written"), "x")
            return x * 2

    module = Writes()
    tf.saved_model.save(module, str(tmp_path / "writes"), signatures={"serving_default": module.answer})
    with pytest.raises(MayCarryCode, match="holds WriteFile"):
        convert(tmp_path / "writes", None, "celluler", Wishes(), tmp_path)
    assert not (tmp_path / "written").exists()
