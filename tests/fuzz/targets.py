"""What strangers' bytes reach first: functions of bytes that raise what they may raise, and seeds to begin with.

A target takes any bytes. What it does not refuse by one of `REFUSALS` is an error of ours; so is a MemoryError.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from celluler.content.manifest import parse_manifest
from celluler.errors import LocalError, PeerViolation
from celluler.formats.decoder_configs import decoder_of_config
from celluler.formats.decoders import document_of
from celluler.formats.gguf_files import Gguf, open_gguf
from celluler.formats.json_files import read_json_file
from celluler.formats.keras_files import checked_config
from celluler.formats.onnx_files import read_onnx
from celluler.formats.recognise import recognise
from celluler.formats.safetensors_files import open_safetensors
from celluler.formats.tokenizers import gguf_beside
from celluler.formats.torch_files import open_torch
from celluler.identity import Envelope, Identity, _message
from celluler.jobs.spec import canonical_job, parse_job
from celluler.models.body import parse_body
from celluler.models.graph import parse_graph
from celluler.models.index import VersionEntry, VersionIndex, open_index
from celluler.models.layers import Signal
from celluler.models.manifest import ModelManifest, describe_model, open_manifest
from celluler.models.templates import TEMPLATES
from celluler.models.transforms.document import parse_postprocess, parse_preprocess
from celluler.models.transforms.reference import POSTPROCESS, PREPROCESS
from celluler.models.version import parse_version
from celluler.wire import Frames, pack, unpack
from celluler_node.processes.frames import FrameReader, encode
from celluler_node.processes.words import Boot, Failure, Isolation, Kind, Limits, Ready
from celluler_protocols import (
    averaging_messages,
    bulk,
    catalogue,
    generation,
    inference,
    jobs_messages,
    leases,
    rounds_messages,
    stages_messages,
)
from celluler_protocols.content import messages as content_messages
from celluler_protocols.generation.messages import Generate, question_of
from celluler_protocols.membership import messages as membership_messages
from tests.support.jobs import JOB_YAML
from tests.support.malicious import CRAFTED
from tests.support.malicious_containers import CODE, PT2
from tests.support.model_files import a_checkpoint, a_gguf, a_safetensors, an_onnx

REFUSALS = (LocalError, PeerViolation)
VECTORS = Path(__file__).parents[2] / "protocols" / "vectors"
GRAPHS = Path(__file__).parents[1] / "support" / "graphs"
AUTHOR = Identity(b"f" * 32)


@dataclass(frozen=True)
class Target:
    """read: raises one of `REFUSALS`, or takes it. seeds: made when they are asked for. form: how they are mutated
    beside byte by byte: `json`, `msgpack`, `frames` (msgpack behind a length), or nothing more."""

    read: Callable[[bytes], Any]
    seeds: Callable[[], list[bytes]]
    form: str = ""

    def feed(self, data: bytes) -> bool:
        """True when it was taken. Raises what no stranger's bytes may raise."""
        try:
            self.read(data)
        except REFUSALS:
            return False
        return True


def from_file(read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def feed(data: bytes) -> Any:
        with tempfile.NamedTemporaryFile(prefix="celluler-fuzz-") as file:
            file.write(data)
            file.flush()
            return read(Path(file.name))

    return feed


def _values(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """The tensors' values too, as whoever imports them asks for them."""

    def feed(path: Path) -> None:
        opened = read(path)
        if isinstance(opened, Gguf):
            gguf_beside(opened, 4096, 8)
        for one in getattr(opened, "tensors", opened).values():
            assert one.floats().shape == one.shape

    return feed


def _made(*makers: Callable[[Path], Path], crafted: str = "") -> Callable[[], list[bytes]]:
    """One file of each maker, and those crafted ones whose names begin so and that are small."""

    def make() -> list[bytes]:
        found = []
        for maker in (*makers, *(made for name, made in CRAFTED.items() if crafted and name.startswith(crafted))):
            with tempfile.TemporaryDirectory() as folder:
                path = maker(Path(folder))
                if path.is_file() and path.stat().st_size < 1 << 16:
                    found.append(path.read_bytes())
        return found

    return functools.cache(make)


def _frames(made: Callable[[], Frames], vectors: str) -> Target:
    def seeds() -> list[bytes]:
        told = json.loads((VECTORS / f"{vectors}.json").read_text())["messages"]
        return [bytes.fromhex(one["frame"]) for one in told]

    return Target(lambda data: made().feed(data), functools.cache(seeds), "frames")


def _questions(data: bytes) -> list[Any]:
    return [question_of(one) for one in generation.frames().feed(data) if isinstance(one, Generate)]


def _signed(kind: str, open_it: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """The body of an envelope, whose signature is right whatever it holds."""

    def feed(body: bytes) -> Any:
        signature = AUTHOR.sign(_message(kind, body))
        return open_it(pack(Envelope(kind, AUTHOR.public_key, body, signature)))

    return feed


def _manifests() -> list[bytes]:
    documents = [(kind, document) for kind, document in _bodies() if len(document) < 5000][:6]
    return [
        pack(describe_model("digits", "1.0.0", document, b"w" * 32, created_s=1, body=kind))
        for kind, document in documents
    ]


def _bodies() -> list[tuple[str, bytes]]:
    specs = [("spec", json.dumps(template.document).encode()) for template in TEMPLATES.values()]
    return specs + [("graph", document) for document in _graph_bodies()]


def _graph_bodies() -> list[bytes]:
    graph = json.loads((GRAPHS / "mlp.json").read_text())
    outputs = [10]
    body = {
        "body": 1,
        "graph": graph,
        "objective": {"kind": "regression"},
        "output": outputs,
        "activation_bytes": 10_000,
    }
    return [json.dumps(body).encode()]


_KERAS = {
    "module": "keras",
    "class_name": "Sequential",
    "config": {
        "layers": [
            {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2}, "registered_name": None},
            {"module": "keras.src.ops.numpy", "class_name": "Add", "config": {}, "registered_name": "Add"},
        ]
    },
    "registered_name": "Sequential",
    "compile_config": {"loss": "mse"},
}


def _config() -> list[bytes]:
    llama = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 16,
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    gpt2 = {
        "model_type": "gpt2",
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 16,
        "vocab_size": 16,
        "activation_function": "gelu_new",
    }
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4,
        "beta_fast": 2,
        "truncate": False,
    }
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    stretched = [llama | {"rope_scaling": yarn}, llama | {"rope_parameters": llama3 | {"rope_theta": 500000.0}}]
    return [json.dumps(one).encode() for one in (llama, gpt2, *stretched)]


def _feed_frames(data: bytes) -> None:
    reader = FrameReader(1 << 16)
    for start in range(0, len(data), 97):
        chunk = data[start : start + 97]
        while chunk:
            space = reader.space()
            count = min(len(space), len(chunk))
            space[:count] = chunk[:count]
            chunk = chunk[count:]
            for frame in reader.filled(count):
                for cls, kind in ((Boot, Kind.BOOT), (Ready, Kind.READY), (Failure, Kind.FAILURE)):
                    if frame.kind == kind:
                        unpack(cls, frame.record, limit=1 << 20)


def _text(data: bytes) -> None:
    parse_version(data.decode("utf-8", "surrogateescape"))


_CHAIN = {
    "transforms": 1,
    "input": {"name": "x", "dtype": "float32", "shape": [2, 6]},
    "steps": [
        {"kind": "normalise", "mean": [1, 2], "deviation": [1, 2], "axis": 0},
        {"kind": "clip", "low": -1, "high": 1},
        {"kind": "pad", "before": [0, 1], "after": [0, 1], "value": 0.5},
        {"kind": "crop", "shape": [1, 4], "start": [1, 1]},
        {"kind": "transpose", "axes": [1, 0]},
        {"kind": "take", "places": [0, 3, 1], "axis": 0},
        {"kind": "softmax", "axis": 0},
        {"kind": "argmax", "axis": 0},
        {"kind": "one_hot", "classes": 3},
        {"kind": "cast", "to": "int64"},
    ],
}
_OUTPUTS = {
    "raw": Signal("float32", (10,)),
    "probabilities": Signal("float32", (10,)),
    "labels": Signal("int64", ()),
}
_INDEX = VersionIndex("digits", "model", 1, (VersionEntry("1.0.0", b"m" * 32),))
_FRAMES = (
    (Kind.READY, Ready(Isolation(True, True, True, 7, True, ()))),
    (Kind.FAILURE, Failure("ValueError", "no", "memory")),
    (Kind.BOOT, Boot("worker", "module", Limits(), True, ("/usr/lib",), (), "/tmp", 1 << 20)),
)

TARGETS: dict[str, Target] = {
    "spec": Target(
        functools.partial(parse_body, "spec"),
        functools.cache(lambda: [document for kind, document in _bodies() if kind == "spec"]),
        "json",
    ),
    "graph": Target(functools.partial(parse_body, "graph"), functools.cache(_graph_bodies), "json"),
    "graph document": Target(
        parse_graph, functools.cache(lambda: [path.read_bytes() for path in sorted(GRAPHS.glob("*.json"))[:4]]), "json"
    ),
    "job": Target(parse_job, lambda: [JOB_YAML.encode()]),
    "job as json": Target(parse_job, lambda: [canonical_job(parse_job(JOB_YAML))], "json"),
    "model manifest": Target(_signed(ModelManifest.KIND, open_manifest), functools.cache(_manifests), "msgpack"),
    "model index": Target(_signed(VersionIndex.KIND, open_index), lambda: [pack(_INDEX)], "msgpack"),
    "content manifest": Target(
        parse_manifest,
        functools.cache(
            lambda: [bytes.fromhex(text) for text in _hex(json.loads((VECTORS / "content-manifest.json").read_text()))]
        ),
        "msgpack",
    ),
    "preprocess": Target(
        parse_preprocess, functools.cache(lambda: [json.dumps(one).encode() for one in (PREPROCESS, _CHAIN)]), "json"
    ),
    "postprocess": Target(
        lambda data: parse_postprocess(data, _OUTPUTS), lambda: [json.dumps(POSTPROCESS).encode()], "json"
    ),
    "version": Target(_text, lambda: [b"1.2.3-rc.1+build.5"]),
    "recognise": Target(
        from_file(recognise), _made(a_safetensors, a_checkpoint, a_gguf, an_onnx, *PT2.values(), *CODE.values())
    ),
    "safetensors": Target(from_file(_values(open_safetensors)), _made(a_safetensors, crafted="safetensors")),
    "torch": Target(from_file(_values(open_torch)), _made(a_checkpoint, crafted="checkpoint")),
    "onnx": Target(from_file(read_onnx), _made(an_onnx, crafted="onnx")),
    "gguf": Target(from_file(_values(open_gguf)), _made(a_gguf, crafted="gguf")),
    "hf config": Target(
        from_file(lambda path: document_of(decoder_of_config(read_json_file(path, "config.json", 1 << 20)))),
        functools.cache(_config),
        "json",
    ),
    "keras config": Target(checked_config, lambda: [json.dumps(_KERAS).encode()], "json"),
    "process channel": Target(
        _feed_frames, functools.cache(lambda: [b"".join(encode(kind, record)) for kind, record in _FRAMES])
    ),
    "wire membership": _frames(membership_messages.frames, "membership"),
    "wire content": _frames(content_messages.frames, "content"),
    "wire inference": _frames(inference.frames, "inference"),
    "wire generation": _frames(generation.frames, "generation"),
    "questions": Target(_questions, _frames(generation.frames, "generation").seeds, "frames"),
    "wire leases": _frames(leases.frames, "leases"),
    "wire stages": _frames(stages_messages.frames, "stages"),
    "wire jobs": _frames(jobs_messages.frames, "jobs"),
    "wire rounds": _frames(rounds_messages.frames, "rounds"),
    "wire averaging": _frames(averaging_messages.frames, "averaging"),
    "wire bulk": _frames(bulk.frames, "bulk"),
    "wire catalogue": _frames(catalogue.frames, "catalogue"),
}


def _hex(value: Any) -> list[str]:
    """The longest texts of hexadecimal digits in a document: its examples, whatever it calls them."""
    found: list[str] = []
    pending = [value]
    while pending:
        match pending.pop():
            case dict() as inner:
                pending += inner.values()
            case list() as inner:
                pending += inner
            case str() as text if len(text) >= 8 and len(text) % 2 == 0 and not set(text) - set("0123456789abcdef"):
                found.append(text)
    return sorted(found, key=len, reverse=True)[:8]


def plain(form: str, seed: bytes) -> Any:
    """The values in a seed. Raises ValueError when it holds none."""
    match form:
        case "json":
            return json.loads(seed)
        case "msgpack":
            return msgpack.unpackb(seed, strict_map_key=False)
        case "frames":
            return msgpack.unpackb(seed[4:], strict_map_key=False)
    raise ValueError(form)


def written(form: str, value: Any) -> bytes:
    """The inverse of `plain`. Raises ValueError, TypeError or OverflowError for what the form cannot say."""
    if form == "json":
        return json.dumps(value).encode("utf-8", "surrogatepass")
    body = bytes(msgpack.packb(value, use_bin_type=True))
    return body if form == "msgpack" else len(body).to_bytes(4, "big") + body
