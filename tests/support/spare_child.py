"""A worker without torch: it is prepared at once, and to load a model is to read its file.

It answers with what it was asked, and not at all once that begins with a zero.
"""

from __future__ import annotations

import time
from pathlib import Path

from celluler_node.processes.serving import Handler, Link, serve_sync
from celluler_node.processes.words import Program, Reply
from celluler_node.processes.worker_words import Loaded, LoadModel, Predict, Predicted, Prepare, Prepared, Warm, WarmUp

REQUESTS, REPLIES = (Prepare, LoadModel, WarmUp, Predict), (Prepared, Loaded, Warm, Predicted)
READER = Program("reader", __name__, REQUESTS, REPLIES, confined=True)


def main(link: Link) -> None:
    handlers: dict[type, Handler] = {
        Prepare: lambda _, __: Prepared(),
        Predict: _predict,
        WarmUp: lambda _, __: Warm(),
        LoadModel: lambda request, _: Loaded(len(Path(request.weights).read_bytes()), 0),
    }
    serve_sync(link, REQUESTS, REPLIES, handlers)


def _predict(request: Predict, blobs: tuple[bytearray, ...]) -> Reply:
    while not blobs[0][0]:
        time.sleep(1)
    return Reply(Predicted(request.dtype, request.shape), (blobs[0],))
