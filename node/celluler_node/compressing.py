"""A model made smaller by a confined worker: whoever asks for it runs nothing of the model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from celluler.errors import InvalidSpec, TimedOut, WorkerFailed
from celluler.models.body import parse_body
from celluler.models.weights import check_weights
from celluler_node.config import NodeConfig
from celluler_node.limits import worker_limits
from celluler_node.processes.refusals import Refused
from celluler_node.processes.supervisor import open_process
from celluler_node.processes.worker_compress_words import (
    COMPRESS_WORKER,
    OUT,
    Compressed,
    Distil,
    Given,
    Prune,
    Quantise,
)
from celluler_node.processes.written import written
from celluler_node.scratch import temporary_folder

COMPRESS_S = 24 * 3600.0


@asynccontextmanager
async def compressed(config: NodeConfig, wanted: Quantise | Prune | Distil) -> AsyncIterator[tuple[Path, Compressed]]:
    """The weights file of the smaller model, there until the block ends, and what else is known of it.

    Its header was checked against its document. Raises InvalidSpec for what is refused, TimedOut, WorkerFailed.
    """
    worker = replace(COMPRESS_WORKER, confined=config.sandbox)
    asked = _resolved(wanted)
    with temporary_folder("compress") as scratch:
        readable = tuple(map(Path, _files(asked)))
        async with open_process(worker, limits=worker_limits(config), readable=readable, scratch=scratch) as child:
            try:
                with trio.fail_after(COMPRESS_S):
                    answer = (await child.call(asked)).record
            except trio.TooSlowError:
                raise TimedOut(f"nothing came of it within {COMPRESS_S:g} s") from None
        if isinstance(answer, Refused):
            raise answer.as_error()
        path = written(scratch, OUT)
        try:
            check_weights(parse_body(answer.body, answer.spec), path)
        except InvalidSpec as error:
            raise WorkerFailed(f"what it wrote is no model: {error}") from error
        yield path, answer


def _files(wanted: Quantise | Prune | Distil) -> Iterable[str]:
    match wanted:
        case Distil():
            files = (wanted.teacher.weights, wanted.weights, wanted.data, wanted.test)
        case _:
            files = (wanted.model.weights, wanted.data, "", "")
    return (file for file in files if file)


def _resolved(wanted: Quantise | Prune | Distil) -> Quantise | Prune | Distil:
    """The same with whole paths: the sandbox lets through what is named so."""
    match wanted:
        case Distil():
            return replace(
                wanted,
                teacher=_whole(wanted.teacher),
                weights=_path(wanted.weights),
                data=_path(wanted.data),
                test=_path(wanted.test),
            )
        case _:
            return replace(wanted, model=_whole(wanted.model), data=_path(wanted.data))


def _whole(given: Given) -> Given:
    return replace(given, weights=_path(given.weights))


def _path(path: str) -> str:
    return str(Path(path).resolve()) if path else ""
