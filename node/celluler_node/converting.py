"""A model brought in or out of another format by a confined worker: whoever owns the file parses nothing of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from celluler.errors import InvalidSpec, LocalError, TimedOut
from celluler_node.config import NodeConfig
from celluler_node.limits import worker_limits
from celluler_node.processes.refusals import Refused
from celluler_node.processes.supervisor import open_process
from celluler_node.processes.worker_formats_words import FORMATS_WORKER, Convert, Converted
from celluler_node.processes.written import written
from celluler_node.scratch import temporary_folder

CONVERT_S = 3600.0
_OUT = "out"


@asynccontextmanager
async def converted(config: NodeConfig, wanted: Convert) -> AsyncIterator[tuple[Path, Converted]]:
    """The folder in which the files lie until the block ends, and what they are. `wanted.out` is chosen here.

    Raises InvalidSpec for a file that is refused, TimedOut, WorkerFailed.
    """
    asked, readable = _resolved(wanted)
    worker = replace(FORMATS_WORKER, confined=config.sandbox)
    with temporary_folder("convert") as scratch:
        async with open_process(worker, limits=worker_limits(config), readable=readable, scratch=scratch) as child:
            try:
                with trio.fail_after(CONVERT_S):
                    answer = (await child.call(asked)).record
            except trio.TooSlowError:
                raise TimedOut(f"{Path(wanted.source).name} was not converted within {CONVERT_S:g} s") from None
        if isinstance(answer, Refused):
            raise answer.as_error()
        if lacking := child.isolation.missing:
            answer = replace(answer, notes=(*answer.notes, f"read with reduced isolation: {'; '.join(lacking)}"))
        for name in answer.files:
            written(scratch / _OUT, name)
        yield scratch / _OUT, answer


def _resolved(wanted: Convert) -> tuple[Convert, tuple[Path, ...]]:
    """The same with whole paths, and what its worker must be able to read."""
    source = Path(wanted.source).resolve()
    if not source.exists():
        raise LocalError(f"{wanted.source} is not there")
    readable = [source, *(_linked(source) if source.is_dir() else ())]
    weights = ""
    if wanted.weights:
        readable.append(Path(wanted.weights).resolve())
        weights = str(readable[-1])
    return replace(wanted, source=str(source), weights=weights, out=_OUT), tuple(readable)


def _linked(folder: Path) -> Iterator[Path]:
    """Where the links of a folder lead: the cache of Hugging Face is made of them. Whoever made the folder may have
    made them to any file of this machine; raises InvalidSpec for such."""
    blobs = folder.parent.parent / "blobs"
    for link in folder.iterdir():
        if link.is_symlink() and link.name.endswith((".json", ".jinja", ".safetensors", ".bin")):
            target = link.resolve()
            if not target.is_file() or target.parent not in (folder, blobs):
                raise InvalidSpec(
                    f"folder.{link.name[:64]}", "is a link to elsewhere", hint="put the file itself into the folder"
                )
            yield target
