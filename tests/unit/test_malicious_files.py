"""Crafted files, read as `celluler model add` and peers read them: nothing runs, nothing grows, each has its error."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celluler.engines.graph.measure import check_measured
from celluler.engines.prepare import prepare
from celluler.errors import InvalidSpec
from celluler.formats.importing import Wishes, import_gguf, import_hf_folder
from celluler.formats.onnx_files import read_onnx
from celluler.formats.recognise import recognise
from celluler.formats.safetensors_files import open_safetensors
from celluler.formats.torch_files import open_torch
from celluler.models.body import parse_body
from celluler.models.graph_body import GraphBody
from tests.support.malicious import CRAFTED, PLACES
from tests.support.malicious_containers import CANARY, SECRET, Runs

pytestmark = pytest.mark.thorough

BUDGET_BYTES = 48 << 20
"""Of address space, in Python or under it, for any one of them. Passing it would be a MemoryError."""
FORBIDDEN = (
    *("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"),
    *("socket.connect", "ctypes.dlopen"),
)

_seen: list[tuple[str, Any]] = []
_listening = [False]


def _note(event: str, arguments: Any) -> None:
    if _listening[0] and (event in FORBIDDEN or (event == "open" and str(arguments[0]).endswith(("/passwd", SECRET)))):
        _seen.append((event, arguments))


sys.addaudithook(_note)


@contextlib.contextmanager
def watched() -> Iterator[list[tuple[str, Any]]]:
    """What is done meanwhile that must not be, and no more memory than the budget."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _seen.clear()
    _listening[0] = True
    resource.setrlimit(resource.RLIMIT_AS, (used + BUDGET_BYTES, hard))
    try:
        yield _seen
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        _listening[0] = False


def read(path: Path) -> object:
    """Whatever it is, as far as it is read before anybody asks for a tensor's values, and then those."""
    match recognise(path):
        case "spec" | "graph" as kind:
            body = parse_body(kind, path.read_bytes())
            return check_measured(body) if isinstance(body, GraphBody) else body
        case "safetensors":
            return [one.floats() for one in open_safetensors(path).values()]
        case "torch":
            return [one.floats() for one in open_torch(path).values()]
        case "onnx":
            return read_onnx(path)
        case "gguf":
            return import_gguf(path, Wishes())
        case "hf":
            return import_hf_folder(path, Wishes())
    raise AssertionError(path)


@pytest.mark.skipif(sys.platform != "linux", reason="the budget is a limit of Linux")
@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_file_is_refused_within_its_budget(name: str, tmp_path: Path) -> None:
    import onnx  # noqa: F401, PLC0415  its own size is not the file's

    prepare()  # nor is what torch loads of itself
    (tmp_path / SECRET).write_bytes(b"private")
    path = CRAFTED[name](tmp_path)
    with watched() as seen, pytest.raises(InvalidSpec) as refused:
        read(path)
    assert refused.value.path == PLACES.get(name, "file")
    assert not seen
    assert not (tmp_path / CANARY).exists()
    assert len(str(refused.value)) < 1000


@pytest.mark.skipif(sys.platform != "linux", reason="the budget is a limit of Linux")
def test_the_budget_and_the_watch_would_notice(tmp_path: Path) -> None:
    import pickle  # noqa: PLC0415

    with watched(), pytest.raises(MemoryError):
        bytearray(4 * BUDGET_BYTES)
    with watched() as seen:
        pickle.loads(pickle.dumps(Runs(tmp_path)))
        (Path("/etc/passwd")).open().close()
    assert {event for event, _ in seen} >= {"pickle.find_class", "os.system", "open"}
    assert (tmp_path / CANARY).exists()


def test_there_are_as_many_as_there_should_be() -> None:
    assert len(CRAFTED) >= 100
