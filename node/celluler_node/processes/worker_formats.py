"""The worker that brings a model in or out of another format. Started confined, before this module and torch are
imported; it may read the model and write its scratch folder, and that is all it can do to whoever made the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from celluler.engines.formats.convert import convert
from celluler.errors import InvalidSpec
from celluler.formats.importing import Wishes
from celluler_node.processes.refusals import clipped, refusing
from celluler_node.processes.serving import Link, serve_sync
from celluler_node.processes.worker_formats_words import (
    FORMATS_REPLIES,
    FORMATS_REQUESTS,
    Convert,
    Converted,
)

Blobs = tuple[bytearray, ...]


def main(link: Link) -> None:
    torch.set_num_threads(max(1, link.boot.limits.threads))
    serve_sync(link, FORMATS_REQUESTS, FORMATS_REPLIES, Converter(Path(link.boot.scratch)).handlers)


class Converter:
    """Keeps nothing between two requests."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    @property
    def handlers(self) -> Mapping[type, Callable[[Any, Blobs], Any]]:
        return {Convert: refusing(self.convert)}

    def convert(self, request: Convert) -> Converted:
        if Path(request.out).name != request.out or request.out.startswith("."):
            raise InvalidSpec("out", f"{request.out!r} is no plain name")
        out = self._scratch / request.out
        out.mkdir()
        wishes = Wishes(request.context or None, request.by_order, request.objective)
        done = convert(
            Path(request.source), Path(request.weights) if request.weights else None, request.to, wishes, out
        )
        return Converted(
            done.form,
            "" if done.body is None else done.body.kind,
            done.files,
            done.elements,
            done.byte_count,
            tuple(map(clipped, done.notes)),
            done.deviation is not None,
            done.deviation or 0.0,
        )
