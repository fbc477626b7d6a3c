"""What the lying averager does, and how it is started. Imports no network library: whoever starts it need not."""

from __future__ import annotations

from celluler_node.processes.averager_words import AVERAGER
from celluler_node.processes.words import Program

HONEST, OTHER_BYTES, OTHER_LENGTH, BROKEN_STREAM, TORN_AGGREGATE, OTHER_SET, WRONG_AGGREGATE, GARBAGE = range(8)
"""What it does in the round of this number."""

LIAR = Program(
    "averager",
    "simulations.attacks.averager",
    requests=AVERAGER.requests,
    replies=AVERAGER.replies,
    max_blob_bytes=AVERAGER.max_blob_bytes,
    ready_s=AVERAGER.ready_s,
)
