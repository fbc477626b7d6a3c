"""What a file is, by its bytes and never by its name; and what is refused because it may carry code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from celluler.errors import InvalidSpec
from celluler.formats.hf_folders import CONFIG_FILE
from celluler.formats.json_files import read_json_file
from celluler.formats.onnx_files import walk_onnx
from celluler.formats.zips import Entry, open_zip
from celluler.models.folder import DOCUMENT, kind_of

FORMATS = ("spec", "graph", "safetensors", "torch", "onnx", "gguf", "hf")
MAX_JSON_BYTES = 4 << 20
_HEAD_BYTES = 512

SAVE_STATE = "save the weights alone: torch.save(model.state_dict(), path), or safetensors"
EXPORT = "publish the module from Python on your own machine (celluler.publish), or export it to ONNX"
TO_ONNX = (
    "pip install 'celluler[keras]', which converts it in a confined worker, or convert it to ONNX on your own machine "
    "(python -m tf2onnx.convert), and add that"
)
KERAS, KERAS_HDF5, SAVED_MODEL = "keras", "keras-h5", "saved-model"
UNPACK = "unpack it, and add the model that is in it"


class MayCarryCode(InvalidSpec):
    """A format whose loading may run what its author wrote. format: what it is. source: what a converter that is
    installed knows it by (`keras`, `keras-h5`, `saved-model`), empty where there is none."""

    def __init__(self, form: str, why: str, hint: str, source: str = "") -> None:
        super().__init__("file", f"is {form}: {why}", hint=hint)
        self.format, self.source = form, source


def recognise(path: Path) -> str:
    """One of `FORMATS`. Raises MayCarryCode for what is refused, InvalidSpec for what is unknown or torn."""
    try:
        if path.is_dir():
            return _recognise_folder(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise InvalidSpec("file", f"cannot be read: {error.strerror}") from error
    # First: its first bytes are a length, which may be any other format's mark.
    if len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    for one in _REFUSED:
        if one.fits(head):
            raise MayCarryCode(one.form, one.why, one.hint, one.source)
    if head[:4] == b"PK\x03\x04":
        return _recognise_zip(open_zip(path))
    if head[:4] == b"GGUF":
        return "gguf"
    if head.lstrip()[:1] == b"{":
        return _recognise_json(path)
    for form, fits, hint in _UNREAD:
        if fits(head):
            raise InvalidSpec("file", f"is {form}, which is not read", hint=hint)
    if head[:1] == b"\x08":  # the version that begins an ONNX file, as all that write one begin it
        walk_onnx(path)
        return "onnx"
    raise InvalidSpec("file", f"is none of the formats that are read: {', '.join(FORMATS)}")


def _recognise_folder(folder: Path) -> str:
    if (folder / DOCUMENT).is_file():
        return _recognise_json(folder / DOCUMENT)
    if (folder / "saved_model.pb").exists() or (folder / "keras_metadata.pb").exists():
        why = "its graph may read and write files and call Python"
        raise MayCarryCode("a TensorFlow SavedModel", why, TO_ONNX, SAVED_MODEL)
    if (folder / CONFIG_FILE).is_file():
        return "hf"
    raise InvalidSpec("folder", "holds neither a model.json nor a config.json", hint="name the model's file itself")


def _recognise_json(path: Path) -> str:
    document = read_json_file(path, "file", MAX_JSON_BYTES)
    if "graph" in document or "spec" in document:
        return kind_of(document)
    raise InvalidSpec("file", "is JSON, but neither a spec nor a graph", hint="celluler model new --list")


def _recognise_zip(entries: dict[str, Entry]) -> str:
    names = {name.rpartition("/")[2] for name in entries}
    folders = {part for name in entries for part in name.split("/")[:-1]}
    if {"constants.pkl", "bytecode.pkl"} & names or "code" in folders:
        raise MayCarryCode("TorchScript", "it is a program, and loading runs it", EXPORT)
    if {"archive_format", "serialized_exported_program.json", "aotinductor"} & (names | folders):
        raise MayCarryCode("a torch.export archive (.pt2)", "its JSON is evaluated as code when it is loaded", EXPORT)
    if "model.weights.h5" in names or {"metadata.json", "config.json"} <= names:
        raise MayCarryCode("a Keras archive", "its layers may hold Python that loading runs", TO_ONNX, KERAS)
    if "data.pkl" in names:
        return "torch"
    if any(name.endswith(".npy") for name in names):
        raise MayCarryCode("a NumPy archive", "arrays of objects in it are pickles", "write the arrays as safetensors")
    raise InvalidSpec("file", "is a zip archive, but no PyTorch checkpoint", hint=UNPACK)


@dataclass(frozen=True, slots=True)
class _Refused:
    form: str
    why: str
    hint: str
    fits: Callable[[bytes], bool]
    source: str = ""


def _begins(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(marks)


_REFUSED = (
    _Refused(
        "a shared library or a program",
        "loading it runs it",
        EXPORT,
        _begins(
            *(b"\x7fELF", b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe"),
            *(b"\xca\xfe\xba\xbe", b"MZ", b"!<arch>\n", b"#!", b"\0asm"),
        ),
    ),
    _Refused(
        "a pickle (as joblib, scikit-learn and torch.save before 1.6 write them)",
        "loading it runs whatever its author wrote",
        SAVE_STATE,
        _begins(b"\x80\1", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"),
    ),
    _Refused(
        "an HDF5 file, as Keras writes them",
        "its layers may hold Python that loading runs",
        TO_ONNX,
        _begins(b"\x89HDF\r\n\x1a\n"),
        KERAS_HDF5,
    ),
    _Refused("a NumPy array", "arrays of objects are pickles", "write it as safetensors", _begins(b"\x93NUMPY")),
    _Refused(
        "a tar archive", "old PyTorch checkpoints in it are pickles", UNPACK, lambda head: head[257:262] == b"ustar"
    ),
)

_UNREAD: tuple[tuple[str, Callable[[bytes], bool], str], ...] = (
    ("compressed", _begins(b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"), UNPACK),
    ("compressed", _begins(b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"7z\xbc\xaf", b"Rar!"), UNPACK),
    ("TensorFlow Lite", lambda head: head[4:8] == b"TFL3", TO_ONNX),
    ("GGML of before GGUF", _begins(b"lmgg", b"fmgg", b"tjgg", b"ggml", b"ggmf", b"ggjt"), "convert it to GGUF"),
    ("an old torch.save file", _begins(b"\x50\x4b\x05\x06"), SAVE_STATE),
)
