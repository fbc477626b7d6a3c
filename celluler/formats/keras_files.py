"""What a Keras file says it is made of, read before Keras reads it: its layers may hold Python, and a class may be
anything that can be imported. Only layers of a closed list are let through. Knows no Keras.

Sources: CVE-2024-3660 (Lambda), CVE-2025-1550 (modules of a config), CVE-2025-8747 and CVE-2025-9905 (past safe mode).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celluler.documents import read_json
from celluler.errors import InvalidSpec
from celluler.formats.recognise import EXPORT, MayCarryCode
from celluler.formats.zips import open_zip

MAX_CONFIG_BYTES = 16 << 20
MAX_DEPTH = 64
FILES = frozenset(("metadata.json", "config.json", "model.weights.h5"))

_CARRIERS = {
    "Lambda": "holds Python that loading runs",
    "__lambda__": "holds Python that loading runs",
    "TorchModuleWrapper": "holds a pickle",
    "TFSMLayer": "loads another model by its path",
    "JaxLayer": "holds a compiled function",
    "FlaxLayer": "holds a compiled function",
    "function": "names a function to be imported",
}
MODELS = frozenset(("Sequential", "Functional", "Model"))
LAYERS = frozenset(
    (
        *("Activation", "ActivityRegularization", "Add", "AlphaDropout", "Attention", "Average", "AveragePooling1D"),
        *("AveragePooling2D", "AveragePooling3D", "BatchNormalization", "Bidirectional", "Concatenate", "Conv1D"),
        *("Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "Cropping1D", "Cropping2D"),
        *("Cropping3D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "Dot", "Dropout", "ELU", "EinsumDense"),
        *("Embedding", "Flatten", "GRU", "GRUCell", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D"),
        *("GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalMaxPooling1D", "GlobalMaxPooling2D"),
        *("GlobalMaxPooling3D", "GroupNormalization", "GroupQueryAttention", "Identity", "InputLayer", "LSTM"),
        *("LSTMCell", "LayerNormalization", "LeakyReLU", "Masking", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D"),
        *(
            "Maximum",
            "Minimum",
            "MultiHeadAttention",
            "Multiply",
            "Normalization",
            "PReLU",
            "Permute",
            "RMSNormalization",
        ),
        *("RNN", "ReLU", "RepeatVector", "Rescaling", "Reshape", "SeparableConv1D", "SeparableConv2D", "SimpleRNN"),
        *("SimpleRNNCell", "Softmax", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "StackedRNNCells"),
        *("Subtract", "ThresholdedReLU", "TimeDistributed", "UnitNormalization", "UpSampling1D", "UpSampling2D"),
        *("UpSampling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"),
    )
)
OPERATIONS = frozenset(
    (
        *(
            "Absolute",
            "Add",
            "Clip",
            "Concatenate",
            "Divide",
            "Elu",
            "Exp",
            "ExpandDims",
            "Gelu",
            "GetItem",
            "LeakyRelu",
        ),
        *("LeakyRelu", "Log", "LogSoftmax", "Matmul", "Max", "Maximum", "Mean", "Min", "Minimum", "Multiply"),
        *("Negative", "Power"),
        *("Relu", "Relu6", "Reshape", "Sigmoid", "Silu", "Softmax", "Softplus", "Sqrt", "Square", "Squeeze", "Stack"),
        *("Subtract", "Sum", "Tanh", "Transpose", "TrueDivide"),
    )
)
"""What stands between layers as arithmetic, `x + y`."""
_BESIDE = frozenset(
    (
        *("DTypePolicy", "Policy", "__tuple__", "__keras_tensor__", "__slice__", "__ellipsis__"),
        *("Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "Identity", "LecunNormal"),
        *("LecunUniform", "Ones", "Orthogonal", "RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling"),
        *("Zeros", "L1", "L2", "L1L2", "OrthogonalRegularizer", "MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"),
    )
)
_MODULES = ("keras", "keras.layers", "keras.models", "keras.initializers", "keras.regularizers", "keras.constraints")
_OPERATION_MODULES = ("keras.src.ops.numpy", "keras.src.ops.nn")
_OWN_MODULES = frozenset(
    (*_MODULES, "keras.dtype_policies", "keras.src.models.functional", "keras.src.models.sequential")
)


def config_of_keras(path: Path) -> dict[str, Any]:
    """Of a `.keras` archive, checked. Raises InvalidSpec."""
    entries = open_zip(path)
    if set(entries) != FILES:
        raise InvalidSpec("file", f"holds {', '.join(sorted(entries))[:128]}, and must hold {', '.join(sorted(FILES))}")
    entry = entries["config.json"]
    if entry.start is None or entry.size > MAX_CONFIG_BYTES:
        raise InvalidSpec("file", f"holds a config.json that is compressed, or has more than {MAX_CONFIG_BYTES} bytes")
    with path.open("rb") as file:
        file.seek(entry.start)
        return checked_config(file.read(entry.size))


def checked_config(raw: bytes) -> dict[str, Any]:
    """The config of a model as Keras writes it. Raises MayCarryCode for what is not of the list, InvalidSpec."""
    document = read_json(raw, limit=MAX_CONFIG_BYTES)
    named = document.get("class_name") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(named, str):
        raise InvalidSpec("config", "is no model's")
    if named not in MODELS:
        raise _refused("config", named[:64], "is a class of its author's")
    _walk({key: value for key, value in document.items() if key != "compile_config"}, "config", 0)
    return document


def _walk(value: Any, at: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidSpec(at[:256], f"is nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        for place, item in enumerate(value):
            _walk(item, f"{at}[{place}]", depth + 1)
    elif isinstance(value, dict):
        if "class_name" in value:
            _check_class(value, at)
        for key, item in value.items():
            _walk(item, f"{at}.{key[:64]}", depth + 1)


def _check_class(value: dict[str, Any], at: str) -> None:
    name, module = value["class_name"], value.get("module")
    if not isinstance(name, str) or not isinstance(module, str | None):
        raise InvalidSpec(f"{at[:256]}.class_name", "is no text, or its module is none")
    if name in _CARRIERS:
        raise _refused(at, name, _CARRIERS[name])
    if module in _OPERATION_MODULES and name in OPERATIONS and value.get("registered_name") in (None, name):
        return
    if module is not None and module not in _OWN_MODULES:
        raise _refused(at, name[:64], f"is of the module {str(module)[:64]!r}, which is not one of Keras' layers")
    registered = value.get("registered_name")
    if registered not in (None, name) or name not in LAYERS | MODELS | _BESIDE:
        raise _refused(at, name[:64], "is not among the layers that are read")
    if value.get("compile_config") is not None and at != "config":
        raise _refused(at, name[:64], "says how to compile it, which may name functions")


def _refused(at: str, name: str, why: str) -> MayCarryCode:
    return MayCarryCode("a Keras model", f"{at[:256]} is a {name}, which {why}", EXPORT)
