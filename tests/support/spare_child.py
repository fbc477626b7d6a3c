"""A worker without torch: it is prepared at once, and to load a model is to read its file."""

from __future__ import annotations

from pathlib import Path

from celluler_node.processes.serving import Link, serve_sync
from celluler_node.processes.words import Program
from celluler_node.processes.worker_words import Loaded, LoadModel, Prepare, Prepared

REQUESTS, REPLIES = (Prepare, LoadModel), (Prepared, Loaded)
READER = Program("reader", __name__, REQUESTS, REPLIES, confined=True)


def main(link: Link) -> None:
    handlers = {
        Prepare: lambda _, __: Prepared(),
        LoadModel: lambda request, _: Loaded(len(Path(request.weights).read_bytes()), 0),
    }
    serve_sync(link, REQUESTS, REPLIES, handlers)
